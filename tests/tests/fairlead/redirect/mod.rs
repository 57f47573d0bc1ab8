//! The kernel's side alone: programs, maps, namespaces, with a tiny agent.

mod accepts;
pub(crate) mod agent;
mod connects;
mod kubelet;
mod lifecycle;
mod limits;
mod pods;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Place, Pod, PodSpec, Process, World, WorldOptions, until};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[&[Test]] = &[
    accepts::TESTS,
    connects::TESTS,
    kubelet::TESTS,
    lifecycle::TESTS,
    limits::TESTS,
    pods::TESTS,
];

const SERVE: &str = include_str!("../../../scripts/redirect/serve.py");
const DIAL: &str = include_str!("../../../scripts/redirect/dial.py");

/// How long anything may take that should be prompt.
const SOON: Duration = Duration::from_secs(30);

/// A node with one tiny agent.
struct Node {
    agent: Option<Process>,
    /// Where to tell the agent what to do.
    socket: PathBuf,
    agents: u32,
    /// Where agents attach, if not to the node's cgroup.
    attach: Option<PathBuf>,
    debug: bool,
    /// A cgroup, or `find`; empty for none.
    kubelet: String,
    world: World,
}

impl Node {
    /// A node whose agent is up, with no pod enrolled.
    fn up() -> Result<Self> {
        let mut node = Self::without_agent()?;
        drop(node.start_agent()?);
        Ok(node)
    }

    /// A node with no agent yet.
    fn without_agent() -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a", "b"]))?;
        Ok(Self {
            agent: None,
            socket: PathBuf::new(),
            agents: 0,
            attach: None,
            debug: false,
            kubelet: String::new(),
            world,
        })
    }

    /// Starts an agent beside the one that is running, if any, and talks to it.
    fn start_agent(&mut self) -> Result<Option<Process>> {
        self.agents += 1;
        let name = format!("agent-{}", self.agents);
        self.socket = self.world.directory().join(&name);
        let host = self.world.node("a");
        let text = |path: PathBuf| path.display().to_string();
        let program = text(std::env::current_exe()?);
        let arguments = [
            program.as_str(),
            "redirect-agent",
            &text(self.socket.clone()),
            "a",
            &text(self.attach.clone().unwrap_or(host.cgroup.clone())),
            &text(self.world.bpffs()),
            &self.debug.to_string(),
            &self.kubelet,
        ];
        // Each in a cgroup of its own below the pods', as containers are.
        let place = host.host.child(&name)?;
        let mut process = place.spawn(&name, &arguments)?;
        let up = until("the agent", SOON, || match process.ended() {
            Ok(None) => self.tell("status", &Value::Null).ok().map(drop),
            _ => Some(()),
        });
        up.and_then(|()| self.tell("status", &Value::Null))
            .with_context(|| process.output())?;
        Ok(self.agent.replace(process))
    }

    /// A pod on this node, not enrolled.
    fn pod(&self, name: &str) -> Result<Pod> {
        self.world
            .pod(&PodSpec::new("a", "test", name).unpublished())
    }

    /// A pod on another node, of which the agent knows nothing.
    fn outsider(&self) -> Result<Pod> {
        self.world
            .pod(&PodSpec::new("b", "test", "outsider").unpublished())
    }

    /// A pod on this node, enrolled.
    fn enrolled(&self, name: &str) -> Result<Pod> {
        let pod = self.pod(name)?;
        drop(self.enrol(&pod, &json!({}))?);
        Ok(pod)
    }

    /// Enrols a pod; `extra` is added to what is said of it.
    fn enrol(&self, pod: &Pod, extra: &Value) -> Result<Value> {
        self.tell("enrol", &described(pod, extra))
    }

    fn unenrol(&self, pod: &Pod) -> Result<()> {
        self.tell("unenrol", &described(pod, &json!({}))).map(drop)
    }

    fn tell(&self, what: &str, argument: &Value) -> Result<Value> {
        agent::tell(&self.socket, &json!({"do": what, "argument": argument}))
    }

    /// One of the programs' counts.
    fn count(&self, counter: &str) -> Result<u64> {
        let status = self.tell("status", &Value::Null)?;
        let counters = status["counters"].as_array().context("counters")?;
        let found = counters.iter().find(|entry| entry[0] == counter);
        found
            .and_then(|entry| entry[1].as_u64())
            .context("an unknown counter")
    }
}

/// The error of what must not succeed.
#[track_caller]
fn error_of(result: Result<Value>) -> String {
    match result {
        Ok(value) => panic!("it succeeded: {value}"),
        Err(error) => format!("{error:#}"),
    }
}

/// What an agent is told of a pod.
fn described(pod: &Pod, extra: &Value) -> Value {
    let mut value = json!({
        "name": pod.name,
        "ips": [pod.ip4, pod.ip6],
        "netns": pod.netns(),
    });
    if let (Some(value), Some(extra)) = (value.as_object_mut(), extra.as_object()) {
        value.extend(extra.clone());
    }
    value
}

/// Runs a Python script and reads the JSON that it prints.
fn python(place: &Place, script: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = vec!["python3", "-c", script];
    command.extend(arguments);
    let output = place.run_for(Duration::from_mins(2), &command)?.ok()?;
    serde_json::from_str(&output.stdout).with_context(|| output.stdout.clone())
}

/// An address that only an agent answers for.
const NOWHERE: &str = "192.0.2.1";

fn dial(from: &Pod, address: &str, port: u16) -> Result<Value> {
    python(from, DIAL, &[address, &port.to_string()])
}

fn serve(pod: &Pod, port: u16) -> Result<Process> {
    let port = port.to_string();
    let mut process = pod.spawn("serve", &["python3", "-uc", SERVE, "::", &port])?;
    process.wait_for("listening", SOON)?;
    Ok(process)
}

#[track_caller]
fn meshed(pod: &Pod) -> Result<()> {
    let seen = dial(pod, NOWHERE, 80)?;
    let banner = seen["banner"].as_str().unwrap_or_default();
    ensure!(banner.starts_with("192.0.2.1:80 "), "{seen}");
    Ok(())
}

/// Refused at once, with this error: at the first packet, and not at the next one a second
/// later.
#[track_caller]
fn refused(seen: &Value, error: &str) -> Result<()> {
    ensure!(seen["error"] == error, "{seen}, not {error}");
    ensure!(seen["seconds"].as_f64() < Some(0.9), "not at once: {seen}");
    Ok(())
}
