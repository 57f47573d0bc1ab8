//! Pooled connections to other nodes.
//!
//! ```text
//!            open()                 ready            last lease gone, idle long
//!  (nothing) ──────► Connecting ──────────► Ready ────────────────────────────► Closed
//!                        │                    │  certificate renewed, the peer's
//!                        ▼                    ▼  expired, GOAWAY, peer gone
//!                     Failed               retired: takes no new stream, closes
//!                                          after its last one
//! ```
//! Invariant: the lock is held for look-ups and counters only, never across anything that
//! waits. A connection that is being set up counts its future streams already, so that
//! requests which come together share it, and those above its limit start the next one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::client::{self, Dial};
use super::error::TunnelError;
use super::hbone::{self, Connect};
use super::link::{Lease, Link, State};
use super::stream::HboneStream;
use crate::identity::{Credentials, Identities};
use crate::model::SpiffeId;
use crate::proxy::config::Config;
use crate::proxy::lock::lock;
use crate::proxy::network::{PodKey, PodNetwork};
use crate::proxy::tasks::Tasks;

/// Attempts that one connection of an application may cost, where pooled ones turn out to
/// be closed.
const ATTEMPTS: usize = 5;

/// From whom to whom, and how to get there.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Target {
    /// The client's identity.
    pub(in crate::proxy) source: SpiffeId,
    /// The client's pod.
    pub(in crate::proxy) pod: PodKey,
    /// The address of it that the other node sees.
    pub(in crate::proxy) source_ip: Option<IpAddr>,
    /// Its namespace.
    pub(in crate::proxy) network: Arc<dyn PodNetwork>,
    /// The destination pod's address.
    pub(in crate::proxy) to: IpAddr,
    /// Who has to answer there.
    pub(in crate::proxy) expected: SpiffeId,
}

/// What makes two connections interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: SpiffeId,
    pub(super) pod: PodKey,
    pub(super) source_ip: Option<IpAddr>,
    pub(super) to: IpAddr,
    pub(super) expected: SpiffeId,
}

/// All pooled connections of this agent. A clone is the same pool.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Pool {
    links: Arc<Mutex<HashMap<Key, Vec<Arc<Link>>>>>,
    identities: Identities,
    config: Arc<Config>,
    tasks: Tasks,
}

impl Pool {
    pub(in crate::proxy) fn new(identities: Identities, config: Arc<Config>, tasks: Tasks) -> Self {
        Self {
            links: Arc::default(),
            identities,
            config,
            tasks,
        }
    }

    /// Opens a connection to the destination's application: on a pooled tunnel, else on a
    /// new one. A pooled one that turns out to be closed costs another attempt.
    pub(in crate::proxy) async fn open(
        &self,
        target: &Target,
        connect: &Connect,
    ) -> Result<HboneStream, TunnelError> {
        let key = Key {
            source: target.source.clone(),
            pod: target.pod.clone(),
            source_ip: target.source_ip,
            to: target.to,
            expected: target.expected.clone(),
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let credentials = self.identities.credentials(&target.source).await;
            let credentials =
                credentials.map_err(|error| TunnelError::Certificate(Arc::new(error)))?;
            let (lease, is_new) = self.place(target, &key, &credentials);
            match self.ask(lease, connect).await {
                Err(error) if !is_new && error.is_of_connection() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, "a pooled tunnel is not used again");
                }
                opened => return opened,
            }
        }
    }

    /// Tunnels that are open or being opened.
    pub(in crate::proxy) fn connections(&self) -> usize {
        lock(&self.links).values().map(Vec::len).sum()
    }

    /// Closes the tunnels from a pod that is gone; those in use, after their last stream.
    pub(in crate::proxy) fn forget(&self, pod: &PodKey) {
        lock(&self.links).retain(|key, links| {
            let gone = key.pod == *pod;
            if gone {
                for link in &*links {
                    link.retire();
                }
            }
            !gone
        });
    }

    /// Finds a place on one of the key's connections, or begins another; whether it did.
    fn place(&self, target: &Target, key: &Key, credentials: &Arc<Credentials>) -> (Lease, bool) {
        let generation = credentials.generation();
        let mut all = lock(&self.links);
        let links = all.entry(key.clone()).or_default();
        for old in &*links {
            if old.generation != generation || !old.is_believed() {
                old.retire();
            }
        }
        if let Some(link) = links.iter().find(|link| link.takes_more(generation)) {
            return (link.lease(), false);
        }
        let (publish, state) = watch::channel(State::Connecting);
        let limit = self.config.tunnel.streams_per_connection;
        let link = Link::new(key.clone(), generation, limit, state);
        links.push(Arc::clone(&link));
        let lease = link.lease();
        drop(all);
        self.begin(target, credentials, link, publish);
        (lease, true)
    }

    /// Sets a connection up, in a task of its own: no request that gives up takes it from
    /// the others that wait for it.
    fn begin(
        &self,
        target: &Target,
        credentials: &Arc<Credentials>,
        link: Arc<Link>,
        publish: watch::Sender<State>,
    ) {
        let dial = Dial {
            network: Arc::clone(&target.network),
            source_ip: target.source_ip,
            to: SocketAddr::new(target.to, self.config.tunnel.port),
            tls: credentials.client_config(&target.expected),
        };
        let pool = self.clone();
        self.tasks.spawn(async move {
            client::drive(&pool, dial, &link, &publish).await;
            pool.drop_link(&link);
        });
    }

    async fn ask(&self, lease: Lease, connect: &Connect) -> Result<HboneStream, TunnelError> {
        let link = Arc::clone(&lease.0);
        // The other node dials its application.
        let patience = self.config.connect_timeout + Duration::from_secs(2);
        let asked = tokio::time::timeout(patience, self.request(lease, connect));
        let asked = asked.await.unwrap_or(Err(TunnelError::TimedOut));
        if let Err(error) = &asked
            && (error.is_of_connection() || matches!(error, TunnelError::TimedOut))
        {
            self.drop_link(&link);
        }
        asked
    }

    async fn request(&self, lease: Lease, connect: &Connect) -> Result<HboneStream, TunnelError> {
        let mut state = lease.0.state.clone();
        let ready = state.wait_for(|state| !matches!(state, State::Connecting));
        let (sender, hop) = match ready.await.map(|state| state.clone()) {
            Ok(State::Ready(sender, hop)) => (sender, hop),
            Ok(State::Failed(error)) => return Err(error),
            Ok(State::Closed | State::Connecting) | Err(_) => return Err(TunnelError::Closed),
        };
        let request = connect.request();
        let request = request.map_err(|_error| TunnelError::Closed)?;
        let mut sender = sender.ready().await?;
        let (answer, send) = sender.send_request(request, false)?;
        drop(sender);
        let answer = answer.await?;
        hbone::taken(&answer)?;
        let receive = answer.into_body();
        let send_buffer = self.config.tunnel.send_buffer;
        Ok(HboneStream::new(
            (send, receive),
            send_buffer,
            hop,
            Some(lease),
        ))
    }

    /// The connection takes no more streams, and nobody finds it any more.
    pub(super) fn drop_link(&self, link: &Arc<Link>) {
        link.retire();
        let mut all = lock(&self.links);
        if let Some(links) = all.get_mut(&link.key) {
            links.retain(|other| !Arc::ptr_eq(other, link));
            if links.is_empty() {
                let _empty = all.remove(&link.key);
            }
        }
    }

    /// Drops the connection if it has had no stream for long enough. Under the lock, so
    /// that no request can be given it meanwhile.
    pub(super) fn release_if_idle(&self, link: &Arc<Link>) {
        let all = lock(&self.links);
        let idle = link.is_idle_for(self.config.tunnel.idle_release);
        if idle {
            link.retire();
        }
        drop(all);
        if idle {
            self.drop_link(link);
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}
