//! What fails under the mesh: the API server, its history, agents, rights.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::ClusterPod;
use fairlead_tests::{Agent, PodSpec, Process, until, until_ok};
use serde_json::{Value, json};

use super::mesh::{ClusterMesh, reported, soon_refused, soon_works, url, usual_pods, web, works};
use crate::Test;
use crate::mesh::{LONG, SOON, curl};

pub(crate) const TESTS: &[Test] = &[
    Test::cluster("faults::a_killed_agent_comes_back", killed).with(&["python3", "curl"]),
    Test::cluster("faults::the_api_server_restarts_under_load", restart).with(&["python3", "curl"]),
    Test::cluster("faults::the_api_server_is_away_at_start", away_at_start)
        .with(&["python3", "curl"]),
    Test::cluster(
        "faults::it_is_away_for_longer_than_a_certificate_lives",
        away_for_long,
    )
    .with(&["python3", "curl"]),
    Test::cluster("faults::a_second_agent_refuses_a_node", second),
    Test::cluster("faults::a_missing_right_is_named", right),
];

/// A client that keeps one connection and asks again and again; says so when one fails.
const KEEP: &str = "import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1], 8080, timeout=10)
print('open', flush=True)
try:
    while True:
        connection.request('GET', '/')
        answer = connection.getresponse()
        answer.read()
        time.sleep(0.02)
except Exception as error:
    print('failed', error, flush=True)";

/// One that keeps asking on connections of its own, and counts what fails.
const ASK: &str = "import sys, time, urllib.request
good = bad = 0
while True:
    try:
        urllib.request.urlopen(f'http://{sys.argv[1]}:8080/', timeout=5).read()
        good += 1
    except Exception as error:
        bad += 1
        print('failed', error, flush=True)
    if good == 1:
        print('first', flush=True)
    time.sleep(0.02)";

/// Load from a client in the mesh to the server.
fn load(mesh: &ClusterMesh) -> Result<Vec<Process>> {
    let address = mesh.pod("server").ip4.to_string();
    let mut started = Vec::new();
    for (name, script, text) in [("keep", KEEP, "open"), ("ask", ASK, "first")] {
        let client = mesh.pod("client");
        let mut process = client.spawn(name, &["python3", "-uc", script, &address])?;
        process.wait_for(text, SOON)?;
        started.push(process);
    }
    Ok(started)
}

fn nothing_failed(load: &mut [Process]) -> Result<()> {
    for process in load {
        ensure!(process.ended()?.is_none(), "{}", process.output());
        ensure!(!process.output().contains("failed"), "{}", process.output());
    }
    Ok(())
}

/// How the agent's source is.
fn source(agent: &Agent) -> Result<Value> {
    Ok(agent.status()?["source"].clone())
}

fn soon_healthy(agent: &Agent, expected: bool) -> Result<()> {
    // Back-off makes recovery take some of this.
    until_ok("the state of the source", LONG, || {
        let source = source(agent)?;
        ensure!(source["healthy"] == expected, "{source}");
        Ok(())
    })
}

/// A policy for the server that names one service account.
pub(super) fn authorization(name: &str, action: &str, account: &str) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "action": action,
            "rules": [{"from": [{"source": {
                "principals": [format!("cluster.local/ns/shop/sa/{account}")],
            }}]}],
        },
    })
}

/// Only mTLS in the namespace `shop`.
pub(super) fn strict() -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
        "metadata": {"namespace": "shop", "name": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    })
}

fn killed() -> Result<()> {
    let mut mesh = ClusterMesh::up(&usual_pods())?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    drop(mesh.api().create(&strict())?);
    soon_refused(mesh.pod("visitor"), &url)?;
    soon_works(mesh.pod("client"), &url)?;
    for (at, victim) in [(1, "b"), (0, "a")] {
        mesh.agents.remove(at).process.kill();
        let refused = curl(mesh.pod("client"), &url)?;
        ensure!(!refused.success(), "it was served with an agent away");
        ensure!(!works(mesh.pod("visitor"), &url), "plaintext came in");
        let agent = mesh.start_agent(victim, &[])?;
        mesh.agents.insert(at, agent);
        mesh.wait_enrolled()?;
        soon_works(mesh.pod("client"), &url)?;
        ensure!(!works(mesh.pod("visitor"), &url), "STRICT is forgotten");
    }
    Ok(())
}

/// The API server goes, comes back, and its history is gone: what happened meanwhile is
/// known all the same, and no connection notices.
fn restart() -> Result<()> {
    let mut specs = usual_pods().to_vec();
    specs.push(PodSpec::new("b", "shop", "neighbour"));
    specs.push(PodSpec::new("b", "shop", "leaver"));
    let mut mesh = ClusterMesh::up(&specs)?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    soon_works(mesh.pod("neighbour"), &url)?;
    let mut load = load(&mesh)?;

    mesh.plane.stop_server();
    for agent in &mesh.agents {
        soon_healthy(agent, false)?;
    }
    ensure!(
        works(mesh.pod("neighbour"), &url),
        "the last state is served"
    );
    reported(mesh.agent("a"), &["API server"])?;
    mesh.plane.start_server()?;
    // Agents wait a little before they ask again.
    let late = ClusterPod::run(
        mesh.plane.admin(),
        &mesh.world,
        &PodSpec::new("a", "shop", "late"),
    )?;
    drop(
        mesh.api()
            .create(&authorization("no-neighbours", "DENY", "neighbour"))?,
    );
    let leaver = mesh.pods.remove(4);
    leaver.delete()?;
    mesh.plane.compact()?;

    for agent in &mesh.agents {
        soon_healthy(agent, true)?;
        until_ok("a list that is read anew", SOON, || {
            let watches = source(agent)?["watches"].clone();
            let expired = |watch: &Value| watch["relists"]["expired"].as_u64() > Some(0);
            let any = watches
                .as_array()
                .is_some_and(|all| all.iter().any(expired));
            ensure!(any, "no history was gone: {watches}");
            Ok(())
        })?;
    }
    soon_refused(mesh.pod("neighbour"), &url)?;
    mesh.agent("a").wait_enrolled(&[&*late])?;
    soon_works(&late, &url)?;
    until("the leaver's end", SOON, || {
        let pods = mesh.agent("b").status().ok()?["pods"].to_string();
        (!pods.contains("leaver")).then_some(())
    })?;
    nothing_failed(&mut load)?;
    drop(load);
    mesh.pods.push(late);
    Ok(())
}

fn away_at_start() -> Result<()> {
    let mut mesh = ClusterMesh::down(&usual_pods(), true)?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    mesh.start_authority("a")?;
    mesh.serve_authority(0)?;
    for node in ["a", "b"] {
        mesh.create_agent_pod(node)?;
    }
    let options: Vec<_> = mesh
        .world
        .nodes()
        .iter()
        .map(|node| mesh.agent_options(node, &[]))
        .collect::<Result<_>>()?;
    mesh.plane.stop_server();
    for (node, options) in mesh.world.nodes().iter().zip(&options) {
        mesh.agents.push(Agent::start(&mesh.world, node, options)?);
    }
    for agent in &mesh.agents {
        let status = agent.status()?;
        ensure!(status["source"]["synced"] == false, "{status}");
        ensure!(!status["not_ready"].to_string().is_empty(), "{status}");
        ensure!(agent.page("/readyz").is_err(), "it is ready with no state");
    }
    mesh.plane.start_server()?;
    for agent in &mesh.agents {
        soon_healthy(agent, true)?;
    }
    mesh.wait_enrolled()?;
    soon_works(mesh.pod("client"), &url)
}

/// Certificates end while nobody can say who an agent is, as the authority has started
/// anew and the API server is away: nothing opens, and all goes on when it is back.
fn away_for_long() -> Result<()> {
    let mut mesh = ClusterMesh::up_with(&usual_pods(), &["--certificate-ttl", "10s"])?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    drop(mesh.api().create(&strict())?);
    soon_refused(mesh.pod("visitor"), &url)?;
    soon_works(mesh.pod("client"), &url)?;
    mesh.plane.stop_server();
    mesh.restart_authority(0)?;
    until(
        "the end of the certificates",
        Duration::from_mins(1),
        || {
            let status = mesh.agent("b").status().ok()?;
            let certificate = &status["certificates"][0];
            let (now, end) = (status["now"].as_str()?, certificate["not_after"].as_str());
            end.is_none_or(|end| end < now).then_some(())
        },
    )?;
    soon_refused(mesh.pod("client"), &url)?;
    ensure!(!works(mesh.pod("visitor"), &url), "STRICT is forgotten");
    let serving = mesh.agent("b").page("/readyz");
    ensure!(
        serving.is_err(),
        "it is ready with no certificate: {serving:?}"
    );
    mesh.plane.start_server()?;
    for agent in &mesh.agents {
        soon_healthy(agent, true)?;
    }
    let limit = Duration::from_mins(1);
    until("new certificates", limit, || {
        works(mesh.pod("client"), &url).then_some(())
    })?;
    ensure!(!works(mesh.pod("visitor"), &url), "STRICT is forgotten");
    Ok(())
}

fn second() -> Result<()> {
    let mesh = ClusterMesh::up(&usual_pods())?;
    let node = mesh.world.node("a");
    let refused = |arguments: &[&str], reason: &str| -> Result<()> {
        let options = mesh.agent_options(node, arguments)?;
        let mut second = Agent::spawn(&mesh.world, node, &options)?;
        let status = second.process.wait(SOON)?;
        let output = second.process.output();
        ensure!(status.code() == Some(1), "{status}: {output}");
        ensure!(output.contains(reason), "{output}");
        Ok(())
    };
    let reason = "an agent of the node a is already running";
    refused(&[], reason)?;
    // Neither does a run directory of its own make room for it.
    let elsewhere = mesh.file("elsewhere").display().to_string();
    let own = ["--run-dir", &elsewhere, "--metrics-addr", "127.0.0.1:15021"];
    refused(&own, reason)?;
    let ready = mesh.agent("a").page("/readyz");
    ensure!(ready.is_ok(), "the first one suffers: {ready:?}");
    mesh.wait_enrolled()
}

fn right() -> Result<()> {
    let mut mesh = ClusterMesh::down(&usual_pods(), true)?;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/fairlead-agent";
    let role = mesh.api().get(path)?;
    let rules = role["rules"].as_array().context("a role has rules")?;
    let fewer: Vec<_> = rules
        .iter()
        .filter(|rule| !rule["resources"].to_string().contains("endpointslices"))
        .collect();
    let set = |rules: Value| mesh.api().merge(&role, "", &json!({ "rules": rules }));
    drop(set(json!(fewer))?);
    mesh.start_authority("a")?;
    mesh.serve_authority(0)?;
    mesh.create_agent_pod("a")?;
    let agent = mesh.start_agent("a", &[])?;
    let expected = [
        "may not ",
        "endpointslices.discovery.k8s.io: grant verbs list, watch on",
        "fairlead-system/fairlead-agent",
    ];
    reported(&agent, &expected)?;
    ensure!(
        agent.page("/readyz").is_err(),
        "it is ready with less than it needs"
    );
    let set = |rules: &Value| mesh.api().merge(&role, "", &json!({ "rules": rules }));
    drop(set(&role["rules"])?);
    soon_healthy(&agent, true)?;
    agent.wait_serving()
}
