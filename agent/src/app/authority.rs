//! The certificate authority: its flags, and everything wired.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::ca_args::{BundleArg, CaArgs, RootArg};
use super::config::{self, trust_domain};
use super::tasks::{StopSignals, Tasks};
use super::{limits, logging};
use crate::admin::{AuthorityFigures, HttpServer};
use crate::cluster::kube::{BundleStore, Client, Leader, LeaseConfig, SecretStore, TokenReviews};
use crate::model::NamespacedName;
use crate::{ca, cluster, identity};

/// The name of the Lease and the Service, in the namespace of the Secret.
const NAME: &str = "fairlead-ca";
/// For giving the Lease back.
const RESIGN: Duration = Duration::from_secs(5);

/// Runs the certificate authority until it is told to stop.
pub fn run_ca(args: CaArgs) -> anyhow::Result<()> {
    logging::start(&args.log)?;
    limits::raise();
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(authority(args))
}

async fn authority(args: CaArgs) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let mut tasks = Tasks::default();
    let source = config::source(args.source.as_ref(), &args.kube, cluster::CA_KINDS)?;
    let (source, read) =
        cluster::start(source, trust_domain(&args.trust_domain)?, Vec::new()).await?;
    tasks.keep("source", read);

    let probes = match args.health_addr {
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.with_context(|| format!("--health-addr {address}"))?)
        }
        None => None,
    };
    let client = match (&args.root, &args.authenticate) {
        (RootArg::Directory(_), None) => None,
        _ => Some(cluster::kube::client(&args.kube.access()).await?),
    };
    let (root, leader) = root(&args, client.clone(), &mut tasks)?;
    let config = ca::Config {
        listen: args.listen,
        root,
        snapshots: source.snapshots,
        authentication: authentication(&args, client)?,
        trust_domain: trust_domain(&args.trust_domain)?,
        default_ttl: args.max_ttl.min(identity::DEFAULT_TTL),
        max_ttl: args.max_ttl,
        names: names(&args),
        clock: Arc::new(identity::SystemClock),
    };
    tracing::info!(
        source = source.health.borrow().source,
        root = ?args.root,
        bundle = ?args.bundle,
        root_overlap = ?args.root_overlap,
        listen = %config.listen,
        authenticate = ?args.authenticate,
        agent_account = %args.agent_account,
        node_tokens = ?args.node_tokens,
        trust_domain = %config.trust_domain,
        max_ttl = ?config.max_ttl,
        names = ?config.names,
        "configuration"
    );
    let server = ca::Server::bind(config).await?;
    if let Some(listener) = probes {
        let http = health(listener, server.health(), leader.clone());
        tasks.keep("http", http.run());
    }
    tasks.start("ca", async { Ok(server.run().await?) });
    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping"),
        error = tasks.ended() => return Err(error),
    }
    if let Some(leader) = leader
        && timeout(RESIGN, leader.resign()).await.is_err()
    {
        tracing::warn!("the Lease was not given back: another replica leads only when it is over");
    }
    Ok(())
}

/// Probes and metrics over HTTP.
fn health(listener: TcpListener, health: ca::Health, leader: Option<Leader>) -> HttpServer {
    let of_metrics = health.clone();
    let figures = move || {
        let ca::Figures {
            issued,
            refused,
            authority_ends,
        } = of_metrics.figures();
        AuthorityFigures {
            issued,
            refused: refused.to_vec(),
            authority_ends,
            leader: leader.as_ref().map(Leader::is_leader),
        }
    };
    HttpServer::of_authority(listener, move || health.reasons(), figures)
}

/// What signs. In a Secret it is kept by one of the replicas.
fn root(
    args: &CaArgs,
    client: Option<Client>,
    tasks: &mut Tasks,
) -> anyhow::Result<(ca::Root, Option<Leader>)> {
    let (name, client) = match (&args.root, &args.bundle, client) {
        (RootArg::Directory(_), Some(_), _) => {
            anyhow::bail!("--bundle needs --root secret:NAMESPACE/NAME")
        }
        (RootArg::Directory(path), None, _) => {
            return Ok((ca::Root::Directory(path.clone()), None));
        }
        (RootArg::Secret(name), _, Some(client)) => (name, client),
        (RootArg::Secret(_), _, None) => anyhow::bail!("--root secret: needs the API server"),
    };
    let lease = LeaseConfig {
        namespace: name.namespace.to_string(),
        name: NAME.to_owned(),
        holder: holder(),
    };
    let (leader, election) = cluster::kube::elect(client.clone(), lease);
    tasks.keep("leader election", election);
    let bundle = args.bundle.clone().map(|BundleArg(name)| name);
    let root = ca::SecretRoot {
        secret: SecretStore::new(client.clone(), name.clone()),
        bundle: bundle.map(|name| BundleStore::new(client, name)),
        leader: leader.clone(),
        overlap: args.root_overlap,
        life: args.max_ttl,
    };
    Ok((ca::Root::Secret(root), Some(leader)))
}

fn authentication(args: &CaArgs, client: Option<Client>) -> anyhow::Result<ca::Authentication> {
    match (&args.authenticate, &args.node_tokens, client) {
        (Some(how), _, Some(client)) => Ok(ca::Authentication::Reviews {
            reviews: TokenReviews::new(client, how.audience.clone()),
            agent: args.agent_account.clone(),
        }),
        (None, Some(directory), _) => Ok(ca::Authentication::NodeTokens(directory.clone())),
        _ => anyhow::bail!("give --authenticate kube, or --node-tokens DIR"),
    }
}

/// What agents may reach the CA by: in a cluster, the names of its Service.
fn names(args: &CaArgs) -> Vec<String> {
    let mut names = args.server_name.clone();
    if let RootArg::Secret(NamespacedName { namespace, .. }) = &args.root {
        let service = format!("{NAME}.{namespace}");
        names.extend([
            format!("{service}.svc"),
            format!("{service}.svc.cluster.local"),
            service,
        ]);
    }
    names
}

/// What the Lease calls this process: the pod's name, which Kubernetes gives it as its
/// host name too.
fn holder() -> String {
    let name = std::env::var("POD_NAME")
        .ok()
        .filter(|name| !name.is_empty());
    name.unwrap_or_else(|| {
        let system = rustix::system::uname();
        system.nodename().to_string_lossy().into_owned()
    })
}
