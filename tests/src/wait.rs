//! Waiting for conditions, with deadlines.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long to leave the processor to others between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// A time limit as this machine needs it: `FAIRLEAD_PATIENCE` times as long where that is set, as it is for
/// emulated processors.
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let value = std::env::var("FAIRLEAD_PATIENCE").ok();
        value.and_then(|value| value.parse().ok()).unwrap_or(1)
    });
    limit * *FACTOR
}

/// Looks until `look` returns something, at most for `limit`.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let (start, limit) = (Instant::now(), patient(limit));
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("{what}: not after {limit:?}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Tries until `attempt` succeeds, at most for `limit`; then returns its last error.
pub fn until_ok<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let (start, limit) = (Instant::now(), patient(limit));
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error).with_context(|| format!("{what}: not after {limit:?}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
