//! A limit of a rate, as a token bucket.
//!
//! By the Generic Cell Rate Algorithm (ITU-T I.371, in its "virtual scheduling" form): all
//! that is kept is the time at which the bucket would be full again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::nanos;

/// Holds so many tokens, and gets new ones at a steady rate. Full at first.
#[derive(Debug)]
pub struct TokenBucket {
    epoch: Instant,
    /// Between two tokens; 0 where there are none at all.
    interval: u64,
    /// How much of it may be used ahead.
    tolerance: u64,
    /// When it is full again: the "theoretical arrival time".
    full: AtomicU64,
}

impl TokenBucket {
    /// `requests` in `per`, of which `burst` at once; a burst of less than 1 is 1. With no
    /// requests or no time nothing is ever let through.
    pub fn new(requests: u32, per: Duration, burst: u32, now: Instant) -> Self {
        // More than one in a nanosecond is no limit that anybody could tell from one.
        let interval = match (requests, nanos(per)) {
            (0, _) | (_, 0) => 0,
            (requests, per) => (per / u64::from(requests)).max(1),
        };
        Self {
            epoch: now,
            interval,
            tolerance: interval.saturating_mul(u64::from(burst.max(1) - 1)),
            full: AtomicU64::new(0),
        }
    }

    /// Takes a token. The error: there is one after so long.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        if self.interval == 0 {
            return Err(Duration::MAX);
        }
        let now = self.elapsed(now);
        let next = |full: u64| {
            let start = full.max(now);
            let early = start - now;
            (early <= self.tolerance).then(|| start.saturating_add(self.interval))
        };
        match self.full.fetch_update(Relaxed, Relaxed, next) {
            Ok(_) => Ok(()),
            Err(full) => {
                let wait = full.saturating_sub(now).saturating_sub(self.tolerance);
                Err(Duration::from_nanos(wait))
            }
        }
    }

    /// It is full, and so like a new one: there is no need to keep it.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full.load(Relaxed) <= self.elapsed(now)
    }

    fn elapsed(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }
}
