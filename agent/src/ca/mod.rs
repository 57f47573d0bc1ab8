//! The certificate authority service: Istio's `CreateCertificate`, for the agents of a mesh
//! and for ztunnels.
//!
//! In: the cluster's [`Snapshot`]s; the authority's key, from a directory or a Secret; and
//! what proves which node calls, a token file for each node or the API server's review of
//! a service account's token. Out: certificates, each with an audit line in the log, and
//! with a Secret the roots in a ConfigMap. Must not: sign for a node what none of its pods
//! is, tell a caller without a valid token anything, let one caller keep others from being
//! served, or write a Secret that it did not make.

mod authorize;
mod callers;
mod connections;
mod figures;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod limit;
mod root;
mod service;
mod tls;
mod tokens;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::transport::Server as GrpcServer;

use crate::cluster::kube::TokenReviews;
use crate::identity::generated::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::identity::{AuthorityDir, AuthorityError, Clock};
use crate::model::{NamespacedName, TrustDomain};
use crate::state::Snapshot;

use callers::{Callers, Reviews};
use connections::{Slots, incoming};
use root::Keeper;
use service::{Service, Shared};
use tls::ServerCertificates;
use tokens::TokenDir;

pub use crate::identity::Authority;
pub use figures::Figures;
pub use root::SecretRoot;

/// The files of tokens and authority are looked at so often.
const TICK: Duration = Duration::from_secs(1);
/// An authority that ends soon is warned about so often.
const WARN: Duration = Duration::from_hours(1);
/// A request is one CSR and one id.
const MAX_REQUEST: usize = 64 * 1024;
/// For one call, from its header to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the authority's key and certificates are.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and it is moved once"
)]
pub enum Root {
    /// In this directory, in Istio's file names; created if it is empty.
    Directory(PathBuf),
    /// In a Secret.
    Secret(SecretRoot),
}

/// How callers prove which node they are.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one, and it is moved once"
)]
pub enum Authentication {
    /// By the token in a file of this directory that is named as the node.
    NodeTokens(PathBuf),
    /// By a token of the agents' service account, bound to a pod on that node.
    Reviews {
        /// Asks the API server.
        reviews: TokenReviews,
        /// The agents' service account.
        agent: NamespacedName,
    },
}

/// What the service is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0: any.
    pub listen: SocketAddr,
    /// What signs.
    pub root: Root,
    /// The cluster, to know which pods a node runs. Nothing is signed before its first
    /// revision.
    pub snapshots: watch::Receiver<Snapshot>,
    /// Who is served.
    pub authentication: Authentication,
    /// The only trust domain that is signed for.
    pub trust_domain: TrustDomain,
    /// The life of a certificate where the request asks for none.
    pub default_ttl: Duration,
    /// The longest life, whatever a request asks for.
    pub max_ttl: Duration,
    /// DNS names of the service's own TLS certificate, beside `fairlead-ca` and `localhost`
    /// and the address that was dialled.
    pub names: Vec<String>,
    /// The clock that certificates are dated by.
    pub clock: Arc<dyn Clock>,
}

/// Why the service can't start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The directory of the authority is not in order.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The directory of the tokens can't be read.
    #[error("{}: {source}; make the directory, with one file per node", path.display())]
    Tokens {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The address can't be listened on.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The gRPC server gave up.
    #[error("the gRPC server stopped: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// The service, listening but not yet answering.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    root: Followed,
    tokens: Option<TokenDir>,
    shared: Arc<Shared>,
}

/// What signs, and how changes of it are noticed.
#[derive(Debug)]
enum Followed {
    Directory(AuthorityDir),
    Secret(Box<Keeper>),
}

/// Tells how a service is: whether it can issue certificates, and what it did.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

impl Health {
    /// For metrics.
    pub fn figures(&self) -> Figures {
        self.0.figures()
    }

    /// Why no certificate could be issued now; empty where one could.
    pub fn reasons(&self) -> Vec<String> {
        self.0.not_ready()
    }
}

impl Server {
    /// Opens what is there of authority and tokens, and listens.
    pub async fn bind(config: Config) -> Result<Self, CaError> {
        let (tokens, callers) = callers(config.authentication)?;
        let shared = Shared::new(
            service::Settings {
                trust_domain: config.trust_domain,
                default_ttl: config.default_ttl.min(config.max_ttl),
                max_ttl: config.max_ttl,
                snapshots: config.snapshots,
                certificates: ServerCertificates::new(config.names, Arc::clone(&config.clock)),
            },
            callers,
        );
        let root = match config.root {
            Root::Directory(path) => {
                let authority = AuthorityDir::open(path, config.clock)?;
                shared.replace_authority(authority.current());
                Followed::Directory(authority)
            }
            Root::Secret(root) => Followed::Secret(Box::new(Keeper::new(root, config.clock))),
        };
        let listen = |source| CaError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        Ok(Self {
            listener,
            address,
            root,
            tokens,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// For probes and metrics.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.shared))
    }

    /// Serves until it is dropped.
    pub async fn run(self) -> Result<(), CaError> {
        let Self {
            listener,
            address,
            root,
            tokens,
            shared,
        } = self;
        tracing::info!(%address, "certificate authority is serving");
        let service = IstioCertificateServiceServer::new(Service(Arc::clone(&shared)))
            .max_decoding_message_size(MAX_REQUEST);
        let connections = incoming(listener, Arc::clone(&shared), Arc::new(Slots::new()));
        let serving = GrpcServer::builder()
            .timeout(REQUEST_TIMEOUT)
            .concurrency_limit_per_connection(16)
            .max_concurrent_streams(64)
            .http2_max_header_list_size(16 * 1024)
            .max_connection_age(Duration::from_mins(10))
            .max_connection_age_grace(REQUEST_TIMEOUT)
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .add_service(service)
            .serve_with_incoming(connections);
        tokio::select! {
            ended = Box::pin(serving) => Ok(ended?),
            never = follow_root(root, &shared) => match never {},
            never = follow_tokens(tokens, &shared) => match never {},
        }
    }
}

fn callers(authentication: Authentication) -> Result<(Option<TokenDir>, Callers), CaError> {
    match authentication {
        Authentication::NodeTokens(path) => {
            let tokens = TokenDir::open(path.clone());
            let tokens = tokens.map_err(|source| CaError::Tokens { path, source })?;
            let callers = Callers::files(&tokens);
            Ok((Some(tokens), callers))
        }
        Authentication::Reviews { reviews, agent } => Ok((
            None,
            Callers::Reviews(Box::new(Reviews::new(reviews, agent))),
        )),
    }
}

/// Brings a changed authority into force.
async fn follow_root(root: Followed, shared: &Shared) -> Infallible {
    let mut authority = match root {
        Followed::Directory(authority) => authority,
        Followed::Secret(keeper) => return keeper.run(shared).await,
    };
    let mut warned = Instant::now();
    loop {
        sleep(TICK).await;
        if authority.refresh() {
            shared.replace_authority(authority.current());
        }
        if warned.elapsed() >= WARN {
            shared.warn_of_end();
            warned = Instant::now();
        }
    }
}

/// Brings changed tokens into force.
async fn follow_tokens(tokens: Option<TokenDir>, shared: &Shared) -> Infallible {
    let Some(mut tokens) = tokens else {
        return std::future::pending().await;
    };
    loop {
        sleep(TICK).await;
        if tokens.refresh() {
            shared.replace_tokens(tokens.current());
        }
    }
}
