//! What the demo shows, in order.

use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::{Capture, Output, Pod, until};
use serde_json::json;

use super::show::{Show, fairlead, run_in, say};
use super::stage::{CACHE, DATABASE, MARKER, Stage, WEB};
use crate::ui;

/// How long a change of a manifest may take until it is in force.
const SOON: Duration = Duration::from_secs(5);
/// Port of the encrypted tunnels between nodes.
const TUNNEL: u16 = 15008;

/// Runs all scenes, then the summary.
pub(super) fn run(keep: bool) -> Result<()> {
    let mut show = Show::new();
    show.scene(
        "Two nodes, six pods, real servers",
        "Each node and each pod is a network namespace; a routed link joins the nodes.",
    );
    let mut stage = Stage::set()?;
    picture(&stage);
    let acts = [
        plaintext_without_mesh,
        enrolment,
        encrypted_calls,
        strict,
        denied_call,
        killed_agent,
        flows_and_status,
    ];
    for act in acts {
        if let Err(error) = act(&mut show, &mut stage) {
            say(format_args!("{error:#}"));
            show.interrupted();
            break;
        }
    }
    let verdict = show.conclude();
    if keep && verdict.is_ok() {
        leave(stage)?;
    }
    verdict
}

fn picture(stage: &Stage) {
    let row = |left: &Pod, left_note: &str, right: &Pod, right_note: &str| {
        let (left_name, right_name) = (left.full_name(), right.full_name());
        say(format_args!(
            "  {left_name:<14} {:<12} {left_note:<12}   {right_name:<11} {:<12} {right_note}",
            left.ip4.to_string(),
            right.ip4.to_string(),
        ));
    };
    say(format_args!(
        "{:<43}{}",
        ui::bold("node-a"),
        ui::bold("node-b")
    ));
    row(&stage.client, "curl, psql", &stage.web, "nginx");
    row(&stage.batch, "psql", &stage.database, "PostgreSQL");
    row(&stage.visitor, "never meshed", &stage.cache, "redis");
}

fn plaintext_without_mesh(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "Without a mesh, everyone on the way reads along",
        "The client calls nginx on the other node while tcpdump watches the link.",
    );
    let capture = watch_link(stage, "plain")?;
    let url = format!("http://{}/", stage.web.ip4);
    let output = curl(&stage.client, &url)?;
    let traffic = capture.stop()?;
    show.check("unmeshed: the call works", output.stdout.contains(MARKER));
    show.check(
        format!("unmeshed: the link shows \"{MARKER}\""),
        traffic.contains(MARKER),
    );
    Ok(())
}

fn enrolment(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "Enrolment of running pods",
        "An authority, an agent on each node, and one label on the namespace. No pod restarts.",
    );
    let before: Vec<u32> = stage
        .servers
        .iter()
        .map(fairlead_tests::Process::pid)
        .collect();
    stage.start_mesh()?;
    stage.world.manifests().namespace("shop", true)?;
    say("namespace shop: fairlead.dev/mesh: enabled");
    stage.wait_enrolled()?;
    for (agent, node) in stage.agents.iter().zip(stage.world.nodes()) {
        drop(fairlead(&node.name, &agent.cli, &["status"])?);
    }
    show.check("five running pods are enrolled", true);
    let mut same = true;
    for (server, pid) in stage.servers.iter_mut().zip(before) {
        same &= server.pid() == pid && server.ended()?.is_none();
    }
    show.check("nginx, PostgreSQL and redis were not restarted", same);
    Ok(())
}

fn encrypted_calls(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "The same calls, meshed: mutual TLS on the wire",
        "By Service address, three protocols, unmodified programs. tcpdump watches again.",
    );
    let capture = watch_link(stage, "meshed")?;
    let web = curl(&stage.client, &format!("http://{WEB}/"))?;
    show.check("HTTP: nginx answers", web.stdout.contains(MARKER));
    let sql = psql(&stage.client, "select 6 * 7")?;
    show.check(
        "PostgreSQL answers, a server that speaks first",
        sql.stdout.trim() == "42",
    );
    let ping = ["redis-cli", "-h", CACHE, "ping"];
    let ping = run_in("client", &stage.client, &ping)?;
    show.check("redis answers", ping.stdout.trim() == "PONG");
    let six = format!("http://[{}]/whoami", stage.web.ip6);
    let six = curl(&stage.client, &six)?;
    show.check(
        "IPv6 works, and nginx sees the client's own address",
        six.stdout.trim() == stage.client.ip6.to_string(),
    );
    let traffic = capture.stop()?;
    let records = traffic.tls_records_to(TUNNEL);
    say(format_args!(
        "on the link: {} bytes, {records} TLS records to port {TUNNEL}",
        traffic.bytes()
    ));
    show.check(
        format!("the link does not show \"{MARKER}\""),
        !traffic.contains(MARKER),
    );
    show.check(
        format!("TLS records to port {TUNNEL} cross the link"),
        records > 0,
    );
    let plain = traffic.plaintext_streams();
    show.check("nothing but TLS crosses the link", plain.is_empty());
    Ok(())
}

fn strict(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "STRICT: plaintext is refused",
        "The visitor has no identity. PERMISSIVE, the default, lets it in; STRICT does not.",
    );
    let url = format!("http://{}/", stage.web.ip4);
    let output = curl(&stage.visitor, &url)?;
    show.check(
        "PERMISSIVE: the visitor's plaintext call works",
        output.success(),
    );
    stage.world.manifests().mtls("shop", None, "STRICT")?;
    say("MeshPolicy shop/default: mtls: {mode: STRICT}");
    let quiet = ["curl", "-s", "--max-time", "5", &url];
    let refused = until("STRICT", SOON, || {
        let output = stage.visitor.run(&quiet).ok()?;
        (!output.success()).then_some(())
    });
    drop(curl(&stage.visitor, &url)?);
    show.check(
        "STRICT: the visitor's plaintext call is refused",
        refused.is_ok(),
    );
    let output = curl(&stage.client, &format!("http://{WEB}/"))?;
    show.check("STRICT: the client's call works", output.success());
    Ok(())
}

fn denied_call(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "A policy: only the client may use the database",
        "AuthorizationPolicy shop/db-clients allows one identity; all others are denied.",
    );
    let rules =
        json!([{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/client"]}}]}]);
    let name = ("shop", "db-clients");
    stage
        .world
        .manifests()
        .authorization(name, "db", "ALLOW", &rules)?;
    let query = ["psql", &connection(), "-Atc", "select 1"];
    let denied = until("the policy", SOON, || {
        let output = stage.batch.run(&query).ok()?;
        (!output.success()).then_some(())
    });
    drop(psql(&stage.batch, "select 1")?);
    show.check("batch is denied", denied.is_ok());
    let sql = psql(&stage.client, "select 6 * 7")?;
    show.check("client is allowed", sql.stdout.trim() == "42");
    let agent = stage.agents.last().context("an agent runs on node-b")?;
    let arguments = ["flows", "--verdict", "denied", "--last", "3"];
    let flows = fairlead("node-b", &agent.cli, &arguments)?;
    show.check(
        "the flow says who denied it",
        flows.stdout.contains("shop/db-clients"),
    );
    let arguments = ["explain", "shop/batch", "shop/db:5432"];
    let explained = fairlead("node-b", &agent.cli, &arguments)?;
    show.check(
        "explain names the policy",
        explained.stdout.contains("shop/db-clients"),
    );
    Ok(())
}

fn killed_agent(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "An agent is killed: closed, never open",
        "SIGKILL to the agent of node-b. Its pods refuse; the next agent takes over.",
    );
    let agent = stage.agents.pop().context("an agent runs on node-b")?;
    agent.process.kill();
    let url = format!("http://{}/", stage.web.ip4);
    let output = curl(&stage.visitor, &url)?;
    show.check(
        "plaintext does not come in while the agent is away",
        !output.success(),
    );
    stage.restart_second_agent()?;
    let output = curl(&stage.client, &format!("http://{WEB}/"))?;
    show.check("a new agent takes over", output.success());
    Ok(())
}

fn flows_and_status(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.scene(
        "Every connection, once",
        "What the agent of node-a saw. `fairlead flows -f` follows; -o json is for scripts.",
    );
    let agent = stage.agents.first().context("an agent runs on node-a")?;
    let flows = fairlead("node-a", &agent.cli, &["flows", "--last", "12"])?;
    let both = flows.stdout.contains("mtls") && flows.stdout.contains("denied");
    show.check("the table shows mTLS and a denied call", both);
    let agent = stage.agents.last().context("an agent runs on node-b")?;
    let status = fairlead("node-b", &agent.cli, &["status"])?;
    show.check("status is healthy", status.success());
    Ok(())
}

fn watch_link(stage: &Stage, name: &str) -> Result<Capture> {
    let (node, device) = stage.world.link("node-a", "node-b");
    Capture::start(&stage.world, node, &device, name)
}

fn curl(pod: &Pod, url: &str) -> Result<Output> {
    run_in(&pod.name, pod, &["curl", "-sS", "--max-time", "5", url])
}

fn connection() -> String {
    format!("host={DATABASE} user=postgres sslmode=disable connect_timeout=5")
}

fn psql(pod: &Pod, query: &str) -> Result<Output> {
    run_in(&pod.name, pod, &["psql", &connection(), "-Atc", query])
}

/// Leaves all as it is and says how to play with it.
fn leave(mut stage: Stage) -> Result<()> {
    let commands = stage.write_commands()?;
    stage.world.keep();
    let manifests = stage.world.manifests().directory().display().to_string();
    // Dropping it would end every process.
    std::mem::forget(stage);
    let commands = commands.display();
    say(format_args!(
        "\n{title}
  export PATH={commands}:$PATH
  client curl http://{WEB}/                     a command in a pod: client, batch, visitor, web, db, cache
  client psql -h {DATABASE} -U postgres
  node-a flows -f                               any fairlead command for a node: node-a, node-b
  node-b explain shop/batch shop/db:5432
  ls {manifests}    change a file; it is in force at once
  cargo xtask demo --stop                       remove everything",
        title = ui::bold("It is left up. To play:")
    ));
    Ok(())
}
