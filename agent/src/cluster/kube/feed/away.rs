//! Whether a kind that seems not to be there is really not. Pure.
//!
//! An API server that starts says that there is no such kind, and so does one whose
//! definitions are being replaced: it has to say so for a while.

use std::time::Duration;

use tokio::time::Instant;

/// It must be away for so long to be believed, where something of it is in force.
const IN_USE: Duration = Duration::from_mins(1);

/// How sure it is that there is no such kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Away {
    /// It is there, for all that is known.
    No,
    /// The API server says so since then.
    Since(Instant),
    /// It is.
    Yes,
}

impl Away {
    /// The API server says that there is no such kind, of which `objects` are in force.
    /// `None` where that is believed, else how long it is not yet; where there are none,
    /// that is for as long as `unused` in all.
    pub(super) fn again(
        &mut self,
        now: Instant,
        objects: usize,
        unused: Duration,
    ) -> Option<Duration> {
        let since = match *self {
            Self::Yes => return None,
            Self::Since(since) => since,
            Self::No => now,
        };
        let sure = if objects == 0 { unused } else { IN_USE };
        let left = sure.saturating_sub(now.duration_since(since));
        *self = if left.is_zero() {
            Self::Yes
        } else {
            Self::Since(since)
        };
        (!left.is_zero()).then_some(left)
    }

    /// The API server says something else, or nothing: it has to say it anew.
    pub(super) fn interrupt(&mut self) {
        if *self != Self::Yes {
            *self = Self::No;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNUSED: Duration = Duration::from_secs(2);

    #[test]
    fn it_is_believed_after_a_while_that_is_longer_where_something_is_in_force() {
        let start = Instant::now();
        for (objects, seconds) in [(0, 2), (1, 60)] {
            let mut away = Away::No;
            let sure = Duration::from_secs(seconds);
            assert_eq!(away.again(start, objects, UNUSED), Some(sure));
            let almost = start + sure - Duration::from_secs(1);
            assert_eq!(
                away.again(almost, objects, UNUSED),
                Some(Duration::from_secs(1))
            );
            assert_eq!(away.again(start + sure, objects, UNUSED), None);
            assert_eq!(away, Away::Yes);
        }
    }

    #[test]
    fn a_kind_that_may_well_not_be_there_is_believed_away_at_once() {
        let mut away = Away::No;
        assert_eq!(away.again(Instant::now(), 0, Duration::ZERO), None);
        let mut away = Away::No;
        assert!(away.again(Instant::now(), 1, Duration::ZERO).is_some());
    }

    #[test]
    fn it_has_to_be_said_without_interruption() {
        let start = Instant::now();
        let mut away = Away::No;
        assert!(away.again(start, 0, UNUSED).is_some());
        away.interrupt();
        let later = start + Duration::from_mins(5);
        assert_eq!(away.again(later, 0, UNUSED), Some(UNUSED));
        assert_eq!(away.again(later + UNUSED, 0, UNUSED), None);
        away.interrupt();
        assert_eq!(away.again(later + UNUSED, 0, UNUSED), None);
    }
}
