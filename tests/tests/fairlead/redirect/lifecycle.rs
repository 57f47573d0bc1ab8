//! Agents that die, return, hand over and leave.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, bail, ensure};
use fairlead::model::NodeName;
use fairlead::redirect::{self, Outcome, Scope};
use fairlead_tests::{Pod, until};
use serde_json::{Value, json};

use super::{NOWHERE, Node, SOON, dial, meshed, refused, serve};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::node("redirect::a_dead_agent_refuses_both_ways", dead_agent).with(&["python3"]),
    Test::node("redirect::agents_hand_over_without_a_gap", hand_over).with(&["python3"]),
    Test::node("redirect::cleanup_leaves_nothing", cleanup).with(&["python3"]),
    Test::node("redirect::cleanup_of_every_node", cleanup_of_all).with(&["python3"]),
    Test::node(
        "redirect::agents_that_crash_leave_nothing_that_adds_up",
        crash_loop,
    )
    .with(&["python3"]),
    Test::node("redirect::agents_share_no_cgroup", crowded).with(&["python3"]),
    Test::node("redirect::agents_may_be_elsewhere", elsewhere).with(&["python3"]),
    Test::node("redirect::programs_may_log", logging).with(&["python3"]),
    Test::node("redirect::probes_say_what_is_missing", probes),
];

fn dead_agent() -> Result<()> {
    let mut node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let (ip4, ip6) = (pod.ip4.to_string(), pod.ip6.to_string());
    let far = outsider.ip4.to_string();
    let _serving = serve(&pod, 9001)?;
    let _outside = serve(&outsider, 9001)?;
    meshed(&pod)?;
    ensure!(dial(&outsider, &ip4, 9001)?["echo"] == "ping");
    node.agent.take().context("it runs")?.kill();

    let still_refused = || -> Result<()> {
        // The destination is there and would answer: nothing may reach it.
        refused(&dial(&pod, &far, 9001)?, "ECONNREFUSED")?;
        refused(
            &dial(&pod, &outsider.ip6.to_string(), 9001)?,
            "ECONNREFUSED",
        )?;
        for address in [&ip4, &ip6] {
            refused(&dial(&outsider, address, 9001)?, "ECONNREFUSED")?;
            refused(&dial(&outsider, address, 15008)?, "ECONNREFUSED")?;
        }
        // Inside the pod nothing has changed.
        ensure!(dial(&pod, "127.0.0.1", 9001)?["echo"] == "ping");
        Ok(())
    };
    still_refused()?;
    drop(node.start_agent()?);
    still_refused()?;
    ensure!(node.tell("status", &Value::Null)?["previous"] == 1);
    drop(node.enrol(&pod, &json!({}))?);
    drop(node.tell("take over", &Value::Null)?);
    ensure!(node.tell("status", &Value::Null)?["previous"] == 0);
    meshed(&pod)?;
    ensure!(dial(&outsider, &ip4, 9001)?["echo"] == "ping");
    ensure!(node.count("steered")? == 1);
    Ok(())
}

fn hand_over() -> Result<()> {
    let mut node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let _serving = serve(&pod, 9001)?;
    let ip = pod.ip4.to_string();
    let mut out = pod.spawn("out", &["python3", "-uc", REPEAT, NOWHERE, "80"])?;
    let mut inward = outsider.spawn("in", &["python3", "-uc", REPEAT, &ip, "9001"])?;
    out.wait_for("50\n", SOON)?;
    let old = node.start_agent()?.context("one ran before")?;
    drop(node.enrol(&pod, &json!({}))?);
    // With the programs of both in force, neither takes the other's connections for the
    // pod's.
    let _beyond = serve(&outsider, 8080)?;
    for (client, server, port) in [(&outsider, &pod, 9001), (&pod, &outsider, 8080)] {
        let seen = dial(client, &server.ip4.to_string(), port)?;
        let banner = seen["banner"].as_str().unwrap_or_default();
        let expected = client.ip4.to_string();
        let named = banner.split(' ').filter(|word| word.ends_with(&expected));
        ensure!(named.count() == 2 && seen["echo"] == "ping", "{seen}");
    }
    drop(node.tell("take over", &Value::Null)?);
    let through_new = |counter: &'static str| {
        until(&format!("the new agent's {counter}"), SOON, || {
            (node.count(counter).ok()? > 50).then_some(())
        })
    };
    through_new("redirected")?;
    through_new("steered")?;
    old.kill();
    let before = node.count("redirected")?;
    until("traffic without the old agent", SOON, || {
        (node.count("redirected").ok()? > before + 50).then_some(())
    })?;
    for client in [&mut out, &mut inward] {
        ensure!(client.ended()?.is_none(), "{}", client.output());
    }
    Ok(())
}

/// Dials again and again; ends where anything fails.
const REPEAT: &str = "import socket, sys
done = 0
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as s:
            s.sendall(b'ping')
            seen = b''
            while not seen.endswith(b'\\nping'):
                data = s.recv(99)
                if not data:
                    sys.exit('after %d: the end after %r' % (done, seen))
                seen += data
    except OSError as error:
        sys.exit('after %d: %s' % (done, error))
    done += 1
    if done % 50 == 0:
        print(done)";

fn cleanup() -> Result<()> {
    let mut node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let far = outsider.ip4.to_string();
    let _outside = serve(&outsider, 9001)?;
    let bpffs = node.world.bpffs();
    let name = NodeName("a".into());
    // While the agent runs it changes nothing, and names the agent.
    let pid = node.agent.as_ref().context("it runs")?.pid();
    for of in [Some(&name), None] {
        match redirect::cleanup(&bpffs, of, Scope::All) {
            Ok(done) => bail!("a running agent's pins were removed: {done:?}"),
            Err(error) => {
                let text = error.to_string();
                ensure!(text.contains(&format!("process {pid} on node a")), "{text}");
                ensure!(text.contains(&format!("kill {pid}")), "{text}");
            }
        }
        let done = redirect::cleanup(&bpffs, of, Scope::DeadOnly)?;
        let own = node.world.id();
        ensure!(
            !done.removed.iter().any(|path| path.starts_with(&bpffs)),
            "{done:?}"
        );
        ensure!(
            !done.remaining.iter().any(|line| line.contains(own)),
            "{done:?}"
        );
    }
    meshed(&pod)?;
    node.agent.take().context("it runs")?.kill();
    refused(&dial(&pod, &far, 9001)?, "ECONNREFUSED")?;
    node.start_agent()?;
    drop(node.enrol(&pod, &json!({}))?);
    node.agent.take().context("it runs")?.kill();
    refused(&dial(&pod, &far, 9001)?, "ECONNREFUSED")?;

    let done = redirect::cleanup(&bpffs, Some(&name), Scope::DeadOnly)?;
    ensure!(done.removed.len() >= 7, "{done:?}");
    // Agents of other worlds have nodes of this name too.
    let own = node.world.id();
    let mine = |line: &&String| line.contains(own) || line.contains("link");
    ensure!(!done.remaining.iter().any(|line| mine(&line)), "{done:?}");
    ensure!(!bpffs.join("fairlead").exists(), "pins are left");
    let seen = dial(&pod, &far, 9001)?;
    ensure!(seen["echo"] == "ping", "it goes straight: {seen}");
    // And again: there is nothing left to do.
    let again = redirect::cleanup(&bpffs, Some(&name), Scope::All)?;
    ensure!(again.removed.is_empty(), "{again:?}");
    Ok(())
}

/// With no node named: those of every node of the machine.
fn cleanup_of_all() -> Result<()> {
    let mut node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let outsider = node.outsider()?;
    let far = outsider.ip4.to_string();
    let _outside = serve(&outsider, 9001)?;
    let bpffs = node.world.bpffs();
    node.agent.take().context("it runs")?.kill();
    // Pins of a second node on the same file system.
    let other = bpffs.join("fairlead/b_example/1-1");
    std::fs::create_dir_all(&other)?;
    let program = fairlead_tests::binary()?;
    let run = |extra: &[&str]| -> Result<(Option<i32>, Value)> {
        let mut command = std::process::Command::new(&program);
        for name in ["FAIRLEAD_BIN", "FAIRLEAD_CI", "FAIRLEAD_PYTHON"] {
            let _command = command.env_remove(name);
        }
        let _command = command
            .args(["cleanup", "-o", "json", "--bpffs"])
            .arg(&bpffs);
        let output = command.args(extra).output()?;
        let text = String::from_utf8(output.stderr)?;
        let value = serde_json::from_slice(&output.stdout).with_context(|| text.clone())?;
        Ok((output.status.code(), value))
    };
    refused(&dial(&pod, &far, 9001)?, "ECONNREFUSED")?;
    let (code, done) = run(&["--run-dir", "/nonexistent"])?;
    let removed = done["removed"].to_string();
    for path in [&other, &bpffs.join("fairlead/a"), &bpffs.join("fairlead")] {
        let path = format!("\"{}\"", path.display());
        ensure!(removed.contains(&path), "{path} is not in {removed}");
    }
    // Agents of other worlds may run beside this one; theirs alone may remain.
    let remaining = done["remaining"].as_array().context("remaining")?;
    ensure!(
        code == Some(i32::from(!remaining.is_empty())),
        "{code:?}: {done}"
    );
    let foreign = |line: &Value| {
        let line = line.to_string();
        line.contains("a running agent holds it") || line.contains("an agent runs in it")
    };
    ensure!(remaining.iter().all(foreign), "{done}");
    ensure!(
        !done.to_string().contains("link "),
        "a link is left: {done}"
    );
    ensure!(!bpffs.join("fairlead").exists(), "pins are left");
    ensure!(dial(&pod, &far, 9001)?["echo"] == "ping");
    Ok(())
}

/// Agents that end before they take over leave nothing that adds up: the kernel takes
/// 64 programs for one cgroup.
fn crash_loop() -> Result<()> {
    let mut node = Node::up()?;
    let pod = node.enrolled("pod")?;
    let instances = |node: &Node| -> Result<usize> {
        Ok(std::fs::read_dir(node.world.bpffs().join("fairlead/a"))?.count())
    };
    node.agent.take().context("it runs")?.kill();
    for _ in 0..5 {
        drop(node.start_agent()?);
        ensure!(instances(&node)? == 2, "the first and this one");
        node.agent.take().context("it runs")?.kill();
    }
    refused(&dial(&pod, NOWHERE, 80)?, "ECONNREFUSED")?;
    // Those that die after they have enrolled the pod.
    for _ in 0..20 {
        drop(node.start_agent()?);
        drop(node.enrol(&pod, &json!({}))?);
        node.agent.take().context("it runs")?.kill();
        refused(&dial(&pod, NOWHERE, 80)?, "ECONNREFUSED")?;
    }
    ensure!(instances(&node)? <= 17, "{}", instances(&node)?);
    drop(node.start_agent()?);
    drop(node.enrol(&pod, &json!({}))?);
    drop(node.tell("take over", &Value::Null)?);
    ensure!(instances(&node)? == 1);
    meshed(&pod)
}

/// Whoever shares an agent's cgroup would be exempt from the mesh.
fn crowded() -> Result<()> {
    let mut node = Node::without_agent()?;
    let host = &node.world.node("a").host;
    // Where the first agent is put.
    let place = host.child("agent-1")?;
    let (cgroup, netns) = (place.cgroup().to_owned(), host.netns());
    let sleeper = place.spawn("neighbour", &["sleep", "60"])?;
    let neighbour = sleeper.pid().to_string();
    // A process goes into its cgroup after it was started.
    until("the neighbour to be there", SOON, || {
        let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).ok()?;
        processes
            .lines()
            .any(|line| line == neighbour)
            .then_some(())
    })?;
    drop(node.start_agent()?);
    let status = node.tell("status", &Value::Null)?;
    let own = status["agent_cgroup"].as_str().unwrap_or_default();
    ensure!(own == cgroup.join("fairlead-agent-a").display().to_string());
    let pod = node.enrolled("pod")?;
    meshed(&pod)?;
    both_ways(&node, &pod)?;
    // One that has a cgroup of its own stays there.
    drop(node.start_agent()?);
    let status = node.tell("status", &Value::Null)?;
    let own = status["agent_cgroup"].as_str().unwrap_or_default();
    ensure!(own.ends_with("/agent-2"), "{status}");
    ensure!(netns.exists());
    Ok(())
}

/// The hooks are on pods alone, the agent's cgroup is not below.
fn elsewhere() -> Result<()> {
    let mut node = Node::without_agent()?;
    let pod = node.pod("pod")?;
    node.attach = Some(pod.cgroup().to_owned());
    drop(node.start_agent()?);
    let _seen = pod.spawn("seen", &["sleep", "60"])?;
    let net = format!("--net={}", pod.netns().display());
    let host = &node.world.node("a").host;
    let stray = host.spawn("stray", &["nsenter", &net, "sleep", "60"])?;
    let inode = |path: String| Some(std::fs::metadata(path).ok()?.ino());
    until("the stray to be inside", SOON, || {
        let found = inode(format!("/proc/{}/ns/net", stray.pid()))?;
        (Some(found) == inode(pod.netns().display().to_string())).then_some(())
    })?;
    // What no hook sees is said.
    let enrolled = node.enrol(&pod, &json!({}))?;
    ensure!(enrolled["unseen"] == json!([stray.pid()]), "{enrolled}");
    meshed(&pod)?;
    both_ways(&node, &pod)?;
    node.agent.take().context("it runs")?.kill();
    refused(&dial(&pod, NOWHERE, 80)?, "ECONNREFUSED")?;
    let name = NodeName("a".into());
    drop(redirect::cleanup(
        &node.world.bpffs(),
        Some(&name),
        Scope::All,
    )?);
    ensure!(!node.world.bpffs().join("fairlead").exists());
    Ok(())
}

fn logging() -> Result<()> {
    let mut node = Node::without_agent()?;
    node.debug = true;
    drop(node.start_agent()?);
    let pod = node.enrolled("pod")?;
    meshed(&pod)?;
    both_ways(&node, &pod)
}

/// The agent's dials reach the application, with the client that dialled.
fn both_ways(node: &Node, pod: &Pod) -> Result<()> {
    let outsider = node.outsider()?;
    let _serving = serve(pod, 9001)?;
    let seen = dial(&outsider, &pod.ip4.to_string(), 9001)?;
    let (banner, local) = (seen["banner"].as_str(), seen["local"].as_str());
    let expected = local.map(|local| format!("::ffff:{local} ::ffff:{local}"));
    ensure!(banner == expected.as_deref(), "{seen}");
    Ok(())
}

fn probes() -> Result<()> {
    let node = Node::up()?;
    let config = redirect::Config {
        node: NodeName("a".into()),
        cgroup: node.world.node("a").cgroup.clone(),
        bpffs: node.world.bpffs(),
        kubelet: redirect::Kubelet::Nowhere,
        debug: false,
    };
    let checks = redirect::probe(&config);
    for check in &checks {
        ensure!(check.outcome == Outcome::Passed, "{check:?}");
    }
    ensure!(checks.len() == 13, "{checks:?}");
    let wrong = redirect::Config {
        cgroup: "/tmp".into(),
        bpffs: "/tmp".into(),
        ..config
    };
    let checks = redirect::probe(&wrong);
    let failed: Vec<_> = checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed)
        .collect();
    ensure!(failed.len() == 2, "{failed:?}");
    ensure!(failed.iter().all(|check| check.remedy.contains("mount")));
    match redirect::Redirector::start(wrong) {
        Ok(_) => anyhow::bail!("it started"),
        Err(error) => ensure!(error.to_string().contains("bpffs"), "{error}"),
    }
    Ok(())
}
