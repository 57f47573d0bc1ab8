//! One pod of this node, as long as it is served.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::account::Account;
use super::config::Config;
use super::http::{Channels, Upstreams};
use super::network::{PodKey, PodNetwork};
use super::permit::PodState;
use super::tunnel::Arrivals;
use super::turns::Turns;
use crate::policy::InboundPolicy;
use crate::state::Pod;

/// One pod of this node, as long as it is served.
#[derive(Debug)]
pub(super) struct LocalPod {
    /// As it was when it was enrolled.
    pub(super) pod: Arc<Pod>,
    /// Its namespace.
    pub(super) network: Arc<dyn PodNetwork>,
    /// What its open connections watch.
    pub(super) state: watch::Sender<PodState>,
    /// Cancelled when no new connection is to be taken.
    pub(super) leaving: CancellationToken,
    /// What it takes of this proxy.
    pub(super) account: Arc<Account>,
    /// Where its tasks run, if pods take turns.
    pub(super) turns: Option<Arc<Turns>>,
    /// Tunnels that are being set up, or wait to be.
    pub(super) arrivals: Arc<Arrivals>,
    /// Places for requests of peers that the state does not know yet.
    pub(super) unknown_peers: Semaphore,
    /// Its connections to servers of HTTP.
    pub(super) upstreams: Arc<Upstreams>,
    /// Its connections to those who decide on its requests.
    pub(super) channels: Channels,
    /// How its tunnels introduce it.
    pub(super) baggage: Option<HeaderValue>,
    own_ports: Vec<u16>,
}

impl LocalPod {
    pub(super) fn new(
        pod: Arc<Pod>,
        network: Arc<dyn PodNetwork>,
        policy: Arc<InboundPolicy>,
        own_ports: Vec<u16>,
        config: &Arc<Config>,
    ) -> Self {
        let closing = false;
        Self {
            pod,
            network,
            state: watch::Sender::new(PodState { policy, closing }),
            leaving: CancellationToken::new(),
            account: Account::new(config),
            turns: None,
            arrivals: Arc::new(Arrivals::new(&config.tunnel)),
            unknown_peers: Semaphore::new(config.tunnel.unknown_peers_waiting),
            upstreams: Upstreams::new(Arc::clone(config)),
            channels: Channels::default(),
            baggage: None,
            own_ports,
        }
    }

    /// Which life of the pod this is.
    pub(super) fn key(&self) -> PodKey {
        PodKey::of(&self.pod)
    }

    /// The agent itself listens there, in this pod's namespace.
    pub(super) fn is_own_port(&self, port: u16) -> bool {
        self.own_ports.contains(&port)
    }

    /// The address is this pod's.
    pub(super) fn has_ip(&self, ip: IpAddr) -> bool {
        self.pod.ips.contains(&ip)
    }

    /// The pod's address of the family of `to`, preferring the one that it used.
    pub(super) fn source_ip(&self, used: IpAddr, to: IpAddr) -> Option<IpAddr> {
        let fits = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
        if fits(&used) && self.has_ip(used) {
            return Some(used);
        }
        self.pod.ips.iter().copied().find(fits)
    }

    /// The client as its server is to see it.
    pub(super) fn client_address(&self, peer: SocketAddr, to: IpAddr) -> SocketAddr {
        let ip = self.source_ip(peer.ip(), to).unwrap_or(peer.ip());
        SocketAddr::new(ip, peer.port())
    }

    /// Publishes the policy, where it differs from the one in force.
    pub(super) fn publish(&self, policy: &Arc<InboundPolicy>) {
        let _changed = self.state.send_if_modified(|state| {
            let same = Arc::ptr_eq(&state.policy, policy) || state.policy == *policy;
            state.policy = Arc::clone(policy);
            !same
        });
    }

    /// Ends its connections.
    pub(super) fn close(&self) {
        self.leaving.cancel();
        self.state.send_modify(|state| state.closing = true);
    }
}

impl Drop for LocalPod {
    fn drop(&mut self) {
        if let Some(turns) = &self.turns {
            turns.leave();
        }
    }
}
