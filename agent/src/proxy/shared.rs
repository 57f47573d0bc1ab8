//! What all connections share.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::clusters::Clusters;
use super::config::Config;
use super::http::{Keys, Limits};
use super::pod::LocalPod;
use super::record::{ConnectionId, Record};
use super::tasks::Tasks;
use super::tunnel::Pool;
use super::workers::Workers;
use crate::flow::{Direction, FlowSender};
use crate::identity::Identities;
use crate::model::NamespacedName;
use crate::policy::Table;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) tables: watch::Receiver<Arc<Table>>,
    pub(super) identities: Identities,
    pub(super) flows: FlowSender,
    pub(super) pool: Pool,
    pub(super) clusters: Clusters,
    /// Of those who issue tokens to end users.
    pub(super) keys: Keys,
    pub(super) limits: Limits,
    pub(super) tasks: Tasks,
    pub(super) workers: Workers,
    pub(super) counters: Counters,
    pub(super) pods: RwLock<HashMap<NamespacedName, Arc<LocalPod>>>,
}

/// What has no flow record.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Times that the kernel had no descriptor or memory for a connection.
    pub(super) accept_exhausted: AtomicU64,
    /// Tunnels reset because too many were being set up at once.
    pub(super) handshakes_shed: AtomicU64,
    /// Requests of peers at addresses where no pod is known.
    pub(super) unknown_peers: AtomicU64,
}

impl Shared {
    /// The table in force.
    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.tables.borrow())
    }

    /// The pod of this name, if it is served here.
    pub(super) fn pod(&self, name: &NamespacedName) -> Option<Arc<LocalPod>> {
        // A panic under this lock would have ended the process.
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(name).cloned()
    }

    /// All pods that are served.
    pub(super) fn all_pods(&self) -> Vec<Arc<LocalPod>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// Begins the record of a connection.
    pub(super) fn begin(&self, direction: Direction, id: ConnectionId) -> Box<Record> {
        Record::begin(&self.flows, &self.config.node.0, direction, id)
    }
}
