//! Who is meshed, and as whom: labels, addresses that are used again, policies.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::ClusterPod;
use fairlead_tests::{Capture, PodSpec, until, until_ok};
use serde_json::{Value, json};

use super::mesh::{ClusterMesh, soon_refused, soon_works, url, usual_pods, web, works};
use crate::Test;
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster("enrolment::a_label_meshes_pods_that_run", label)
        .with(&["python3", "curl", "tcpdump"]),
    Test::cluster("enrolment::policies_are_in_force", policies).with(&["python3", "curl"]),
    Test::cluster("enrolment::an_address_used_again_has_its_new_owner", reused)
        .with(&["python3", "curl"]),
    Test::cluster("enrolment::a_pod_that_ends_is_served_for_its_grace", grace)
        .with(&["python3", "curl"]),
];

/// Streams of plaintext that crossed the link between the nodes.
fn plaintext(
    mesh: &ClusterMesh,
    during: impl FnOnce() -> Result<()>,
) -> Result<Vec<(SocketAddr, SocketAddr)>> {
    let (node, device) = mesh.world.link("a", "b");
    let capture = Capture::start(&mesh.world, node, &device, "link")?;
    during()?;
    Ok(capture.stop()?.plaintext_streams())
}

fn label() -> Result<()> {
    let mut mesh = ClusterMesh::down(&usual_pods(), false)?;
    let mut server = web(mesh.pod("server"))?;
    mesh.start_mesh(&[])?;
    let url = url(mesh.pod("server"));
    let plain = plaintext(&mesh, || {
        ensure!(works(mesh.pod("client"), &url), "it works without the mesh");
        Ok(())
    })?;
    ensure!(!plain.is_empty(), "the capture shows no plaintext at all");

    mesh.label(Some("enabled"))?;
    mesh.wait_enrolled()?;
    let plain = plaintext(&mesh, || {
        for _ in 0..5 {
            ensure!(
                works(mesh.pod("client"), &url),
                "the mesh does not carry it"
            );
        }
        Ok(())
    })?;
    ensure!(plain.is_empty(), "plaintext between the nodes: {plain:?}");
    ensure!(server.ended()?.is_none(), "the server was to go on");
    let flow = last_flow(&mesh, "b")?;
    let identity = "spiffe://cluster.local/ns/shop/sa/client";
    ensure!(flow["source"]["identity"] == identity, "{flow}");
    // Outside the mesh nothing changes.
    ensure!(
        works(mesh.pod("visitor"), &url),
        "PERMISSIVE refuses a visitor"
    );

    mesh.pod("client")
        .label("fairlead.dev/mesh", Some("disabled"))?;
    until("the client's opt-out", SOON, || {
        let pods = mesh.agent("a").status().ok()?["pods"].to_string();
        (!pods.contains("\"client\"")).then_some(())
    })?;
    mesh.label(None)?;
    until("a node without pods of the mesh", SOON, || {
        let pods = mesh.agent("b").status().ok()?["pods"].clone();
        pods.as_array()?.is_empty().then_some(())
    })?;
    ensure!(
        works(mesh.pod("client"), &url),
        "it works without the mesh again"
    );
    Ok(())
}

/// The newest flow that a node has recorded.
fn last_flow(mesh: &ClusterMesh, node: &str) -> Result<Value> {
    let mut flows = mesh.agent(node).cli.json(&["flows", "--last", "1"])?;
    flows.pop().context("no flow")
}

fn policies() -> Result<()> {
    let mut specs = usual_pods().to_vec();
    specs.push(PodSpec::new("b", "shop", "neighbour"));
    let mesh = ClusterMesh::up(&specs)?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    for name in ["client", "neighbour", "visitor"] {
        soon_works(mesh.pod(name), &url)?;
    }
    let strict = json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"namespace": "shop", "name": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    drop(mesh.api().create(&strict)?);
    soon_refused(mesh.pod("visitor"), &url)?;
    ensure!(works(mesh.pod("client"), &url), "STRICT refuses mTLS");
    let allow = json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "clients"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "action": "ALLOW",
            "rules": [{"from": [{"source": {
                "principals": ["cluster.local/ns/shop/sa/client"],
            }}]}],
        },
    });
    drop(mesh.api().create(&allow)?);
    soon_refused(mesh.pod("neighbour"), &url)?;
    ensure!(
        works(mesh.pod("client"), &url),
        "the rule does not allow it"
    );
    mesh.api().delete(&allow)?;
    mesh.api().delete(&strict)?;
    soon_works(mesh.pod("neighbour"), &url)?;
    soon_works(mesh.pod("visitor"), &url)
}

/// A policy that lets one service account in; a pod of it goes, and another one comes at
/// its address at once.
fn reused() -> Result<()> {
    let mut mesh = ClusterMesh::up(&usual_pods())?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    drop(mesh.api().create(&json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": "clients"},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "action": "ALLOW",
            "rules": [{"from": [{"source": {
                "principals": ["cluster.local/ns/shop/sa/client"],
            }}]}],
        },
    }))?);
    soon_refused(mesh.pod("visitor"), &url)?;
    soon_works(mesh.pod("client"), &url)?;

    let spec = PodSpec::new("a", "shop", "thief").address_of(mesh.pod("client"));
    let mut client = mesh.pods.remove(0);
    // The address is free before the API server knows that its pod has ended.
    client.stop()?;
    let thief = ClusterPod::run(mesh.api(), &mesh.world, &spec)?;
    ensure!(thief.ip4 == client.ip4, "the address is used again");
    for _ in 0..20 {
        ensure!(!works(&thief, &url), "it has the identity of another pod");
    }
    client.delete()?;
    mesh.pods.push(thief);
    mesh.agent("a").wait_enrolled(&[mesh.pod("thief")])?;
    for _ in 0..5 {
        ensure!(
            !works(mesh.pod("thief"), &url),
            "it has the identity of another pod"
        );
    }
    until_ok("a denied flow", SOON, || {
        let arguments = ["flows", "--verdict", "denied", "--last", "1"];
        let flow = mesh
            .agent("b")
            .cli
            .json(&arguments)?
            .pop()
            .context("none")?;
        let identity = "spiffe://cluster.local/ns/shop/sa/thief";
        ensure!(flow["source"]["identity"] == identity, "{flow}");
        Ok(())
    })
}

/// A pod that is being deleted still answers those who have it, until its object goes.
fn grace() -> Result<()> {
    let mut mesh = ClusterMesh::up(&usual_pods())?;
    let web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    soon_works(mesh.pod("client"), &url)?;
    mesh.pod("server").delete_gracefully(30)?;
    until("the news", SOON, || {
        let object = mesh.api().get("/api/v1/namespaces/shop/pods/server").ok()?;
        object["metadata"]["deletionTimestamp"].as_str().map(drop)
    })?;
    let plain = plaintext(&mesh, || {
        for _ in 0..5 {
            ensure!(
                works(mesh.pod("client"), &url),
                "its grace period is not over"
            );
        }
        Ok(())
    })?;
    ensure!(plain.is_empty(), "plaintext between the nodes: {plain:?}");
    drop(web);
    let mut server = mesh.pods.remove(1);
    server.stop()?;
    server.delete()?;
    until("the end of its enrolment", SOON, || {
        let pods = mesh.agent("b").status().ok()?["pods"].clone();
        pods.as_array()?.is_empty().then_some(())
    })
}
