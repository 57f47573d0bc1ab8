//! Who may talk to whom: mTLS modes and authorization, on real connections.

use anyhow::{Result, ensure};
use fairlead_tests::{Pod, PodSpec, Process, until, until_ok};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, TUNNEL, curl, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("policies::strict_refuses_plaintext", strict).with(&["python3", "curl"]),
    Test::node("policies::strict_per_port", strict_per_port).with(&["python3", "curl"]),
    Test::node("policies::same_node_applies_policy_of_both_ends", same_node)
        .with(&["python3", "curl"]),
    Test::node(
        "policies::allow_makes_default_deny_and_names_the_rule",
        allow,
    )
    .with(&["python3", "curl"]),
    Test::node("policies::a_change_closes_open_connections", change_closes).with(&["python3"]),
    Test::node(
        "policies::an_invalid_policy_denies_and_is_reported",
        invalid,
    )
    .with(&["python3", "curl"]),
    Test::node("policies::an_address_proves_nothing", pretender).with(&["python3", "curl"]),
];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");

/// Echoes.
const ECHO: &str = include_str!("../../scripts/echo.py");

/// A client that keeps one connection to the echo and says when it has ended.
const HOLD: &str = "import socket, sys
connection = socket.create_connection((sys.argv[1], 8090), timeout=10)
connection.sendall(b'held')
heard = b''
while not heard.endswith(b'held'):
    heard += connection.recv(64)
print('held', flush=True)
connection.settimeout(60)
try:
    while connection.recv(4096):
        pass
except ConnectionError:
    pass
print('ended', flush=True)";

/// A client that asks again and again on one connection, until it is refused.
const ASK: &str = "import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=10)
connection.auto_open = 0
connection.connect()
status = 200
while status == 200:
    connection.request('GET', '/')
    answer = connection.getresponse()
    answer.read()
    status = answer.status
    print('status', status, answer.getheader('fairlead-reason'), flush=True)
    time.sleep(0.1)";

/// A server on two ports.
fn web(pod: &Pod) -> Result<[Process; 2]> {
    Ok([
        serve_python(pod, WEB, 8080, &[])?,
        serve_python(pod, WEB, 8081, &[])?,
    ])
}

/// client on a, server on b, a neighbour of each, and one that is not meshed on a.
fn mesh() -> Result<Mesh> {
    Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("b", "shop", "neighbour"),
        PodSpec::new("a", "guest", "visitor"),
        PodSpec::new("b", "guest", "lodger"),
    ])
}

fn url(server: &Pod, port: u16) -> String {
    format!("http://{}:{port}/", server.ip4)
}

fn works(pod: &Pod, url: &str) -> bool {
    curl(pod, url).is_ok_and(|output| output.success())
}

#[track_caller]
fn soon_refused(pod: &Pod, url: &str) -> Result<()> {
    until(&format!("{} is refused", pod.name), SOON, || {
        (!works(pod, url)).then_some(())
    })
}

/// The newest flow of a node that was denied.
fn last_denied(mesh: &Mesh, node: &str) -> Result<Value> {
    until_ok("a denied flow", SOON, || {
        let arguments = ["flows", "--verdict", "denied", "--last", "1"];
        let mut flows = mesh.agent(node).cli.json(&arguments)?;
        flows.pop().ok_or_else(|| anyhow::anyhow!("no denied flow"))
    })
}

fn strict() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = web(server)?;
    let url = url(server, 8080);
    for pod in ["client", "visitor", "neighbour", "lodger"] {
        ensure!(works(mesh.pod(pod), &url), "PERMISSIVE refuses {pod}");
    }
    mesh.world.manifests().mtls("shop", None, "STRICT")?;
    soon_refused(mesh.pod("visitor"), &url)?;
    soon_refused(mesh.pod("lodger"), &url)?;
    ensure!(works(client, &url), "STRICT refuses mTLS");
    ensure!(
        works(mesh.pod("neighbour"), &url),
        "STRICT refuses a neighbour"
    );
    let flow = last_denied(&mesh, "b")?;
    let reason = flow["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("mtls_required"), "{flow}");
    ensure!(flow["source"].get("identity").is_none(), "{flow}");
    mesh.world
        .manifests()
        .delete("MeshPolicy", "shop", "default")?;
    until("PERMISSIVE again", SOON, || {
        works(mesh.pod("visitor"), &url).then_some(())
    })
}

fn strict_per_port() -> Result<()> {
    let mesh = mesh()?;
    let server = mesh.pod("server");
    let _web = web(server)?;
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"namespace": "shop", "name": "ports"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "mtls": {"mode": "STRICT", "ports": {"8081": {"mode": "PERMISSIVE"}}},
        },
    }))?;
    let visitor = mesh.pod("visitor");
    soon_refused(visitor, &url(server, 8080))?;
    ensure!(
        works(visitor, &url(server, 8081)),
        "the exception is not made"
    );
    Ok(())
}

fn same_node() -> Result<()> {
    let mesh = mesh()?;
    let (neighbour, server) = (mesh.pod("neighbour"), mesh.pod("server"));
    let _web = web(server)?;
    let url = url(server, 8080);
    ensure!(works(neighbour, &url), "it works at first");
    let rules =
        json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/neighbour"]}}]}]);
    let name = ("shop", "no-neighbours");
    mesh.world
        .manifests()
        .authorization(name, "server", "DENY", &rules)?;
    soon_refused(neighbour, &url)?;
    ensure!(
        works(mesh.pod("client"), &url),
        "only the neighbour is denied"
    );
    let flow = last_denied(&mesh, "b")?;
    ensure!(flow["policy"] == "shop/no-neighbours#0", "{flow}");
    ensure!(
        flow["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/neighbour",
        "{flow}"
    );
    Ok(())
}

fn allow() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = web(server)?;
    let rules = json!([{
        "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}],
        "to": [{"operation": {"ports": [8080]}}],
    }]);
    let name = ("shop", "clients");
    mesh.world
        .manifests()
        .authorization(name, "server", "ALLOW", &rules)?;
    soon_refused(client, &url(server, 8081))?;
    ensure!(
        works(client, &url(server, 8080)),
        "the rule does not allow it"
    );
    soon_refused(mesh.pod("neighbour"), &url(server, 8080))?;
    soon_refused(mesh.pod("visitor"), &url(server, 8080))?;
    let explained = |source: &str, port: u16| -> Result<(i32, String)> {
        let destination = format!("shop/server:{port}");
        let output = mesh
            .agent("b")
            .cli
            .run(&["explain", source, &destination])?;
        Ok((output.code(), output.stdout))
    };
    let (code, text) = explained("shop/client", 8080)?;
    ensure!(code == 0 && text.contains("shop/clients"), "{text}");
    let (code, text) = explained("shop/client", 8081)?;
    ensure!(code == 1 && text.contains("shop/clients"), "{text}");
    Ok(())
}

fn change_closes() -> Result<()> {
    let mesh = mesh()?;
    let server = mesh.pod("server");
    let _web = web(server)?;
    let _echo = serve_python(server, ECHO, 8090, &[])?;
    let address = server.ip4.to_string();
    let (mut held, mut asking) = (Vec::new(), Vec::new());
    for name in ["client", "neighbour", "visitor"] {
        let pod = mesh.pod(name);
        let mut process = pod.spawn("hold", &["python3", "-uc", HOLD, &address])?;
        process.wait_for("held", SOON)?;
        held.push(process);
        let mut process = pod.spawn("ask", &["python3", "-uc", ASK, &address])?;
        process.wait_for("status 200", SOON)?;
        asking.push(process);
    }
    let rules =
        json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]);
    let name = ("shop", "only-the-client");
    mesh.world
        .manifests()
        .authorization(name, "server", "ALLOW", &rules)?;
    // No request of theirs can be permitted any more: their connections end, whatever is
    // spoken on them.
    for process in &mut held[1..] {
        process.wait_for("ended", SOON)?;
    }
    for process in &mut asking[1..] {
        process.wait(SOON)?;
    }
    ensure!(
        !held[0].output().contains("ended"),
        "the client's was to stay"
    );
    ensure!(
        asking[0].output().matches("status 200").count() > 1 && !asking[0].output().contains("403"),
        "the client's requests go on"
    );
    let flow = last_denied(&mesh, "b")?;
    ensure!(
        flow["reason"]
            .as_str()
            .unwrap_or_default()
            .contains("denied"),
        "{flow}"
    );
    Ok(())
}

fn invalid() -> Result<()> {
    let mesh = mesh()?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = web(server)?;
    let url = url(server, 8080);
    ensure!(works(client, &url), "it works at first");
    // A field that nobody knows might have narrowed the rule down.
    let rules = json!([{"from": [{"source": {"principle": ["cluster.local/ns/shop/sa/client"]}}]}]);
    let name = ("shop", "misspelt");
    mesh.world
        .manifests()
        .authorization(name, "server", "ALLOW", &rules)?;
    soon_refused(client, &url)?;
    let status = mesh.agent("b").status()?;
    let problems = status["problems"].to_string();
    ensure!(problems.contains("principle"), "{problems}");
    ensure!(problems.contains("misspelt"), "{problems}");
    mesh.world
        .manifests()
        .delete("AuthorizationPolicy", "shop", "misspelt")?;
    until("it is mended", SOON, || works(client, &url).then_some(()))
}

/// One that is not meshed takes the address of a meshed pod as its source, and dials
/// the tunnel's port with no certificate.
fn pretender() -> Result<()> {
    let mesh = mesh()?;
    let (visitor, server) = (mesh.pod("visitor"), mesh.pod("server"));
    let _web = web(server)?;
    let rules =
        json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]);
    let name = ("shop", "clients");
    mesh.world
        .manifests()
        .authorization(name, "server", "ALLOW", &rules)?;
    let url = url(server, 8080);
    soon_refused(visitor, &url)?;
    let client = mesh.pod("client").ip4.to_string();
    // The same namespace has both addresses, as after a stolen or reused one.
    drop(
        visitor
            .run(&["ip", "address", "add", &client, "dev", "lo"])?
            .ok()?,
    );
    let arguments = [
        "curl",
        "-sS",
        "--max-time",
        "2",
        "--interface",
        &client,
        &url,
    ];
    ensure!(
        !visitor.run(&arguments)?.success(),
        "the address was believed"
    );
    let tunnel = format!("https://{}:{TUNNEL}/", server.ip4);
    let output = visitor.run(&["curl", "-sSk", "--http2", "--max-time", "5", &tunnel])?;
    ensure!(
        !output.success(),
        "a tunnel without a certificate: {output:?}"
    );
    let plain = format!("http://{}:{TUNNEL}/", server.ip4);
    ensure!(!works(visitor, &plain), "a tunnel without TLS");
    ensure!(
        works(mesh.pod("client"), &url),
        "the real client is allowed"
    );
    Ok(())
}
