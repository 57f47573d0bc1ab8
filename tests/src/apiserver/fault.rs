//! Faults on purpose.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::request::Target;

/// Something that goes wrong with requests of some sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `list`; empty for all.
    pub verb: String,
    /// A plural such as `pods`; empty for all, also for paths that are no resource's.
    pub resource: String,
    /// It goes wrong so often; `None` until [`super::ApiServer::mend`].
    pub times: Option<u32>,
    /// What happens.
    pub effect: Effect,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An error, such as 429 or 500, with the header `Retry-After` where seconds are given.
    Answer {
        /// The status.
        status: u16,
        /// Seconds.
        retry_after: Option<u32>,
    },
    /// 200, and something that is no JSON.
    Garbage,
    /// The connection is closed without an answer.
    Drop,
    /// There is no answer, ever.
    Hang,
    /// It is answered later.
    Delay(Duration),
    /// The connection is closed once so many bytes of the body have been sent.
    Truncate(usize),
    /// After each piece of the body there is a pause.
    Slow(Duration),
    /// Each event of a watch comes twice.
    Duplicate,
    /// Events of different objects swap places.
    Reorder,
    /// The version that is asked for is too old: 410 as the status of the answer.
    ExpiredStatus,
    /// The version that is asked for is too old: 200, and 410 in an event.
    ExpiredEvent,
}

/// All that goes wrong at present.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Fault {
    /// An effect on a verb and a resource, until it is mended.
    pub fn new(verb: &str, resource: &str, effect: Effect) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            times: None,
            effect,
        }
    }

    /// Only so often.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    fn concerns(&self, target: &Target) -> bool {
        let plural = target.resource.as_ref().map(|path| path.plural.as_str());
        let verb = self.verb.is_empty() || self.verb == target.verb;
        verb && (self.resource.is_empty() || plural == Some(&self.resource))
    }
}

impl Faults {
    fn all(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, fault: Fault) {
        self.all().push(fault);
    }

    pub(super) fn clear(&self) {
        self.all().clear();
    }

    /// What is to happen to a request; it counts as having happened.
    pub(super) fn take(&self, target: &Target) -> Vec<Effect> {
        let mut all = self.all();
        let mut effects = Vec::new();
        for fault in all.iter_mut().filter(|fault| fault.concerns(target)) {
            effects.push(fault.effect);
            if let Some(times) = &mut fault.times {
                *times = times.saturating_sub(1);
            }
        }
        all.retain(|fault| fault.times != Some(0));
        effects
    }
}
