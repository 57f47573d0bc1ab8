//! Envoy at the other end of a tunnel: the protocol as other people wrote it.

use std::fs::Permissions;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Pod, PodSpec, Process, until_ok};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, TUNNEL, run_python, serve_python};
use crate::peer::{Signer, Validity};

pub(crate) const TESTS: &[Test] = &[
    Test::node("envoy::envoy_dials_a_meshed_pod", dials).with(&["python3"]),
    Test::node("envoy::envoy_answers_a_meshed_pod", answers).with(&["python3"]),
];

/// Echoes.
const ECHO: &str = include_str!("../../scripts/echo.py");
/// Dials the echo and prints what it says that its client is.
const DIAL: &str = r"
import os, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as connection:
    seen = b''
    while not seen.endswith(b'\n'):
        seen += connection.recv(1) or sys.exit('ended after %r' % seen)
    sent = os.urandom(60000)
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
    got = b''.join(iter(lambda: connection.recv(65536), b''))
    print(seen.decode().strip() if got == sent else 'other bytes came back')
";
/// Where applications beside Envoy dial it.
const LOCAL: u16 = 9000;
/// The application behind the tunnel.
const APPLICATION: u16 = 7000;
/// Envoy takes its time to start on a busy machine.
const START: Duration = Duration::from_mins(1);

const CLIENT: &str = "spiffe://cluster.local/ns/guest/sa/envoy";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const CALLER: &str = "spiffe://cluster.local/ns/shop/sa/client";

fn dials() -> Result<()> {
    let mesh = Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("a", "guest", "envoy"),
    ])?;
    mesh.world.manifests().mtls("shop", None, "STRICT")?;
    let principal = CLIENT.trim_start_matches("spiffe://");
    let rules = json!([{"from": [{"source": {"principals": [principal]}}]}]);
    let name = ("shop", "only-envoy");
    mesh.world
        .manifests()
        .authorization(name, "server", "ALLOW", &rules)?;
    let _echo = serve_python(mesh.pod("server"), ECHO, APPLICATION, &[])?;
    let peer = mesh.pod("envoy");
    let server = mesh.pod("server").ip4;
    let config = client_config(&mesh, server.into())?;
    let _envoy = start(&mesh, peer, &config, LOCAL)?;

    let own = peer.ip4.to_string();
    for _ in 0..3 {
        let output = run_python(peer, DIAL, &["127.0.0.1", &LOCAL.to_string()])?;
        ensure!(output.stdout.trim() == own, "{output:?}, not {own}");
    }

    let from_envoy = |flow: &Value| flow["source"]["identity"] == CLIENT;
    let flow = until_ok("its record", SOON, || {
        let arguments = ["flows", "--direction", "inbound", "--verdict", "forwarded"];
        let flows = mesh.agent("b").cli.json(&arguments)?;
        let flow = flows.iter().find(|flow| from_envoy(flow)).cloned();
        flow.with_context(|| format!("no flow of Envoy's in {flows:?}"))
    })?;
    ensure!(flow["tls"] == "mtls", "{flow}");
    ensure!(flow["policy"] == "shop/only-envoy#0", "{flow}");
    Ok(())
}

fn answers() -> Result<()> {
    let mut mesh = Mesh::down(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
    ])?;
    // Node b has no agent: its pod is meshed by Envoy.
    let agent = mesh.start("a")?;
    mesh.agents.push(agent);
    mesh.wait_enrolled()?;
    let server = mesh.pod("server");
    let _echo = serve_python(server, ECHO, APPLICATION, &[])?;
    let config = server_config(&mesh, server.ip4.into())?;
    let _envoy = start(&mesh, server, &config, TUNNEL)?;

    let capture = mesh.capture("to-envoy")?;
    let address = server.ip4.to_string();
    for _ in 0..3 {
        let arguments = [address.as_str(), &APPLICATION.to_string()];
        let output = run_python(mesh.pod("client"), DIAL, &arguments)?;
        // Envoy dials as itself.
        ensure!(output.stdout.trim() == address, "{output:?}");
    }
    let traffic = capture.stop()?;
    ensure!(traffic.tls_records_to(TUNNEL) > 0, "nothing in the tunnel");
    let plain = traffic.plaintext_streams();
    ensure!(plain.is_empty(), "in the clear: {plain:?}");
    Ok(())
}

/// Starts Envoy in a pod, and waits until it listens.
fn start(mesh: &Mesh, pod: &Pod, config: &Value, port: u16) -> Result<Process> {
    let packages = std::env::var_os("FAIRLEAD_PYTHON").context("FAIRLEAD_PYTHON is not set")?;
    let program = PathBuf::from(packages).join("envoy/_bin/envoy");
    // An installation by pip may lose the bit.
    std::fs::set_permissions(&program, Permissions::from_mode(0o755))
        .with_context(|| format!("{} is missing: run `cargo xtask setup`", program.display()))?;
    let file = mesh.world.directory().join("envoy.json");
    std::fs::write(&file, serde_json::to_vec_pretty(config)?)?;
    let mut command = pod.command(&program);
    let command = command
        .arg("--config-path")
        .arg(&file)
        .args(["--concurrency", "1", "--disable-hot-restart"])
        .args(["--log-level", "warning"]);
    let process = pod.start("envoy", command)?;
    let listening = pod.wait_listening(port, START);
    ensure!(listening.is_ok(), "{}", process.output());
    Ok(process)
}

/// TCP from a local port into a CONNECT tunnel to the pod.
fn client_config(mesh: &Mesh, server: IpAddr) -> Result<Value> {
    let mut tls = tls(mesh, CLIENT, SERVER)?;
    tls["@type"] =
        json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext");
    let tunnel = json!({
        "name": "tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tunnel",
            "cluster": "tunnel",
            "tunneling_config": { "hostname": format!("{server}:{APPLICATION}") },
        },
    });
    let mut upstream = cluster("tunnel", (server, TUNNEL));
    upstream["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    upstream["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
    Ok(json!({ "static_resources": {
        "listeners": [{
            "address": address(([127, 0, 0, 1].into(), LOCAL)),
            "filter_chains": [{ "filters": [tunnel] }],
        }],
        "clusters": [upstream],
    }}))
}

/// CONNECT tunnels to the pod, out to its application.
fn server_config(mesh: &Mesh, server: IpAddr) -> Result<Value> {
    let mut tls = tls(mesh, SERVER, CALLER)?;
    tls["@type"] =
        json!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext");
    tls["require_client_certificate"] = json!(true);
    let manager = json!({
        "name": "http",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "tunnel",
            "codec_type": "HTTP2",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT" }],
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                },
            }],
            "route_config": { "virtual_hosts": [{
                "name": "tunnel",
                "domains": ["*"],
                "routes": [{
                    "match": { "connect_matcher": {} },
                    "route": {
                        "cluster": "application",
                        "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }],
                    },
                }],
            }]},
        },
    });
    Ok(json!({ "static_resources": {
        "listeners": [{
            "address": address((server, TUNNEL)),
            "filter_chains": [{
                "filters": [manager],
                "transport_socket": { "name": "tls", "typed_config": tls },
            }],
        }],
        "clusters": [cluster("application", (server, APPLICATION))],
    }}))
}

fn cluster(name: &str, upstream: (IpAddr, u16)) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(upstream) } }] }],
        },
    })
}

fn address((ip, port): (IpAddr, u16)) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}

/// TLS 1.3 as `own`, with the mesh's root, and `peer` alone on the other side.
fn tls(mesh: &Mesh, own: &str, peer: &str) -> Result<Value> {
    let authority = mesh.world.directory().join("ca");
    let signer = Signer::of_the_mesh(&authority)?;
    let (chain, key) = signer.sign(own, Validity::Now)?.pem();
    let directory = mesh.world.directory();
    let (chain_file, key_file) = (directory.join("envoy.pem"), directory.join("envoy.key"));
    std::fs::write(&chain_file, chain)?;
    std::fs::write(&key_file, key)?;
    Ok(json!({ "common_tls_context": {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": { "filename": chain_file },
            "private_key": { "filename": key_file },
        }],
        "validation_context": {
            "trusted_ca": { "filename": authority.join("root-cert.pem") },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    }}))
}
