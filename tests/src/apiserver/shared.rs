//! What all connections of a server have in common.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::fault::Faults;
use super::record::Records;
use super::store::Store;
use super::write::Managers;
use super::{Expiry, StreamingLists};

/// The server behind its connections.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) managers: Managers,
    pub(super) access: Access,
    pub(super) faults: Faults,
    pub(super) records: Records,
    manners: Mutex<Manners>,
    /// Open connections end with it.
    connections: Mutex<CancellationToken>,
    nudges: watch::Sender<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Manners {
    streaming_lists: StreamingLists,
    expiry: Expiry,
    bookmark_interval: Duration,
}

impl Shared {
    pub(super) fn new(bookmark_interval: Duration) -> Self {
        Self {
            store: Store::new(),
            managers: Managers::default(),
            access: Access::default(),
            faults: Faults::default(),
            records: Records::default(),
            manners: Mutex::new(Manners {
                streaming_lists: StreamingLists::Served,
                expiry: Expiry::Event,
                bookmark_interval,
            }),
            connections: Mutex::new(CancellationToken::new()),
            nudges: watch::Sender::new(0),
        }
    }

    fn manners(&self) -> std::sync::MutexGuard<'_, Manners> {
        self.manners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn streaming_lists(&self) -> StreamingLists {
        self.manners().streaming_lists
    }

    pub(super) fn set_streaming_lists(&self, streaming_lists: StreamingLists) {
        self.manners().streaming_lists = streaming_lists;
    }

    pub(super) fn expires_by_status(&self) -> bool {
        self.manners().expiry == Expiry::Status
    }

    pub(super) fn set_expiry(&self, expiry: Expiry) {
        self.manners().expiry = expiry;
    }

    pub(super) fn bookmark_interval(&self) -> Duration {
        self.manners().bookmark_interval
    }

    /// Tells when all watches are to send a bookmark.
    pub(super) fn nudged(&self) -> watch::Receiver<u64> {
        self.nudges.subscribe()
    }

    pub(super) fn nudge(&self) {
        self.nudges.send_modify(|count| *count += 1);
    }

    /// Ends with this connection, or with all of them.
    pub(super) fn connection(&self) -> CancellationToken {
        let all = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        all.child_token()
    }

    /// Closes every open connection.
    pub(super) fn drop_connections(&self) {
        let mut all = self
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *all, CancellationToken::new()).cancel();
    }
}
