//! What one pod takes of the proxy that it shares with the others of its node, and how
//! much of it it may have: descriptors, memory, a thread's time.
//!
//! Counters only: whoever takes something holds the guard for it, and its drop gives it
//! back. Reading them is as cheap, so that somebody may look every second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::config::Config;
use super::outcome::Outcome;

/// What a pod takes now, and has taken since it is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Connections that are open, whichever end it is.
    pub connections: usize,
    /// Connections refused because it had too many.
    pub connections_refused: u64,
    /// Requests in flight, whichever end it is.
    pub requests_in_flight: usize,
    /// Requests that began.
    pub requests: u64,
    /// Requests refused because it had too many in flight.
    pub requests_refused: u64,
    /// Application bytes that it sent.
    pub sent_bytes: u64,
    /// Application bytes that were sent to it.
    pub received_bytes: u64,
    /// Time in which a thread did its work.
    pub busy: Duration,
    /// Times that its work had to wait although it could have gone on, because its turn
    /// was over.
    pub turns_over: u64,
    /// Memory of its tasks, and what they hold back on its behalf.
    pub memory_bytes: usize,
}

/// The account of one pod.
#[derive(Debug)]
pub(super) struct Account {
    connections: Places,
    requests: Places,
    begun: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    busy_nanos: AtomicU64,
    turns_over: AtomicU64,
    memory: AtomicUsize,
    held: AtomicUsize,
    held_limit: usize,
}

/// A number of things that a pod may have at a time.
#[derive(Debug)]
struct Places {
    limit: usize,
    taken: AtomicUsize,
    refused: AtomicU64,
}

/// The place of one connection; its drop gives it back.
#[derive(Debug)]
pub(super) struct Slot(Arc<Account>);

/// The place of one request; its drop gives it back.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Account>);

/// Bytes that are kept in memory for a pod; its drop gives them back.
#[derive(Debug)]
pub(super) struct Held {
    account: Arc<Account>,
    bytes: usize,
}

/// The memory of one task.
#[derive(Debug)]
pub(super) struct TaskMemory {
    account: Arc<Account>,
    bytes: usize,
}

impl Account {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            connections: Places::new(config.connections_per_pod),
            requests: Places::new(config.requests_per_pod),
            begun: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            busy_nanos: AtomicU64::new(0),
            turns_over: AtomicU64::new(0),
            memory: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            held_limit: config.held_bytes_per_pod,
        })
    }

    /// A place for one more connection, unless there are too many.
    pub(super) fn connection(self: &Arc<Self>) -> Result<Slot, Outcome> {
        if self.connections.take() {
            Ok(Slot(Arc::clone(self)))
        } else {
            Err(Outcome::TooManyConnections)
        }
    }

    /// A place for one more request, unless there are too many in flight.
    pub(super) fn request(self: &Arc<Self>) -> Option<InFlight> {
        let taken = self.requests.take();
        taken.then(|| {
            let _before = self.begun.fetch_add(1, Ordering::Relaxed);
            InFlight(Arc::clone(self))
        })
    }

    /// Leave to keep so many bytes in memory, beyond what one read brings; `None` where
    /// the pod has too much in memory already, and must do without.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let mut held = Held {
            account: Arc::clone(self),
            bytes: 0,
        };
        held.grow(bytes).then_some(held)
    }

    /// Notes the memory of a task, until the result is dropped.
    pub(super) fn task(self: &Arc<Self>, bytes: usize) -> TaskMemory {
        let _before = self.memory.fetch_add(bytes, Ordering::Relaxed);
        TaskMemory {
            account: Arc::clone(self),
            bytes,
        }
    }

    /// Counts application bytes from the pod and to it.
    pub(super) fn moved(&self, sent: u64, received: u64) {
        let _before = self.sent.fetch_add(sent, Ordering::Relaxed);
        let _before = self.received.fetch_add(received, Ordering::Relaxed);
    }

    /// Counts a thread's time.
    pub(super) fn worked(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let _before = self.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Counts a turn that ended before the work did.
    pub(super) fn turn_over(&self) {
        let _before = self.turns_over.fetch_add(1, Ordering::Relaxed);
    }

    /// How many connections were refused.
    pub(super) fn refused_connections(&self) -> u64 {
        self.connections.refused.load(Ordering::Relaxed)
    }

    /// The figures of now; of counters that others change meanwhile.
    pub(super) fn usage(&self) -> PodUsage {
        let held = self.held.load(Ordering::Relaxed);
        PodUsage {
            connections: self.connections.taken.load(Ordering::Relaxed),
            connections_refused: self.refused_connections(),
            requests_in_flight: self.requests.taken.load(Ordering::Relaxed),
            requests: self.begun.load(Ordering::Relaxed),
            requests_refused: self.requests.refused.load(Ordering::Relaxed),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            received_bytes: self.received.load(Ordering::Relaxed),
            busy: Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed)),
            turns_over: self.turns_over.load(Ordering::Relaxed),
            memory_bytes: self.memory.load(Ordering::Relaxed) + held,
        }
    }
}

impl Places {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn take(&self) -> bool {
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.limit {
            return true;
        }
        self.give_back();
        let _before = self.refused.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn give_back(&self) {
        let _before = self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Slot {
    /// Counts application bytes of the connection, from its pod and to it.
    pub(super) fn moved(&self, sent: u64, received: u64) {
        self.0.moved(sent, received);
    }
}

impl Held {
    /// Leave for so many bytes more; `false` where the pod has too much already.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let Account {
            held, held_limit, ..
        } = &*self.account;
        let before = held.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > *held_limit {
            let _before = held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.give_back();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.give_back();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _before = self.account.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for TaskMemory {
    fn drop(&mut self) {
        let _before = self.account.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeName;

    fn account() -> Arc<Account> {
        let mut config = Config::recommended(NodeName("a".into()));
        config.connections_per_pod = 2;
        config.requests_per_pod = 2;
        config.held_bytes_per_pod = 100;
        Account::new(&config)
    }

    #[test]
    fn one_connection_too_many_is_refused_and_counted_until_another_ends() {
        let account = account();
        let held = [account.connection().unwrap(), account.connection().unwrap()];
        for _ in 0..2 {
            let refused = account.connection();
            assert!(matches!(refused, Err(Outcome::TooManyConnections)));
        }
        assert_eq!(account.usage().connections, 2);
        assert_eq!(account.usage().connections_refused, 2);
        drop(held);
        assert!(account.connection().is_ok());
        assert_eq!(account.usage().connections_refused, 2);
    }

    #[test]
    fn one_request_too_many_is_refused_and_does_not_count_as_begun() {
        let account = account();
        let held = [account.request().unwrap(), account.request().unwrap()];
        assert!(account.request().is_none());
        let usage = account.usage();
        assert_eq!((usage.requests, usage.requests_refused), (2, 1));
        assert_eq!(usage.requests_in_flight, 2);
        drop(held);
        assert!(account.request().is_some());
        assert_eq!(account.usage().requests_in_flight, 0);
    }

    #[test]
    fn bytes_are_held_up_to_the_limit_of_the_pod() {
        let account = account();
        let mut first = account.hold(60).unwrap();
        assert!(account.hold(41).is_none());
        let second = account.hold(30).unwrap();
        assert!(!first.grow(11));
        assert!(first.grow(10));
        assert_eq!(account.usage().memory_bytes, 100);
        drop(first);
        assert_eq!(account.usage().memory_bytes, 30);
        drop(second);
        assert!(account.hold(usize::MAX).is_none());
        assert_eq!(account.usage().memory_bytes, 0);
    }

    #[test]
    fn tasks_count_as_memory_whatever_is_held() {
        let account = account();
        let task = account.task(1000);
        let _held = account.hold(100).unwrap();
        assert_eq!(account.usage().memory_bytes, 1100);
        drop(task);
        assert_eq!(account.usage().memory_bytes, 100);
    }
}
