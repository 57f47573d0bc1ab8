//! How long to wait before the next attempt.

use std::time::Duration;

/// After the first failure, on average.
const FIRST: Duration = Duration::from_secs(2);
/// After many failures, on average.
const MOST: Duration = Duration::from_secs(30);

/// Failures in a row. Each doubles the wait, and every wait is spread over its own length:
/// thousands of agents that lost one API server do not come back as one.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure; `random` is from 0 to 1.
    pub(super) fn after_failure(&mut self, random: f64) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        spread(doubled.min(MOST), random)
    }

    /// All is well.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Half of it to one and a half.
pub(super) fn spread(average: Duration, random: f64) -> Duration {
    average.mul_f64(0.5 + random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_a_limit_and_is_spread() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8)
            .map(|_| backoff.after_failure(0.5).as_secs())
            .collect();
        assert_eq!(waits, [2, 4, 8, 16, 30, 30, 30, 30]);
        assert_eq!(backoff.after_failure(0.0).as_secs(), 15);
        assert_eq!(backoff.after_failure(1.0).as_secs(), 45);
        backoff.reset();
        assert_eq!(backoff.after_failure(0.0).as_secs(), 1);
    }
}
