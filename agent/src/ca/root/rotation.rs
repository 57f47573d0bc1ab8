//! What is due in the rotation of a root of our own. Pure.

use std::time::{Duration, SystemTime};

use super::Times;
use super::content::{Phase, Rotation};

/// A moment that another replica wrote may be ahead of this one's clock by so much.
const CLOCKS_DIFFER: Duration = Duration::from_mins(5);

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Not yet.
    Wait,
    /// Make the next root and publish it.
    Announce,
    /// Write down that it is published, from now on.
    Confirm,
    /// Let it sign.
    Switch,
    /// The moment of the switch can't be right: it is now.
    SwitchAgain,
    /// Trust the one before no more.
    Retire,
}

/// What is known when the next step is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The wall clock.
    pub(super) now: SystemTime,
    /// How long this process has seen the phase as it is, by a clock that does not step.
    pub(super) watched: Duration,
    /// The validity of the root that signs.
    pub(super) validity: (SystemTime, SystemTime),
}

/// What is due. The bundle has all roots of the Secret.
///
/// Moments in the Secret are of whichever replica led then. One whose clock is ahead must
/// not cut the overlap short, so that each phase is also watched for as long as it takes
/// agents to read the bundle.
pub(super) fn due(rotation: &Rotation, seen: &Seen, times: Times) -> Step {
    let over = |since: SystemTime, length: Duration| {
        seen.now >= since + length && seen.watched >= times.overlap
    };
    let in_future = |moment: SystemTime| moment > seen.now + CLOCKS_DIFFER;
    match rotation.phase {
        Phase::Steady if rotation.requested => Step::Announce,
        Phase::Steady if rotation.automatic && ends_soon(seen, times) => Step::Announce,
        Phase::Announced { published: None } => Step::Confirm,
        Phase::Announced {
            published: Some(at),
        } if in_future(at) => Step::Confirm,
        // Nothing is signed any more: waiting helps nobody.
        Phase::Announced { .. } if seen.now >= seen.validity.1 => Step::Switch,
        Phase::Announced {
            published: Some(at),
        } if over(at, times.overlap) => Step::Switch,
        Phase::Switched { at } if in_future(at) => Step::SwitchAgain,
        Phase::Switched { at } if over(at, times.life + times.overlap) => Step::Retire,
        Phase::Steady | Phase::Announced { .. } | Phase::Switched { .. } => Step::Wait,
    }
}

/// A fifth of its life is left, or hardly the time that a rotation takes.
fn ends_soon(seen: &Seen, times: Times) -> bool {
    let (begin, end) = seen.validity;
    let life = end.duration_since(begin).unwrap_or_default();
    let left = end.duration_since(seen.now).unwrap_or_default();
    left < (life / 5).max(2 * times.overlap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const DAY: Duration = Duration::from_hours(24);
    const TIMES: Times = Times {
        overlap: HOUR,
        life: DAY,
    };

    fn epoch() -> SystemTime {
        SystemTime::UNIX_EPOCH + 1000 * DAY
    }

    fn steady(automatic: bool, requested: bool) -> Rotation {
        Rotation {
            automatic,
            requested,
            phase: Phase::Steady,
        }
    }

    fn announced(published: Option<SystemTime>) -> Rotation {
        Rotation {
            phase: Phase::Announced { published },
            ..steady(true, false)
        }
    }

    fn switched(at: SystemTime) -> Rotation {
        Rotation {
            phase: Phase::Switched { at },
            ..steady(true, false)
        }
    }

    /// The root is of ten days, and so long ago made; so long the phase was watched.
    #[track_caller]
    fn check(rotation: &Rotation, age: Duration, watched: Duration, expected: Step) {
        let seen = Seen {
            now: epoch() + age,
            watched,
            validity: (epoch(), epoch() + 10 * DAY),
        };
        assert_eq!(due(rotation, &seen, TIMES), expected);
    }

    #[test]
    fn a_root_is_replaced_when_a_fifth_of_its_life_is_left() {
        check(&steady(true, false), 7 * DAY, DAY, Step::Wait);
        check(&steady(true, false), 9 * DAY, DAY, Step::Announce);
        check(&steady(true, false), 11 * DAY, DAY, Step::Announce);
        check(&steady(false, false), 9 * DAY, DAY, Step::Wait);
    }

    #[test]
    fn a_root_is_replaced_when_it_is_asked_for() {
        check(&steady(true, true), DAY, DAY, Step::Announce);
        check(&steady(false, true), DAY, DAY, Step::Announce);
    }

    #[test]
    fn the_next_root_signs_after_the_overlap() {
        check(&announced(None), DAY, DAY, Step::Confirm);
        let published = announced(Some(epoch() + DAY));
        check(&published, DAY + HOUR / 2, DAY, Step::Wait);
        check(&published, DAY + HOUR, DAY, Step::Switch);
    }

    #[test]
    fn the_old_root_goes_when_all_that_it_signed_is_over() {
        let switched = switched(epoch() + DAY);
        check(&switched, 2 * DAY, DAY, Step::Wait);
        check(&switched, 2 * DAY + HOUR, DAY, Step::Retire);
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_cut_the_overlap_short() {
        let published = announced(Some(epoch() + DAY));
        check(&published, 3 * DAY, HOUR / 2, Step::Wait);
        check(&published, 3 * DAY, HOUR, Step::Switch);
        check(&switched(epoch() + DAY), 3 * DAY, HOUR / 2, Step::Wait);
    }

    #[test]
    fn a_moment_in_the_future_is_put_right() {
        let published = announced(Some(epoch() + 5 * DAY));
        check(&published, DAY, DAY, Step::Confirm);
        check(&switched(epoch() + 5 * DAY), DAY, DAY, Step::SwitchAgain);
        // Not for what clocks differ by.
        let published = announced(Some(epoch() + DAY + Duration::from_mins(4)));
        check(&published, DAY, DAY, Step::Wait);
    }

    #[test]
    fn a_root_that_has_ended_is_replaced_at_once() {
        let published = announced(Some(epoch() + 10 * DAY));
        check(&published, 10 * DAY, Duration::ZERO, Step::Switch);
    }
}
