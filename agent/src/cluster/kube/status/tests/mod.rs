//! Which verdicts there are, and that each is written once.

mod routes;

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::verdict::{Verdict, verdicts};
use super::*;
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::cluster::kube::fake::FakeApi;
use crate::model::TrustDomain;
use crate::state::{Change, Origin, Problem, Writer as StateWriter};

const BELOW: &str = "/apis/fairlead.dev/v1alpha1/namespaces/shop/authorizationpolicies/";
const PATH: &str = "/apis/fairlead.dev/v1alpha1/namespaces/shop/authorizationpolicies/p";

fn policy(kind: &str, generation: i64, spec: &Value) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "p", "namespace": "shop", "uid": "1", "generation": generation},
        "spec": spec,
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ports": [{"port": 80}]},
    })
}

/// Takes an object into the state, as a feed does.
fn take(state: &mut StateWriter, object: &Value) -> Snapshot {
    let trust_domain = TrustDomain("cluster.local".into());
    let converted = Converter::new(trust_domain, NetnsFrom::Node).value(object);
    let object_name = converted.object_name();
    let key = converted.key.unwrap();
    let problem = |problem: crate::cluster::FieldProblem| Problem {
        kind: converted.kind.to_string(),
        object: object_name.clone(),
        field: problem.field.to_string(),
        message: problem.message,
        ..Problem::default()
    };
    state.apply(Change::Problems {
        owner: key.to_string().into(),
        problems: converted.problems.into_iter().map(problem).collect(),
    });
    state.apply(Change::Upsert(converted.object.unwrap(), Origin::default()));
    state.publish().unwrap()
}

/// Effect, target and conditions of one policy, a line each.
fn verdict(kind: &str, spec: &Value) -> Vec<String> {
    let snapshot = take(&mut StateWriter::new(), &policy(kind, 1, spec));
    let verdict = verdicts(&snapshot).into_values().next().unwrap();
    lines(&verdict)
}

fn lines(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![format!("{} for {}", verdict.effect, verdict.target)];
    lines.extend(verdict.statements.iter().map(|it| {
        let is = if it.holds { "is" } else { "is not" };
        format!("{is} {}, {}: {}", it.kind, it.reason, it.message)
    }));
    lines
}

#[test]
fn verdicts_of_what_is_understood() {
    let kind = "AuthorizationPolicy";
    assert_eq!(
        verdict(kind, &json!({"rules": [{}]})),
        ["ALLOW for the namespace", "is Accepted, Accepted: in force"]
    );
    assert_eq!(
        verdict(kind, &json!({"selector": {"matchLabels": {"app": "web"}}})),
        [
            "ALLOW for pods app=web",
            "is Accepted, Accepted: in force; it has no rules and so permits nothing"
        ]
    );
    assert_eq!(
        verdict(
            kind,
            &json!({"action": "DENY", "dryRun": true, "rules": [{}]})
        ),
        [
            "DENY (dry run) for the namespace",
            "is Accepted, Accepted: only counted and reported: dryRun is true"
        ]
    );
    let ports = json!({"8080": {"mode": "PERMISSIVE"}});
    assert_eq!(
        verdict(
            "MeshPolicy",
            &json!({"mtls": {"mode": "STRICT", "ports": ports}})
        ),
        [
            "STRICT, PERMISSIVE on 8080 for the namespace",
            "is Accepted, Accepted: in force"
        ]
    );
}

#[test]
fn what_is_not_understood_is_not_accepted_and_names_its_fields() {
    let spec = json!({"dryrun": true, "rules": [{"to": [{"operation": {"methods": ["G T"]}}]}]});
    let lines = verdict("AuthorizationPolicy", &spec);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0], "DENY ALL for the namespace");
    let text = &lines[1];
    assert!(text.starts_with("is not Accepted, Invalid: spec.dryrun: is not known"));
    assert!(text.contains("\nspec.rules[0].to[0].operation.methods[0]: \"G T\" can never"));
    let lines = verdict("MeshPolicy", &json!({"mtls": {"mode": "OFF"}}));
    assert_eq!(lines[0], "STRICT for the namespace");
}

#[test]
fn many_problems_are_counted() {
    let fields: serde_json::Map<String, Value> =
        (0..9).map(|n| (format!("a{n}"), Value::Null)).collect();
    let text = verdict("AuthorizationPolicy", &Value::Object(fields)).join("\n");
    assert_eq!(text.matches("is not known here").count(), 5);
    assert!(text.ends_with("\nand 4 more"));
}

#[test]
fn targets_that_do_not_exist_have_a_condition_of_their_own() {
    let targets = json!([{"kind": "Service", "name": "web"}]);
    let mut state = StateWriter::new();
    let object = policy(
        "AuthorizationPolicy",
        1,
        &json!({"targetRefs": targets, "rules": [{}]}),
    );
    let snapshot = take(&mut state, &object);
    let verdict = |snapshot: &Snapshot| lines(verdicts(snapshot).values().next().unwrap());
    assert_eq!(
        verdict(&snapshot),
        [
            "ALLOW for services web",
            "is Accepted, Accepted: in force",
            "is not ResolvedRefs, TargetNotFound: spec.targetRefs[0].name: there is no Service \
             shop/web"
        ]
    );
    let snapshot = take(&mut state, &service("web"));
    assert_eq!(
        verdict(&snapshot)[2],
        "is ResolvedRefs, ResolvedRefs: every Service that it names exists"
    );
    let invalid = policy(
        "AuthorizationPolicy",
        2,
        &json!({"targetRefs": [{"kind": "Service", "name": "api"}], "x": 1}),
    );
    let snapshot = take(&mut state, &invalid);
    let lines = verdict(&snapshot);
    assert!(lines[1].starts_with("is not Accepted, Invalid: spec.x: "));
    assert!(!lines[1].contains("api"), "{}", lines[1]);
}

#[test]
fn a_custom_says_that_there_is_nobody_to_ask() {
    let mut state = StateWriter::new();
    let provider = json!({"service": "judge", "namespace": "bank", "port": 80, "failOpen": true});
    let spec = json!({"action": "CUSTOM", "provider": provider, "rules": [{}]});
    let mut snapshot = take(&mut state, &policy("AuthorizationPolicy", 1, &spec));
    let said = |snapshot: &Snapshot| {
        let verdicts = verdicts(snapshot);
        let condition = lines(verdicts.values().next().unwrap()).remove(2);
        let problems = snapshot.problems.iter();
        let problems = problems.map(|it| format!("{}: {}", it.field, it.message));
        (condition, problems.collect::<Vec<_>>())
    };
    let refused = ": what it would be asked about is refused";
    let missing = |what: &str| {
        let condition = format!("is not ResolvedRefs, ProviderNotFound: {what}");
        (condition, vec![format!("{what}{refused}")])
    };
    assert_eq!(
        said(&snapshot),
        missing("spec.provider.service: there is no Service bank/judge")
    );
    let judge = |port: u16| {
        let mut judge = service("judge");
        judge["metadata"]["namespace"] = json!("bank");
        judge["spec"]["ports"] = json!([{"port": port}]);
        judge
    };
    snapshot = take(&mut state, &judge(81));
    assert_eq!(
        said(&snapshot),
        missing("spec.provider.port: the Service bank/judge has no TCP port 80")
    );
    snapshot = take(&mut state, &judge(80));
    let resolved = "is ResolvedRefs, ResolvedRefs: every Service that it names exists";
    assert_eq!(said(&snapshot), (resolved.to_owned(), vec![]));
    let spec = json!({"action": "ALLOW", "rules": [{}]});
    snapshot = take(&mut state, &policy("AuthorizationPolicy", 2, &spec));
    snapshot = {
        drop(snapshot);
        take(&mut state, &judge(81))
    };
    assert!(snapshot.problems.is_empty());
}

#[test]
fn a_traffic_policy_says_what_it_speaks_of_and_what_stays_of_it() {
    let spec = |more: Value| {
        let target = |name: &str| json!({"kind": "Service", "name": name, "port": 80});
        let mut spec = json!({"targetRefs": [target("web"), target("api")]});
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        spec
    };
    let mut state = StateWriter::new();
    drop(take(&mut state, &service("web")));
    let good = spec(json!({"timeouts": {"request": "1s"}, "faults": [{"abort": {"status": 500}}]}));
    let snapshot = take(&mut state, &policy("TrafficPolicy", 1, &good));
    let verdict = |snapshot: &Snapshot| lines(verdicts(snapshot).values().next().unwrap());
    let missing = "is not ResolvedRefs, TargetNotFound: spec.targetRefs[1].name: there is no \
                   Service shop/api";
    assert_eq!(
        verdict(&snapshot),
        [
            "timeouts, faults for services web:80,api:80",
            "is Accepted, Accepted: in force",
            missing
        ]
    );
    let bad = spec(json!({"timeouts": {"request": 1}}));
    let snapshot = take(&mut state, &policy("TrafficPolicy", 2, &bad));
    assert_eq!(
        verdict(&snapshot),
        [
            "timeouts, faults (as before) for services web:80,api:80",
            "is not Accepted, Invalid: spec.timeouts.request: 1 is no duration: such as 1h30m, 10s \
             or 500ms",
            missing
        ]
    );
}

/// An API server, a state, and agents that write.
struct World {
    api: FakeApi,
    state: StateWriter,
    snapshots: watch::Sender<Snapshot>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            api: FakeApi::new(),
            state: StateWriter::new(),
            snapshots: watch::Sender::new(Snapshot::default()),
        };
        world.put(1, &json!({"rules": [{}]}));
        world
    }

    /// The policy's spec is written by its owner.
    fn put(&mut self, generation: i64, spec: &Value) {
        let mut object = policy("AuthorizationPolicy", generation, spec);
        if let Some(old) = self.api.get(PATH) {
            object["status"] = old["status"].clone();
        }
        self.api.put(PATH, object.clone());
        let snapshot = take(&mut self.state, &object);
        self.snapshots.send_replace(snapshot);
    }

    /// Something else changes.
    fn stir(&mut self, name: &str) {
        let snapshot = take(&mut self.state, &service(name));
        self.snapshots.send_replace(snapshot);
    }

    fn agent(&self, node: &str) -> JoinHandle<()> {
        let node = NodeName(node.into());
        tokio::spawn(keep_status(
            self.api.client(),
            node,
            self.snapshots.subscribe(),
        ))
    }

    fn accepted(&self) -> Value {
        let object = self.api.get(PATH).unwrap();
        object["status"]["conditions"][0].clone()
    }

    fn writes(&self) -> usize {
        self.api.requests(&Method::PATCH, &format!("{PATH}/status"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_written_once_by_one_of_many() {
    let mut world = World::new();
    let _agents: Vec<_> = ["a", "b", "c"].map(|node| world.agent(node)).into();
    sleep(Duration::from_secs(10)).await;
    let condition = world.accepted();
    assert_eq!(condition["type"], "Accepted");
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("True"), &json!("Accepted"))
    );
    assert_eq!(condition["observedGeneration"], 1);
    assert_eq!(world.writes(), 1);
    for name in ["x", "y", "z"] {
        world.stir(name);
        sleep(Duration::from_secs(5)).await;
    }
    sleep(REFRESH * 3).await;
    assert_eq!(world.writes(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_is_written_and_keeps_when_the_condition_last_turned() {
    let mut world = World::new();
    let _agent = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    let mut object = world.api.get(PATH).unwrap();
    let long_ago = json!("2001-02-03T04:05:06Z");
    object["status"]["conditions"][0]["lastTransitionTime"] = long_ago.clone();
    world.api.put(PATH, object);
    world.put(2, &json!({"rules": []}));
    sleep(Duration::from_secs(5)).await;
    let condition = world.accepted();
    assert_eq!(condition["observedGeneration"], 2);
    assert_eq!(condition["lastTransitionTime"], long_ago);
    world.put(3, &json!({"rule": []}));
    sleep(Duration::from_secs(5)).await;
    let condition = world.accepted();
    assert_eq!(condition["status"], "False");
    assert_ne!(condition["lastTransitionTime"], long_ago);
    assert_eq!(world.writes(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_is_behind_says_nothing() {
    let world = World::new();
    let newer = policy("AuthorizationPolicy", 2, &json!({"rule": []}));
    world.api.put(PATH, newer);
    let _agent = world.agent("a");
    sleep(Duration::from_mins(5)).await;
    assert_eq!(world.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_wrote_is_set_right() {
    let world = World::new();
    let _agent = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    let mut object = world.api.get(PATH).unwrap();
    object["status"]["conditions"][0]["message"] = "all is well".into();
    world.api.put(PATH, object);
    sleep(REFRESH * 2).await;
    assert_eq!(world.accepted()["message"], "in force");
    assert_eq!(world.writes(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_writes_nothing_anew() {
    let world = World::new();
    let first = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    first.abort();
    let _second = world.agent("b");
    sleep(Duration::from_mins(5)).await;
    assert_eq!(world.writes(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_is_asked_for_seldom_and_done_once_it_is_granted() {
    let world = World::new();
    world.api.forbid(Some("/apis/fairlead.dev/"));
    let _agent = world.agent("a");
    sleep(Duration::from_hours(1)).await;
    let lists = "/apis/fairlead.dev/v1alpha1/authorizationpolicies";
    let asked = world.api.requests(&Method::GET, lists);
    assert!((50..90).contains(&asked), "{asked}");
    world.api.forbid(None);
    sleep(LONGEST_WAIT * 2).await;
    assert_eq!(world.writes(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_fails_is_in_nobodys_way() {
    let mut world = World::new();
    let put = |world: &mut World, name: &str| {
        let mut object = policy("AuthorizationPolicy", 1, &json!({"rules": [{}]}));
        object["metadata"]["name"] = name.into();
        world.api.put(&format!("{BELOW}{name}"), object.clone());
        let snapshot = take(&mut world.state, &object);
        world.snapshots.send_replace(snapshot);
    };
    for number in 0..3 * MOST_FAILED {
        put(&mut world, &format!("px{number}"));
    }
    put(&mut world, "pz");
    put(&mut world, "q");
    let accepted = |name: &str| {
        let object = world.api.get(&format!("{BELOW}{name}")).unwrap();
        object["status"]["conditions"][0]["status"] == "True"
    };
    world.api.forbid(Some(&format!("{BELOW}p")));
    let _agent = world.agent("a");
    sleep(Duration::from_mins(2)).await;
    assert_eq!(
        ["p", "px0", "pz", "q"].map(accepted),
        [false, false, false, true]
    );

    world.api.forbid(Some(&format!("{BELOW}px")));
    sleep(LONGEST_WAIT * 10).await;
    assert_eq!(
        ["p", "px0", "pz", "q"].map(accepted),
        [true, false, true, true]
    );
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_was_away_is_told_once_it_is_back() {
    let mut world = World::new();
    let _agent = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    world.api.set_away(true);
    world.put(2, &json!({"rule": []}));
    sleep(Duration::from_hours(1)).await;
    world.api.set_away(false);
    sleep(Duration::from_mins(3)).await;
    assert_eq!(world.accepted()["status"], "False");
}

#[test]
fn few_run_for_the_lease() {
    let agent = |node: &str, ready: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": format!("fairlead-agent-{node}"),
                "namespace": "fairlead-system",
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "fairlead-agent",
                    "uid": "1", "controller": true,
                }],
            },
            "spec": {"nodeName": node, "hostNetwork": true, "containers": []},
            "status": {
                "phase": "Running",
                "podIPs": [{"ip": "192.168.0.1"}],
                "conditions": [{"type": "Ready", "status": ready}],
            },
        })
    };
    let mut state = StateWriter::new();
    let mut snapshot = Snapshot::default();
    let runs = |snapshot: &Snapshot, node: &str| candidates::runs(snapshot, &NodeName(node.into()));
    assert!(!runs(&snapshot, "n0"));
    for n in 0..9 {
        let ready = if n == 1 { "False" } else { "True" };
        snapshot = take(&mut state, &agent(&format!("n{n}"), ready));
    }
    let running: Vec<u32> = (0..9)
        .filter(|n| runs(&snapshot, &format!("n{n}")))
        .collect();
    assert_eq!(running, [0, 2, 3]);
    assert!(runs(&snapshot, "laptop"));
}
