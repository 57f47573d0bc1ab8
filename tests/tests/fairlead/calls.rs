//! Calls of gRPC, of another implementation at both ends, through routes and policies.

use anyhow::{Result, ensure};
use fairlead_tests::{PodSpec, until_ok};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{LONG, Mesh, SOON, run_python, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("calls::of_every_kind_over_a_route_with_weights", kinds).with(&["python3"]),
    Test::node("calls::end_as_the_policy_says", policies).with(&["python3"]),
];

const CALLS: &str = include_str!("../../scripts/grpc_calls.py");
/// What is dialled.
const SERVICE: &str = "10.96.0.30";

/// A client on a, two servers on b, a Service of each, and one that a route divides.
fn stage() -> Result<(Mesh, Vec<fairlead_tests::Process>)> {
    let mesh = Mesh::up(&[
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "first"),
        PodSpec::new("b", "shop", "second"),
    ])?;
    let mut servers = Vec::new();
    for name in ["first", "second"] {
        servers.push(serve_python(mesh.pod(name), CALLS, 7070, &[name])?);
    }
    for (name, address) in [
        ("calls", SERVICE),
        ("first", "10.96.0.31"),
        ("second", "10.96.0.32"),
    ] {
        let selected = if name == "calls" { "first" } else { name };
        mesh.world.manifests().apply(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {
                "clusterIP": address, "clusterIPs": [address],
                "selector": {"app": selected},
                "ports": [{"name": "grpc", "port": 7070, "appProtocol": "kubernetes.io/h2c"}],
            },
        }))?;
    }
    mesh.world.manifests().apply(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": {"namespace": "shop", "name": "calls"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "calls", "port": 7070}],
            "rules": [
                {
                    "matches": [{"method": {"service": "calls.Calls", "method": "Unary"}}],
                    "backendRefs": [
                        {"name": "first", "port": 7070, "weight": 85},
                        {"name": "second", "port": 7070, "weight": 15},
                    ],
                },
                {"backendRefs": [{"name": "first", "port": 7070}]},
            ],
        },
    }))?;
    Ok((mesh, servers))
}

fn call(mesh: &Mesh, part: &str) -> Result<()> {
    let output = run_python(mesh.pod("client"), CALLS, &["call", SERVICE, "7070", part])?;
    ensure!(output.stdout.trim() == "all answered", "{part}: {output:?}");
    Ok(())
}

fn kinds() -> Result<()> {
    let (mesh, _servers) = stage()?;
    // Until the route is known all calls go to the first; then none fails.
    until_ok("calls of every kind", LONG, || call(&mesh, "kinds"))?;
    call(&mesh, "kinds")?;
    call(&mesh, "errors")?;
    call(&mesh, "early")
}

fn policy(mesh: &Mesh, section: &str, content: &Value) -> Result<()> {
    mesh.world.manifests().apply(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "calls"},
        "spec": {
            "targetRefs": [
                {"group": "", "kind": "Service", "name": "first"},
                {"group": "", "kind": "Service", "name": "second"},
            ],
            section: content,
        },
    }))
}

fn policies() -> Result<()> {
    let (mesh, _servers) = stage()?;
    let parts = [
        (
            "retried",
            "retries",
            json!({"attempts": 2, "retryOn": ["unavailable"]}),
        ),
        ("timed", "timeouts", json!({"request": "700ms"})),
        (
            "limited",
            "rateLimits",
            json!([{"name": "few", "local": {"requests": 3, "per": "1h", "by": "CLIENT"}}]),
        ),
    ];
    for (part, section, content) in parts {
        policy(&mesh, section, &content)?;
        until_ok(part, SOON * 3, || call(&mesh, part))?;
    }
    Ok(())
}
