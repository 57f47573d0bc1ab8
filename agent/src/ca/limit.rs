//! How often a node may ask, and how often a stranger makes it into the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::NodeName;

/// A node that starts asks for all its pods at once.
const BURST: f64 = 500.0;
/// And again after every restart of a pod with an identity of its own.
const PER_SECOND: f64 = 20.0;

/// A token bucket for each node. Only nodes that proved who they are have one, so that
/// there are never more than tokens.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<HashMap<NodeName, Bucket>>);

#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Limits {
    /// Counts one request. False: it is one too many.
    pub(super) fn take(&self, node: &NodeName) -> bool {
        let now = Instant::now();
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.entry(node.clone()).or_insert(Bucket {
            left: BURST,
            at: now,
        });
        let refilled = bucket.left + (now - bucket.at).as_secs_f64() * PER_SECOND;
        bucket.left = refilled.min(BURST);
        bucket.at = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

/// Lets one event a second through: what strangers cause must not fill the log.
#[derive(Debug, Default)]
pub(super) struct Sparse(Mutex<(Option<Instant>, u64)>);

impl Sparse {
    /// Counts an event. `Some`: it may be told, and so many before it were not.
    pub(super) fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, withheld) = *state;
        if last.is_some_and(|last| now < last + Duration::from_secs(1)) {
            state.1 += 1;
            return None;
        }
        *state = (Some(now), 0);
        Some(withheld)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_served_and_then_a_steady_rate() {
        let limits = Limits::default();
        let node = NodeName("node-a".into());
        assert!((0..500).all(|_| limits.take(&node)));
        assert!(!limits.take(&node));
        assert!(limits.take(&NodeName("node-b".into())));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!((0..20).all(|_| limits.take(&node)));
        assert!(!limits.take(&node));
    }

    #[tokio::test(start_paused = true)]
    async fn one_event_a_second_is_told() {
        let sparse = Sparse::default();
        assert_eq!(sparse.pass(), Some(0));
        assert_eq!(sparse.pass(), None);
        assert_eq!(sparse.pass(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(sparse.pass(), Some(2));
    }
}
