//! A new agent takes over from one that runs, as in an upgrade of a DaemonSet.

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Agent, AgentOptions, until};
use serde_json::Value;

use crate::Test;
use crate::mesh::{Mesh, SOON, client_and_server, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("upgrade::no_connection_fails_between_two_agents", gapless)
        .with(&["python3", "tcpdump"]),
    Test::node("upgrade::a_successor_that_fails_changes_nothing", failing).with(&["python3"]),
];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");
/// Dials again and again; ends where anything fails.
const AGAIN: &str = "import socket, sys
done = 0
while True:
    try:
        with socket.create_connection((sys.argv[1], 8080), timeout=10) as s:
            s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
            seen = b''
            while data := s.recv(999):
                seen += data
        if not seen.endswith(b'ok\\n'):
            sys.exit('after %d: %r' % (done, seen))
    except OSError as error:
        sys.exit('after %d: %s' % (done, error))
    done += 1
    if done % 20 == 0:
        print('done', done)";
/// One connection, used again and again; ends where it breaks.
pub(crate) const ON: &str = "import socket, sys, time
with socket.create_connection((sys.argv[1], 8080), timeout=10) as s:
    done = 0
    while True:
        s.sendall(b'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
        seen = b''
        while not seen.endswith(b'ok\\n'):
            data = s.recv(999)
            if not data:
                sys.exit('after %d: the end after %r' % (done, seen))
            seen += data
        done += 1
        print('used', done)
        time.sleep(0.05)";

fn successor(mesh: &Mesh, node: &str, arguments: &[&str]) -> Result<Agent> {
    let options = AgentOptions {
        arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
        ..AgentOptions::default()
    };
    Agent::spawn(&mesh.world, mesh.world.node(node), &options)
}

/// The agent that answers, by its start, once it is ready.
fn ready(agent: &Agent, not: &Value) -> Option<Value> {
    let status = agent.status().ok()?;
    let is_ready = status["not_ready"].as_array()?.is_empty();
    (is_ready && status["started"] != *not).then(|| status["started"].clone())
}

fn gapless() -> Result<()> {
    let mut mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = serve_python(server, WEB, 8080, &[])?;
    let address = server.ip4.to_string();
    let capture = mesh.capture("upgrade")?;
    let mut load = client.spawn("again", &["python3", "-uc", AGAIN, &address])?;
    load.wait_for("done 20\n", SOON)?;
    for (index, node) in ["a", "b"].into_iter().enumerate() {
        let before = mesh.agent(node).status()?["started"].clone();
        let client = mesh.pod("client");
        let mut long = client.spawn("on", &["python3", "-uc", ON, &address])?;
        long.wait_for("used 5\n", SOON)?;
        let new = successor(&mesh, node, &["--replace"])?;
        until("the new agent", SOON * 2, || ready(&new, &before)).with_context(|| {
            let old = mesh.agent(node).process.output();
            format!("{}\nthe old one:\n{old}", new.process.output())
        })?;
        ensure!(
            new.page("/readyz")? == "ok\n",
            "the metrics address is the new agent's"
        );
        // What the old one carries goes on for as long as it runs.
        let used = long.output().lines().count();
        long.wait_for(&format!("used {}\n", used + 10), SOON)?;
        long.kill();
        let old = std::mem::replace(&mut mesh.agents[index], new);
        let status = old.process.terminate(SOON * 2)?;
        ensure!(status.success(), "the old agent ended with {status}");
        ensure!(
            ready(mesh.agent(node), &before).is_some(),
            "the new one's socket went with the old agent"
        );
        let done = load.output().lines().count();
        load.wait_for(&format!("done {}\n", (done + 3) * 20), SOON * 2)
            .with_context(|| mesh.agent(node).process.output())?;
    }
    ensure!(load.ended()?.is_none(), "{}", load.output());
    let traffic = capture.stop()?;
    ensure!(traffic.plaintext_streams().is_empty(), "{traffic:?}");
    Ok(())
}

fn failing() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = serve_python(server, WEB, 8080, &[])?;
    let address = server.ip4.to_string();
    let mut load = client.spawn("again", &["python3", "-uc", AGAIN, &address])?;
    load.wait_for("done 20\n", SOON)?;
    let before = mesh.agent("a").status()?["started"].clone();
    let mut new = successor(&mesh, "a", &["--replace", "--cgroup", "/proc"])?;
    let ended = until("its end", SOON, || new.process.ended().ok().flatten())?;
    ensure!(!ended.success(), "{}", new.process.output());
    drop(new);
    until("the old agent answers again", SOON, || {
        ready(mesh.agent("a"), &Value::Null).filter(|started| *started == before)
    })
    .with_context(|| mesh.agent("a").process.output())?;
    ensure!(mesh.agent("a").page("/readyz")? == "ok\n", "it is ready");
    ensure!(load.ended()?.is_none(), "{}", load.output());
    Ok(())
}
