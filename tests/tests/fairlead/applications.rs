//! Unmodified clients and servers, across nodes.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::servers;

use crate::Test;
use crate::mesh::{LONG, Mesh, TUNNEL, client_and_server, curl, run_python, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("applications::curl_and_nginx", curl_and_nginx).with(&["curl", "nginx", "tcpdump"]),
    Test::node("applications::postgresql", postgresql).with(&["psql", "pgbench"]),
    Test::node("applications::redis", redis).with(&["redis-server", "redis-benchmark"]),
    Test::node("applications::grpc", grpc).with(&["python3"]),
    Test::node("applications::websocket", websocket).with(&["python3"]),
    Test::node(
        "applications::ten_thousand_short_connections",
        short_connections,
    )
    .with(&["ab", "nginx"]),
    Test::node("applications::a_gibibyte_each_way_is_intact", gibibyte).with(&["python3"]),
    Test::node(
        "applications::no_connection_is_crossed",
        no_connection_is_crossed,
    )
    .with(&["python3"]),
];

const TRANSFER: &str = include_str!("../../scripts/transfer.py");
const PORTS: &str = include_str!("../../scripts/ports.py");
const GRPC: &str = include_str!("../../scripts/grpc_peer.py");
const WEBSOCKET: &str = include_str!("../../scripts/websocket_peer.py");
/// Address of the Service in these tests.
const SERVICE: &str = "10.96.0.10";

/// A mesh with the Service `server` on a port.
fn mesh_with_service(port: u16) -> Result<Mesh> {
    let mesh = Mesh::up(&client_and_server())?;
    let addresses = [SERVICE, "fd00:96::10"];
    mesh.world
        .manifests()
        .service(("shop", "server"), &addresses, port)?;
    for agent in &mesh.agents {
        fairlead_tests::until("the Service", crate::mesh::SOON, || {
            let services = agent.cli.json(&["get", "services"]).ok()?;
            format!("{services:?}").contains(SERVICE).then_some(())
        })?;
    }
    Ok(mesh)
}

fn curl_and_nginx() -> Result<()> {
    let mesh = mesh_with_service(80)?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let data = mesh.data("nginx");
    let _nginx = servers::nginx(server, &data)?;
    fs::write(data.join("www/page"), "a page with the marker\n")?;
    let capture = mesh.capture("http")?;
    let hosts = [
        (SERVICE.to_owned(), client.ip4.to_string()),
        ("[fd00:96::10]".to_owned(), client.ip6.to_string()),
        (server.ip4.to_string(), client.ip4.to_string()),
        (format!("[{}]", server.ip6), client.ip6.to_string()),
    ];
    for (host, own) in &hosts {
        let page = curl(client, &format!("http://{host}/page"))?.ok()?;
        ensure!(
            page.stdout == "a page with the marker\n",
            "{host}: {page:?}"
        );
        let who = curl(client, &format!("http://{host}/whoami"))?.ok()?;
        ensure!(who.stdout.trim() == own, "{host}: nginx saw {who:?}");
    }
    let traffic = capture.stop()?;
    ensure!(
        !traffic.contains("the marker"),
        "plaintext crossed the link"
    );
    ensure!(
        traffic.tls_records_to(TUNNEL) > 0,
        "no TLS crossed the link"
    );
    ensure!(
        traffic.plaintext_streams().is_empty(),
        "{:?}",
        traffic.plaintext_streams()
    );
    Ok(())
}

fn postgresql() -> Result<()> {
    let mesh = mesh_with_service(5432)?;
    let client = mesh.pod("client");
    let _postgres = servers::postgres(mesh.pod("server"), &mesh.data("postgres"))?;
    let connection = format!("host={SERVICE} user=postgres sslmode=disable connect_timeout=10");
    let script = "create table numbers as select generate_series(1, 200000) n;
        select sum(n) from numbers;";
    let output = client.run(&["psql", &connection, "-qAtc", script])?.ok()?;
    ensure!(output.stdout.trim() == "20000100000", "{output:?}");
    // All rows out, and in again: the server streams, then the client does.
    let copy = format!(
        "psql '{connection}' -qAtc 'copy numbers to stdout' \
         | psql '{connection}' -qAtc 'create temp table c (n int); copy c from stdin; select sum(n) from c'"
    );
    let output = client.shell(LONG, &copy)?.ok()?;
    ensure!(output.stdout.trim() == "20000100000", "{output:?}");
    let bench = format!(
        "pgbench -h {SERVICE} -U postgres -i -q postgres && \
         pgbench -h {SERVICE} -U postgres -c 8 -t 50 -C postgres"
    );
    let output = client.shell(LONG, &bench)?.ok()?;
    ensure!(output.stdout.contains("400/400"), "{output:?}");
    Ok(())
}

fn redis() -> Result<()> {
    let mesh = mesh_with_service(6379)?;
    let client = mesh.pod("client");
    let _redis = servers::redis(mesh.pod("server"), &mesh.data("redis"))?;
    let script = format!(
        "set -e; redis-cli -h {SERVICE} set key value; redis-cli -h {SERVICE} get key; \
         redis-benchmark -h {SERVICE} -q -n 20000 -c 50 -P 8 -t set,get"
    );
    let output = client.shell(LONG, &script)?.ok()?;
    ensure!(output.stdout.starts_with("OK\nvalue\n"), "{output:?}");
    ensure!(!output.stderr.contains("rror"), "{output:?}");
    Ok(())
}

fn grpc() -> Result<()> {
    let mesh = mesh_with_service(50051)?;
    let _server = serve_python(mesh.pod("server"), GRPC, 50051, &[])?;
    let output = run_python(mesh.pod("client"), GRPC, &["call", SERVICE, "50051"])?;
    ensure!(output.stdout.trim() == "all answered", "{output:?}");
    Ok(())
}

fn websocket() -> Result<()> {
    let mesh = mesh_with_service(8080)?;
    let _server = serve_python(mesh.pod("server"), WEBSOCKET, 8080, &[])?;
    let output = run_python(mesh.pod("client"), WEBSOCKET, &["call", SERVICE, "8080"])?;
    ensure!(output.stdout.trim() == "all answered", "{output:?}");
    Ok(())
}

fn short_connections() -> Result<()> {
    let mesh = mesh_with_service(80)?;
    let client = mesh.pod("client");
    let data = mesh.data("nginx");
    let _nginx = servers::nginx(mesh.pod("server"), &data)?;
    fs::write(data.join("www/index.html"), "hello\n")?;
    let url = format!("http://{SERVICE}/");
    let output = client
        .run_for(
            LONG,
            &["ab", "-q", "-n", "10000", "-c", "64", "-s", "20", &url],
        )?
        .ok()?;
    let line = |name: &str| {
        let found = output.stdout.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_default()
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned()
    };
    ensure!(line("Complete requests:") == "10000", "{}", output.stdout);
    ensure!(line("Failed requests:") == "0", "{}", output.stdout);
    ensure!(!output.stdout.contains("Non-2xx"), "{}", output.stdout);
    // Each of them is in the metrics, once.
    let metrics = mesh.agent("a").page("/metrics")?;
    let opened: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("fairlead_tcp_connections_opened_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    ensure!(opened >= 10_000.0, "{opened} connections were counted");
    Ok(())
}

fn gibibyte() -> Result<()> {
    let mesh = mesh_with_service(9000)?;
    let client = mesh.pod("client");
    let _server = serve_python(mesh.pod("server"), TRANSFER, 9000, &[])?;
    for direction in ["send", "receive"] {
        let arguments = [direction, SERVICE, "9000", "1024"];
        let output = run_python(client, TRANSFER, &arguments)?;
        ensure!(output.stdout.trim() == "intact", "{direction}: {output:?}");
        ensure!(
            output.elapsed < Duration::from_mins(1),
            "{direction}: {:?}",
            output.elapsed
        );
    }
    Ok(())
}

fn no_connection_is_crossed() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _servers = serve_python(server, PORTS, 20000, &["200"])?;
    for host in [server.ip4.to_string(), server.ip6.to_string()] {
        let arguments = ["dial", &host, "20000", "200", "4000", "500"];
        let output = run_python(client, PORTS, &arguments)?;
        ensure!(output.stdout.starts_with("4000 right"), "{output:?}");
    }
    Ok(())
}
