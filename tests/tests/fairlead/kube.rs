//! An agent and an API server that fails in every way that one can.
//!
//! The API server is the simulated one: what is tried here is what a client has to
//! live with, and a real server does none of it on command.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::apiserver::{
    ADMIN_TOKEN, ApiServer, Effect, Expiry, Fault, Options, Rule, StreamingLists,
};
use fairlead_tests::{Agent, AgentOptions, World, WorldOptions, until_ok};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("kube::an_api_server_may_be_away_at_start", away_at_start),
    Test::node("kube::the_last_state_holds_while_it_is_away", away_later),
    Test::node("kube::history_may_be_gone", compacted),
    Test::node("kube::every_list_may_be_refused_or_cut", refused),
    Test::node("kube::disconnects_make_no_storm", disconnected),
    Test::node("kube::events_may_come_twice_and_late", disordered),
    Test::node("kube::missing_rights_are_named", forbidden),
    Test::node("kube::definitions_may_come_and_go", undefined),
    Test::node("kube::malformed_objects_touch_no_other", malformed),
];

/// Back-off makes recovery take some of this.
const SOON: Duration = Duration::from_secs(90);
/// Who the agent is, where its rights matter.
const AGENT: &str = "system:serviceaccount:fairlead-system:fairlead-agent";

/// A node, an API server that is reached there, and perhaps an agent.
struct Kube {
    // Dropped in this order.
    agent: Option<Agent>,
    server: ApiServer,
    world: World,
}

impl Kube {
    /// An API server with a Service of one endpoint, and no agent yet.
    fn new() -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a"]))?;
        let server = ApiServer::start(Options {
            netns: Some(world.node("a").host.netns()),
            ..Options::default()
        })?;
        for (plural, kind) in DEFINED {
            drop(server.put(definition(plural, kind))?);
        }
        drop(server.put(namespace("shop"))?);
        drop(server.put(pod("client", "10.1.0.1"))?);
        drop(server.put(pod("web", "10.1.0.2"))?);
        drop(server.put(service("web", "10.96.0.10"))?);
        drop(server.put(slice("web", "10.1.0.2"))?);
        Ok(Self {
            agent: None,
            server,
            world,
        })
    }

    fn start(&mut self, token: &str) -> Result<()> {
        let kubeconfig = self.world.directory().join("kubeconfig");
        self.server.write_kubeconfig(&kubeconfig, token)?;
        let kubeconfig = kubeconfig.display().to_string();
        let arguments = ["--source", "kube", "--kubeconfig", &kubeconfig];
        let options = AgentOptions {
            arguments: arguments.map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        };
        let agent = Agent::start(&self.world, self.world.node("a"), &options)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// With an agent that has read everything.
    fn synced() -> Result<Self> {
        let mut kube = Self::new()?;
        kube.start(ADMIN_TOKEN)?;
        kube.until_source("synced", true)?;
        Ok(kube)
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("the test has started it")
    }

    fn source(&self) -> Result<Value> {
        Ok(self.agent().status()?["source"].take())
    }

    fn until_source(&self, field: &str, value: bool) -> Result<()> {
        let log = || self.agent().process.output();
        until_ok(&format!("{field} {value}"), SOON, || {
            let source = self.source()?;
            ensure!(source[field] == value, "{source}");
            Ok(())
        })
        .with_context(log)
    }

    /// The endpoints of a Service in `shop`, as the agent has them.
    fn endpoints(&self, service: &str) -> Result<Vec<String>> {
        let rows = self.agent().cli.json(&["get", "services", "-n", "shop"])?;
        let mut rows = rows.iter().flat_map(|row| match row {
            Value::Array(rows) => rows.clone(),
            row => vec![row.clone()],
        });
        let row = rows.find(|row| row["name"] == service);
        let row = row.with_context(|| format!("the agent knows no Service {service}"))?;
        let endpoints = row["ports"][0]["endpoints"].as_array();
        let endpoints = endpoints.into_iter().flatten();
        Ok(endpoints
            .map(|endpoint| endpoint["ip"].as_str().unwrap_or_default().to_owned())
            .collect())
    }

    #[track_caller]
    fn until_endpoints(&self, service: &str, expected: &[&str]) -> Result<()> {
        let log = || self.agent().process.output();
        until_ok(&format!("endpoints of {service}"), SOON, || {
            let found = self.endpoints(service)?;
            ensure!(found == expected, "{found:?} and not {expected:?}");
            Ok(())
        })
        .with_context(log)
    }

    fn reported(&self, text: &str) -> Result<()> {
        until_ok(&format!("\"{text}\" among the problems"), SOON, || {
            let problems = self.agent().status()?["problems"].to_string();
            ensure!(problems.contains(text), "{problems}");
            Ok(())
        })
    }

    fn not_reported(&self, text: &str) -> Result<()> {
        until_ok(&format!("no \"{text}\" among the problems"), SOON, || {
            let problems = self.agent().status()?["problems"].to_string();
            ensure!(!problems.contains(text), "{problems}");
            Ok(())
        })
    }
}

/// Our kinds, without which an agent runs too.
const DEFINED: [(&str, &str); 3] = [
    ("authorizationpolicies", "AuthorizationPolicy"),
    ("meshpolicies", "MeshPolicy"),
    ("trafficpolicies", "TrafficPolicy"),
];

fn definition(plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.fairlead.dev")},
        "spec": {
            "group": "fairlead.dev", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
            }],
        },
    })
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "b", "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
    })
}

fn slice(service: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": name}, "spec": spec,
    })
}

fn away_at_start() -> Result<()> {
    let mut kube = Kube::new()?;
    kube.server.stop();
    kube.start(ADMIN_TOKEN)?;
    let status = kube.agent().status()?;
    ensure!(status["source"]["synced"] == false, "{status}");
    let missing = status["not_ready"].to_string();
    ensure!(missing.contains("has not been read yet"), "{missing}");
    kube.server.resume()?;
    kube.until_source("synced", true)?;
    kube.until_endpoints("web", &["10.1.0.2"])
}

fn away_later() -> Result<()> {
    let mut kube = Kube::synced()?;
    kube.until_endpoints("web", &["10.1.0.2"])?;
    kube.server.stop();
    kube.until_source("healthy", false)?;
    kube.reported("lost the API server")?;
    kube.until_endpoints("web", &["10.1.0.2"])?;
    // What happens meanwhile is seen afterwards, and nothing goes in between.
    drop(kube.server.put(slice("web", "10.1.0.9"))?);
    drop(kube.server.put(service("db", "10.96.0.11"))?);
    drop(kube.server.put(slice("db", "10.1.0.3"))?);
    kube.server.delete("pods", "shop", "client")?;
    kube.server.compact();
    let before = kube.endpoints("web")?;
    ensure!(before == ["10.1.0.2"], "{before:?}");
    kube.server.resume()?;
    until_ok("the new endpoint", SOON, || {
        let now = kube.endpoints("web")?;
        // Never without one.
        ensure!(!now.is_empty(), "the endpoints vanished");
        ensure!(now == ["10.1.0.9"], "{now:?}");
        Ok(())
    })?;
    kube.until_endpoints("db", &["10.1.0.3"])?;
    kube.until_source("healthy", true)?;
    until_ok("the end of a pod", SOON, || {
        let pods = kube.source()?["pods"].take();
        ensure!(pods == 1, "{pods}");
        Ok(())
    })?;
    kube.not_reported("lost the API server")
}

fn compacted() -> Result<()> {
    let kube = Kube::synced()?;
    for (number, expiry) in [Expiry::Event, Expiry::Status].into_iter().enumerate() {
        kube.server.set_expiry(expiry);
        kube.server.fail(Fault::new(
            "watch",
            "",
            Effect::Delay(Duration::from_secs(1)),
        ));
        kube.server.drop_connections();
        let ip = format!("10.1.1.{number}");
        drop(kube.server.put(slice("web", &ip))?);
        kube.server.compact();
        kube.server.mend();
        kube.until_endpoints("web", &[&ip])?;
    }
    kube.until_source("healthy", true)
}

fn refused() -> Result<()> {
    let answer = |status, retry_after| Effect::Answer {
        status,
        retry_after,
    };
    let mut kube = Kube::new()?;
    kube.server.set_streaming_lists(StreamingLists::Forbidden);
    for effect in [
        answer(429, Some(1)),
        answer(500, None),
        Effect::Garbage,
        Effect::Drop,
        Effect::Truncate(100),
    ] {
        kube.server
            .fail(Fault::new("list", "pods", effect).times(1));
    }
    let late = Effect::Slow(Duration::from_millis(200));
    kube.server.fail(Fault::new("list", "services", late));
    kube.start(ADMIN_TOKEN)?;
    kube.until_source("synced", true)?;
    kube.until_endpoints("web", &["10.1.0.2"])?;
    let lists = kube.server.requests();
    let lists = lists.iter().filter(|it| it.verb == "list");
    let lists = lists.filter(|it| it.resource == "pods").count();
    ensure!(lists >= 2, "{lists} lists of pods");
    kube.server.mend();
    // A server that knows nothing of streamed lists, met by one that did.
    kube.server.set_streaming_lists(StreamingLists::Ignored);
    kube.server.drop_connections();
    drop(kube.server.put(slice("web", "10.1.0.7"))?);
    kube.server.compact();
    kube.until_endpoints("web", &["10.1.0.7"])
}

fn disconnected() -> Result<()> {
    let kube = Kube::synced()?;
    kube.server.reset_requests();
    for _ in 0..20 {
        kube.server.drop_connections();
        std::thread::sleep(Duration::from_millis(250));
        let endpoints = kube.endpoints("web")?;
        ensure!(endpoints == ["10.1.0.2"], "{endpoints:?}");
    }
    let requests = kube.server.requests().len();
    // Each drop breaks every watch; without a pause each would come back at once.
    ensure!(requests < 120, "{requests} requests for 20 disconnects");
    drop(kube.server.put(slice("web", "10.1.0.8"))?);
    kube.until_endpoints("web", &["10.1.0.8"])?;
    kube.until_source("healthy", true)
}

fn disordered() -> Result<()> {
    let mut kube = Kube::new()?;
    for effect in [Effect::Duplicate, Effect::Reorder] {
        kube.server.fail(Fault::new("watch", "", effect));
    }
    kube.start(ADMIN_TOKEN)?;
    kube.until_source("synced", true)?;
    for round in 0..5 {
        for number in 0..10 {
            let name = format!("s{number}");
            let ip = format!("10.2.{round}.{number}");
            drop(
                kube.server
                    .put(service(&name, &format!("10.96.1.{number}")))?,
            );
            drop(kube.server.put(slice(&name, &ip))?);
        }
        kube.server.delete("services", "shop", "s9")?;
        kube.server.delete("endpointslices", "shop", "s9-1")?;
    }
    for number in 0..9 {
        let ip = format!("10.2.4.{number}");
        kube.until_endpoints(&format!("s{number}"), &[&ip])?;
    }
    until_ok("the end of a Service", SOON, || {
        ensure!(kube.endpoints("s9").is_err(), "it is still there");
        Ok(())
    })?;
    let problems = kube.agent().status()?["problems"].to_string();
    ensure!(!problems.contains("claimed by"), "{problems}");
    Ok(())
}

fn forbidden() -> Result<()> {
    let mut kube = Kube::new()?;
    let token = "token-of-the-agent";
    kube.server.accept(token, AGENT);
    let read = ["list", "watch"];
    kube.server
        .grant(AGENT, Rule::new(&read, "", &["namespaces", "services"]));
    let slices = Rule::new(&read, "discovery.k8s.io", &["endpointslices"]);
    kube.server.grant(AGENT, slices);
    kube.server
        .grant(AGENT, Rule::new(&["*"], "fairlead.dev", &["*"]));
    let routes = Rule::new(&read, "gateway.networking.k8s.io", &["*"]);
    kube.server.grant(AGENT, routes);
    kube.start(token)?;
    let account = AGENT
        .replace("system:serviceaccount:", "")
        .replace(':', "/");
    let advice = format!("grant verbs list, watch on pods to ServiceAccount {account}");
    kube.reported(&advice)?;
    let status = kube.agent().status()?;
    ensure!(status["source"]["synced"] == false, "{status}");
    ensure!(
        status["not_ready"].to_string().contains(&advice),
        "{status}"
    );
    kube.server.grant(AGENT, Rule::new(&read, "", &["pods"]));
    kube.until_source("synced", true)?;
    kube.until_endpoints("web", &["10.1.0.2"])?;
    // Taken away again: what was read stays in force, and it is said.
    kube.server.revoke(AGENT);
    kube.server.drop_connections();
    kube.until_source("healthy", false)?;
    kube.until_endpoints("web", &["10.1.0.2"])
}

fn undefined() -> Result<()> {
    let mut kube = Kube::new()?;
    for (plural, _) in DEFINED {
        let name = format!("{plural}.fairlead.dev");
        kube.server.delete("customresourcedefinitions", "", &name)?;
    }
    kube.start(ADMIN_TOKEN)?;
    kube.until_source("synced", true)?;
    let policies = |expected: u64| {
        until_ok(&format!("{expected} policies"), SOON, || {
            let found = kube.source()?["policies"].take();
            ensure!(found == expected, "{found}");
            Ok(())
        })
        .with_context(|| kube.agent().process.output())
    };
    policies(0)?;
    for (plural, kind) in DEFINED {
        drop(kube.server.put(definition(plural, kind))?);
    }
    drop(kube.server.put(policy("p", &json!({"action": "DENY"})))?);
    policies(1)?;
    let name = "authorizationpolicies.fairlead.dev";
    kube.server.delete("customresourcedefinitions", "", name)?;
    policies(0)?;
    let (plural, kind) = DEFINED[0];
    drop(kube.server.put(definition(plural, kind))?);
    drop(kube.server.put(policy("q", &json!({"action": "DENY"})))?);
    policies(1)
}

fn malformed() -> Result<()> {
    let kube = Kube::synced()?;
    let bad = |mut object: Value, pointer: &str, value: Value| -> Result<Value> {
        *object.pointer_mut(pointer).context("the field is there")? = value;
        kube.server.put(object)
    };
    let bad_pod = bad(
        pod("bad", "10.1.0.4"),
        "/status/podIPs/0/ip",
        "nonsense".into(),
    )?;
    let bad_service = bad(
        service("bad", "10.96.0.12"),
        "/spec/clusterIPs/0",
        "300.0.0.1".into(),
    )?;
    let bad_slice = bad(
        slice("bad", "10.1.0.4"),
        "/endpoints/0/addresses/0",
        "x".into(),
    )?;
    drop(
        kube.server
            .put(policy("bad", &json!({"action": "PERHAPS"})))?,
    );
    let mut namespace = namespace("bad");
    namespace["metadata"]["labels"] = json!({"fairlead.dev/mesh": "perhaps"});
    drop(kube.server.put(namespace)?);
    for text in [
        "Pod shop/bad",
        "Service shop/bad",
        "EndpointSlice shop/bad-1",
    ] {
        kube.reported(text)?;
    }
    kube.reported("AuthorizationPolicy shop/bad")?;
    kube.reported("Namespace bad")?;
    ensure!(kube.source()?["healthy"] == true, "the source is well");
    // One whose very shape is wrong, in the middle of others.
    let mut broken = bad_pod;
    broken["status"]["podIPs"] = json!({"ip": 7});
    drop(kube.server.put(broken)?);
    drop(kube.server.put(slice("web", "10.1.0.6"))?);
    kube.until_endpoints("web", &["10.1.0.6"])?;
    for (mut object, pointer, value) in [
        (bad_service, "/spec/clusterIPs/0", "10.96.0.12"),
        (bad_slice, "/endpoints/0/addresses/0", "10.1.0.4"),
    ] {
        *object.pointer_mut(pointer).context("the field is there")? = value.into();
        drop(kube.server.put(object)?);
    }
    drop(kube.server.put(pod("bad", "10.1.0.4"))?);
    kube.server
        .delete("authorizationpolicies.fairlead.dev", "shop", "bad")?;
    kube.server.delete("namespaces", "", "bad")?;
    kube.not_reported("bad")?;
    kube.until_endpoints("bad", &["10.1.0.4"])
}
