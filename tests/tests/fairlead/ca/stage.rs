//! An API server, replicas of the CA as processes, and the certificates' side of agents.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use fairlead::identity::{self, CaAddress, Identities, SystemClock, server_name};
use fairlead::model::{NodeName, SpiffeId, TrustDomain};
use fairlead_tests::apiserver::{ApiServer, Options, Rule, TokenOptions};
use fairlead_tests::{Process, binary, free_port, until, until_ok, without_own_variables};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector};

pub(super) const SYSTEM: &str = "fairlead-system";
pub(super) const SECRET: &str = "fairlead-ca";
pub(super) const BUNDLE: &str = "fairlead-ca-root-cert";
/// The user of the CA's service account.
pub(super) const USER: &str = "system:serviceaccount:fairlead-system:fairlead-ca";
pub(super) const SOON: Duration = Duration::from_mins(1);

/// An API server with the pods of two nodes, and what the CA may do there.
pub(super) struct Cluster {
    pub(super) api: ApiServer,
    dir: TempDir,
    runtime: Runtime,
}

/// One replica.
pub(super) struct Replica {
    pub(super) process: Process,
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
    pub(super) fn start() -> Result<Self> {
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
    pub(super) fn permit(&self) {
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
    pub(super) fn replica(&self, name: &str, flags: &[&str]) -> Result<Replica> {
        let (port, health) = (free_port()?, free_port()?);
        let kubeconfig = self.dir.path().join(format!("{name}.kubeconfig"));
        let day = TokenOptions {
            lifetime: Duration::from_hours(24),
            ..TokenOptions::default()
        };
        let token = self.api.issue_token(SYSTEM, "fairlead-ca", &day);
        self.api.write_kubeconfig(&kubeconfig, &token)?;
        let mut command = Command::new(binary()?);
        without_own_variables(&mut command);
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
    pub(super) fn token(&self, agent: &str) -> String {
        self.api
            .issue_token(SYSTEM, "fairlead-agent", &bound(agent))
    }

    /// What `kubectl annotate` does.
    pub(super) fn rotate(&self) -> Result<()> {
        self.api.change("secrets", (SYSTEM, SECRET), |secret| {
            secret["metadata"]["annotations"]["fairlead.dev/rotate"] = "now".into();
        })?;
        Ok(())
    }

    pub(super) fn bundle(&self) -> Result<String> {
        let bundle = self.api.get("configmaps", SYSTEM, BUNDLE);
        let bundle = bundle.context("there is no bundle")?;
        let roots = bundle["data"]["root-cert.pem"].as_str();
        Ok(roots.context("it has no roots")?.to_owned())
    }

    /// What kubelet does with the bundle, for all agents.
    pub(super) fn mount_bundle(&self) -> Result<PathBuf> {
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
    pub(super) fn agent(&self, name: &str, replica: &Replica, token: &str) -> Result<Agent> {
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
            clock: Arc::new(SystemClock),
        };
        let (identities, manager) = identity::start(config)?;
        drop(self.runtime.spawn(manager));
        Ok(Agent { identities })
    }

    pub(super) fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }
}

/// Bound to the agent's pod, and of the node where the API server says so.
pub(super) fn bound(agent: &str) -> TokenOptions {
    TokenOptions {
        audiences: vec!["fairlead-ca".to_owned()],
        pod: Some((agent.to_owned(), format!("uid-of-{agent}"))),
        ..TokenOptions::default()
    }
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain("cluster.local".into()), "shop", account)
}

impl Replica {
    /// What its readiness probe answers.
    pub(super) fn ready(&self) -> Result<(u16, String)> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.health))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: ca\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no status")?.parse()?;
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        Ok((status, body.to_owned()))
    }

    pub(super) fn wait_ready(&self) -> Result<()> {
        until_ok("the CA is ready", SOON, || match self.ready()? {
            (200, _) => Ok(()),
            (status, body) => bail!("{status} {body}"),
        })
        .with_context(|| self.process.output())
    }
}

pub(super) struct Agent {
    pub(super) identities: Identities,
}

impl Agent {
    pub(super) fn want(&self, account: &str) {
        self.identities.set_wanted(BTreeSet::from([id(account)]));
    }

    /// Waits for the certificate.
    pub(super) fn gets(&self, account: &str) -> Result<()> {
        self.want(account);
        until(&format!("a certificate of {account}"), SOON, || {
            self.identities.in_force(&id(account))
        })
        .with_context(|| format!("{:?}", self.identities.certificates()))?;
        Ok(())
    }

    /// Waits for a refusal that says so.
    pub(super) fn is_refused(&self, account: &str, why: &str) -> Result<()> {
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

/// Connections of one agent's workload to another's.
pub(super) struct Traffic {
    pub(super) connections: usize,
    /// Over the one that stays open.
    pub(super) messages: usize,
}

impl Cluster {
    /// Dials `cart` as `web` again and again, and talks on one connection all the time,
    /// until `done`. Any failure ends it.
    pub(super) async fn drive(
        &self,
        web: &Agent,
        cart: &Agent,
        done: impl Fn() -> bool,
    ) -> Result<Traffic> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let identities = cart.identities.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                let credentials = identities.credentials(&id("cart")).await?;
                let accepting = TlsAcceptor::from(credentials.server_config()).accept(stream);
                drop(tokio::spawn(echo(accepting)));
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
        serving.abort();
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

/// Sends back what comes, for as long as it does.
async fn echo(accepting: Accept<TcpStream>) -> std::io::Result<()> {
    let mut stream = accepting.await?;
    let mut byte = [0];
    while stream.read(&mut byte).await? > 0 {
        stream.write_all(&byte).await?;
    }
    Ok(())
}
