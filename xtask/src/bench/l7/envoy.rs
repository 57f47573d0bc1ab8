//! The comparison: two Envoys that route requests, with mTLS between them.
//!
//! ```text
//!  client ─► 127.0.0.1: routes ─ mTLS ─► server's address: one route ─► server
//! ```
//! As with sidecars, the client's side has the routes, and speaks HTTP/1.1 to the other
//! side where it is spoken to in HTTP/1.1.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Result;
use fairlead_tests::{Place, Pod, Process};
use serde_json::{Value, json};

use super::lab::{GRPC, HTTP, MANY};
use super::load::Protocol;
use crate::bench::envoy::{Envoy, address, certificates, tls_context};

/// The listeners of the client's side; those with one route are the server side's too.
const LISTENERS: [(u16, Protocol, usize); 4] = [
    (15090, Protocol::Http1, 1),
    (15091, Protocol::Http1, MANY),
    (15092, Protocol::Grpc, 1),
    (15093, Protocol::Grpc, MANY),
];

/// Where a client dials.
pub(in crate::bench) fn port(protocol: Protocol, routes: usize) -> u16 {
    let is = |it: &&(u16, Protocol, usize)| it.1 == protocol && it.2 == routes;
    LISTENERS.iter().find(is).map_or(0, |it| it.0)
}

/// Starts both.
pub(in crate::bench) fn start(
    envoy: &Envoy,
    (client, server): (&Place, &Pod),
    concurrency: u32,
    directory: &Path,
) -> Result<[Process; 2]> {
    fs::create_dir_all(directory)?;
    certificates(directory)?;
    let ip = IpAddr::from(server.ip4);
    let config = config(LISTENERS.map(|it| client_side(it, ip, directory)));
    let ports = LISTENERS.map(|it| it.0);
    let client = envoy.run(client, ("client", &config, &ports), concurrency, directory)?;
    let inner = LISTENERS.into_iter().filter(|it| it.2 == 1);
    let ports: Vec<u16> = inner.clone().map(|it| it.0).collect();
    let config = self::config(inner.map(|it| server_side(it, ip, directory)));
    let server = envoy.run(server, ("server", &config, &ports), concurrency, directory)?;
    Ok([client, server])
}

/// A listener and the cluster that it routes to.
struct Hop {
    listener: Value,
    cluster: Value,
}

fn client_side(
    (port, protocol, routes): (u16, Protocol, usize),
    server: IpAddr,
    directory: &Path,
) -> Hop {
    let name = format!("out-{port}");
    let routes: Vec<Value> = (0..routes)
        .map(|number| {
            let matched = match protocol {
                Protocol::Http1 => json!({"path_separated_prefix": format!("/r/{number}")}),
                Protocol::Grpc => json!({"prefix": format!("/bench.Echo{number}/")}),
            };
            json!({"match": matched, "route": {"cluster": name}})
        })
        .collect();
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": tls_context(directory, "client", "server"),
    });
    let mut cluster = cluster(&name, protocol, (server, self::port(protocol, 1)));
    cluster["transport_socket"] = json!({"name": "tls", "typed_config": tls});
    Hop {
        listener: listener(&name, (Ipv4Addr::LOCALHOST.into(), port), &routes),
        cluster,
    }
}

fn server_side((port, protocol, _): (u16, Protocol, usize), ip: IpAddr, directory: &Path) -> Hop {
    let name = format!("in-{port}");
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "common_tls_context": tls_context(directory, "server", "client"),
    });
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name}});
    let mut listener = listener(&name, (ip, port), &[route]);
    listener["filter_chains"][0]["transport_socket"] = json!({"name": "tls", "typed_config": tls});
    let application = match protocol {
        Protocol::Http1 => HTTP,
        Protocol::Grpc => GRPC,
    };
    Hop {
        listener,
        cluster: cluster(&name, protocol, (ip, application)),
    }
}

fn listener(name: &str, at: (IpAddr, u16), routes: &[Value]) -> Value {
    let log = json!({
        "name": "log",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/null",
        },
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "access_log": [log],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    json!({
        "name": name,
        "address": address(at),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    })
}

fn cluster(name: &str, protocol: Protocol, upstream: (IpAddr, u16)) -> Value {
    let version = match protocol {
        Protocol::Http1 => "http_protocol_options",
        Protocol::Grpc => "http2_protocol_options",
    };
    json!({
        "name": name,
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {version: {}},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
        },
    })
}

fn config(hops: impl IntoIterator<Item = Hop>) -> Value {
    let mut listeners = Vec::new();
    let mut clusters = Vec::new();
    for hop in hops {
        listeners.push(hop.listener);
        clusters.push(hop.cluster);
    }
    json!({"static_resources": {"listeners": listeners, "clusters": clusters}})
}
