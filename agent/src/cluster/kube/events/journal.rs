//! What of the facts is news. Pure: time is an argument.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::{PodFact, PodFactReason};

/// What holds on and on is told again after so long.
const AGAIN: Duration = Duration::from_mins(10);
/// What held, did not, and holds again is told again after no less than this.
const BACK: Duration = Duration::from_mins(1);
/// So many at once,
const BURST: u32 = 20;
/// and then one in each of these.
const PACE: Duration = Duration::from_secs(3);

/// What was told so far.
#[derive(Debug)]
pub(super) struct Journal {
    entries: HashMap<PodFact, Entry>,
    /// The first look is over.
    started: bool,
    /// How many may be told now, and since when that is so.
    allowance: u32,
    allowed_at: Instant,
}

#[derive(Debug)]
struct Entry {
    /// The Event, where there is one.
    event: Option<String>,
    /// How often it was told.
    count: i32,
    told_at: Instant,
    seen_at: Instant,
    /// Ever since it was told.
    holds: bool,
}

/// A fact that is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Telling {
    pub(super) fact: PodFact,
    /// The Event that is counted up; else there is to be a new one.
    pub(super) event: Option<String>,
    /// How often it has been told then.
    pub(super) count: i32,
}

impl Journal {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            entries: HashMap::new(),
            started: false,
            allowance: BURST,
            allowed_at: now,
        }
    }

    /// What is to be told of all that holds now. What there is no allowance for is due at
    /// the next look.
    pub(super) fn look(&mut self, facts: &[PodFact], now: Instant) -> Vec<Telling> {
        self.allow(now);
        let mut tellings = Vec::new();
        for fact in facts {
            let telling = match self.entries.get_mut(fact) {
                None => Some((None, 1)),
                Some(entry) => {
                    let since = now - entry.told_at;
                    let again = fact.reason.is_warning() && since >= AGAIN;
                    let back = !entry.holds && since >= BACK;
                    entry.seen_at = now;
                    (again || back).then(|| (entry.event.clone(), entry.count + 1))
                }
            };
            // After a start all pods are taken in again: that is no news.
            if !self.started && fact.reason == PodFactReason::Meshed {
                self.note(fact.clone(), None, 0, now);
                continue;
            }
            if let Some((event, count)) = telling
                && self.allowance > 0
            {
                self.allowance -= 1;
                let fact = fact.clone();
                tellings.push(Telling { fact, event, count });
            }
        }
        self.started = true;
        let facts: HashSet<&PodFact> = facts.iter().collect();
        self.entries.retain(|fact, entry| {
            entry.holds &= facts.contains(fact);
            entry.holds || now - entry.seen_at < AGAIN
        });
        tellings
    }

    /// It was told; the Event has this name.
    pub(super) fn told(&mut self, telling: Telling, event: Option<String>, now: Instant) {
        let same = event.is_some() && event == telling.event;
        let count = if same { telling.count } else { 1 };
        self.note(telling.fact, event, count, now);
    }

    fn note(&mut self, fact: PodFact, event: Option<String>, count: i32, now: Instant) {
        let entry = Entry {
            event,
            count,
            told_at: now,
            seen_at: now,
            holds: true,
        };
        self.entries.insert(fact, entry);
    }

    fn allow(&mut self, now: Instant) {
        let passed = now.duration_since(self.allowed_at).as_millis() / PACE.as_millis();
        let passed = u32::try_from(passed).unwrap_or(BURST).min(BURST);
        if self.allowance + passed >= BURST {
            self.allowance = BURST;
            self.allowed_at = now;
        } else {
            self.allowance += passed;
            self.allowed_at += PACE * passed;
        }
    }
}
