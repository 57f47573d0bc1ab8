//! Pooled connections to other nodes.
//!
//! ```text
//!            open()                 ready            last lease gone, idle long
//!  (nothing) ──────► Connecting ──────────► Ready ────────────────────────────► Closed
//!                     │      │                │  certificate renewed, the peer's
//!                     ▼      ▼                ▼  expired, GOAWAY, peer gone
//!                  Failed   Lean           retired: takes no new stream, closes
//!                            │             after its last one
//!                            ▼
//!                       idle ◄──────► in use by one application
//! ```
//! Invariant: the lock is held for look-ups and counters only, never across anything that
//! waits. A connection that is being set up counts its future streams already, so that
//! requests which come together share it, and those above its limit start the next one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::client::{self, Dial, Speaks};
use super::error::TunnelError;
use super::hbone::{self, Connect};
use super::lean::LeanStream;
use super::link::{Lease, Link, State, lock};
use super::stream::HboneStream;
use crate::identity::{Credentials, Identities};
use crate::model::SpiffeId;
use crate::proxy::config::Config;
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

/// An application's connection on a tunnel.
#[derive(Debug)]
pub(in crate::proxy) enum Opened {
    /// A stream of a shared connection.
    Hbone(HboneStream),
    /// A connection of its own, which goes back to the pool afterwards.
    Lean(Pooled),
}

/// A connection of the leaner protocol with the place that it goes back to.
#[derive(Debug)]
pub(in crate::proxy) struct Pooled {
    /// The connection.
    pub(in crate::proxy) stream: LeanStream,
    key: Key,
    generation: u64,
}

/// All pooled connections of this agent. A clone is the same pool.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Pool {
    slots: Arc<Mutex<HashMap<Key, Slot>>>,
    identities: Identities,
    config: Arc<Config>,
    tasks: Tasks,
}

/// The connections of one key.
#[derive(Debug)]
struct Slot {
    links: Vec<Arc<Link>>,
    /// The latest last: the first to be used again, so that those not needed grow old.
    idle: Vec<(u64, LeanStream)>,
    /// The peer is known to speak the leaner protocol.
    lean: bool,
    /// Limits the handshakes with it at one time.
    handshakes: Arc<Semaphore>,
    used: Instant,
}

/// What a request is to use.
enum Place {
    /// A stream of a connection; whether that was begun for it.
    Link(Lease, bool),
    /// An idle connection.
    Idle(LeanStream),
    /// A new connection of the leaner protocol, within the limit.
    Dial(Arc<Semaphore>),
}

impl Slot {
    /// The idle connection that was used last, of those that still serve.
    fn take_idle(&mut self, generation: u64) -> Option<LeanStream> {
        while let Some((made_with, mut stream)) = self.idle.pop() {
            if made_with == generation && stream.is_alive() && is_believed(&stream) {
                return Some(stream);
            }
        }
        None
    }
}

impl Pool {
    pub(in crate::proxy) fn new(identities: Identities, config: Arc<Config>, tasks: Tasks) -> Self {
        Self {
            slots: Arc::default(),
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
    ) -> Result<Opened, TunnelError> {
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
            let place = self.place(target, &key, &credentials);
            let (opened, is_new) = match place {
                Place::Link(lease, is_new) => (self.ask(lease, connect).await, is_new),
                Place::Idle(stream) => {
                    let pooled = Self::pooled(&key, &credentials, stream);
                    (self.ask_lean(pooled, connect).await, false)
                }
                Place::Dial(handshakes) => {
                    let dial = self.dial(target, &credentials);
                    let dialled = self.dial_lean(&dial, &key, &credentials, &handshakes);
                    // With the wait for a place, of which the dial's own limits know nothing.
                    let dialled = tokio::time::timeout(self.config.connect_timeout * 3, dialled);
                    let dialled = dialled.await;
                    match dialled.unwrap_or(Err(TunnelError::TimedOut)) {
                        Ok(pooled) => (self.ask_lean(pooled, connect).await, true),
                        Err(error) => (Err(error), true),
                    }
                }
            };
            match opened {
                Err(TunnelError::OtherProtocol) if attempt < ATTEMPTS => {}
                Err(error) if !is_new && error.is_of_connection() && attempt < ATTEMPTS => {
                    tracing::debug!(%error, "a pooled tunnel is not used again");
                }
                opened => return opened,
            }
        }
    }

    /// Takes a connection back after its use.
    pub(in crate::proxy) fn put_back(&self, pooled: Pooled) {
        let Pooled {
            mut stream,
            key,
            generation,
        } = pooled;
        if !stream.is_reusable() {
            return;
        }
        stream.rest();
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&key)
            && slot.idle.len() < self.config.tunnel.idle_per_destination
        {
            slot.used = Instant::now();
            slot.idle.push((generation, stream));
        }
    }

    /// Tunnels that are open or being opened, other than those of the leaner protocol
    /// that are in use.
    pub(in crate::proxy) fn connections(&self) -> usize {
        let slots = lock(&self.slots);
        let count = |slot: &Slot| slot.links.len() + slot.idle.len();
        slots.values().map(count).sum()
    }

    /// Closes what has been idle for long or was closed by the peer. Called now and then.
    pub(in crate::proxy) fn sweep(&self) {
        let limit = self.config.tunnel.idle_release;
        let mut slots = lock(&self.slots);
        slots.retain(|_key, slot| {
            slot.idle.retain_mut(|(_generation, stream)| {
                stream.idle_since.elapsed() < limit && stream.is_alive()
            });
            let empty = slot.links.is_empty() && slot.idle.is_empty();
            !empty || slot.used.elapsed() < limit
        });
    }

    /// Closes the tunnels from a pod that is gone; those in use, after their last stream.
    pub(in crate::proxy) fn forget(&self, pod: &PodKey) {
        lock(&self.slots).retain(|key, slot| {
            let gone = key.pod == *pod;
            if gone {
                slot.links.iter().for_each(|link| link.retire());
            }
            !gone
        });
    }

    /// Finds a place among the connections of the key, or begins one.
    fn place(&self, target: &Target, key: &Key, credentials: &Arc<Credentials>) -> Place {
        let generation = credentials.generation();
        let mut slots = lock(&self.slots);
        let slot = slots.entry(key.clone()).or_insert_with(|| Slot {
            links: Vec::new(),
            idle: Vec::new(),
            lean: false,
            handshakes: Arc::new(Semaphore::new(
                self.config.tunnel.handshakes_per_destination,
            )),
            used: Instant::now(),
        });
        slot.used = Instant::now();
        if slot.lean {
            return match slot.take_idle(generation) {
                Some(stream) => Place::Idle(stream),
                None => Place::Dial(Arc::clone(&slot.handshakes)),
            };
        }
        for old in &slot.links {
            if old.generation != generation || !old.is_believed() {
                old.retire();
            }
        }
        if let Some(link) = slot.links.iter().find(|link| link.takes_more(generation)) {
            return Place::Link(link.lease(), false);
        }
        let (publish, state) = watch::channel(State::Connecting);
        let limit = self.config.tunnel.streams_per_connection;
        let link = Link::new(key.clone(), generation, limit, state);
        slot.links.push(Arc::clone(&link));
        let lease = link.lease();
        drop(slots);
        self.begin(target, credentials, link, publish);
        Place::Link(lease, true)
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
        let dial = self.dial(target, credentials);
        let pool = self.clone();
        self.tasks.spawn(async move {
            client::drive(&pool, dial, &link, &publish).await;
            pool.drop_link(&link);
        });
    }

    fn dial(&self, target: &Target, credentials: &Credentials) -> Dial {
        Dial {
            network: Arc::clone(&target.network),
            source_ip: target.source_ip,
            to: SocketAddr::new(target.to, self.config.tunnel.port),
            tls: credentials.client_config(&target.expected),
        }
    }

    fn pooled(key: &Key, credentials: &Credentials, stream: LeanStream) -> Pooled {
        Pooled {
            stream,
            key: key.clone(),
            generation: credentials.generation(),
        }
    }

    /// A new connection of the leaner protocol, or one that came back meanwhile.
    async fn dial_lean(
        &self,
        dial: &Dial,
        key: &Key,
        credentials: &Credentials,
        handshakes: &Semaphore,
    ) -> Result<Pooled, TunnelError> {
        // Nobody closes it.
        let _place = handshakes.acquire().await;
        let idle = lock(&self.slots)
            .get_mut(key)
            .and_then(|slot| slot.take_idle(credentials.generation()));
        if let Some(stream) = idle {
            return Ok(Self::pooled(key, credentials, stream));
        }
        match Box::pin(client::connect(dial, &self.config)).await? {
            Speaks::Lean(stream) => Ok(Self::pooled(key, credentials, stream)),
            Speaks::Hbone(..) => {
                // Another agent took over there. The next attempt finds out what it needs.
                if let Some(slot) = lock(&self.slots).get_mut(key) {
                    slot.lean = false;
                }
                Err(TunnelError::OtherProtocol)
            }
        }
    }

    /// The peer of a link speaks the leaner protocol: its connection serves the first of
    /// those who wait.
    pub(super) fn turn_lean(&self, link: &Arc<Link>, stream: LeanStream) {
        if let Some(slot) = lock(&self.slots).get_mut(&link.key) {
            slot.lean = true;
            slot.idle.push((link.generation, stream));
        }
        self.drop_link(link);
    }

    /// How long the other node may take to dial its application.
    fn patience(&self) -> Duration {
        self.config.connect_timeout + Duration::from_secs(2)
    }

    async fn ask_lean(&self, mut pooled: Pooled, connect: &Connect) -> Result<Opened, TunnelError> {
        let answer = tokio::time::timeout(self.patience(), pooled.stream.open(connect)).await;
        match answer.map_err(|_elapsed| TunnelError::TimedOut)? {
            Ok(()) => Ok(Opened::Lean(pooled)),
            Err(error) => {
                self.put_back(pooled);
                Err(error)
            }
        }
    }

    async fn ask(&self, lease: Lease, connect: &Connect) -> Result<Opened, TunnelError> {
        let link = Arc::clone(&lease.0);
        let asked = tokio::time::timeout(self.patience(), self.ask_hbone(lease, connect));
        let asked = asked.await.unwrap_or(Err(TunnelError::TimedOut));
        if let Err(error) = &asked
            && (error.is_of_connection() || matches!(error, TunnelError::TimedOut))
        {
            self.drop_link(&link);
        }
        asked.map(Opened::Hbone)
    }

    async fn ask_hbone(&self, lease: Lease, connect: &Connect) -> Result<HboneStream, TunnelError> {
        let mut state = lease.0.state.clone();
        let ready = state.wait_for(|state| !matches!(state, State::Connecting));
        let (sender, hop) = match ready.await.map(|state| state.clone()) {
            Ok(State::Ready(sender, hop)) => (sender, hop),
            Ok(State::Failed(error)) => return Err(error),
            Ok(State::Lean) => return Err(TunnelError::OtherProtocol),
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
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get_mut(&link.key) {
            slot.links.retain(|other| !Arc::ptr_eq(other, link));
            if slot.links.is_empty() && !slot.lean {
                let _empty = slots.remove(&link.key);
            }
        }
    }

    /// Drops the connection if it has had no stream for long enough. Under the lock, so
    /// that no request can be given it meanwhile.
    pub(super) fn release_if_idle(&self, link: &Arc<Link>) {
        let slots = lock(&self.slots);
        let idle = link.is_idle_for(self.config.tunnel.idle_release);
        if idle {
            link.retire();
        }
        drop(slots);
        if idle {
            self.drop_link(link);
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }
}

/// The certificate that the peer has shown is still valid.
fn is_believed(stream: &LeanStream) -> bool {
    let now = SystemTime::now();
    stream.peer_not_after().is_some_and(|end| now < end)
}
