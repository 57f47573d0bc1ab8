//! How many of all requests may be retries.
//!
//! Finagle's `RetryBudget`: each request puts in a share of a retry, each retry takes out
//! one, what was put in is forgotten after a while, and so many in a second are permitted
//! always. Retries so never multiply an outage, as a number of attempts alone does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use super::Epoch;
use crate::policy::traffic::Budget;

/// For so many seconds a request counts.
const WINDOW: usize = 10;

/// Counts requests and retries of the last ten seconds.
#[derive(Debug)]
pub struct RetryBudget {
    epoch: Epoch,
    requests: Window,
    retries: Window,
}

impl RetryBudget {
    /// One that has seen nothing.
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: Epoch(now),
            requests: Window::default(),
            retries: Window::default(),
        }
    }

    /// A request that is no retry.
    pub fn deposit(&self, now: Instant) {
        self.requests.add(self.second(now));
    }

    /// Takes a retry out; false where there is none left.
    pub fn withdraw(&self, budget: &Budget, now: Instant) -> bool {
        let second = self.second(now);
        let always = u64::from(budget.min_per_second) * WINDOW as u64;
        let earned = self.requests.sum(second) * u64::from(budget.percent) / 100;
        // Of several at the same moment each may see the same sum: a few more than the
        // budget go through, once.
        let permitted = self.retries.sum(second) < earned + always;
        if permitted {
            self.retries.add(second);
        }
        permitted
    }

    fn second(&self, now: Instant) -> u32 {
        let second = self.epoch.nanos(now) / 1_000_000_000;
        u32::try_from(second).unwrap_or(u32::MAX)
    }
}

/// A count for each of the last seconds: the second in the upper half, the count in the
/// lower.
#[derive(Debug, Default)]
struct Window([AtomicU64; WINDOW]);

impl Window {
    fn add(&self, second: u32) {
        let slot = &self.0[second as usize % WINDOW];
        let count = |slot: u64| {
            let (of, count) = unpack(slot);
            let count = if of == second { count } else { 0 };
            Some(pack(second, count.saturating_add(1)))
        };
        let _previous = slot.fetch_update(Relaxed, Relaxed, count);
    }

    fn sum(&self, second: u32) -> u64 {
        let counts = self.0.iter().map(|slot| unpack(slot.load(Relaxed)));
        let recent = counts.filter(|(of, _)| (second.wrapping_sub(*of) as usize) < WINDOW);
        recent.map(|(_, count)| u64::from(count)).sum()
    }
}

fn pack(second: u32, count: u32) -> u64 {
    u64::from(second) << 32 | u64::from(count)
}

fn unpack(slot: u64) -> (u32, u32) {
    let [upper, lower] = [slot >> 32, slot & u64::from(u32::MAX)];
    let narrow = |half| u32::try_from(half).unwrap_or(0);
    (narrow(upper), narrow(lower))
}
