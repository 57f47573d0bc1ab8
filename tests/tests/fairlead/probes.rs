//! Kubelet's probes reach pods whatever the policies say, and nobody else does so.

use anyhow::{Result, ensure};
use fairlead_tests::{Agent, AgentOptions, Output, Place, PodSpec, until, until_ok};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{Mesh, SOON, serve_python};

pub(crate) const TESTS: &[Test] = &[
    Test::node("probes::kubelet_passes_where_others_are_refused", passes)
        .with(&["python3", "curl"]),
    Test::node("probes::nobody_is_believed_where_told_so", nobody).with(&["python3", "curl"]),
];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");

/// A server on node b that takes mTLS only, and that only from `client`.
fn guarded(kubelet: &str) -> Result<Mesh> {
    let mut mesh = Mesh::down(&[
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("b", "guest", "lodger"),
    ])?;
    let manifests = mesh.world.manifests();
    manifests.mtls("shop", None, "STRICT")?;
    let rules =
        json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]);
    manifests.authorization(("shop", "clients"), "server", "ALLOW", &rules)?;
    for name in ["a", "b"] {
        let agent = start(&mesh, name, kubelet)?;
        mesh.agents.push(agent);
    }
    mesh.wait_enrolled()?;
    Ok(mesh)
}

/// An agent whose kubelet is a cgroup of its node's host.
fn start(mesh: &Mesh, node: &str, kubelet: &str) -> Result<Agent> {
    let node = mesh.world.node(node);
    let path = match kubelet {
        "none" => kubelet.to_owned(),
        name => node.host.child(name)?.cgroup().display().to_string(),
    };
    let options = AgentOptions {
        arguments: vec!["--kubelet-cgroup".to_owned(), path],
        ..AgentOptions::default()
    };
    Agent::start(&mesh.world, node, &options)
}

fn get(from: &Place, url: &str) -> Result<Output> {
    from.run(&["curl", "-sS", "-g", "--max-time", "5", url])
}

fn works(from: &Place, url: &str) -> bool {
    get(from, url).is_ok_and(|output| output.success())
}

fn passes() -> Result<()> {
    let mut mesh = guarded("kubelet")?;
    let host = mesh.world.node("b").host.clone();
    let kubelet = host.child("kubelet")?;
    let server = mesh.pod("server");
    let _web = serve_python(server, WEB, 8080, &[])?;
    let urls = [
        format!("http://{}:8080/healthz", server.ip4),
        format!("http://[{}]:8080/healthz", server.ip6),
    ];
    let lodger = mesh.pod("lodger").child("process")?;
    for url in &urls {
        // A second look at where kubelet is may be needed.
        until("kubelet's probe", SOON, || {
            works(&kubelet, url).then_some(())
        })?;
        ensure!(!works(&host, url), "another process of the node at {url}");
        ensure!(!works(&lodger, url), "another pod of the node at {url}");
        let far = &mesh.world.node("a").host.child("kubelet")?;
        ensure!(!works(far, url), "kubelet of another node at {url}");
    }
    // Nobody listens: as with no mesh.
    let closed = get(&kubelet, &format!("http://{}:8081/", server.ip4))?;
    ensure!(closed.code() == 7, "{closed:?}");
    let probe = until_ok("the probe's record", SOON, || {
        let arguments = ["flows", "--verdict", "forwarded", "--last", "1"];
        let flow = mesh.agent("b").cli.json(&arguments)?.pop();
        flow.ok_or_else(|| anyhow::anyhow!("no record"))
    })?;
    ensure!(probe["policy"] == "kubelet_probe", "{probe}");
    ensure!(probe["source"]["workload"] == "kubelet", "{probe}");
    ensure!(probe["source"].get("identity").is_none(), "{probe}");
    let metrics = mesh.agent("b").page("/metrics")?;
    let counted = |line: &&str| line.contains("source_workload=\"kubelet\"");
    ensure!(metrics.lines().any(|line| counted(&line)), "{metrics}");
    ensure!(metrics.contains("kind=\"kubelet_probe\""), "{metrics}");

    mesh.agents.remove(1).process.kill();
    let away = get(&kubelet, &urls[0])?;
    ensure!(away.code() == 7, "the agent is away: {away:?}");
    let agent = start(&mesh, "b", "kubelet")?;
    mesh.agents.push(agent);
    mesh.wait_enrolled()?;
    until("kubelet's probe again", SOON, || {
        works(&kubelet, &urls[0]).then_some(())
    })?;
    ensure!(
        !works(&host, &urls[0]),
        "another process of the node, later"
    );
    Ok(())
}

fn nobody() -> Result<()> {
    let mesh = guarded("none")?;
    let kubelet = mesh.world.node("b").host.child("kubelet")?;
    let server = mesh.pod("server");
    let _web = serve_python(server, WEB, 8080, &[])?;
    let url = format!("http://{}:8080/", server.ip4);
    ensure!(!works(&kubelet, &url), "it is a process like any other");
    let denied = until_ok("its record", SOON, || {
        let arguments = ["flows", "--verdict", "denied", "--last", "1"];
        let flow: Option<Value> = mesh.agent("b").cli.json(&arguments)?.pop();
        flow.ok_or_else(|| anyhow::anyhow!("no record"))
    })?;
    ensure!(denied["reason"] == "mtls_required", "{denied}");
    Ok(())
}
