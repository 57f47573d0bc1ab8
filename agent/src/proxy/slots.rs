//! How many connections one pod may have open, so that it can't take what the others of
//! its node need: descriptors, memory, a thread's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::outcome::Outcome;

/// The connections of one pod, whichever end it is.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    taken: AtomicUsize,
    refused: AtomicU64,
}

/// The place of one connection; its drop gives it back.
#[derive(Debug)]
pub(super) struct Slot(Arc<Slots>);

impl Slots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// A place for one more connection, unless there are too many.
    pub(super) fn take(self: &Arc<Self>) -> Result<Slot, Outcome> {
        if self.taken.fetch_add(1, Ordering::Relaxed) < self.limit {
            return Ok(Slot(Arc::clone(self)));
        }
        let _before = self.taken.fetch_sub(1, Ordering::Relaxed);
        let _before = self.refused.fetch_add(1, Ordering::Relaxed);
        Err(Outcome::TooManyConnections)
    }

    /// How many connections were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _before = self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_too_many_is_refused_and_counted_until_another_ends() {
        let slots = Slots::new(2);
        let held = [slots.take().unwrap(), slots.take().unwrap()];
        assert!(matches!(slots.take(), Err(Outcome::TooManyConnections)));
        assert!(matches!(slots.take(), Err(Outcome::TooManyConnections)));
        assert_eq!(slots.refused(), 2);
        drop(held);
        assert!(slots.take().is_ok());
        assert_eq!(slots.refused(), 2);
    }
}
