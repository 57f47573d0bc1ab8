//! The authority in a cluster: who gets certificates, and two replicas of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::kubelet;
use fairlead_tests::{Agent, PodSpec, until, until_ok};
use serde_json::{Value, json};

use super::manifests::SYSTEM;
use super::mesh::{ClusterMesh, soon_works, url, usual_pods, web};
use crate::Test;
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster(
        "authority::only_the_agent_of_a_node_gets_its_certificates",
        tokens,
    )
    .with(&["curl"]),
    Test::cluster("authority::a_replica_takes_over", failover).with(&["python3", "curl"]),
    Test::cluster("authority::the_bundle_is_restored", bundle).with(&["curl"]),
];

/// How long a Lease lasts beyond the end of its holder, and a little more.
const TAKE_OVER: Duration = Duration::from_mins(1);

/// Starts the agent of node a with a token that is not good enough. The caller learns no
/// more than that it is refused; the authority's log says why.
fn refused(mesh: &ClusterMesh, token: &Path, reason: &str) -> Result<()> {
    let node = mesh.world.node("a");
    let mut options = mesh.agent_options(node, &[])?;
    let at = options.ca.iter().position(|flag| flag == "--ca-token-file");
    options.ca[at.context("a token is given")? + 1] = token.display().to_string();
    let agent = Agent::start(&mesh.world, node, &options)?;
    let authority = &mesh.authority[0].process;
    until_ok("a refusal", SOON, || {
        let status = agent.status()?;
        let row = &status["certificates"][0];
        ensure!(row["error"].is_string(), "{status}");
        let log = authority.output();
        ensure!(log.contains(reason), "{reason} is not in {log}");
        Ok(())
    })?;
    let row = agent.status()?["certificates"][0].clone();
    ensure!(row["serial"].is_null(), "it got a certificate: {row}");
    Ok(())
}

fn tokens() -> Result<()> {
    let mut mesh = ClusterMesh::down(&usual_pods(), true)?;
    mesh.start_authority("b")?;
    mesh.serve_authority(0)?;
    for node in ["a", "b"] {
        mesh.create_agent_pod(node)?;
    }
    let (api, account) = (mesh.api(), (SYSTEM, "fairlead-agent"));
    let bound = |node: &str| -> Result<Value> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/pods/fairlead-agent-{node}");
        let pod = api.get(&path)?;
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod",
            "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
        }))
    };
    let audience = Some("fairlead-ca");
    let file = |name: &str| mesh.file(&format!("{name}.token"));

    let token = file("audience");
    kubelet::request_token(api, account, Some("another"), Some(&bound("a")?), &token)?;
    refused(&mesh, &token, "audience")?;
    let token = file("account");
    mesh.pod("client").project_token(audience, &token)?;
    refused(&mesh, &token, "the token is of shop/client")?;
    let token = file("unbound");
    kubelet::request_token(api, account, audience, None, &token)?;
    refused(&mesh, &token, "bound to no pod")?;
    let token = file("node");
    kubelet::request_token(api, account, audience, Some(&bound("b")?), &token)?;
    refused(
        &mesh,
        &token,
        "no pod on node b runs as service account shop/client",
    )?;
    let token = file("garbage");
    std::fs::write(&token, "no.such.token")?;
    refused(&mesh, &token, "invalid bearer token")?;
    // With its own token it is served.
    let agent = mesh.start_agent("a", &[])?;
    agent.wait_serving()
}

/// Who holds the authority's Lease.
fn holder(mesh: &ClusterMesh) -> Result<String> {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/fairlead-ca");
    let lease = mesh.api().get(&path)?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    Ok(holder.to_owned())
}

fn failover() -> Result<()> {
    let mut mesh = ClusterMesh::up_with(&usual_pods(), &["--certificate-ttl", "20s"])?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    soon_works(mesh.pod("client"), &url)?;
    let first = until("a leader", SOON, || {
        holder(&mesh).ok().filter(|holder| !holder.is_empty())
    })?;
    ensure!(first.contains("fairlead-ca-0"), "{first}");
    mesh.start_authority("b")?;
    mesh.serve_authority(1)?;
    let root = |mesh: &ClusterMesh| std::fs::read_to_string(mesh.file("root-cert.pem"));
    let before = root(&mesh)?;
    let dead = mesh.authority.remove(0);
    dead.process.kill();
    let serial = |mesh: &ClusterMesh| -> Result<Value> {
        Ok(mesh.agent("a").status()?["certificates"][0]["serial"].clone())
    };
    let old = serial(&mesh)?;
    // The other one signs at once; it leads when the Lease is over.
    until("a certificate of the other replica", TAKE_OVER, || {
        (serial(&mesh).ok()? != old).then_some(())
    })?;
    until("another leader", TAKE_OVER, || {
        holder(&mesh).ok()?.contains("fairlead-ca-1").then_some(())
    })
    .with_context(|| mesh.authority[0].process.output())?;
    ensure!(
        mesh.project_root()? && root(&mesh)? == before,
        "the root has changed"
    );
    soon_works(mesh.pod("client"), &url)
}

fn bundle() -> Result<()> {
    let mut mesh = ClusterMesh::down(&[PodSpec::new("a", "shop", "client")], true)?;
    mesh.start_authority("a")?;
    mesh.serve_authority(0)?;
    let root = std::fs::read_to_string(mesh.file("root-cert.pem"))?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": SYSTEM, "name": "fairlead-ca-root-cert"},
    });
    let restored = |what: &str| {
        until(
            &format!("the bundle after it was {what}"),
            TAKE_OVER,
            || {
                let found = mesh.project_root().ok()?;
                let text = std::fs::read_to_string(mesh.file("root-cert.pem")).ok()?;
                (found && text == root).then_some(())
            },
        )
    };
    let edit = json!({"data": {"root-cert.pem": "mine"}});
    drop(mesh.api().merge(&map, "", &edit)?);
    restored("edited")?;
    mesh.api().delete(&map)?;
    restored("deleted")
}
