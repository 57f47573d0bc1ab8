//! The Services and routes of Fairlead: for each server a Service with one route and one
//! with many.

use std::net::Ipv4Addr;

use anyhow::Result;
use fairlead_tests::Manifests;
use serde_json::{Value, json};

use super::lab::{GRPC, HTTP, MANY};
use crate::bench::lab::MESHED;

/// The most rules that one object may have.
const RULES: usize = 16;

/// The address of the Service with so many routes to the server.
pub(super) fn address(server: &str, routes: usize) -> Ipv4Addr {
    let node = u8::from(server.ends_with("local"));
    Ipv4Addr::new(10, 96, 10 + node, if routes == 1 { 1 } else { 2 })
}

/// Writes them.
pub(super) fn apply(manifests: &Manifests) -> Result<()> {
    for server in ["server", "server-local"] {
        for routes in [1, MANY] {
            let name = format!("{server}-{routes}");
            manifests.apply(&service(&name, server, address(server, routes)))?;
            let numbers: Vec<usize> = (0..routes).collect();
            for numbers in numbers.chunks(RULES) {
                manifests.apply(&http_route(&name, numbers))?;
                manifests.apply(&grpc_route(&name, numbers))?;
            }
        }
    }
    Ok(())
}

fn service(name: &str, server: &str, ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": MESHED, "name": name},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip],
            "selector": {"app": server},
            "ports": [
                {"name": "http", "port": HTTP, "appProtocol": "http"},
                {"name": "grpc", "port": GRPC, "appProtocol": "kubernetes.io/h2c"},
            ],
        },
    })
}

fn http_route(service: &str, numbers: &[usize]) -> Value {
    let rules: Vec<Value> = numbers
        .iter()
        .map(|number| {
            json!({
                "matches": [{"path": {"type": "PathPrefix", "value": format!("/r/{number}")}}],
                "backendRefs": [{"name": service, "port": HTTP}],
            })
        })
        .collect();
    route("HTTPRoute", service, (HTTP, numbers), &rules)
}

fn grpc_route(service: &str, numbers: &[usize]) -> Value {
    let rules: Vec<Value> = numbers
        .iter()
        .map(|number| {
            json!({
                "matches": [{"method": {"service": format!("bench.Echo{number}")}}],
                "backendRefs": [{"name": service, "port": GRPC}],
            })
        })
        .collect();
    route("GRPCRoute", service, (GRPC, numbers), &rules)
}

fn route(kind: &str, service: &str, (port, numbers): (u16, &[usize]), rules: &[Value]) -> Value {
    let first = numbers.first().copied().unwrap_or_default();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"namespace": MESHED, "name": format!("{service}-{first}")},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": service, "port": port}],
            "rules": rules,
        },
    })
}
