//! What every source gives: snapshots, and how it is.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;

use imbl::ordset::DiffItem;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::kube::{Access, ClientError};
use super::{dir, kube};
use crate::model::TrustDomain;
use crate::state::{ObjectKind, Problem, Snapshot};

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Config {
    /// A directory of manifests, or one file of them.
    Directory(PathBuf),
    /// An API server.
    Kube {
        /// How it is reached.
        access: Access,
        /// What is asked for.
        kinds: &'static [ObjectKind],
    },
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::Kube { .. } => f.write_str("kube"),
        }
    }
}

/// What an agent needs to know.
pub const AGENT_KINDS: &[ObjectKind] = &[
    ObjectKind::Namespace,
    ObjectKind::Pod,
    ObjectKind::EndpointSlice,
    ObjectKind::Service,
    ObjectKind::ReferenceGrant,
    ObjectKind::GrpcRoute,
    ObjectKind::HttpRoute,
    ObjectKind::TlsRoute,
    ObjectKind::TcpRoute,
    ObjectKind::AuthorizationPolicy,
    ObjectKind::MeshPolicy,
    ObjectKind::TrafficPolicy,
];

/// What the certificate authority needs to know: who runs where.
pub const CA_KINDS: &[ObjectKind] = &[ObjectKind::Namespace, ObjectKind::Pod];

/// The work of a source; it never ends.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Starts a source. Nothing is read unless the work is polled; an API server that can't
/// be reached is no error here. Services have those external addresses that are in the
/// blocks `external_ips`.
pub async fn start(
    config: Config,
    trust_domain: TrustDomain,
    external_ips: Vec<IpNet>,
) -> Result<(Source, Work), ClientError> {
    match config {
        Config::Directory(path) => {
            let (source, work) = dir::start(dir::Config {
                path,
                trust_domain,
                external_ips,
            });
            Ok((source, Box::pin(work)))
        }
        Config::Kube { access, kinds } => {
            let (source, work) = kube::start(&access, kinds, trust_domain, external_ips).await?;
            Ok((source, Box::pin(work)))
        }
    }
}

/// A running source.
#[derive(Clone, Debug)]
pub struct Source {
    /// The state. Revision 0 means that not everything has been read once yet.
    pub snapshots: watch::Receiver<Snapshot>,
    /// How the source is.
    pub health: watch::Receiver<Health>,
}

/// How a source is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// Such as `dir:/etc/fairlead/manifests` or `kube:https://10.0.0.1:6443`.
    pub source: String,
    /// The last attempt to read it succeeded.
    pub healthy: bool,
    /// When it was last read; of an API server, until when everything from it was known.
    pub last_sync: Option<Timestamp>,
    /// The last error; it may be over.
    pub last_error: Option<SourceError>,
    /// Changes are noticed at once; else within seconds.
    pub watching: bool,
    /// Since when the API server can't be reached; the state is that of `last_sync`.
    pub lost: Option<Timestamp>,
    /// Objects in force, by kind.
    pub objects: BTreeMap<&'static str, usize>,
    /// Kind by kind, where each is read on its own.
    pub kinds: Vec<KindHealth>,
    /// How many problems the state has.
    pub problems: usize,
}

/// How the watch of one kind is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindHealth {
    /// Such as `Pod`.
    pub kind: &'static str,
    /// The API server has the kind.
    pub installed: bool,
    /// Since when and why what is known of it is old.
    pub behind: Option<SourceError>,
    /// How often the watch was made again.
    pub watch_restarts: u64,
    /// How often everything was read once more, by reason.
    pub relists: BTreeMap<&'static str, u64>,
}

/// Something that went wrong with a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceError {
    /// When.
    pub time: Timestamp,
    /// What.
    pub message: String,
}

/// Tells of problems that are new, and of those that are over.
pub(super) fn log(old: &Snapshot, new: &Snapshot) {
    for change in old.problems.diff(&new.problems) {
        let (DiffItem::Add(problem) | DiffItem::Remove(problem)) = change;
        let Problem {
            file,
            line,
            kind,
            object,
            field,
            message,
        } = problem;
        let at = if file.is_empty() {
            String::new()
        } else {
            format!("{file}:{line}")
        };
        match change {
            DiffItem::Add(_) => {
                tracing::warn!(at, kind, object, field, message, "problem");
            }
            DiffItem::Remove(_) => {
                tracing::info!(at, kind, object, field, message, "problem is over");
            }
        }
    }
}
