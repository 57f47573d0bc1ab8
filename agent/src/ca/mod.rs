//! The certificate authority service: Istio's `CreateCertificate`, for the agents of a mesh
//! and for ztunnels.
//!
//! In: the cluster's [`Snapshot`]s, a directory with the authority's key, a directory with
//! one token for each node. Out: certificates, each with an audit line in the log. Must
//! not: sign for a node what none of its pods is, tell a caller without a valid token
//! anything, or let one caller keep others from being served.

mod authorize;
mod connections;
mod limit;
mod service;
mod tls;
mod tokens;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::transport::Server as GrpcServer;

use crate::identity::generated::istio_certificate_service_server::IstioCertificateServiceServer;
use crate::identity::{AuthorityDir, AuthorityError, Clock};
use crate::model::TrustDomain;
use crate::state::Snapshot;

use connections::{Slots, incoming};
use service::{Service, Shared};
use tls::ServerCertificates;
use tokens::TokenDir;

pub use crate::identity::Authority;

/// The files of tokens and authority are looked at so often.
const TICK: Duration = Duration::from_secs(1);
/// An authority that ends soon is warned about so often.
const WARN: Duration = Duration::from_hours(1);
/// A request is one CSR and one id.
const MAX_REQUEST: usize = 64 * 1024;
/// For one call, from its header to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What the service is to do.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen. Port 0: any.
    pub listen: SocketAddr,
    /// The directory of the authority, in Istio's file names; created if it is empty.
    pub root: PathBuf,
    /// The cluster, to know which pods a node runs. Nothing is signed before its first
    /// revision.
    pub snapshots: watch::Receiver<Snapshot>,
    /// One file for each node, named as the node, with its token.
    pub node_tokens: PathBuf,
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

/// Serves until it is dropped.
pub async fn run(config: Config) -> Result<(), CaError> {
    Server::bind(config).await?.run().await
}

/// The service, listening but not yet answering.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    authority: AuthorityDir,
    tokens: TokenDir,
    shared: Arc<Shared>,
}

impl Server {
    /// Opens the authority and the tokens, and listens.
    pub async fn bind(config: Config) -> Result<Self, CaError> {
        let authority = AuthorityDir::open(config.root, Arc::clone(&config.clock))?;
        let path = config.node_tokens;
        let tokens =
            TokenDir::open(path.clone()).map_err(|source| CaError::Tokens { path, source })?;
        let listen = |source| CaError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let shared = Shared::new(service::Settings {
            trust_domain: config.trust_domain,
            default_ttl: config.default_ttl.min(config.max_ttl),
            max_ttl: config.max_ttl,
            snapshots: config.snapshots,
            certificates: ServerCertificates::new(config.names, config.clock),
        });
        shared.replace_authority(Arc::clone(authority.current()));
        shared.replace_tokens(tokens.current());
        Ok(Self {
            listener,
            address,
            authority,
            tokens,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is dropped.
    pub async fn run(self) -> Result<(), CaError> {
        let Self {
            listener,
            address,
            authority,
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
            ended = serving => Ok(ended?),
            never = follow_files(authority, tokens, &shared) => match never {},
        }
    }
}

/// Brings what changes in the two directories into force.
async fn follow_files(
    mut authority: AuthorityDir,
    mut tokens: TokenDir,
    shared: &Shared,
) -> std::convert::Infallible {
    let mut warned = Instant::now();
    loop {
        sleep(TICK).await;
        if authority.refresh() {
            shared.replace_authority(Arc::clone(authority.current()));
        }
        if tokens.refresh() {
            shared.replace_tokens(tokens.current());
        }
        if warned.elapsed() >= WARN {
            authority.current().warn_of_end();
            warned = Instant::now();
        }
    }
}
