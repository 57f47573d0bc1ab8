//! The certificate authority as a Deployment runs it: two replicas, an API server, and
//! agents whose certificates are used in real handshakes.

mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fairlead_tests::apiserver::{Effect, Fault, TokenOptions};
use fairlead_tests::{patient, until, until_ok};

use crate::Test;
use stage::{Agent, BUNDLE, Cluster, SECRET, SOON, SYSTEM, USER, bound, id};

pub(crate) const TESTS: &[Test] = &[
    Test::pure("ca::an_agent_proves_its_node_by_a_token", tokens),
    Test::pure(
        "ca::replicas_share_one_root_and_follow_one_another",
        replicas,
    ),
    Test::pure(
        "ca::a_root_signs_once_agents_know_it",
        known_before_it_signs,
    ),
    Test::pure(
        "ca::a_root_is_replaced_under_traffic",
        replaced_under_traffic,
    ),
    Test::pure("ca::what_may_not_be_done_is_said", not_permitted),
];

fn tokens() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let replica = cluster.replica("ca-0", &[])?;
    // An agent that is there before the bundle waits for it, and says so.
    let early = cluster.agent("early", &replica, &cluster.token("agent-a"))?;
    early.is_refused("web", "root-cert.pem: it is not there yet")?;
    replica.wait_ready()?;
    until_ok("a bundle", SOON, || cluster.mount_bundle())?;
    early.gets("web")?;

    let told = |options: TokenOptions| TokenOptions {
        node: Some("node-a".to_owned()),
        ..options
    };
    let with_node = cluster
        .api
        .issue_token(SYSTEM, "fairlead-agent", &told(bound("agent-a")));
    cluster.agent("told", &replica, &with_node)?.gets("web")?;
    let agent = cluster.agent("a", &replica, &with_node)?;
    agent.is_refused(
        "cart",
        "no pod on node node-a runs as service account shop/cart",
    )?;
    let agent = cluster.agent("b", &replica, &cluster.token("agent-b"))?;
    agent.is_refused(
        "web",
        "no pod on node node-b runs as service account shop/web",
    )?;

    let other_audience = TokenOptions {
        audiences: vec!["istio-ca".to_owned()],
        ..bound("agent-a")
    };
    let unbound = TokenOptions {
        pod: None,
        ..bound("agent-a")
    };
    let expired = TokenOptions {
        lifetime: Duration::ZERO,
        ..bound("agent-a")
    };
    // What the API server is told of the node is not what the CA knows of the pod.
    let elsewhere = told(bound("agent-b"));
    let refused = [
        ("other-audience", "fairlead-agent", other_audience),
        ("unbound", "fairlead-agent", unbound),
        ("expired", "fairlead-agent", expired),
        ("elsewhere", "fairlead-agent", elsewhere),
        ("other-account", "web", bound("agent-a")),
    ];
    for (name, account, options) in refused {
        let token = cluster.api.issue_token(SYSTEM, account, &options);
        let agent = cluster.agent(name, &replica, &token)?;
        agent.is_refused("web", "unauthenticated").context(name)?;
    }

    let orphan = cluster.token("agent-b");
    cluster.api.delete("pods", SYSTEM, "agent-b")?;
    let agent = cluster.agent("orphan", &replica, &orphan)?;
    agent.is_refused("cart", "unauthenticated")?;

    // Whoever is not known while the API server is away is asked to come again.
    let late = cluster
        .api
        .issue_token(SYSTEM, "fairlead-agent", &bound("agent-a"));
    cluster.api.stop();
    let agent = cluster.agent("late", &replica, &late)?;
    agent.is_refused("web", "tokens can't be reviewed now")?;
    cluster.api.resume()?;
    agent.gets("web")
}

fn replicas() -> Result<()> {
    let cluster = Cluster::start()?;
    let first = cluster.replica("ca-0", &[])?;
    let second = cluster.replica("ca-1", &[])?;
    for replica in [&first, &second] {
        replica.wait_ready()?;
    }
    let roots = until_ok("a bundle", SOON, || cluster.bundle())?;
    let holder = || {
        let lease = cluster.api.get("leases", SYSTEM, SECRET)?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    };
    let leader = holder().context("nobody leads")?;
    cluster.mount_bundle()?;
    for (name, replica) in [("one", &first), ("other", &second)] {
        let agent = cluster.agent(name, replica, &cluster.token("agent-a"))?;
        agent.gets("web").context(name)?;
    }

    // The leader stops: the other one keeps the bundle from then on.
    let (stops, stays) = if leader.starts_with("ca-0_") {
        (first, second)
    } else {
        (second, first)
    };
    ensure!(stops.process.terminate(SOON)?.success());
    until("another leader", SOON, || {
        holder().filter(|holder| !holder.is_empty() && *holder != leader)
    })?;
    cluster
        .api
        .change("configmaps", (SYSTEM, BUNDLE), |bundle| {
            bundle["data"]["root-cert.pem"] = "of a stranger".into();
        })?;
    until("the bundle put right", SOON, || {
        (cluster.bundle().ok()? == roots).then_some(())
    })?;
    cluster.api.delete("configmaps", SYSTEM, BUNDLE)?;
    until("the bundle put back", SOON, || {
        (cluster.bundle().ok()? == roots).then_some(())
    })?;
    let (status, body) = stays.ready()?;
    ensure!(status == 200, "{body}");
    Ok(())
}

fn not_permitted() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.api.revoke(USER);
    let replica = cluster.replica("ca-0", &[])?;
    let (status, body) = until("an answer that names the Secret", SOON, || {
        let (status, body) = replica.ready().ok()?;
        body.contains("forbidden").then_some((status, body))
    })
    .with_context(|| replica.process.output())?;
    ensure!(status == 503);
    for part in [SECRET, "get", "secrets", USER, "deploy/ has the rules"] {
        ensure!(body.contains(part), "{part:?} is not in {body:?}");
    }
    cluster.permit();
    replica.wait_ready()?;

    // An API server that fails for a while takes nothing back.
    for status in [500, 503] {
        let effect = Effect::Answer {
            status,
            retry_after: None,
        };
        cluster.api.fail(Fault::new("", "", effect));
    }
    std::thread::sleep(Duration::from_secs(7));
    let (status, body) = replica.ready()?;
    ensure!(status == 200, "{body}");
    Ok(())
}

/// Certificates live so long here that agents hear of a new root from the bundle alone.
/// As soon as it signs, a node that comes new meets those that are there.
fn known_before_it_signs() -> Result<()> {
    let cluster = Cluster::start()?;
    let replica = cluster.replica("ca-0", &["--root-overlap", "15s", "--max-ttl", "10m"])?;
    replica.wait_ready()?;
    until_ok("a bundle", SOON, || cluster.mount_bundle())?;
    let web = cluster.agent("a", &replica, &cluster.token("agent-a"))?;
    let cart = cluster.agent("b", &replica, &cluster.token("agent-b"))?;
    web.gets("web")?;
    cart.gets("cart")?;
    let secret = |key: &str| {
        let secret = cluster.api.get("secrets", SYSTEM, SECRET);
        secret.map(|secret| secret["data"][key].to_string())
    };
    let old = secret("ca-cert.pem");
    cluster.rotate()?;
    until("another root that signs", SOON, || {
        cluster.mount_bundle().ok()?;
        (secret("ca-cert.pem") != old).then_some(())
    })
    .with_context(|| replica.process.output())?;

    let issuer = |agent: &Agent| agent.identities.certificates()[0].issuer.clone();
    let late = until_ok("a certificate under the new root", SOON, || {
        let late = cluster.agent("late", &replica, &cluster.token("agent-b"))?;
        late.gets("cart")?;
        ensure!(issuer(&late) != issuer(&cart), "the old root signs still");
        Ok(late)
    })?;
    for server in [&late, &cart] {
        cluster.run(cluster.drive(&web, server, || true))?;
    }
    for agent in [&web, &cart] {
        ensure!(issuer(agent) != issuer(&late), "it was renewed");
    }
    Ok(())
}

/// Two agents, each with its own replica; kubelet brings the bundle to them. The overlap
/// is what they need to read it, and certificates live for seconds.
fn replaced_under_traffic() -> Result<()> {
    let cluster = Cluster::start()?;
    let flags = ["--root-overlap", "15s", "--max-ttl", "12s"];
    let first = cluster.replica("ca-0", &flags)?;
    let second = cluster.replica("ca-1", &flags)?;
    first.wait_ready()?;
    second.wait_ready()?;
    until_ok("a bundle", SOON, || cluster.mount_bundle())?;
    let web = cluster.agent("a", &first, &cluster.token("agent-a"))?;
    let cart = cluster.agent("b", &second, &cluster.token("agent-b"))?;
    web.gets("web")?;
    cart.gets("cart")?;

    let old = cluster.bundle()?;
    cluster.rotate()?;
    let limit = patient(Duration::from_mins(3));
    let (started, mut bundles) = (Instant::now(), vec![old.clone()]);
    let bundles_seen = std::cell::RefCell::new(&mut bundles);
    let done = || {
        let bundle = cluster.bundle().unwrap_or_default();
        let mut seen = bundles_seen.borrow_mut();
        if seen.last() != Some(&bundle) {
            seen.push(bundle);
        }
        cluster.mount_bundle().is_ok_and(|_| seen.len() >= 3) || started.elapsed() > limit
    };
    let traffic = cluster.run(cluster.drive(&web, &cart, done));
    let logs = || format!("{}\n{}", first.process.output(), second.process.output());
    let traffic = traffic.with_context(logs)?;
    ensure!(bundles.len() == 3, "{} bundles; {}", bundles.len(), logs());
    let roots = |bundle: &str| bundle.matches("BEGIN CERTIFICATE").count();
    ensure!(bundles.iter().map(|one| roots(one)).eq([1, 2, 1]));
    ensure!(bundles[2] != old);
    ensure!(traffic.connections > 100 && traffic.messages > 100);

    // And on, with the new root alone, for longer than a certificate lives.
    let end = Instant::now() + Duration::from_secs(13);
    let after = cluster.run(cluster.drive(&web, &cart, || Instant::now() > end));
    after.context("with the new root alone")?;
    let newer = |agent: &Agent, account: &str| -> Result<()> {
        let credentials = agent.identities.in_force(&id(account));
        let generation = credentials.context("no certificate")?.generation();
        ensure!(generation > 2, "{account} was renewed {generation} times");
        Ok(())
    };
    newer(&web, "web")?;
    newer(&cart, "cart")
}
