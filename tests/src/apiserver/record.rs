//! What clients did, for tests to look at.

use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked, such as `system:serviceaccount:fairlead-system:fairlead-agent`.
    pub user: String,
    /// As rules name it: `get`, `list`, `watch`, `create` and so on.
    pub verb: &'static str,
    /// The API group; empty for the core group.
    pub group: String,
    /// The plural, with `/status` or another subresource; the path where it is no resource.
    pub resource: String,
    /// The namespace; empty where all are meant, or none.
    pub namespace: String,
    /// The object; empty where it is about many.
    pub name: String,
    /// What follows `?` in the URL.
    pub query: String,
    /// The client's name for itself.
    pub user_agent: String,
    /// The answer's status; 0 as long as there is none.
    pub status: u16,
    /// Bytes of the answer's body so far.
    pub sent_bytes: u64,
    /// The answer has not been sent to its end yet.
    pub open: bool,
}

/// All requests since the last look.
#[derive(Clone, Debug, Default)]
pub(super) struct Records(Arc<Mutex<Vec<(Request, Progress)>>>);

/// How far an answer is.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    status: AtomicU16,
    sent: AtomicU64,
    closed: AtomicBool,
}

impl Records {
    pub(super) fn begin(&self, request: Request) -> Progress {
        let progress = Progress::default();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((request, progress.clone()));
        progress
    }

    pub(super) fn all(&self) -> Vec<Request> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = |(request, progress): &(Request, Progress)| Request {
            status: progress.0.status.load(Ordering::Relaxed),
            sent_bytes: progress.0.sent.load(Ordering::Relaxed),
            open: !progress.0.closed.load(Ordering::Relaxed),
            ..request.clone()
        };
        all.iter().map(now).collect()
    }

    /// Forgets those that are over, and counts the bytes of others from 0 again.
    pub(super) fn reset(&self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, progress)| !progress.0.closed.load(Ordering::Relaxed));
        for (_, progress) in all.iter() {
            progress.0.sent.store(0, Ordering::Relaxed);
        }
    }
}

impl Progress {
    pub(super) fn answered(&self, status: u16) {
        self.0.status.store(status, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.0.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn closed(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }
}
