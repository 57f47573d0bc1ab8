//! One pooled HTTP/2 connection and the places on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::error::TunnelError;
use super::hop::Hop;
use super::pool::Key;
use crate::proxy::lock::lock;

/// One connection, from the decision to make it until it has ended.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: Key,
    /// Of the certificate that it is made with.
    pub(super) generation: u64,
    /// How far it is.
    pub(super) state: watch::Receiver<State>,
    /// Its last stream ended while it was retired.
    pub(super) finished: Notify,
    /// Streams that it has or is promised.
    load: AtomicUsize,
    /// Streams that it may have; lower where the peer says so.
    limit: AtomicUsize,
    /// Takes no new streams.
    retired: AtomicBool,
    /// When the certificate that the peer has shown expires.
    believed_until: OnceLock<SystemTime>,
    /// When its last stream ended.
    idle_since: Mutex<Instant>,
}

/// How far a connection is.
#[derive(Clone, Debug)]
pub(super) enum State {
    Connecting,
    Ready(SendRequest<Bytes>, Arc<Hop>),
    Failed(TunnelError),
    Closed,
}

/// One stream's place on a connection.
#[derive(Debug)]
pub(super) struct Lease(pub(super) Arc<Link>);

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        // One of this and `retire` must see what the other did, which takes one order of
        // all four operations (SeqCst).
        let before = self.0.load.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.0.retired.load(Ordering::SeqCst) {
            self.0.finished.notify_one();
        }
    }
}

impl Link {
    pub(super) fn new(
        key: Key,
        generation: u64,
        limit: usize,
        state: watch::Receiver<State>,
    ) -> Arc<Self> {
        Arc::new(Self {
            key,
            generation,
            state,
            finished: Notify::new(),
            load: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            retired: AtomicBool::new(false),
            believed_until: OnceLock::new(),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    /// Gives a place on it. The caller holds the pool's lock, so that the last place is
    /// given once.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        let _before = self.load.fetch_add(1, Ordering::SeqCst);
        Lease(Arc::clone(self))
    }

    /// Takes no new streams; the driver closes it after the last.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if !self.has_streams() {
            self.finished.notify_one();
        }
    }

    /// Takes no new streams from then on, when the peer's certificate has expired.
    pub(super) fn believe_until(&self, end: SystemTime) {
        let _only_once = self.believed_until.set(end);
    }

    /// The certificate that the peer has shown is still valid, if it has shown one.
    pub(super) fn is_believed(&self) -> bool {
        let end = self.believed_until.get();
        end.is_none_or(|end| SystemTime::now() < *end)
    }

    /// The peer takes no more streams than this.
    pub(super) fn lower_limit(&self, streams: usize) {
        let _before = self.limit.fetch_min(streams.max(1), Ordering::Relaxed);
    }

    pub(super) fn has_streams(&self) -> bool {
        self.load.load(Ordering::SeqCst) > 0
    }

    /// It has had no stream for so long.
    pub(super) fn is_idle_for(&self, limit: Duration) -> bool {
        !self.has_streams() && lock(&self.idle_since).elapsed() >= limit
    }

    /// It is neither retired nor of a peer whose certificate has expired.
    pub(super) fn is_current(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && self.is_believed()
    }

    pub(super) fn takes_more(&self, generation: u64) -> bool {
        self.generation == generation
            && self.is_current()
            && self.load.load(Ordering::Acquire) < self.limit.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NamespacedName, SpiffeId, TrustDomain};
    use crate::proxy::network::PodKey;

    fn link() -> Arc<Link> {
        let id = SpiffeId::new(TrustDomain("cluster.local".into()), "shop", "cart");
        let pod = PodKey {
            name: NamespacedName::new("shop", "cart"),
            uid: "1".into(),
        };
        let key = Key {
            source: id.clone(),
            pod,
            source_ip: None,
            to: [10, 0, 0, 1].into(),
            expected: id,
        };
        Link::new(key, 1, 2, watch::channel(State::Connecting).1)
    }

    #[test]
    fn a_link_takes_streams_up_to_its_limit_and_of_its_certificate_only() {
        let link = link();
        assert!(link.takes_more(1) && !link.takes_more(2));
        let leases = [link.lease(), link.lease()];
        assert!(!link.takes_more(1));
        drop(leases);
        assert!(link.takes_more(1));
        link.retire();
        assert!(!link.takes_more(1));
    }

    #[test]
    fn a_link_to_a_peer_whose_certificate_has_expired_takes_no_more() {
        let (open, over) = (link(), link());
        open.believe_until(SystemTime::now() + Duration::from_mins(1));
        over.believe_until(SystemTime::now());
        assert!(open.takes_more(1));
        assert!(!over.takes_more(1));
    }
}
