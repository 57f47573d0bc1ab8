//! Bad input, and parts that fail: what is not touched goes on, and nothing opens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Agent, AgentOptions, Authority, Pod, PodSpec, Process, cleanup, until};
use serde_json::Value;

use crate::Test;
use crate::mesh::{LONG, Mesh, SOON, client_and_server, curl, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node(
        "faults::malformed_yaml_is_reported_and_keeps_the_last",
        malformed,
    )
    .with(&["curl"]),
    Test::node("faults::bad_pods_touch_no_other", bad_pods).with(&["curl"]),
    Test::node(
        "faults::a_killed_agent_fails_closed_and_the_next_takes_over",
        killed,
    )
    .with(&["curl", "ab", "tcpdump"]),
    Test::node("faults::stopped_agents_fail_closed_until_cleanup", stopped).with(&["curl"]),
    Test::node("faults::a_pod_that_changes_is_never_open", changing).with(&["python3", "tcpdump"]),
    Test::node("faults::the_authority_is_away_at_start", authority_away).with(&["curl"]),
    Test::node("faults::certificates_rotate_under_a_connection", rotation).with(&["python3"]),
    Test::node("faults::descriptors_run_out", descriptors_run_out).with(&["python3", "prlimit"]),
    Test::node("faults::the_flow_ring_is_full", full_ring).with(&["curl", "ab"]),
    Test::node("faults::a_missing_feature_is_said_clearly", missing_feature),
];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");
/// Dials in many ways.
const DIAL: &str = include_str!("../../scripts/dial.py");
/// Echoes.
const ECHO: &str = include_str!("../../scripts/echo.py");

fn web(pod: &Pod) -> Result<Process> {
    serve_python(pod, WEB, 8080, &[])
}

fn url(pod: &Pod) -> String {
    format!("http://{}:8080/", pod.ip4)
}

fn works(pod: &Pod, url: &str) -> bool {
    curl(pod, url).is_ok_and(|output| output.success())
}

fn problems(agent: &Agent) -> Result<String> {
    Ok(agent.status()?["problems"].to_string())
}

fn reported(agent: &Agent, text: &str) -> Result<()> {
    until(&format!("\"{text}\" among the problems"), SOON, || {
        problems(agent).ok()?.contains(text).then_some(())
    })
    .with_context(|| problems(agent).unwrap_or_default())
}

fn malformed() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = web(server)?;
    let service = "kind: Service\napiVersion: v1\nmetadata: {namespace: shop, name: web}\n\
        spec:\n  clusterIP: 10.96.0.20\n  selector: {app: server}\n  ports: [{port: 80, targetPort: 8080}]\n";
    let manifests = mesh.world.manifests();
    manifests.write("web.yaml", service)?;
    until("the Service", SOON, || {
        works(client, "http://10.96.0.20/").then_some(())
    })?;
    manifests.write("web.yaml", &service.replace("spec:\n", "spec: [\n"))?;
    reported(mesh.agent("a"), "web.yaml")?;
    ensure!(
        works(client, "http://10.96.0.20/"),
        "its last good objects stay in force"
    );
    manifests.write("web.yaml", service)?;
    until("it is mended", SOON, || {
        let text = problems(mesh.agent("a")).ok()?;
        (!text.contains("web.yaml")).then_some(())
    })
}

fn bad_pods() -> Result<()> {
    let mut specs = client_and_server().to_vec();
    specs.push(PodSpec::new("b", "shop", "twin"));
    let mesh = Mesh::up(&specs)?;
    let (client, server, twin) = (mesh.pod("client"), mesh.pod("server"), mesh.pod("twin"));
    let _servers = [web(server)?, web(twin)?];
    let manifests = mesh.world.manifests();
    // One with no address, one whose namespace is gone.
    let mut object = server.manifest();
    object["metadata"]["name"] = "homeless".into();
    object["status"] = serde_json::json!({"phase": "Running"});
    manifests.apply(&object)?;
    let mut object = server.manifest();
    object["metadata"]["name"] = "ghost".into();
    object["metadata"]["annotations"]["fairlead.dev/netns"] = "/run/netns/no-such-thing".into();
    object["status"]["podIPs"] = serde_json::json!([{"ip": "10.244.2.200"}]);
    object["status"]["podIP"] = "10.244.2.200".into();
    manifests.apply(&object)?;
    reported(mesh.agent("b"), "ghost")?;
    ensure!(works(client, &url(server)), "another pod suffers");
    // One that claims the twin's address: it belongs to neither until that is settled.
    let mut object = server.manifest();
    object["metadata"]["name"] = "thief".into();
    object["status"]["podIPs"] = serde_json::json!([{"ip": twin.ip4}]);
    object["status"]["podIP"] = twin.ip4.to_string().into();
    manifests.apply(&object)?;
    reported(mesh.agent("a"), "thief")?;
    until("nobody is sent there", SOON, || {
        (!works(client, &url(twin))).then_some(())
    })?;
    ensure!(works(client, &url(server)), "another pod suffers");
    manifests.delete("Pod", "shop", "thief")?;
    until("it is settled", SOON, || {
        works(client, &url(twin)).then_some(())
    })
}

fn killed() -> Result<()> {
    let mut specs = client_and_server().to_vec();
    specs.push(PodSpec::new("a", "guest", "visitor"));
    let mut mesh = Mesh::up(&specs)?;
    let _web = web(mesh.pod("server"))?;
    let capture = mesh.capture("killed")?;
    let address = url(mesh.pod("server"));
    let arguments = [
        "ab", "-r", "-q", "-n", "1000000", "-c", "16", "-t", "30", &address,
    ];
    let load = mesh.pod("client").spawn("load", &arguments)?;
    for victim in ["b", "a"] {
        until("traffic", SOON, || {
            works(mesh.pod("client"), &address).then_some(())
        })?;
        let at = usize::from(victim == "b");
        let pins = pins(&mesh)?;
        mesh.agents.remove(at).process.kill();
        let refused = curl(mesh.pod("client"), &address)?;
        ensure!(
            !refused.success(),
            "the client was served with an agent away"
        );
        ensure!(
            refused.elapsed < fairlead_tests::patient(Duration::from_secs(5)),
            "it was not refused at once: {refused:?}"
        );
        if victim == "b" {
            ensure!(!works(mesh.pod("visitor"), &address), "plaintext came in");
        }
        let agent = mesh.start(victim)?;
        mesh.agents.insert(at, agent);
        mesh.wait_enrolled()?;
        until("traffic resumes", SOON, || {
            works(mesh.pod("client"), &address).then_some(())
        })?;
        let now = self::pins(&mesh)?;
        ensure!(
            now.len() == pins.len(),
            "pins are left over: {pins:?}, then {now:?}"
        );
    }
    drop(load);
    // The visitor's attempts, which had no mesh on their side, are the only plaintext.
    let visitor = mesh.pod("visitor").ip4;
    let traffic = capture.stop()?;
    let of_others = |(from, to): &(std::net::SocketAddr, std::net::SocketAddr)| {
        from.ip() != visitor && to.ip() != visitor
    };
    let plain: Vec<_> = traffic
        .plaintext_streams()
        .into_iter()
        .filter(of_others)
        .collect();
    ensure!(plain.is_empty(), "plaintext crossed the link: {plain:?}");
    Ok(())
}

/// Everything that is pinned in the world's bpffs.
fn pins(mesh: &Mesh) -> Result<Vec<String>> {
    fn below(directory: &Path, found: &mut Vec<String>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below(&entry.path(), found)?;
            } else {
                found.push(entry.path().display().to_string());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    // The file system itself has files for debugging beside it.
    let pins = mesh.world.bpffs().join("fairlead");
    if pins.exists() {
        below(&pins, &mut found)?;
    }
    Ok(found)
}

fn stopped() -> Result<()> {
    let mut mesh = Mesh::up(&client_and_server())?;
    let _web = web(mesh.pod("server"))?;
    let address = url(mesh.pod("server"));
    ensure!(works(mesh.pod("client"), &address), "it works at first");
    for agent in mesh.agents.drain(..) {
        let status = agent.process.terminate(LONG)?;
        ensure!(status.success(), "an agent that is asked to stop: {status}");
    }
    ensure!(
        !works(mesh.pod("client"), &address),
        "a meshed pod is open without its agent"
    );
    for node in mesh.world.nodes() {
        drop(cleanup(&mesh.world, node)?.ok()?);
    }
    ensure!(pins(&mesh)?.is_empty(), "left: {:?}", pins(&mesh)?);
    ensure!(
        works(mesh.pod("client"), &address),
        "after the cleanup it is as without a mesh"
    );
    Ok(())
}

/// Its identity and its addresses change while it dials on and on.
fn changing() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = web(server)?;
    let dial = "import select, socket, sys, time
print('dialling', flush=True)
while True:
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((sys.argv[1], 8080))
    if select.select([], [s], [], 0.05)[1]:
        try:
            s.sendall(b'GET / HTTP/1.0')
        except OSError:
            pass
    s.close()
    time.sleep(0.001)";
    let capture = mesh.capture("changing")?;
    let address = server.ip4.to_string();
    let mut dialling = client.spawn("dial", &["python3", "-uc", dial, &address])?;
    dialling.wait_for("dialling", SOON)?;
    for number in 0..16 {
        let mut object = client.manifest();
        let identity = format!("changed-{number}");
        object["spec"]["serviceAccountName"] = identity.as_str().into();
        if number % 2 == 1 {
            let only = serde_json::json!([{"ip": client.ip4}]);
            object["status"]["podIPs"] = only;
        }
        mesh.world.manifests().apply(&object)?;
        until("the change", SOON, || {
            let status = mesh.agent("a").status().ok()?;
            let pod = status["pods"].as_array()?.first()?;
            let changed = pod["identity"].as_str()?.ends_with(&identity);
            (changed && pod["state"] == "enrolled").then_some(())
        })?;
    }
    dialling.kill();
    let plain = capture.stop()?.plaintext_streams();
    ensure!(plain.is_empty(), "it was open for a moment: {plain:?}");
    until("traffic", LONG, || {
        works(client, &url(server)).then_some(())
    })
}

fn authority_away() -> Result<()> {
    let mut mesh = Mesh::down(&client_and_server())?;
    let node = mesh.world.node("a");
    // Started once so that its root and tokens are there, then away.
    let authority = Authority::start(&mesh.world, node)?;
    let options: Vec<AgentOptions> = mesh
        .world
        .nodes()
        .iter()
        .map(|node| authority.options_for(node))
        .collect();
    drop(authority);
    let _web = web(mesh.pod("server"))?;
    let mut agents = Vec::new();
    for (node, options) in mesh.world.nodes().iter().zip(&options) {
        agents.push(Agent::spawn(&mesh.world, node, options)?);
    }
    for agent in &mut agents {
        agent.wait_ready()?;
    }
    mesh.agents = agents;
    mesh.wait_enrolled()?;
    let address = url(mesh.pod("server"));
    let output = curl(mesh.pod("client"), &address)?;
    ensure!(!output.success(), "there can be no certificate yet");
    let _authority = Authority::start(&mesh.world, mesh.world.node("a"))?;
    until("certificates", LONG, || {
        works(mesh.pod("client"), &address).then_some(())
    })
}

fn rotation() -> Result<()> {
    let arguments = ["--certificate-ttl", "12s"];
    let (mesh, _authority) = Mesh::up_with_authority(&client_and_server(), &arguments)?;
    let _echo = serve_python(mesh.pod("server"), ECHO, 7000, &[])?;
    let address = mesh.pod("server").ip4.to_string();
    let serial = || -> Option<Value> {
        let rows = mesh.agent("a").status().ok()?["certificates"].clone();
        let valid = |row: &&Value| row["state"] == "valid";
        Some(rows.as_array()?.iter().find(valid)?["serial"].clone())
    };
    let first = until("a certificate", SOON, serial)?;
    let script = "import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000), timeout=10)
while not connection.recv(1) == b'\\n':
    pass
print('open', flush=True)
while True:
    connection.sendall(b'x')
    assert connection.recv(1) == b'x'
    time.sleep(0.1)";
    let client = mesh.pod("client");
    let mut held = client.spawn("hold", &["python3", "-uc", script, &address])?;
    held.wait_for("open", SOON)?;
    for _ in 0..2 {
        until("another certificate", LONG, || {
            (serial()? != first).then_some(())
        })?;
        let output = crate::mesh::run_python(client, DIAL, &["echo", &address, "7000"])?;
        ensure!(output.stdout.trim() == "right", "{output:?}");
    }
    ensure!(
        held.ended()?.is_none(),
        "rotation broke a connection: {}",
        held.output()
    );
    Ok(())
}

fn descriptors_run_out() -> Result<()> {
    let mut mesh = Mesh::down(&client_and_server())?;
    for node in mesh.world.nodes() {
        let options = AgentOptions {
            wrapper: ["prlimit", "--nofile=160"].map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        };
        mesh.agents.push(Agent::start(&mesh.world, node, &options)?);
    }
    mesh.wait_enrolled()?;
    let _echo = serve_python(mesh.pod("server"), ECHO, 7000, &[])?;
    let address = mesh.pod("server").ip4.to_string();
    let many = "import socket, sys
held = []
for _ in range(400):
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((sys.argv[1], 7000))
    held.append(connection)
print('held', flush=True)
import time
time.sleep(60)";
    let client = mesh.pod("client");
    let mut flood = client.spawn("flood", &["python3", "-uc", many, &address])?;
    flood.wait_for("held", SOON)?;
    // The agent still answers, or does so as soon as the flood is over.
    flood.kill();
    until("traffic after the flood", LONG, || {
        let output = crate::mesh::run_python(client, DIAL, &["echo", &address, "7000"]).ok()?;
        (output.stdout.trim() == "right").then_some(())
    })?;
    for agent in &mut mesh.agents {
        ensure!(
            agent.process.ended()?.is_none(),
            "the agent died: {}",
            agent.process.output()
        );
    }
    Ok(())
}

fn full_ring() -> Result<()> {
    let mut mesh = Mesh::down(&client_and_server())?;
    for node in mesh.world.nodes() {
        let options = AgentOptions {
            arguments: ["--flows-kept", "16"].map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        };
        mesh.agents.push(Agent::start(&mesh.world, node, &options)?);
    }
    mesh.wait_enrolled()?;
    let _web = web(mesh.pod("server"))?;
    let address = url(mesh.pod("server"));
    let load = ["ab", "-q", "-n", "500", "-c", "8", &address];
    drop(mesh.pod("client").run_for(LONG, &load)?.ok()?);
    let flows = until("the flows", SOON, || {
        let mut flows = mesh.agent("a").cli.json(&["flows"]).ok()?;
        let all = flows.len();
        flows.retain(|flow| flow.get("http").is_none());
        // As many of connections as of requests.
        (flows.len() == 16 && all == 32).then_some(flows)
    })?;
    let mut ids: Vec<String> = flows
        .iter()
        .map(|flow| flow["connection_id"].to_string())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == 16, "a connection has two records: {ids:?}");
    ensure!(works(mesh.pod("client"), &address), "it goes on");
    Ok(())
}

fn missing_feature() -> Result<()> {
    let mesh = Mesh::down(&client_and_server())?;
    let node = mesh.world.node("a");
    for (flag, value) in [("--bpffs", "/proc"), ("--cgroup", "/proc")] {
        let options = AgentOptions {
            arguments: vec![flag.to_owned(), value.to_owned()],
            ..AgentOptions::default()
        };
        let mut agent = Agent::spawn(&mesh.world, node, &options)?;
        let status = agent.process.wait(SOON)?;
        let text = agent.process.output();
        ensure!(status.code() == Some(1), "{flag} {value}: {status}: {text}");
        ensure!(text.contains(value), "it names what is wrong: {text}");
        ensure!(!text.contains("panicked"), "{text}");
    }
    Ok(())
}
