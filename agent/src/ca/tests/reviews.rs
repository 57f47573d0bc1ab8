//! Callers whose tokens the API server reviews.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::Code;

use super::{Call, cluster, pod, settings, snapshot};
use crate::ca::Authority;
use crate::ca::callers::{Callers, Reviews};
use crate::ca::service::{Service, Shared};
use crate::cluster::kube::TokenReviews;
use crate::cluster::kube::fake::FakeApi;
use crate::identity::tests::{TestClock, id};
use crate::model::NamespacedName;
use crate::state::{Pod, Snapshot};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const AGENT: &str = "system:serviceaccount:fairlead-system:fairlead-agent";

/// The token of a test says what the API server finds it to be.
fn token(claims: &Value) -> String {
    let hex = claims
        .to_string()
        .bytes()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("header.{hex}.signature")
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    let bytes: Vec<u8> = (0..payload.len() / 2)
        .map(|index| u8::from_str_radix(&payload[2 * index..2 * index + 2], 16).unwrap())
        .collect();
    serde_json::from_slice(&bytes).unwrap()
}

/// What an API server answers: it knows when a token is over, and whom it is for.
fn review(request: &Value) -> Value {
    let claims = claims(request["spec"]["token"].as_str().unwrap());
    let mut answer = request.clone();
    let wanted = &request["spec"]["audiences"][0];
    answer["status"] = if claims["expired"] == true {
        json!({"authenticated": false, "error": "token has expired"})
    } else if claims["audience"] != *wanted {
        json!({"authenticated": false, "error": "token audiences is invalid for the target"})
    } else {
        let mut extra = serde_json::Map::new();
        for key in ["pod-name", "pod-uid", "node-name"] {
            if let Some(value) = claims[key].as_str() {
                extra.insert(
                    format!("authentication.kubernetes.io/{key}"),
                    json!([value]),
                );
            }
        }
        json!({
            "authenticated": true,
            "audiences": [wanted],
            "user": {"username": claims["user"], "extra": extra},
        })
    };
    answer
}

/// Of the agent on node-a, as Kubernetes 1.30 and later makes it.
fn agent_token() -> Value {
    json!({
        "audience": "fairlead-ca",
        "user": AGENT,
        "pod-name": "fairlead-agent-a",
        "pod-uid": "uid-a",
        "node-name": "node-a",
    })
}

fn with(key: &str, value: impl Into<Value>) -> Value {
    let mut claims = agent_token();
    claims[key] = value.into();
    claims
}

fn agent(node: &str, uid: &str) -> Pod {
    Pod {
        name: NamespacedName::new("fairlead-system", "fairlead-agent-a"),
        uid: uid.into(),
        host_network: true,
        ..pod(node, "fairlead-agent")
    }
}

struct World {
    api: FakeApi,
    service: Service,
    snapshots: watch::Sender<Snapshot>,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let (api, dir, clock) = (FakeApi::new(), TempDir::new().unwrap(), TestClock::new());
        api.answer(PATH, review);
        let (snapshots, receiver) = watch::channel(cluster());
        let reviews = TokenReviews::new(api.client(), "fairlead-ca".to_owned());
        let account = NamespacedName::new("fairlead-system", "fairlead-agent");
        let callers = Callers::Reviews(Box::new(Reviews::new(reviews, account)));
        let shared = Shared::new(settings(receiver, &clock), callers);
        let authority = Authority::open_at(dir.path(), clock.shared()).unwrap();
        shared.replace_authority(&Arc::new(authority));
        let world = Self {
            api,
            service: Service(Arc::new(shared)),
            snapshots,
            _dir: dir,
        };
        world.agent_is(Some(agent("node-a", "uid-a")));
        world
    }

    /// What the CA knows of the agent's pod.
    fn agent_is(&self, agent: Option<Pod>) {
        let pods = [pod("node-a", "web"), pod("node-b", "cart")];
        self.snapshots
            .send_replace(snapshot(pods.into_iter().chain(agent)));
    }

    async fn ask(&self, claims: &Value, account: &str) -> Result<(), Code> {
        let call = Call::new(&token(claims), &id(account));
        let answer = call.make(&self.service).await;
        answer.map(|_| ()).map_err(|status| status.code())
    }

    fn reviews(&self) -> usize {
        self.api.requests(&Method::POST, PATH)
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_served_for_the_pods_of_its_node() {
    let world = World::new();
    assert_eq!(world.ask(&agent_token(), "web").await, Ok(()));
    let refused = Err(Code::PermissionDenied);
    assert_eq!(world.ask(&agent_token(), "cart").await, refused);
    // The CA may hear of the pod later than the pod of the CA.
    world.agent_is(None);
    assert_eq!(world.ask(&agent_token(), "web").await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn before_kubernetes_1_30_the_pod_tells_the_node() {
    let world = World::new();
    let old = with("node-name", Value::Null);
    assert_eq!(world.ask(&old, "web").await, Ok(()));
    assert_eq!(world.ask(&old, "cart").await, Err(Code::PermissionDenied));

    let stranger = Err(Code::Unauthenticated);
    world.agent_is(Some(agent("node-a", "another uid")));
    assert_eq!(world.ask(&old, "web").await, stranger);
    world.agent_is(None);
    assert_eq!(world.ask(&old, "web").await, stranger);
    world.snapshots.send_replace(Snapshot::default());
    assert_eq!(world.ask(&old, "web").await, Err(Code::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn other_tokens_are_refused() {
    let world = World::new();
    let tokens = [
        with("audience", "istio-ca"),
        with("expired", true),
        with("user", "system:serviceaccount:shop:web"),
        with("user", "system:serviceaccount:shop:fairlead-agent"),
        with("user", "admin"),
        with("pod-name", Value::Null),
        with("pod-uid", Value::Null),
    ];
    for claims in tokens {
        assert_eq!(
            world.ask(&claims, "web").await,
            Err(Code::Unauthenticated),
            "{claims}"
        );
    }
    // The token and the CA's own view disagree on where the pod is.
    world.agent_is(Some(agent("node-b", "uid-a")));
    assert_eq!(
        world.ask(&agent_token(), "web").await,
        Err(Code::Unauthenticated)
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_refuses_nobody() {
    let world = World::new();
    world.api.set_away(true);
    assert_eq!(
        world.ask(&agent_token(), "web").await,
        Err(Code::Unavailable)
    );
    world.api.set_away(false);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.ask(&agent_token(), "web").await, Ok(()));
    // An answer that is known serves for a while.
    world.api.set_away(true);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(world.ask(&agent_token(), "web").await, Ok(()));
    sleep(Duration::from_secs(20)).await;
    assert_eq!(
        world.ask(&agent_token(), "web").await,
        Err(Code::Unavailable)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reviewed_once_in_a_while() {
    let world = World::new();
    let token = agent_token();
    let calls = (0..100).map(|_| world.ask(&token, "web"));
    let answers = join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(world.reviews(), 1);
    sleep(Duration::from_secs(31)).await;
    world.ask(&token, "web").await.unwrap();
    assert_eq!(world.reviews(), 2);

    let refused = with("expired", true);
    for (pause, reviews) in [(0, 3), (5, 3), (6, 4)] {
        sleep(Duration::from_secs(pause)).await;
        world.ask(&refused, "web").await.unwrap_err();
        assert_eq!(world.reviews(), reviews);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_service_account_token_is_not_reviewed() {
    let world = World::new();
    let long = format!("a.{}.c", "b".repeat(20_000));
    for token in ["", "opaque", "two.parts", "more.than.three.parts", &long] {
        let call = Call::new(token, &id("web"));
        let status = call.make(&world.service).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), "unauthenticated");
    }
    assert_eq!(world.reviews(), 0);
}

#[tokio::test(start_paused = true)]
async fn strangers_do_not_push_an_agent_out() {
    let world = World::new();
    world.ask(&agent_token(), "web").await.unwrap();
    for number in 0..1500 {
        let mut claims = with("expired", true);
        claims["pod-name"] = number.into();
        world.ask(&claims, "web").await.unwrap_err();
    }
    let reviews = world.reviews();
    assert_eq!(reviews, 1501);
    world.ask(&agent_token(), "web").await.unwrap();
    assert_eq!(world.reviews(), reviews);
}

#[tokio::test(start_paused = true)]
async fn strangers_keep_no_agent_waiting() {
    let world = World::new();
    world.ask(&agent_token(), "web").await.unwrap();
    sleep(Duration::from_secs(31)).await;
    let strangers: Vec<Value> = (0..40)
        .map(|number| with("pod-uid", format!("uid-{number}")))
        .map(|mut claims| {
            claims["user"] = "system:serviceaccount:shop:web".into();
            claims
        })
        .collect();
    let flood = join_all(strangers.iter().map(|claims| world.ask(claims, "web")));
    let mut flood = Box::pin(flood);
    assert!(futures_util::poll!(&mut flood).is_pending());
    // One of too many, and one that was an agent's before.
    let new = with("pod-uid", "uid-new");
    assert_eq!(world.ask(&new, "web").await, Err(Code::Unavailable));
    assert_eq!(world.ask(&agent_token(), "web").await, Ok(()));
    let answers = flood.await;
    let at_once = answers
        .iter()
        .filter(|answer| **answer == Err(Code::Unavailable));
    assert!(at_once.count() >= 36, "{answers:?}");
    // There is room again.
    assert_eq!(world.ask(&new, "web").await, Ok(()));
}
