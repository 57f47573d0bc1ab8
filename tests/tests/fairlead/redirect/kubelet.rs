//! Kubelet's connections to pods, by where they come from and not by what they say.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use fairlead_tests::{Place, Pod, Process, until};
use serde_json::{Value, json};

use super::{DIAL, Node, SOON, python, serve};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::kubelet_is_known_by_its_socket", below).with(&["python3"]),
    Test::node("redirect::kubelet_may_be_elsewhere", elsewhere).with(&["python3"]),
    Test::node("redirect::what_kubelet_left_is_nobodys", left).with(&["python3"]),
    Test::node("redirect::kubelet_is_found_and_followed", followed).with(&["python3"]),
];

const PROBE: &str = include_str!("../../../scripts/redirect/probe.py");

/// Dials from a port of its own choice; what it was told, or the error.
const FROM_PORT: &str = "import json, socket, sys
ip, port, source, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', source))
s.settimeout(limit)
try:
    s.connect((ip, port))
    s.settimeout(5)
    seen = s.makefile().readline().strip()
except OSError as error:
    seen = type(error).__name__
# A reset: nothing waits for the port to be free.
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
s.close()
print(json.dumps(seen))";

/// A node whose kubelet is the cgroup at `name` from its host's.
fn with_kubelet(name: &str) -> Result<(Node, Place)> {
    let mut node = Node::without_agent()?;
    let kubelet = node.world.node("a").host.child(name)?;
    node.kubelet = kubelet.cgroup().canonicalize()?.display().to_string();
    drop(node.start_agent()?);
    drop(node.tell("follow kubelet", &Value::Null)?);
    Ok((node, kubelet))
}

/// What one is told who dials the pod from there.
fn told(from: &Place, address: &str, port: u16) -> Result<String> {
    let seen = python(from, DIAL, &[address, &port.to_string()])?;
    Ok(seen["banner"].as_str().unwrap_or_default().to_owned())
}

fn below() -> Result<()> {
    known("kubelet")
}

/// The pods' cgroup is not above it.
fn elsewhere() -> Result<()> {
    known("../../kubelet")
}

fn known(name: &str) -> Result<()> {
    let (node, kubelet) = with_kubelet(name)?;
    let pod = node.enrolled("pod")?;
    let _serving = serve(&pod, 9001)?;
    let (ip4, ip6) = (pod.ip4.to_string(), pod.ip6.to_string());
    let mapped = format!("::ffff:{ip4}");
    for address in [&ip4, &ip6, &mapped] {
        let told = told(&kubelet, address, 9001)?;
        ensure!(told == "kubelet", "kubelet at {address}: {told}");
    }
    ensure!(node.count("kubelet_probe")? == 3);
    let host = &node.world.node("a").host;
    let stranger = node.pod("stranger")?;
    let misplaced = stranger.child(&format!("../host/{name}"))?;
    let others = [
        ("another process of the node", host.clone()),
        ("a cgroup below kubelet's", kubelet.child("below")?),
        ("kubelet in a pod's namespace", misplaced),
        ("another pod", stranger.child("here")?),
        ("another node", node.world.node("b").host.clone()),
    ];
    for (who, place) in &others {
        for address in [&ip4, &ip6] {
            let told = told(place, address, 9001)?;
            ensure!(!told.is_empty() && told != "kubelet", "{who}: {told}");
        }
    }
    ensure!(node.count("kubelet_probe")? == 3);
    // Its way past the mesh shows no address but the true one.
    let extra = json!({"exclude_inbound_ports": [9001]});
    drop(node.tell("update", &super::described(&pod, &extra))?);
    let seen = python(&kubelet, DIAL, &[&ip4, "9001"])?;
    let local = seen["local"].as_str().unwrap_or_default();
    let banner = seen["banner"].as_str().unwrap_or_default();
    ensure!(banner == format!("::ffff:{local} ::ffff:{local}"), "{seen}");
    Ok(())
}

/// Another process of the node takes the port that kubelet's attempt had.
fn left() -> Result<()> {
    let (node, kubelet) = with_kubelet("kubelet")?;
    let pod = node.enrolled("pod")?;
    let host = node.world.node("a").host.clone();
    let ip = pod.ip4.to_string();
    let dial = |from: &Place, source: &str| -> Result<String> {
        let limit = if source == "45002" { "0.5" } else { "5" };
        let seen = python(from, FROM_PORT, &[&ip, "9001", source, limit])?;
        Ok(seen.as_str().unwrap_or_default().to_owned())
    };
    let refused = dial(&kubelet, "45001")?;
    ensure!(refused == "ConnectionRefusedError", "{refused}");
    let set = |state: &str| pod.run(&["ip", "link", "set", "eth0", state])?.ok();
    drop(set("down")?);
    let given_up = dial(&kubelet, "45002")?;
    ensure!(given_up == "TimeoutError", "{given_up}");
    drop(set("up")?);
    let route = format!(
        "ip route replace default via {} dev eth0 onlink",
        host_ip(&node)
    );
    drop(pod.run(&["sh", "-c", &route])?.ok()?);
    let _serving = serve(&pod, 9001)?;
    until("the pod to be reached again", SOON, || {
        (told(&kubelet, &ip, 9001).ok()? == "kubelet").then_some(())
    })?;
    for source in ["45001", "45002"] {
        let told = dial(&host, source)?;
        ensure!(told.contains(source), "as {source}: {told}");
        let told = dial(&kubelet, source)?;
        ensure!(told == "kubelet", "as {source}: {told}");
        let told = dial(&host, source)?;
        ensure!(told.contains(source), "as {source}, again: {told}");
    }
    Ok(())
}

fn host_ip(node: &Node) -> String {
    node.world.node("a").ip4.to_string()
}

/// A program of that name, as root puts it there.
fn program(node: &Node) -> Result<PathBuf> {
    let program = node.world.directory().join("kubelet");
    if !program.exists() {
        let _bytes = std::fs::copy(std::fs::canonicalize("/usr/bin/python3")?, &program)?;
    }
    Ok(program)
}

/// Another program by that name, as any user can make it.
fn link(node: &Node) -> Result<PathBuf> {
    let directory = node.world.directory().join("bin");
    std::fs::create_dir(&directory)?;
    let link = directory.join("kubelet");
    symlink(std::fs::canonicalize("/usr/bin/python3")?, &link)?;
    Ok(link)
}

/// A process named kubelet that dials on and on.
fn start(program: &Path, place: &Place, pod: &Pod, user: &str) -> Result<Process> {
    let program = program.display().to_string();
    let ip = pod.ip4.to_string();
    place.spawn(
        &format!("kubelet-as-{user}"),
        &[&program, "-uc", PROBE, &ip, "9001", user],
    )
}

/// Where the agent believes it to be.
fn believed(node: &Node) -> Result<Vec<String>> {
    drop(node.tell("follow kubelet", &Value::Null)?);
    let status = node.tell("status", &Value::Null)?;
    Ok(serde_json::from_value(status["kubelet"].clone())?)
}

fn followed() -> Result<()> {
    let mut node = Node::without_agent()?;
    "find".clone_into(&mut node.kubelet);
    drop(node.start_agent()?);
    let pod = node.enrolled("pod")?;
    let _serving = serve(&pod, 9001)?;
    let host = node.world.node("a").host.clone();
    let stranger = node.pod("stranger")?;
    let (program, link) = (program(&node)?, link(&node)?);
    // Anybody can have the name.
    let impostors = [
        start(&program, &host.child("user")?, &pod, "65534")?,
        start(&program, &host.child("kubepods")?.child("pod")?, &pod, "0")?,
        start(&program, &host.child("user.slice")?, &pod, "0")?,
        start(&program, &stranger.child("process")?, &pod, "0")?,
        start(&link, &host.child("linked")?, &pod, "0")?,
    ];
    for mut impostor in impostors {
        impostor.wait_for("told", SOON)?;
        ensure!(believed(&node)?.is_empty(), "{:?}", believed(&node)?);
        ensure!(!impostor.output().contains("told kubelet"));
    }
    for name in ["first", "../../second"] {
        let place = host.child(name)?;
        let expected = place.cgroup().canonicalize()?.display().to_string();
        let mut kubelet = start(&program, &place, &pod, "0")?;
        // It looks ever less often while there is none.
        until("kubelet to be found", 4 * SOON, || {
            (believed(&node).ok()? == [expected.as_str()]).then_some(())
        })?;
        kubelet.wait_for("told kubelet", SOON)?;
        kubelet.kill();
        until("kubelet to be gone", SOON, || {
            believed(&node).ok()?.is_empty().then_some(())
        })?;
    }
    Ok(())
}
