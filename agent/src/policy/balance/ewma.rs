//! Latency that jumps up at once and comes down with time.
//!
//! "Peak EWMA" of Finagle's `p2c` (`PeakEwma.scala`), as linkerd2-proxy and tower have it:
//! a latency above the average replaces it; one below moves it by the share of the decay
//! that has gone by since the last one; and without requests it decays towards 0, so that
//! an endpoint that was slow once is tried again.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::nanos;

/// After so long two thirds of what was there are gone. As in Finagle and Linkerd.
const DECAY: Duration = Duration::from_secs(10);
/// Of an endpoint that has answered nothing yet. As in linkerd2-proxy.
const FIRST: Duration = Duration::from_millis(30);
/// Nothing is faster, so that requests in flight always count.
const FLOOR: f64 = 1_000.0;

/// The average of an endpoint, in nanoseconds.
///
/// Samples at the same moment may each see the other's or not: the average is one of
/// those that any order of them gives.
#[derive(Debug)]
pub(super) struct Ewma {
    average: AtomicU64,
    at: AtomicU64,
}

impl Ewma {
    pub(super) fn new(now: u64) -> Self {
        Self {
            average: AtomicU64::new(as_f64(nanos(FIRST)).to_bits()),
            at: AtomicU64::new(now),
        }
    }

    /// A request took so long.
    pub(super) fn observe(&self, latency: u64, now: u64) {
        let before = self.at.fetch_max(now, Relaxed);
        let keep = kept(now.saturating_sub(before));
        let latency = as_f64(latency);
        let change = |bits| {
            let average = f64::from_bits(bits);
            let new = if latency > average {
                latency
            } else {
                average * keep + latency * (1.0 - keep)
            };
            Some(new.to_bits())
        };
        let _previous = self.average.fetch_update(Relaxed, Relaxed, change);
    }

    /// What it is by now.
    pub(super) fn now(&self, now: u64) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        let idle = now.saturating_sub(self.at.load(Relaxed));
        (average * kept(idle)).max(FLOOR)
    }
}

/// The share of the average that is left after a while.
fn kept(gone: u64) -> f64 {
    // Most samples of a busy endpoint are closer together than what changes anything.
    if gone < 1_000 {
        return 1.0;
    }
    (-as_f64(gone) / as_f64(nanos(DECAY))).exp()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "of nanoseconds, and to compare: the last bits mean nothing"
)]
pub(super) fn as_f64(nanos: u64) -> f64 {
    nanos as f64
}
