//! Pods and Services as the suite's base manifests have them.
//!
//! ```text
//!  node a: echo-v1, consumer/echo-v1      node b: echo-v2
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use fairlead_tests::{Agent, AgentOptions, Pod, PodSpec, Process, World, WorldOptions, until};
use serde_json::{Value, json};

use super::echo::Case;
use crate::mesh::{SOON, python};

/// The suite's namespaces: of the servers, and of a client that is elsewhere.
pub(super) const MESH: &str = "gateway-conformance-mesh";
pub(super) const CONSUMER: &str = "gateway-conformance-mesh-consumer";

/// The echo server, and the client of gRPC.
pub(super) const SCRIPT: &str = include_str!("../../../scripts/conformance.py");

/// The running pods. The order of the fields is the order in which they end.
pub(super) struct Stage {
    agents: Vec<Agent>,
    servers: BTreeMap<&'static str, Process>,
    v1: Pod,
    v2: Pod,
    consumer: Pod,
    addresses: BTreeMap<String, Ipv4Addr>,
    pub(super) world: World,
}

impl Stage {
    /// Everything runs, and no route is there yet.
    pub(super) fn up() -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a", "b"]))?;
        for namespace in [MESH, CONSUMER] {
            world.manifests().namespace(namespace, true)?;
        }
        let pod = |node: &str, namespace: &str, name: &str| {
            let version = name.trim_start_matches("echo-");
            let spec = PodSpec::new(node, namespace, name);
            world.pod(&spec.label("app", "echo").label("version", version))
        };
        let v1 = pod("a", MESH, "echo-v1")?;
        let v2 = pod("b", MESH, "echo-v2")?;
        let consumer = pod("a", CONSUMER, "echo-v1")?;
        let mut addresses = BTreeMap::new();
        for (number, name) in ["echo", "echo-v1", "echo-v2"].into_iter().enumerate() {
            let ip = Ipv4Addr::new(10, 96, 50, u8::try_from(number)? + 1);
            world.manifests().apply(&service(MESH, name, ip))?;
            let _none = addresses.insert(name.to_owned(), ip);
        }
        let mut servers = BTreeMap::new();
        for (name, pod) in [("echo-v1", &v1), ("echo-v2", &v2)] {
            let mut command = python(pod, SCRIPT, &["serve", MESH, name]);
            let mut server = pod.start("echo", &mut command)?;
            server.wait_for("ready", SOON)?;
            pod.wait_listening(8080, SOON)?;
            let _none = servers.insert(name, server);
        }
        let mut agents = Vec::new();
        for node in world.nodes() {
            agents.push(Agent::start(&world, node, &AgentOptions::default())?);
        }
        agents[0].wait_enrolled(&[&v1, &consumer])?;
        agents[1].wait_enrolled(&[&v2])?;
        Ok(Self {
            agents,
            servers,
            v1,
            v2,
            consumer,
            addresses,
            world,
        })
    }

    /// The pod that asks.
    pub(super) fn client(&self, consumer: bool) -> &Pod {
        if consumer { &self.consumer } else { &self.v1 }
    }

    /// The address of a Service, or of the pod `pod/NAME`.
    pub(super) fn address(&self, name: &str) -> Result<Ipv4Addr> {
        match name {
            "pod/echo-v1" => Ok(self.v1.ip4),
            "pod/echo-v2" => Ok(self.v2.ip4),
            _ => {
                let known = self.addresses.get(name).copied();
                known.with_context(|| format!("no Service {name}"))
            }
        }
    }

    /// Waits until the agent of the pod that asks has a route of this name.
    pub(super) fn wait_routed(&self, name: &str) -> Result<()> {
        until("the route", SOON, || {
            let routes = self.agents[0].cli.json(&["get", "routes"]).ok()?;
            format!("{routes:?}").contains(name).then_some(())
        })
    }

    /// What a server has printed: a line for each request.
    pub(super) fn requests_of(&self, server: &str) -> String {
        self.servers
            .get(server)
            .map(Process::output)
            .unwrap_or_default()
    }

    /// Applies the manifest, checks all cases, and takes it away. What did not come out is
    /// the error, all of it.
    pub(super) fn with_routes(&self, name: &str, manifest: &str, cases: &[Case]) -> Result<()> {
        let file = format!("conformance-{name}.yaml");
        self.world.manifests().write(&file, manifest)?;
        let failed: Vec<String> = cases
            .iter()
            .filter_map(|case| case.check(self).err())
            .map(|error| format!("{name}: {error:#}"))
            .collect();
        self.world.manifests().remove(&file)?;
        anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }
}

/// All of them are run; what failed is one error.
pub(super) fn all(results: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failed: Vec<String> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// As in the suite's base: `echo` leads to both versions.
fn service(namespace: &str, name: &str, ip: Ipv4Addr) -> Value {
    let mut selector = json!({"app": "echo"});
    if let Some(version) = name.strip_prefix("echo-") {
        selector["version"] = version.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip],
            "selector": selector,
            "ports": [
                {"name": "http", "port": 80, "appProtocol": "http", "targetPort": 8080},
                {"name": "http-alt", "port": 8080, "appProtocol": "http"},
                {"name": "tcp", "port": 9090},
                {"name": "grpc", "port": 7070, "appProtocol": "kubernetes.io/h2c"},
            ],
        },
    })
}
