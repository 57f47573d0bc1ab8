//! The data path: the bytes of every connection of this node's enrolled pods.
//!
//! In: listeners inside the pods' namespaces ([`EnrolledPod`]), the table in force,
//! certificates. Out: bytes at the other end, and one [`crate::flow::FlowEvent`] for each
//! connection. It never decides what a policy says, never loads anything into the kernel
//! and never falls back to plaintext.
//!
//! ```text
//! outbound listener ─► outbound ─┬─ local ──────────────► application of the same node
//!                                ├─ tunnel ─► pool ═════► port 15008 of the other node's pod
//!                                └─ passthrough ────────► anything that is not meshed
//! tunnel listener ───► tunnel::server ─► CONNECT ─┐
//! inbound listener ──► inbound ───────────────────┴─► policy ─► application
//! ```

mod accept;
mod account;
mod caller;
mod clusters;
mod config;
mod cork;
mod dial;
mod endpoint;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hello;
mod http;
mod inbound;
mod lock;
mod network;
mod outbound;
mod outcome;
mod permit;
mod pod;
mod reach;
mod record;
mod relay;
mod shared;
mod tasks;
mod tunnel;
mod turns;
mod workers;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

pub use self::account::PodUsage;
pub use self::clusters::ClusterFigures;
use self::clusters::Clusters;
pub use self::config::{Config, HttpConfig, Keepalive, TunnelConfig};
use self::http::Limits;
pub use self::network::{EnrolledPod, Family, Listeners, PodKey, PodNetwork, TcpInfo};
use self::pod::LocalPod;
use self::shared::{Counters, Shared};
use self::tasks::Tasks;
use self::tunnel::Pool;
use self::turns::Turns;
use self::workers::Workers;
use crate::flow::FlowSender;
use crate::identity::Identities;
use crate::model::NamespacedName;
use crate::policy::Table;

/// The data path of one node. A clone is the same.
#[derive(Clone, Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

/// Figures of the data path, for metrics and status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyStats {
    /// Pods that are served.
    pub pods: usize,
    /// Tasks: connections and what drives them.
    pub tasks: usize,
    /// Pooled connections to other nodes.
    pub tunnels: usize,
    /// Times that the kernel had no descriptor or memory to accept a connection.
    pub accept_exhausted: u64,
    /// Tunnels that were reset because too many were being set up at once.
    pub handshakes_shed: u64,
    /// Requests refused because no pod is known at the peer's address.
    pub unknown_peers: u64,
}

/// One kind of listener.
#[derive(Clone, Copy, Debug)]
enum Role {
    Outbound,
    Inbound,
    Tunnel,
}

impl Proxy {
    /// A data path with no pods, and the future that keeps its pods' policies up to date.
    /// Dropping that future ends every connection. Fails where its threads cannot start.
    pub fn new(
        config: Config,
        tables: watch::Receiver<Arc<Table>>,
        identities: Identities,
        flows: FlowSender,
    ) -> io::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        let config = Arc::new(config);
        let tasks = Tasks::default();
        let workers = Workers::start(config.workers, tasks.stopping())?;
        let pool = Pool::new(identities.clone(), Arc::clone(&config), tasks.clone());
        let clusters = Clusters::new(config.node.clone());
        let shared = Arc::new(Shared {
            clusters,
            limits: Limits::default(),
            config,
            tables,
            identities,
            flows,
            pool,
            keys: http::Keys::new(tasks.clone()),
            tasks,
            workers,
            counters: Counters::default(),
            pods: RwLock::new(HashMap::new()),
        });
        let publish = publish_policies(Arc::clone(&shared));
        let sweep = sweep_upstreams(Arc::clone(&shared));
        let run = async move {
            let ((), ()) = tokio::join!(publish, sweep);
        };
        Ok((Self { shared }, run))
    }

    /// How many connections of a pod were refused because it had too many.
    pub fn refused_connections(&self, pod: &NamespacedName) -> u64 {
        self.shared
            .pod(pod)
            .map_or(0, |pod| pod.account.refused_connections())
    }

    /// What each pod takes of this data path.
    pub fn usage(&self) -> Vec<(NamespacedName, PodUsage)> {
        let pods = self.shared.pods.read();
        let pods = pods.unwrap_or_else(PoisonError::into_inner);
        let usage = |(name, pod): (&NamespacedName, &Arc<LocalPod>)| {
            let usage = pod.account.usage();
            (name.clone(), usage)
        };
        pods.iter().map(usage).collect()
    }

    /// How the endpoints are that this node's pods send requests to, by Service and port.
    pub fn endpoint_figures(&self) -> Vec<ClusterFigures> {
        self.shared.clusters.figures(Instant::now().into_std())
    }

    /// Starts to serve a pod. One of the same name that is served already is replaced: its
    /// open connections end after `grace`. Fails where a listener is not one.
    pub fn add_pod(&self, enrolled: EnrolledPod, grace: Duration) -> io::Result<()> {
        let EnrolledPod {
            pod,
            listeners,
            network,
        } = enrolled;
        let worker = self.shared.workers.assign();
        let listeners = {
            let _entered = worker.enter();
            prepare(&self.shared.config, listeners)?
        };
        let mut own_ports = vec![self.shared.config.tunnel.port];
        for (_role, listener) in &listeners {
            own_ports.push(listener.local_addr()?.port());
        }
        let policy = self.shared.table().inbound(&pod.name);
        let config = &self.shared.config;
        let mut local = LocalPod::new(pod, network, policy, own_ports, config);
        local.baggage = tunnel::baggage(&self.shared.config.cluster, &local.pod);
        if let Some(turn) = config.turn {
            let (turns, driver) = Turns::new(Arc::clone(&local.account), turn);
            local.turns = Some(turns);
            self.shared.tasks.spawn_on(&worker, driver);
        }
        let local = Arc::new(local);
        let mut pods = self.pods_mut();
        let before = pods.insert(local.pod.name.clone(), Arc::clone(&local));
        drop(pods);
        // The table may have changed since it was read, before the pod was in the map.
        local.publish(&self.shared.table().inbound(&local.pod.name));
        for (role, listener) in listeners {
            self.listen(&worker, role, listener, &local);
        }
        if let Some(before) = before {
            self.leave(before, grace);
        }
        Ok(())
    }

    /// Stops to serve a pod: no new connection at once, the open ones end after `grace`.
    pub fn remove_pod(&self, key: &PodKey, grace: Duration) {
        let mut pods = self.pods_mut();
        if pods.get(&key.name).is_some_and(|pod| pod.key() == *key)
            && let Some(pod) = pods.remove(&key.name)
        {
            drop(pods);
            self.leave(pod, grace);
        }
    }

    /// Stops to serve all pods, as at the agent's own end.
    pub fn remove_all(&self, grace: Duration) {
        let pods: Vec<_> = self.pods_mut().drain().collect();
        for (_name, pod) in pods {
            self.leave(pod, grace);
        }
    }

    /// The figures of now.
    pub fn stats(&self) -> ProxyStats {
        let counters = &self.shared.counters;
        ProxyStats {
            pods: self.pods_mut().len(),
            tasks: self.shared.tasks.running(),
            tunnels: self.shared.pool.connections(),
            accept_exhausted: counters.accept_exhausted.load(Ordering::Relaxed),
            handshakes_shed: counters.handshakes_shed.load(Ordering::Relaxed),
            unknown_peers: counters.unknown_peers.load(Ordering::Relaxed),
        }
    }

    fn listen(&self, worker: &Handle, role: Role, listener: TcpListener, pod: &Arc<LocalPod>) {
        let shared = Arc::clone(&self.shared);
        let pod = Arc::clone(pod);
        let turns = pod.turns.clone();
        let accept = async move {
            let leaving = pod.leaving.clone();
            let exhausted = &shared.counters.accept_exhausted;
            let serve = |connection| spawn(&shared, role, &pod, connection);
            let accepting = accept::accept_all(|| listener.accept(), exhausted, serve);
            let _left = leaving.run_until_cancelled(accepting).await;
        };
        match turns {
            Some(turns) => self.shared.tasks.spawn_among(&turns, accept),
            None => self.shared.tasks.spawn_on(worker, accept),
        }
    }

    fn leave(&self, pod: Arc<LocalPod>, grace: Duration) {
        pod.leaving.cancel();
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let _over = tokio::time::timeout(grace, follow_policy(&shared, &pod)).await;
            pod.close();
            // Idle tunnels would keep the pod's network namespace alive.
            shared.pool.forget(&pod.key());
            pod.upstreams.close();
        });
    }

    fn pods_mut(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<NamespacedName, Arc<LocalPod>>> {
        // A panic under this lock would have ended the process.
        self.shared
            .pods
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a new connection its task.
fn spawn(
    shared: &Arc<Shared>,
    role: Role,
    pod: &Arc<LocalPod>,
    (stream, peer): (TcpStream, SocketAddr),
) {
    let (shared_, pod) = (Arc::clone(shared), Arc::clone(pod));
    match role {
        Role::Outbound => shared
            .tasks
            .spawn(outbound::serve(shared_, pod, stream, peer)),
        Role::Inbound => shared
            .tasks
            .spawn(inbound::serve(shared_, pod, stream, peer)),
        Role::Tunnel => shared
            .tasks
            .spawn(tunnel::serve(shared_, pod, stream, peer)),
    }
}

/// The pod's listeners with their options set, each with its role.
fn prepare(config: &Config, listeners: Listeners) -> io::Result<Vec<(Role, TcpListener)>> {
    let Listeners {
        outbound,
        inbound,
        tunnel,
    } = listeners;
    let mut prepared = Vec::new();
    let kinds = [
        (Role::Outbound, outbound),
        (Role::Inbound, inbound),
        (Role::Tunnel, tunnel),
    ];
    for (role, listeners) in kinds {
        for listener in listeners {
            dial::prepare_listener(&listener, config.keepalive)?;
            if matches!(role, Role::Outbound) {
                dial::prepare_near_listener(&listener)?;
            }
            prepared.push((role, TcpListener::from_std(listener)?));
        }
    }
    Ok(prepared)
}

/// Publishes to each pod its own policy, whenever that has changed.
async fn publish_policies(shared: Arc<Shared>) {
    let _stop = shared.tasks.stop_on_drop();
    let mut tables = shared.tables.clone();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        for pod in shared.all_pods() {
            publish(&table, &pod);
        }
        if tables.changed().await.is_err() {
            // No source of tables any more: what is in force stays so.
            std::future::pending::<()>().await;
        }
    }
}

/// Closes connections to servers of HTTP that nobody has used for long.
async fn sweep_upstreams(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(shared.config.http.upstream_idle / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let _now = tick.tick().await;
        for pod in shared.all_pods() {
            pod.upstreams.sweep();
        }
    }
}

/// Publishes the policies of a pod that leaves, to the connections that it still has.
async fn follow_policy(shared: &Shared, pod: &LocalPod) {
    let mut tables = shared.tables.clone();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        publish(&table, pod);
        if tables.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The table does not know a pod that is about to leave: its last policy stays in force,
/// so that it is drained rather than denied.
fn publish(table: &Table, pod: &LocalPod) {
    let policy = table.inbound(&pod.pod.name);
    if policy.is_known() {
        pod.publish(&policy);
    }
}
