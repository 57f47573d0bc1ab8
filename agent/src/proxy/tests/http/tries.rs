//! Requests that are held up, limited, sent again or given up, over sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::services::{App, SHORT, Served, app_of, get, request};
use super::{Heard, ask, request_flow};
use crate::flow::Verdict;
use crate::model::NamespacedName;
use crate::proxy::tests::world::{PATIENCE, TestPod, World, app, fresh_ip, reset, soon, until};
use crate::state::traffic::{
    Abort, AbortWith, Algorithm, Delay, Fault, LimitKey, LimitKind, LoadBalancingSpec, LocalLimit,
    OutlierDetectionSpec, RateLimit, RetriesSpec, RetryOn, Share, TimeoutsSpec, TrafficMatch,
    TrafficPolicy, TrafficSpec, TrafficTarget,
};
use crate::state::{Object, TargetPort, fixtures};

/// Service `web` with one application on the other node.
struct Shop {
    world: World,
    client: TestPod,
    far: TestPod,
    web: Served,
    app: App,
}

fn shop() -> Shop {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let far = world.pod("far", 1);
    let app = app_of(&far, "far");
    let web = world.service("web", &[app.address]);
    Shop {
        world,
        client,
        far,
        web,
        app,
    }
}

impl Shop {
    async fn get(&self, path: &str) -> Heard {
        get(&self.client, &self.web, path, "").await
    }

    async fn post(&self, path: &str, body: &str) -> Heard {
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n");
        request(&self.client, &self.web, &format!("{head}{body}")).await
    }

    /// A TrafficPolicy of Service `web`.
    fn policy(&mut self, spec: TrafficSpec) {
        self.policy_of("web", spec);
    }

    fn policy_of(&mut self, service: &str, spec: TrafficSpec) {
        self.world.apply(Object::TrafficPolicy(TrafficPolicy {
            name: NamespacedName::new("shop", service),
            targets: vec![TrafficTarget {
                service: service.into(),
                port: None,
            }],
            spec,
            created: 0,
            generation: 0,
            invalid: None,
            held: false,
        }));
    }
}

fn retries(on: &[RetryOn], attempts: u32) -> TrafficSpec {
    TrafficSpec {
        retries: Some(RetriesSpec {
            attempts: Some(attempts),
            on: Some(on.to_vec()),
            ..RetriesSpec::default()
        }),
        ..TrafficSpec::default()
    }
}

#[tokio::test]
async fn a_route_has_its_requests_sent_again_with_their_bodies() {
    let mut shop = shop();
    let rule = "[{retry: {attempts: 3, codes: [503], backoff: 1ms}, backendRefs: [{name: web, port: 80}]}]";
    shop.world.route(rule);
    let heard = shop.post("/flaky/2", "hello").await;
    assert_eq!(heard.status(), 200);
    assert_eq!(heard.header("fairlead-retries"), Some("2"));
    assert!(heard.text().ends_with("\n\nhello"), "{heard:?}");
    let flow = request_flow(&mut shop.world, 0).await;
    assert_eq!(flow.verdict, Verdict::Forwarded);
    assert_eq!(flow.http.unwrap().retries, 2);

    // The last answer is the client's, if none is better.
    let heard = shop.post("/status/503", "").await;
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (503, Some("3"))
    );
    assert_eq!(shop.app.count(), 3 + 4);
    let heard = shop.get("/status/500").await;
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (500, None)
    );
}

#[tokio::test]
async fn an_answer_that_was_sent_again_counts_against_its_endpoint() {
    let mut shop = shop();
    // Fails for good, where the other only says who it is.
    let (listener, fails) = shop.far.listen();
    let asked = failing(listener);
    let ip = shop.web.ip;
    shop.world.service_at("web", ip, &[shop.app.address, fails]);
    let mut spec = retries(&[RetryOn::ServerError], 1);
    spec.load_balancing = Some(LoadBalancingSpec {
        algorithm: Some(Algorithm::RoundRobin),
        ..LoadBalancingSpec::default()
    });
    spec.outlier_detection = Some(OutlierDetectionSpec {
        consecutive_5xx: Some(2),
        base_ejection_time: Some(Duration::from_hours(1)),
        max_ejection_time: Some(Duration::from_hours(1)),
        ..OutlierDetectionSpec::default()
    });
    shop.policy(spec);
    for _ in 0..30 {
        assert_eq!(shop.get("/").await.status(), 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// An application whose answers are all 503; how many there were.
#[expect(
    clippy::excessive_nesting,
    reason = "a server for one connection at a time"
)]
fn failing(listener: TcpListener) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream
                    .read_buf(&mut head)
                    .await
                    .is_ok_and(|count| count > 0)
                {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let _before = seen.fetch_add(1, Ordering::SeqCst);
                        let answer = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n";
                        let _sent = stream.write_all(answer).await;
                    }
                }
            });
        }
    });
    count
}

#[tokio::test]
async fn a_body_that_is_too_long_is_sent_once() {
    let mut shop = shop();
    shop.world.route("[{retry: {attempts: 3, codes: [503], backoff: 1ms}, backendRefs: [{name: web, port: 80}]}]");
    let body = "x".repeat(65 << 10);
    let heard = shop.post("/flaky/1", &body).await;
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (503, None)
    );
    assert_eq!(shop.app.count(), 1);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_tried_elsewhere_whatever_the_method() {
    let mut shop = shop();
    let (listener, gone) = shop.far.listen();
    drop(listener);
    let ip = shop.web.ip;
    shop.world.service_at("web", ip, &[shop.app.address, gone]);
    let mut repeated = 0;
    for _ in 0..20 {
        let heard = shop.post("/", "hello").await;
        assert_eq!(heard.status(), 200);
        assert!(heard.text().ends_with("\n\nhello"));
        repeated += usize::from(heard.header("fairlead-retries").is_some());
    }
    assert!(repeated > 0, "some went to the one that is gone first");
    assert_eq!(shop.app.count(), 20, "nothing came twice");
}

#[tokio::test]
async fn without_any_endpoint_that_is_there_the_client_is_told() {
    let mut shop = shop();
    let (listener, gone) = shop.far.listen();
    drop(listener);
    let ip = shop.web.ip;
    shop.world.service_at("web", ip, &[gone]);
    let heard = shop.get("/").await;
    assert_eq!(heard.status(), 503);
    let reason = heard.header("fairlead-reason").unwrap();
    assert!(reason.starts_with("connect_failed"), "{reason}");
    assert_eq!(heard.header("fairlead-retries"), Some("2"));
}

/// An application that ends each connection once it has read of it; how often it did.
fn breaking(listener: TcpListener) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                if stream.read(&mut [0]).await.is_ok_and(|count| count > 0) {
                    let _before = seen.fetch_add(1, Ordering::SeqCst);
                }
                reset(stream);
            });
        }
    });
    count
}

#[tokio::test]
async fn what_may_have_been_seen_is_sent_again_only_where_that_is_safe() {
    let mut shop = shop();
    let (listener, address) = shop.far.listen();
    let seen = breaking(listener);
    let ip = shop.web.ip;
    shop.world.service_at("web", ip, &[address]);
    shop.policy(retries(&[RetryOn::Reset], 2));
    let heard = shop.post("/", "hello").await;
    assert_eq!(heard.status(), 502, "{heard:?}");
    let reason = heard.header("fairlead-reason").unwrap();
    assert!(reason.starts_with("upstream_reset"), "{reason}");
    assert_eq!(seen.swap(0, Ordering::SeqCst), 1, "a POST comes once");
    let heard = shop.get("/").await;
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (502, Some("2"))
    );
    assert_eq!(seen.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_retry_goes_to_another_endpoint_than_the_one_that_failed() {
    let mut shop = shop();
    let (listener, breaks) = shop.far.listen();
    let seen = breaking(listener);
    let ip = shop.web.ip;
    shop.world
        .service_at("web", ip, &[shop.app.address, breaks]);
    shop.policy(retries(&[RetryOn::Reset], 1));
    for _ in 0..20 {
        assert_eq!(shop.get("/").await.status(), 200);
    }
    assert_eq!(shop.app.count(), 20);
    assert!(seen.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_try_that_takes_too_long_is_given_up_for_another() {
    let mut shop = shop();
    let (listener, silent) = app(SocketAddr::new(shop.far.ip, 0));
    let ip = shop.web.ip;
    shop.world.service_at("web", ip, &[silent]);
    let mut spec = retries(&[RetryOn::PerTryTimeout], 1);
    spec.timeouts = Some(TimeoutsSpec {
        per_try: Some(SHORT),
        ..TimeoutsSpec::default()
    });
    shop.policy(spec);
    let heard = shop.get("/").await;
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (504, Some("1"))
    );
    assert_eq!(
        heard.header("fairlead-reason"),
        Some("timed_out; after 300ms")
    );
    drop(listener);
}

#[tokio::test]
async fn a_route_and_a_policy_end_requests_in_time() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{path: {value: /never/route}}], timeouts: {request: 200ms}, backendRefs: [{name: web, port: 80}]},
          {backendRefs: [{name: web, port: 80}]}]",
    );
    shop.policy(TrafficSpec {
        timeouts: Some(TimeoutsSpec {
            request: Some(SHORT),
            ..TimeoutsSpec::default()
        }),
        ..TrafficSpec::default()
    });
    for (path, detail) in [("/never/route", "200ms"), ("/never/policy", "300ms")] {
        let heard = shop.get(path).await;
        assert_eq!(heard.status(), 504);
        let expected = format!("timed_out; after {detail}");
        assert_eq!(heard.header("fairlead-reason"), Some(&*expected));
        assert_eq!(heard.header("fairlead-retries"), None);
        let flow = request_flow(&mut shop.world, 0).await;
        assert_eq!(flow.verdict, Verdict::Failed);
        assert!(flow.reason.starts_with("timed_out"), "{}", flow.reason);
    }
}

#[tokio::test]
async fn a_deadline_holds_before_the_first_try() {
    let mut shop = shop();
    shop.world.route(
        "[{matches: [{path: {value: /route}}], timeouts: {request: 200ms}, backendRefs: [{name: web, port: 80}]},
          {backendRefs: [{name: web, port: 80}]}]",
    );
    shop.policy(TrafficSpec {
        timeouts: Some(TimeoutsSpec {
            request: Some(SHORT),
            ..TimeoutsSpec::default()
        }),
        faults: vec![Fault {
            matches: TrafficMatch::default(),
            delay: Some(Delay {
                share: Share::ALL,
                duration: 2 * PATIENCE,
            }),
            abort: None,
        }],
        ..TrafficSpec::default()
    });
    for (path, detail) in [("/route", "200ms"), ("/policy", "300ms")] {
        let heard = shop.get(path).await;
        assert_eq!(heard.status(), 504);
        let expected = format!("timed_out; after {detail}");
        assert_eq!(heard.header("fairlead-reason"), Some(&*expected));
    }
    assert_eq!(shop.app.count(), 0);
}

#[tokio::test]
async fn a_limit_refuses_what_is_too_much_and_says_when_to_come_again() {
    let mut shop = shop();
    shop.policy(TrafficSpec {
        rate_limits: vec![RateLimit {
            name: "per-key".into(),
            matches: TrafficMatch::default(),
            limit: LimitKind::Local(LocalLimit {
                requests: 2,
                per: Duration::from_hours(1),
                burst: None,
                by: LimitKey::Header(http::HeaderName::from_static("x-key")),
            }),
        }],
        ..TrafficSpec::default()
    });
    let ask = async |key: &str| {
        let headers = format!("x-key: {key}\r\n");
        get(&shop.client, &shop.web, "/", &headers).await
    };
    for expected in [200, 200, 429, 429] {
        assert_eq!(ask("a").await.status(), expected);
    }
    assert_eq!(ask("b").await.status(), 200);
    let heard = ask("a").await;
    assert_eq!(
        heard.header("fairlead-reason"),
        Some("rate_limited; by shop/web#per-key")
    );
    let after: u64 = heard.header("retry-after").unwrap().parse().unwrap();
    assert!((1700..=1801).contains(&after), "{after}");
    assert_eq!(shop.app.count(), 3);
    let call = "POST /a.B/C HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\n\
                Content-Length: 0\r\nx-key: a\r\n\r\n";
    let heard = request(&shop.client, &shop.web, call).await;
    assert_eq!(heard.header("grpc-status"), Some("8"));
    let pushback: u64 = heard
        .header("grpc-retry-pushback-ms")
        .unwrap()
        .parse()
        .unwrap();
    assert!((1_700_000..=1_800_001).contains(&pushback), "{pushback}");
}

#[tokio::test]
async fn a_server_that_says_when_is_asked_again_then_or_not_at_all() {
    let mut shop = shop();
    shop.policy(retries(&[RetryOn::GatewayError], 2));
    let begun = std::time::Instant::now();
    let figures = || shop.world.nodes[0].proxy.endpoint_figures();
    let is_free = || figures().iter().all(|it| it.endpoints[0].in_flight == 0);
    let (heard, ()) = tokio::join!(
        shop.get("/later/1"),
        // An answer that is of no use is not kept for so long.
        until("the first answer is given up", || shop.app.count() == 1
            && is_free()),
    );
    assert_eq!(
        (heard.status(), heard.header("fairlead-retries")),
        (200, Some("1"))
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Its client has the time.
    shop.app.seen.store(0, Ordering::SeqCst);
    let heard = shop.get("/later/60").await;
    assert_eq!(
        (heard.status(), heard.header("retry-after")),
        (503, Some("60"))
    );
    assert_eq!(shop.app.count(), 1);
    // And so where its deadline is earlier.
    let mut spec = retries(&[RetryOn::GatewayError], 2);
    spec.timeouts = Some(TimeoutsSpec {
        request: Some(Duration::from_millis(900)),
        ..TimeoutsSpec::default()
    });
    shop.policy(spec);
    shop.app.seen.store(0, Ordering::SeqCst);
    assert_eq!(shop.get("/later/1").await.status(), 503);
}

#[tokio::test]
async fn faults_delay_and_abort_what_they_match() {
    let mut shop = shop();
    let fault = |method, delay, abort| Fault {
        matches: TrafficMatch {
            methods: vec![method],
            ..TrafficMatch::default()
        },
        delay,
        abort,
    };
    let delay = Delay {
        share: Share::ALL,
        duration: SHORT,
    };
    let abort = Abort {
        share: Share::ALL,
        with: AbortWith::Status(StatusCode::IM_A_TEAPOT),
    };
    shop.policy(TrafficSpec {
        faults: vec![
            fault(Method::POST, None, Some(abort)),
            fault(Method::GET, Some(delay), None),
        ],
        ..TrafficSpec::default()
    });
    let heard = shop.post("/", "hello").await;
    assert_eq!(heard.status(), 418);
    assert_eq!(heard.header("fairlead-reason"), Some("fault_injected"));
    assert_eq!(shop.app.count(), 0);
    let begun = std::time::Instant::now();
    assert_eq!(shop.get("/").await.status(), 200);
    assert!(begun.elapsed() >= SHORT);
}

/// An application that answers everything; when a connection has ended, how many requests
/// came on it.
fn counting(listener: TcpListener) -> mpsc::UnboundedReceiver<usize> {
    let (give, ended) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let give = give.clone();
            tokio::spawn(async move {
                let _told = give.send(answer_all(stream).await);
            });
        }
    });
    ended
}

/// Answers all requests of a connection; how many there were.
async fn answer_all(mut stream: TcpStream) -> usize {
    let (mut head, mut asked) = (Vec::new(), 0);
    while stream
        .read_buf(&mut head)
        .await
        .is_ok_and(|count| count > 0)
    {
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            asked += 1;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let _sent = stream.write_all(answer).await;
        }
    }
    asked
}

#[tokio::test]
async fn a_connection_that_the_first_request_did_not_need_is_closed() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let near = world.pod("near", 0);
    let (listener, address) = near.listen();
    let mut ended = counting(listener);
    // Nobody has said what it speaks.
    let mut service = fixtures::service("shop/web", &fresh_ip().to_string());
    let target = TargetPort::Number(address.port());
    service.ports = vec![fixtures::port("main", 80, target)];
    service.selector = fixtures::labels(&[("app", "near")]);
    let web = SocketAddr::new(service.cluster_ips[0], 80);
    world.apply(Object::Service(service));
    let text = "GET / HTTP/1.1\r\nHost: web\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut stream = client.dial(web).await;
        assert_eq!(ask(&mut stream, text).await.status(), 200);
        clients.push(stream);
    }
    assert_eq!(soon(ended.recv()).await, Some(0));
}

#[tokio::test]
async fn a_request_is_timed_by_its_route_then_its_back_end_then_what_was_dialled() {
    let mut shop = shop();
    let _served = shop.world.service("other", &[shop.app.address]);
    let route =
        |timeouts: &str| format!("[{{{timeouts}backendRefs: [{{name: other, port: 80}}]}}]");
    let within = |request| TrafficSpec {
        timeouts: Some(TimeoutsSpec {
            request,
            ..TimeoutsSpec::default()
        }),
        ..TrafficSpec::default()
    };
    let late = async |shop: &Shop| {
        let heard = shop.get("/never/").await;
        assert_eq!(heard.status(), 504, "{heard:?}");
        heard.header("fairlead-reason").unwrap().to_owned()
    };
    let millis = Duration::from_millis;
    shop.policy(within(Some(millis(150))));
    shop.world.route(&route(""));
    assert_eq!(late(&shop).await, "timed_out; after 150ms");
    shop.policy_of("other", within(Some(millis(160))));
    assert_eq!(late(&shop).await, "timed_out; after 160ms");
    shop.world.route(&route("timeouts: {request: 170ms}, "));
    assert_eq!(late(&shop).await, "timed_out; after 170ms");
    // A back end whose policy has timeouts has all that it is to have.
    shop.world.route(&route(""));
    shop.policy_of("other", within(None));
    let unlimited = tokio::time::timeout(SHORT, shop.get("/never/")).await;
    assert!(unlimited.is_err(), "{unlimited:?}");
}
