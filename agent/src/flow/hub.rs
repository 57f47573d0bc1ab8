//! Keeps the last records and feeds those who follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::event::FlowEvent;
use super::filter::Filter;
use super::ring::Ring;
use super::sender::FlowReceiver;

/// How many records a follower may be behind before it loses some.
const FOLLOWER_LAG: usize = 4096;

/// Between two looks at the queue. Senders do not have to wake the hub meanwhile, which
/// costs a thread that carries connections more than the record itself.
const PAUSE: Duration = Duration::from_millis(10);

/// The one task that takes records from the queue.
#[derive(Debug)]
pub struct FlowHub {
    receiver: FlowReceiver,
    flows: Flows,
}

/// Reads what the hub has. A clone reads the same.
#[derive(Clone, Debug)]
pub struct Flows {
    ring: Arc<Mutex<Ring>>,
    feed: broadcast::Sender<Arc<FlowEvent>>,
}

impl FlowHub {
    /// A hub that keeps the last `keep` records, and the handle that reads them.
    pub fn new(receiver: FlowReceiver, keep: usize) -> (Self, Flows) {
        let flows = Flows {
            ring: Arc::new(Mutex::new(Ring::new(keep))),
            feed: broadcast::channel(FOLLOWER_LAG).0,
        };
        let hub = Self {
            receiver,
            flows: flows.clone(),
        };
        (hub, flows)
    }

    /// Runs until every sender is gone and the queue is empty.
    pub async fn run(mut self) {
        while let Some(event) = self.receiver.recv().await {
            self.flows.push(event);
            while let Some(event) = self.receiver.try_recv() {
                self.flows.push(event);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Flows {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is valid after each of its statements, so a poisoned one is too.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: FlowEvent) {
        let event = Arc::new(event);
        let mut ring = self.ring();
        ring.push(Arc::clone(&event));
        // Sent under the lock: a follower that starts now sees each record once.
        // No follower at all is no error.
        let _followers = self.feed.send(event).unwrap_or(0);
    }

    /// The records that match, oldest first, and at most [`Filter::last`] of them.
    pub fn recent(&self, filter: &Filter, now: Timestamp) -> Vec<Arc<FlowEvent>> {
        let ring = self.ring();
        select(&ring, filter, now)
    }

    /// [`Flows::recent`], and everything after it without a gap.
    pub fn follow(&self, filter: Filter, now: Timestamp) -> (Vec<Arc<FlowEvent>>, Follower) {
        let ring = self.ring();
        let feed = self.feed.subscribe();
        (select(&ring, &filter, now), Follower { feed, filter })
    }
}

fn select(ring: &Ring, filter: &Filter, now: Timestamp) -> Vec<Arc<FlowEvent>> {
    let mut found: Vec<_> = ring
        .newest_first()
        .filter(|event| filter.matches(event) && filter.is_recent(event.time, now))
        .take(filter.last.unwrap_or(usize::MAX))
        .map(Arc::clone)
        .collect();
    found.reverse();
    found
}

/// A live feed of the records that match.
#[derive(Debug)]
pub struct Follower {
    feed: broadcast::Receiver<Arc<FlowEvent>>,
    filter: Filter,
}

/// This many records went by, unfiltered, while the follower did not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed(pub u64);

impl Follower {
    /// The next record that matches; an error says that the follower was too slow and
    /// lost some, and the next call goes on after them. `None`: the hub is gone.
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Arc<FlowEvent>, Missed>> {
        loop {
            match self.feed.recv().await {
                Ok(event) if self.filter.matches(&event) => return Some(Ok(event)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    return Some(Err(Missed(count)));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
