//! A container runtime asks for pods that the API server has: the object comes first, and
//! its addresses are reported when the pod runs.

use std::fs;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::ClusterPod;
use fairlead_tests::{Output, PodSpec, until};
use serde_json::Value;

use super::mesh::{ClusterMesh, soon_works, url, usual_pods, web};
use crate::Test;
use crate::enrol::{call, is_served};
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster(
        "cni::a_pod_of_the_api_server_starts_once_it_is_meshed",
        started,
    )
    .with(&["python3", "curl"]),
    Test::cluster("cni::without_the_agent_only_other_pods_start", away).with(&["python3", "curl"]),
];

/// A pod that is bound to the node `a` and has no status yet.
fn bound(mesh: &ClusterMesh, namespace: &str, name: &str) -> Result<ClusterPod> {
    let spec = PodSpec::new("a", namespace, name);
    ClusterPod::start(mesh.api(), &mesh.world, &spec)
}

fn ask(mesh: &ClusterMesh, verb: &str, pod: &ClusterPod, patience: u64) -> Result<Output> {
    let sandbox = format!("sandbox-{}", pod.name);
    call(&mesh.world, (verb, &sandbox), (pod, pod.uid()), patience)
}

fn started() -> Result<()> {
    let mut mesh = ClusterMesh::up(&usual_pods())?;
    let _web = web(mesh.pod("server"))?;
    let late = bound(&mesh, "shop", "late")?;
    ensure!(!is_served(&late));
    let output = ask(&mesh, "ADD", &late, 20)?;
    ensure!(output.success(), "{}", output.stdout);
    let result: Value = serde_json::from_str(&output.stdout)?;
    let address = &result["ips"][0]["address"];
    ensure!(*address == format!("{}/32", late.ip4), "{result}");
    ensure!(is_served(&late), "it was started too early");
    ensure!(ask(&mesh, "CHECK", &late, 20)?.success());
    late.report(&late.status())?;
    soon_works(&late, &url(mesh.pod("server")))?;
    let log = mesh.agent("a").process.output();
    let enrolled = log
        .lines()
        .filter(|line| line.contains("enrolled the pod") && line.contains("late"));
    ensure!(enrolled.count() == 1, "{log}");
    ensure!(ask(&mesh, "DEL", &late, 20)?.success());
    // The runtime may give its address away as soon as that is answered.
    let pods = mesh.agent("a").status()?["pods"].to_string();
    ensure!(!pods.contains("\"late\""), "{pods}");
    mesh.pods.push(late);

    let guest = bound(&mesh, "guest", "free")?;
    let output = ask(&mesh, "ADD", &guest, 60)?;
    ensure!(output.success() && output.elapsed < SOON, "{output:?}");
    ensure!(!is_served(&guest));
    Ok(())
}

fn away() -> Result<()> {
    let mut mesh = ClusterMesh::up(&usual_pods())?;
    let decisions = mesh.world.directory().join("run/a/decisions.json");
    until("the decisions", SOON, || {
        let text = fs::read_to_string(&decisions).ok()?;
        (text.contains("shop") && text.contains("guest")).then_some(())
    })?;
    mesh.agents.remove(0).process.kill();
    let (pod, guest) = (
        bound(&mesh, "shop", "late")?,
        bound(&mesh, "guest", "free")?,
    );
    let output = ask(&mesh, "ADD", &pod, 1)?;
    ensure!(!output.success(), "it starts in plaintext");
    let answer: Value = serde_json::from_str(&output.stdout)?;
    let text = answer["msg"].as_str().context("no message")?;
    for part in ["shop/late is not started", "cni.sock", "fairlead-system"] {
        ensure!(answer["code"] == 11 && text.contains(part), "{answer}");
    }
    let output = ask(&mesh, "ADD", &guest, 60)?;
    ensure!(output.success() && output.elapsed < SOON, "{output:?}");
    // The kubelet asks again and again: the next agent has to read the cluster first.
    let (output, agent) = std::thread::scope(|scope| -> Result<_> {
        let calling = scope.spawn(|| ask(&mesh, "ADD", &pod, 50));
        let agent = mesh.start_agent("a", &[])?;
        let output = calling.join();
        let output = output.map_err(|_panic| anyhow::anyhow!("it panicked"))??;
        Ok((output, agent))
    })?;
    ensure!(output.success(), "{}", output.stdout);
    ensure!(is_served(&pod), "it was started too early");
    drop(agent);
    Ok(())
}
