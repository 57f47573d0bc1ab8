//! What others have attached, what the application does under open connections, and pods
//! that tell too much.

use anyhow::{Result, ensure};
use fairlead_tests::{Pod, until};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Node, SOON, dial, error_of, meshed};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::exclusive_programs_of_others_are_told", exclusive).with(&["python3"]),
    Test::node(
        "redirect::a_port_is_bound_again_under_its_connections",
        rebound,
    )
    .with(&["python3"]),
    Test::node("redirect::one_pod_tells_only_so_much", flood).with(&["python3"]),
    Test::node("redirect::a_full_ring_is_counted", full_ring).with(&["python3"]),
];

const EXCLUSIVE: &str = include_str!("../../../scripts/redirect/exclusive.py");

/// Accepts one connection, gives its port up while that lives, and takes it again.
const REBIND: &str = "import socket, sys
def listen():
    s = socket.socket(socket.AF_INET6)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(('::', 9001)); s.listen()
    return s
first = listen()
print('listening', flush=True)
kept, _ = first.accept()
first.close()
second = listen()
print('bound again', flush=True)
again, _ = second.accept()
for connection in (kept, again):
    connection.sendall(b'alive\\n')
print('both', flush=True)
import time; time.sleep(60)";

/// Dials a port of the agent's, which is refused and told.
const DIAL_OWN: &str = "import json, socket, sys
refused = 0
for _ in range(int(sys.argv[2])):
    with socket.socket() as s:
        try:
            s.connect(('127.0.0.1', int(sys.argv[1])))
        except PermissionError:
            refused += 1
print(json.dumps(refused))";

/// At the agent's cgroup, and above it.
fn exclusive() -> Result<()> {
    let mut node = Node::without_agent()?;
    let cgroup = node.world.node("a").cgroup.clone();
    let other = node.world.node("b").host.clone();
    for place in [cgroup.as_path(), cgroup.parent().unwrap_or(&cgroup)] {
        let place = place.display().to_string();
        let arguments = ["python3", "-uc", EXCLUSIVE, &place];
        let mut owner = other.spawn("exclusive", &arguments)?;
        owner.wait_for("attached", SOON)?;
        let error = error_of(node.start_agent().map(|_| Value::Null));
        ensure!(error.contains("exclusively at or above"), "{error}");
        ensure!(error.contains("`bpftool cgroup tree`"), "{error}");
        let pins = node.world.bpffs().join("fairlead/a");
        let left: Vec<_> = std::fs::read_dir(&pins)?.flatten().collect();
        ensure!(left.is_empty(), "{left:?}");
        let status = owner.terminate(SOON)?;
        ensure!(status.success(), "{status}");
    }
    drop(node.start_agent()?);
    let pod = node.enrolled("pod")?;
    meshed(&pod)
}

fn rebound() -> Result<()> {
    let node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let ip = pod.ip4.to_string();
    let mut server = pod.spawn("rebind", &["python3", "-uc", REBIND])?;
    server.wait_for("listening", SOON)?;
    let client = "import socket, sys
s = socket.create_connection((sys.argv[1], 9001)); print('held', flush=True)
print(s.makefile().readline().strip(), flush=True); import time; time.sleep(60)";
    let mut held = outsider.spawn("hold", &["python3", "-uc", client, &ip])?;
    held.wait_for("held", SOON)?;
    server.wait_for("bound again", SOON)?;
    let mut second = outsider.spawn("again", &["python3", "-uc", client, &ip])?;
    second.wait_for("alive", SOON)?;
    held.wait_for("alive", SOON)?;
    ensure!(node.count("steered")? == 2);
    Ok(())
}

/// A port of the agent's in the pod's namespace.
fn own_port(node: &Node, pod: &Pod) -> Result<String> {
    let status = node.tell("status", &Value::Null)?;
    let pods = status["pods"].as_array().cloned().unwrap_or_default();
    let found = pods.iter().find(|it| it["ips"][0] == json!(pod.ip4));
    let port = found.map_or(&Value::Null, |pod| &pod["agent_ports"][0]);
    Ok(port.to_string())
}

fn dial_own(pod: &Pod, port: &str, times: u32) -> Result<()> {
    let refused = super::python(pod, DIAL_OWN, &[port, &times.to_string()])?;
    ensure!(refused == times, "{refused} of {times}");
    Ok(())
}

fn flood() -> Result<()> {
    let node = Node::up()?;
    let (loud, quiet) = (node.enrolled("loud")?, node.enrolled("quiet")?);
    let (theirs, own) = (own_port(&node, &loud)?, own_port(&node, &quiet)?);
    // As long as it takes to be more than a second's worth.
    until("the limit", SOON, || {
        dial_own(&loud, &theirs, 2000).ok()?;
        (node.count("events_limited").ok()? > 0).then_some(())
    })?;
    dial_own(&quiet, &own, 1)?;
    until("the other's event", SOON, || {
        let events = node.tell("events", &Value::Null).ok()?.to_string();
        events.contains("test/quiet").then_some(())
    })?;
    ensure!(node.count("events_lost")? == 0, "the buffer was not full");
    Ok(())
}

/// The agent does not read for a while.
fn full_ring() -> Result<()> {
    let node = Node::up()?;
    let names: Vec<String> = (0..10).map(|number| format!("pod-{number}")).collect();
    let pods: Vec<Pod> = names
        .iter()
        .map(|name| node.enrolled(name))
        .collect::<Result<_>>()?;
    let ports: Vec<String> = pods
        .iter()
        .map(|pod| own_port(&node, pod))
        .collect::<Result<_>>()?;
    let agent = node.agent.as_ref().map(fairlead_tests::Process::pid);
    let agent = agent.and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    let agent = agent.ok_or_else(|| anyhow::anyhow!("no agent"))?;
    rustix::process::kill_process(agent, Signal::STOP)?;
    // What one pod may tell in a second would not fill it.
    let told = pods
        .iter()
        .zip(&ports)
        .try_for_each(|(pod, port)| dial_own(pod, port, 1000));
    rustix::process::kill_process(agent, Signal::CONT)?;
    told?;
    let (lost, limited) = (node.count("events_lost")?, node.count("events_limited")?);
    ensure!(lost > 0, "nothing lost, {limited} not told");
    // It is read to its end, and what comes then is told.
    let seen = |port: &str| -> Result<usize> {
        let events = node.tell("events", &Value::Null)?.to_string();
        Ok(events.matches(port).count())
    };
    let before = seen("9777")?;
    ensure!(before == 0);
    let _serving = super::serve(&pods[0], 9777)?;
    until("a new event", SOON, || {
        (seen("9777").ok()? > 0).then_some(())
    })?;
    let closed = dial(&pods[1], &pods[0].ip4.to_string(), 80)?;
    ensure!(closed["banner"].is_string(), "it goes on: {closed}");
    Ok(())
}
