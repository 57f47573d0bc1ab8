//! What an application sees of its own connections when it is meshed.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Pod, PodSpec, until_ok};

use crate::Test;
use crate::mesh::{Mesh, SOON, client_and_server, run_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("connections::of_every_kind", every_kind).with(&["python3"]),
    Test::node("connections::to_nobody_end_promptly", to_nobody).with(&["python3"]),
    Test::node(
        "connections::to_a_port_of_ipv4_alone_end_promptly",
        of_ipv4_alone,
    )
    .with(&["python3"]),
    Test::node("connections::to_oneself", to_oneself).with(&["python3"]),
    Test::node("connections::loopback_and_udp_are_untouched", untouched).with(&["python3"]),
    Test::node("connections::bypass_lists", bypass_lists).with(&["python3", "tcpdump"]),
    Test::node("connections::enrolment_comes_and_goes", comes_and_goes)
        .with(&["python3", "tcpdump"]),
    Test::node("connections::hops_inside_pods_are_not_paced", unpaced).with(&["python3", "ss"]),
    Test::node("connections::namespaces_of_gone_pods_are_freed", freed).with(&["python3"]),
    Test::node("connections::threads_come_home_from_pods", threads).with(&["python3"]),
];

/// Keeps a connection open.
const HOLD: &str = "import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000), timeout=10)
while not connection.recv(1) == b'\\n':
    pass
print('open', flush=True)
time.sleep(60)";

/// Answers each connection with the peer's address as it sees it, then what it reads.
const ECHO: &str = include_str!("../../scripts/echo.py");
/// Dials in many ways and checks what it sees.
const DIAL: &str = include_str!("../../scripts/dial.py");
/// Takes connections to an address of IPv4.
const LISTEN4: &str = "import socket, time
listener = socket.create_server(('0.0.0.0', 7001))
time.sleep(600)";
/// The echo's port.
const PORT: &str = "7000";

/// Starts the echo and waits for it.
fn echo(pod: &Pod) -> Result<fairlead_tests::Process> {
    crate::mesh::serve_python(pod, ECHO, 7000, &[])
}

fn every_kind() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = echo(server)?;
    let output = run_python(
        client,
        DIAL,
        &[
            "every-kind",
            &server.ip4.to_string(),
            &server.ip6.to_string(),
            PORT,
        ],
    )?;
    ensure!(output.stdout.trim().ends_with("all right"), "{output:?}");
    Ok(())
}

fn to_nobody() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    for host in [server.ip4.to_string(), server.ip6.to_string()] {
        let output = run_python(client, DIAL, &["nobody", &host, "4444"])
            .with_context(|| format!("{host}, where nobody listens"))?;
        ensure!(
            output.stdout.trim() == "ended promptly",
            "{host}: {output:?}"
        );
    }
    let address = ["10.96.0.99"];
    mesh.world
        .manifests()
        .service(("shop", "empty"), &address, 80)?;
    fairlead_tests::until("a Service with no endpoint", SOON, || {
        let services = mesh.agent("a").cli.json(&["get", "services"]).ok()?;
        format!("{services:?}").contains("10.96.0.99").then_some(())
    })?;
    let output = run_python(client, DIAL, &["nobody", "10.96.0.99", "80"])
        .context("a Service with no endpoint")?;
    ensure!(output.stdout.trim() == "ended promptly", "{output:?}");
    Ok(())
}

/// The kernel sends no reset to `::1`, which the agent dials from.
fn of_ipv4_alone() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _serving = crate::mesh::serve_python(server, LISTEN4, 7001, &[])?;
    let host = server.ip6.to_string();
    for from in [client, server] {
        let output = run_python(from, DIAL, &["nobody", &host, "7001"])?;
        ensure!(output.stdout.trim() == "ended promptly", "{output:?}");
    }
    Ok(())
}

fn to_oneself() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let server = mesh.pod("server");
    let _echo = echo(server)?;
    let address = ["10.96.0.77"];
    mesh.world
        .manifests()
        .service(("shop", "server"), &address, 7000)?;
    fairlead_tests::until("the Service", SOON, || {
        let services = mesh.agent("b").cli.json(&["get", "services"]).ok()?;
        format!("{services:?}").contains("10.96.0.77").then_some(())
    })?;
    for host in [
        server.ip4.to_string(),
        server.ip6.to_string(),
        "10.96.0.77".to_owned(),
    ] {
        let output = run_python(server, DIAL, &["echo", &host, PORT])?;
        ensure!(output.stdout.trim() == "right", "{host}: {output:?}");
    }
    Ok(())
}

fn untouched() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = echo(server)?;
    for host in ["127.0.0.1", "::1", "127.9.9.9"] {
        let output = run_python(server, DIAL, &["echo", host, PORT])?;
        ensure!(output.stdout.trim() == "right", "{host}: {output:?}");
    }
    for host in [server.ip4.to_string(), server.ip6.to_string()] {
        let output = run_python(client, DIAL, &["udp", &host, PORT])?;
        ensure!(output.stdout.trim() == "right", "{host}: {output:?}");
    }
    Ok(())
}

fn bypass_lists() -> Result<()> {
    let mesh = Mesh::up(&[
        PodSpec::new("a", "shop", "by-port")
            .annotation("fairlead.dev/exclude-outbound-ports", PORT),
        PodSpec::new("a", "shop", "by-cidr").annotation(
            "fairlead.dev/exclude-outbound-cidrs",
            "10.244.2.0/24,fd00:244:2::/64",
        ),
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("b", "shop", "open").annotation("fairlead.dev/exclude-inbound-ports", PORT),
        PodSpec::new("a", "guest", "visitor"),
    ])?;
    let (server, open) = (mesh.pod("server"), mesh.pod("open"));
    let _echoes = [echo(server)?, echo(open)?];
    for name in ["by-port", "by-cidr"] {
        let capture = mesh.capture(name)?;
        let output = run_python(
            mesh.pod(name),
            DIAL,
            &["echo", &server.ip4.to_string(), PORT],
        )?;
        ensure!(output.stdout.trim() == "right", "{output:?}");
        let plain = capture.stop()?.plaintext_streams();
        ensure!(!plain.is_empty(), "{name} was not excluded");
    }
    // An excluded inbound port is the application's own business, also in STRICT.
    mesh.world.manifests().mtls("shop", None, "STRICT")?;
    fairlead_tests::until("STRICT", SOON, || {
        let address = server.ip4.to_string();
        let output = run_python(mesh.pod("visitor"), DIAL, &["nobody", &address, PORT]);
        output.is_ok().then_some(())
    })?;
    let address = open.ip4.to_string();
    let output = run_python(mesh.pod("visitor"), DIAL, &["echo", &address, PORT])?;
    ensure!(output.stdout.trim() == "right", "{output:?}");
    Ok(())
}

/// A pod is taken out of the mesh, put in again, destroyed and made anew; its
/// neighbours notice nothing.
fn comes_and_goes() -> Result<()> {
    let mut mesh = Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("a", "shop", "other"),
        PodSpec::new("b", "shop", "server"),
    ])?;
    let _echo = echo(mesh.pod("server"))?;
    let address = mesh.pod("server").ip4.to_string();
    let call = |mesh: &Mesh, name: &str| -> Result<usize> {
        let capture = mesh.capture("come-and-go")?;
        let output = run_python(mesh.pod(name), DIAL, &["echo", &address, PORT])?;
        ensure!(output.stdout.trim() == "right", "{output:?}");
        Ok(capture.stop()?.plaintext_streams().len())
    };
    ensure!(call(&mesh, "client")? == 0, "it is meshed at first");
    let label = "fairlead.dev/mesh";
    mesh.pods[0].publish_with_label(label, Some("disabled"))?;
    fairlead_tests::until("the pod has left", SOON, || {
        let status = mesh.agent("a").status().ok()?;
        let pods = status["pods"].as_array()?;
        pods.iter().all(|pod| pod["name"] != "client").then_some(())
    })?;
    ensure!(call(&mesh, "client")? == 2, "it has left, and is plain");
    ensure!(call(&mesh, "other")? == 0, "its neighbour stays meshed");
    mesh.pods[0].publish_with_label(label, None)?;
    mesh.wait_enrolled()?;
    ensure!(call(&mesh, "client")? == 0, "it is meshed again");
    mesh.pod("client").destroy()?;
    mesh.pod("client").unpublish()?;
    ensure!(call(&mesh, "other")? == 0, "its neighbour is not touched");
    mesh.pods.remove(0);
    let again = mesh.world.pod(&PodSpec::new("a", "shop", "client"))?;
    mesh.pods.push(again);
    mesh.wait_enrolled()?;
    ensure!(
        call(&mesh, "client")? == 0,
        "a new pod of that name is meshed"
    );
    Ok(())
}

/// The programs choose the congestion control of both ends of every such hop, whatever
/// the node's is.
fn unpaced() -> Result<()> {
    let mesh = Mesh::down(&client_and_server())?;
    let set = "echo bbr > /proc/sys/net/ipv4/tcp_congestion_control 2>/dev/null || true";
    for pod in &mesh.pods {
        let net = format!("--net={}", pod.netns().display());
        let host = &mesh.world.node(&pod.node).host;
        drop(host.run(&["nsenter", &net, "--", "sh", "-c", set])?.ok()?);
    }
    let mut mesh = mesh;
    for node in ["a", "b"] {
        let agent = mesh.start(node)?;
        mesh.agents.push(agent);
    }
    mesh.wait_enrolled()?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = echo(server)?;
    let address = server.ip4.to_string();
    let mut held = client.spawn("hold", &["python3", "-uc", HOLD, &address])?;
    held.wait_for("open", SOON)?;
    for pod in [client, server] {
        let sockets = pod.run(&["ss", "-Htin", "state", "established"])?.ok()?;
        let text = sockets.stdout.replace("\n\t", " ");
        let inside: Vec<&str> = text.lines().filter(|line| line.contains("127.")).collect();
        ensure!(inside.len() == 2, "two ends of one hop: {text}");
        ensure!(inside.iter().all(|line| line.contains(" cubic ")), "{text}");
    }
    Ok(())
}

/// Neither the agent nor an open connection or tunnel keeps the network namespace of a
/// pod that has gone: its device goes with it.
fn freed() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = echo(server)?;
    let address = server.ip4.to_string();
    let mut held = client.spawn("hold", &["python3", "-uc", HOLD, &address])?;
    held.wait_for("open", SOON)?;
    for pod in [client, server] {
        let host = &mesh.world.node(&pod.node).host;
        let device = || Ok::<_, anyhow::Error>(host.run(&["ip", "link", "show", "pod10"])?.code());
        ensure!(device()? == 0, "the test looks at the wrong device");
        // Its manifest stays for a while, as in a cluster.
        pod.destroy()?;
        fairlead_tests::until("the namespace to be freed", 2 * SOON, || {
            (device().ok()? != 0).then_some(())
        })?;
        pod.unpublish()?;
    }
    Ok(())
}

/// Sockets are made by threads that enter the pod's namespace: none may stay there.
fn threads() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let server = mesh.pod("server");
    let _echo = echo(server)?;
    let address = server.ip4.to_string();
    for _ in 0..20 {
        let output = run_python(mesh.pod("client"), DIAL, &["echo", &address, PORT])?;
        ensure!(output.stdout.trim() == "right", "{output:?}");
    }
    for node in mesh.world.nodes() {
        let home = std::fs::metadata(node.host.netns())?.ino();
        let tasks = format!("/proc/{}/task", mesh.agent(&node.name).process.pid());
        until_ok("all threads at home", SOON, || {
            for task in std::fs::read_dir(&tasks)? {
                let task = task?.path();
                // One that has ended since is nowhere.
                let Ok(inside) = std::fs::metadata(task.join("ns/net")) else {
                    continue;
                };
                ensure!(inside.ino() == home, "{} is not", task.display());
            }
            Ok(())
        })?;
    }
    Ok(())
}
