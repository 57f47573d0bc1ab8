//! Keeps the last records and feeds those who follow.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::access::AccessLog;
use super::event::FlowEvent;
use super::filter::Filter;
use super::recent::RequestRing;
use super::request::RequestRecord;
use super::ring::Ring;
use super::sender::{FlowReceiver, Recorded};
use super::tap::{Redaction, Taps};

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
    redaction: Redaction,
    access: Option<AccessLog>,
}

/// Reads what the hub has. A clone reads the same.
#[derive(Clone, Debug)]
pub struct Flows {
    kept: Arc<Mutex<Kept>>,
    feed: broadcast::Sender<Arc<FlowEvent>>,
    taps: Taps,
}

/// The last records.
#[derive(Debug)]
struct Kept {
    connections: Ring,
    requests: RequestRing,
}

impl FlowHub {
    /// A hub that keeps the last `keep` records of connections and as many of requests, and
    /// the handle that reads them.
    pub fn new(receiver: FlowReceiver, keep: usize) -> (Self, Flows) {
        let flows = Flows {
            kept: Arc::new(Mutex::new(Kept {
                connections: Ring::new(keep),
                requests: RequestRing::new(keep),
            })),
            feed: broadcast::channel(FOLLOWER_LAG).0,
            taps: receiver.taps.clone(),
        };
        let hub = Self {
            receiver,
            flows: flows.clone(),
            redaction: Redaction::default(),
            access: None,
        };
        (hub, flows)
    }

    /// Hides of tapped requests what this says.
    #[must_use]
    pub fn redacting(self, redaction: Redaction) -> Self {
        Self { redaction, ..self }
    }

    /// Hands what policies ask for to the access log.
    #[must_use]
    pub fn logging(self, access: AccessLog) -> Self {
        let access = Some(access);
        Self { access, ..self }
    }

    /// Runs until every sender is gone and the queue is empty.
    pub async fn run(mut self) {
        while let Some(recorded) = self.receiver.take().await {
            self.push(recorded);
            while let Some(recorded) = self.receiver.try_take() {
                self.push(recorded);
            }
            self.flows.taps.turn();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn push(&mut self, recorded: Recorded) {
        if let Some(access) = &mut self.access {
            access.offer(&recorded);
        }
        match recorded {
            Recorded::Connection(event) => self.flows.push_connection(event),
            Recorded::Request(mut request) => {
                if let Some(tapped) = request.tap.take() {
                    self.flows.taps.offer(&request, &tapped, &self.redaction);
                }
                self.flows.push_request(request);
            }
            Recorded::Begun(mut request) => {
                if let Some(tapped) = request.tap.take() {
                    let taps = &self.flows.taps;
                    taps.offer_begun(&request, &tapped, &self.redaction);
                }
            }
        }
    }
}

impl Flows {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // What is kept is valid after each statement, so a poisoned one is too.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // What is sent, is sent under the lock: a follower that starts now sees each record once.

    fn push_connection(&self, event: Box<FlowEvent>) {
        let event = Arc::from(event);
        let mut kept = self.kept();
        kept.connections.push(Arc::clone(&event));
        // No follower at all is no error.
        let _followers = self.feed.send(event).unwrap_or(0);
    }

    fn push_request(&self, request: RequestRecord) {
        let mut kept = self.kept();
        if self.feed.receiver_count() > 0 {
            let event = Arc::new(request.event());
            let _followers = self.feed.send(event).unwrap_or(0);
        }
        kept.requests.push(request);
    }

    /// Those who look at requests as they end.
    pub fn taps(&self) -> &Taps {
        &self.taps
    }

    /// The records that match, oldest first, and at most [`Filter::last`] of them.
    pub fn recent(&self, filter: &Filter, now: Timestamp) -> Vec<Arc<FlowEvent>> {
        self.kept().select(filter, now)
    }

    /// [`Flows::recent`], and everything after it without a gap.
    pub fn follow(&self, filter: Filter, now: Timestamp) -> (Vec<Arc<FlowEvent>>, Follower) {
        let kept = self.kept();
        let feed = self.feed.subscribe();
        (kept.select(&filter, now), Follower { feed, filter })
    }
}

impl Kept {
    fn select(&self, filter: &Filter, now: Timestamp) -> Vec<Arc<FlowEvent>> {
        let last = filter.last.unwrap_or(usize::MAX);
        let wanted = |event: &Arc<FlowEvent>| filter.matches(event);
        let connections = self.connections.newest_first();
        let connections = connections.filter(|it| filter.is_recent(it.time, now));
        let mut found: Vec<_> = connections
            .map(Arc::clone)
            .filter(wanted)
            .take(last)
            .collect();
        for pod in self.requests.newest_first() {
            let requests = pod.filter(|it| filter.is_recent(it.time, now));
            let requests = requests.map(|it| Arc::new(it.event()));
            found.extend(requests.filter(wanted).take(last));
        }
        found.reverse();
        found.sort_by_key(|event| event.time);
        let surplus = found.len().saturating_sub(last);
        found.split_off(surplus)
    }
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
