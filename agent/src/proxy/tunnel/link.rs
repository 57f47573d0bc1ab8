//! One pooled HTTP/2 connection and the places on it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::error::TunnelError;
use super::hop::Hop;
use super::pool::Key;

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
    /// When its last stream ended.
    idle_since: Mutex<Instant>,
}

/// How far a connection is.
#[derive(Clone, Debug)]
pub(super) enum State {
    Connecting,
    Ready(SendRequest<Bytes>, Arc<Hop>),
    /// The peer speaks the leaner protocol: ask again.
    Lean,
    Failed(TunnelError),
    Closed,
}

/// One stream's place on a connection.
#[derive(Debug)]
pub(super) struct Lease(pub(super) Arc<Link>);

impl Drop for Lease {
    fn drop(&mut self) {
        *lock(&self.0.idle_since) = Instant::now();
        let before = self.0.load.fetch_sub(1, Ordering::AcqRel);
        if before == 1 && self.0.retired.load(Ordering::Acquire) {
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
            idle_since: Mutex::new(Instant::now()),
        })
    }

    /// Gives a place on it. The caller holds the pool's lock, so that the last place is
    /// given once.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        let _before = self.load.fetch_add(1, Ordering::AcqRel);
        Lease(Arc::clone(self))
    }

    /// Takes no new streams; the driver closes it after the last.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        if !self.has_streams() {
            self.finished.notify_one();
        }
    }

    /// The peer takes no more streams than this.
    pub(super) fn lower_limit(&self, streams: usize) {
        let _before = self.limit.fetch_min(streams.max(1), Ordering::Relaxed);
    }

    pub(super) fn has_streams(&self) -> bool {
        self.load.load(Ordering::Acquire) > 0
    }

    /// It has had no stream for so long.
    pub(super) fn is_idle_for(&self, limit: Duration) -> bool {
        !self.has_streams() && lock(&self.idle_since).elapsed() >= limit
    }

    pub(super) fn takes_more(&self, generation: u64) -> bool {
        !self.retired.load(Ordering::Acquire)
            && self.generation == generation
            && self.load.load(Ordering::Acquire) < self.limit.load(Ordering::Relaxed)
    }
}

/// Locks; no code that can panic runs under the locks of this module.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
