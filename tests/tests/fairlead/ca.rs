//! The certificate authority as a Deployment runs it: two replicas, an API server, and
//! agents whose certificates are used in real handshakes.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fairlead::identity::{self, CaAddress, Identities, SystemClock, server_name};
use fairlead::model::{NodeName, SpiffeId, TrustDomain};
use fairlead_tests::apiserver::{ApiServer, Effect, Fault, Options, Rule, TokenOptions};
use fairlead_tests::{Process, binary, patient, until, until_ok};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Test;

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

const SYSTEM: &str = "fairlead-system";
const SECRET: &str = "fairlead-ca";
const BUNDLE: &str = "fairlead-ca-root-cert";
/// The user of the CA's service account.
const USER: &str = "system:serviceaccount:fairlead-system:fairlead-ca";
const SOON: Duration = Duration::from_secs(20);

/// An API server with the pods of two nodes, and what the CA may do there.
struct Cluster {
    api: ApiServer,
    dir: TempDir,
    runtime: Runtime,
}

/// One replica.
struct Replica {
    process: Process,
    port: u16,
    health: u16,
}

fn pod(namespace: &str, name: &str, node: &str, host_network: bool) -> Value {
    let account = if namespace == SYSTEM {
        "fairlead-agent"
    } else {
        name
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-of-{name}")},
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "hostNetwork": host_network,
            "containers": [{"name": "main", "image": "example"}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": "10.1.0.1"}]},
    })
}

impl Cluster {
    fn start() -> Result<Self> {
        let api = ApiServer::start(Options::default())?;
        for name in [SYSTEM, "shop"] {
            api.put(json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
            }))?;
        }
        for (name, node) in [("web", "node-a"), ("cart", "node-b")] {
            api.put(pod("shop", name, node, false))?;
        }
        for (name, node) in [("agent-a", "node-a"), ("agent-b", "node-b")] {
            api.put(pod(SYSTEM, name, node, true))?;
        }
        let cluster = Self {
            api,
            dir: TempDir::new()?,
            runtime: Runtime::new()?,
        };
        cluster.permit();
        Ok(cluster)
    }

    /// What deploy/ lets the CA do.
    fn permit(&self) {
        let named = |verbs: &[&str], group: &str, resource: &str, name: &str| Rule {
            namespace: Some(SYSTEM.to_owned()),
            names: vec![name.to_owned()],
            ..Rule::new(verbs, group, &[resource])
        };
        let create = |group: &str, resources: &[&str]| Rule {
            namespace: Some(SYSTEM.to_owned()),
            ..Rule::new(&["create"], group, resources)
        };
        for rule in [
            Rule::new(&["list", "watch"], "", &["namespaces", "pods"]),
            Rule::new(&["create"], "authentication.k8s.io", &["tokenreviews"]),
            named(&["get", "update"], "", "secrets", SECRET),
            named(&["get", "update"], "", "configmaps", BUNDLE),
            create("", &["secrets", "configmaps"]),
            create("coordination.k8s.io", &["leases"]),
            named(&["get", "update"], "coordination.k8s.io", "leases", SECRET),
        ] {
            self.api.grant(USER, rule);
        }
    }

    /// Starts a replica, with more flags.
    fn replica(&self, name: &str, flags: &[&str]) -> Result<Replica> {
        let (port, health) = (free_port()?, free_port()?);
        let kubeconfig = self.dir.path().join(format!("{name}.kubeconfig"));
        let day = TokenOptions {
            lifetime: Duration::from_hours(24),
            ..TokenOptions::default()
        };
        let token = self.api.issue_token(SYSTEM, "fairlead-ca", &day);
        self.api.write_kubeconfig(&kubeconfig, &token)?;
        let mut command = Command::new(binary()?);
        command
            .arg("ca")
            .args(["--source", "kube", "--authenticate", "kube"])
            .args(["--root", &format!("secret:{SYSTEM}/{SECRET}")])
            .args(["--bundle", &format!("configmap:{SYSTEM}/{BUNDLE}")])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--health-addr", &format!("127.0.0.1:{health}")])
            .args(flags)
            .env("KUBECONFIG", &kubeconfig)
            .env("POD_NAME", name);
        let log = self.dir.path().join(format!("{name}.log"));
        Ok(Replica {
            process: Process::start(name, &mut command, &log)?,
            port,
            health,
        })
    }

    /// A token as kubelet gets it for the pod of the agent on a node.
    fn token(&self, agent: &str) -> String {
        self.api
            .issue_token(SYSTEM, "fairlead-agent", &bound(agent))
    }

    /// What `kubectl annotate` does.
    fn rotate(&self) -> Result<()> {
        self.api.change("secrets", (SYSTEM, SECRET), |secret| {
            secret["metadata"]["annotations"]["fairlead.dev/rotate"] = "now".into();
        })?;
        Ok(())
    }

    fn bundle(&self) -> Result<String> {
        let bundle = self.api.get("configmaps", SYSTEM, BUNDLE);
        let bundle = bundle.context("there is no bundle")?;
        let roots = bundle["data"]["root-cert.pem"].as_str();
        Ok(roots.context("it has no roots")?.to_owned())
    }

    /// What kubelet does with the bundle, for all agents.
    fn mount_bundle(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("root-cert.pem");
        let text = self.bundle()?;
        if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
            let new = self.dir.path().join("root-cert.pem.new");
            std::fs::write(&new, text)?;
            std::fs::rename(&new, &path)?;
        }
        Ok(path)
    }

    /// The certificates' side of an agent.
    fn agent(&self, name: &str, replica: &Replica, token: &str) -> Result<Agent> {
        let token_file = self.dir.path().join(format!("{name}.token"));
        std::fs::write(&token_file, token)?;
        let config = identity::Config {
            trust_domain: TrustDomain("cluster.local".into()),
            ca: CaAddress::Url(format!("https://localhost:{}", replica.port)),
            node: NodeName("for-logs".into()),
            token_file: Some(token_file),
            ca_root: Some(self.dir.path().join("root-cert.pem")),
            cluster_id: "Kubernetes".to_owned(),
            ttl: Duration::from_hours(24),
            alpn: vec![identity::ALPN_HBONE.to_vec()],
            clock: Arc::new(SystemClock),
        };
        let (identities, manager) = identity::start(config)?;
        drop(self.runtime.spawn(manager));
        Ok(Agent { identities })
    }

    fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }
}

/// Bound to the agent's pod, and of the node where the API server says so.
fn bound(agent: &str) -> TokenOptions {
    TokenOptions {
        audiences: vec!["fairlead-ca".to_owned()],
        pod: Some((agent.to_owned(), format!("uid-of-{agent}"))),
        ..TokenOptions::default()
    }
}

fn free_port() -> Result<u16> {
    Ok(StdListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain("cluster.local".into()), "shop", account)
}

impl Replica {
    /// What its readiness probe answers.
    fn ready(&self) -> Result<(u16, String)> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.health))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no status")?.parse()?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        Ok((status, body.to_owned()))
    }

    fn wait_ready(&self) -> Result<()> {
        until_ok("the CA is ready", SOON, || match self.ready()? {
            (200, _) => Ok(()),
            (status, body) => bail!("{status} {body}"),
        })
        .with_context(|| self.process.output())
    }
}

struct Agent {
    identities: Identities,
}

impl Agent {
    fn want(&self, account: &str) {
        self.identities.set_wanted(BTreeSet::from([id(account)]));
    }

    /// Waits for the certificate.
    fn gets(&self, account: &str) -> Result<()> {
        self.want(account);
        until(&format!("a certificate of {account}"), SOON, || {
            self.identities.in_force(&id(account))
        })
        .with_context(|| format!("{:?}", self.identities.certificates()))?;
        Ok(())
    }

    /// Waits for a refusal that says so.
    fn is_refused(&self, account: &str, why: &str) -> Result<()> {
        self.want(account);
        let error = until("an error", SOON, || {
            let certificates = self.identities.certificates();
            certificates.first()?.last_error.clone()
        })?;
        ensure!(error.contains(why), "{error:?} does not say {why:?}");
        ensure!(self.identities.in_force(&id(account)).is_none());
        Ok(())
    }
}

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
    agent.is_refused("web", "the token can't be reviewed")?;
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

/// Connections of one agent's workload to another's.
struct Traffic {
    connections: usize,
    /// Over the one that stays open.
    messages: usize,
}

impl Cluster {
    /// Dials `cart` as `web` again and again, and talks on one connection all the time,
    /// until `done`. Any failure ends it.
    async fn drive(&self, web: &Agent, cart: &Agent, done: impl Fn() -> bool) -> Result<Traffic> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let identities = cart.identities.clone();
        let echo = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let credentials = identities.credentials(&id("cart")).await?;
                let accepting = TlsAcceptor::from(credentials.server_config()).accept(stream);
                drop(tokio::spawn(async move {
                    let mut stream = accepting.await?;
                    let mut byte = [0];
                    while stream.read(&mut byte).await? > 0 {
                        stream.write_all(&byte).await?;
                    }
                    std::io::Result::Ok(())
                }));
            }
            #[expect(unreachable_code, reason = "gives the block its type")]
            anyhow::Ok(())
        });
        let dial = async || {
            let credentials = web.identities.credentials(&id("web")).await?;
            let connector = TlsConnector::from(credentials.client_config(&id("cart")));
            let stream = TcpStream::connect(address).await?;
            let mut stream = connector.connect(server_name(), stream).await?;
            ping(&mut stream).await?;
            anyhow::Ok(stream)
        };
        let mut kept = dial().await?;
        let mut traffic = Traffic {
            connections: 1,
            messages: 0,
        };
        while !done() {
            dial()
                .await
                .with_context(|| format!("connection {}", traffic.connections))?;
            traffic.connections += 1;
            ping(&mut kept).await.context("the connection that stays")?;
            traffic.messages += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        echo.abort();
        Ok(traffic)
    }
}

async fn ping(
    stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
) -> Result<()> {
    stream.write_all(b"x").await?;
    let mut byte = [0];
    let answered = tokio::time::timeout(SOON, stream.read_exact(&mut byte)).await;
    answered.map_err(|_elapsed| anyhow!("no answer"))??;
    Ok(())
}

/// Certificates live so long here that agents hear of a new root from the bundle alone.
/// As soon as it signs, a node that comes new meets those that are there.
fn known_before_it_signs() -> Result<()> {
    let cluster = Cluster::start()?;
    let replica = cluster.replica("ca-0", &["--root-overlap", "8s", "--max-ttl", "10m"])?;
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
    let flags = ["--root-overlap", "8s", "--max-ttl", "6s"];
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
    let limit = patient(Duration::from_mins(2));
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

    // And on, with the new root alone.
    let end = Instant::now() + Duration::from_secs(6);
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
