//! How the watches are, one by one and together. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::failure::Relist;
use super::kind::Kind;
use crate::cluster::source::{Health, KindHealth, SourceError};

/// What a watch tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Everything of the kind is being read.
    Listing(Option<Relist>),
    /// It is up to date and follows.
    Watching,
    /// It still is.
    Heard,
    /// The connection ended; another is about to be made.
    Dropped,
    /// It can't be made.
    Failed {
        /// Why.
        message: String,
        /// The API server can't be reached at all.
        lost: bool,
    },
    /// The kind is not installed.
    Absent,
}

/// The watches of a feed.
#[derive(Debug)]
pub(super) struct Watches {
    source: String,
    all: Vec<Watch>,
    last_error: Option<SourceError>,
}

/// One of them.
#[derive(Debug)]
struct Watch {
    kind: &'static Kind,
    state: State,
    /// Everything of it was known at this time.
    current: Option<Timestamp>,
    /// It was read once, or there is no such kind.
    complete: bool,
    /// It was tried, whatever came of it.
    tried: bool,
    objects: usize,
    restarts: u64,
    relists: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Current,
    Absent,
    /// Not up to date since then.
    Behind {
        since: Timestamp,
        error: Option<(String, bool)>,
    },
}

impl Watches {
    /// Of which nothing is known.
    pub(super) fn new(source: String, kinds: &[&'static Kind]) -> Self {
        let watch = |&kind: &&'static Kind| Watch {
            kind,
            state: State::Starting,
            current: None,
            complete: false,
            tried: false,
            objects: 0,
            restarts: 0,
            relists: BTreeMap::new(),
        };
        Self {
            source,
            all: kinds.iter().map(watch).collect(),
            last_error: None,
        }
    }

    /// Takes in what a watch tells.
    pub(super) fn hear(&mut self, index: usize, news: News, now: Timestamp) {
        let watch = &mut self.all[index];
        let since = match &watch.state {
            State::Behind { since, .. } => *since,
            State::Starting | State::Current | State::Absent => now,
        };
        match news {
            News::Listing(reason) => {
                if let Some(reason) = reason {
                    *watch.relists.entry(reason.as_str()).or_default() += 1;
                }
                if watch.complete && !matches!(watch.state, State::Behind { .. }) {
                    watch.state = State::Behind { since, error: None };
                }
            }
            News::Watching => {
                if watch.current.is_some() {
                    watch.restarts += 1;
                }
                watch.state = State::Current;
                watch.current = Some(now);
                (watch.complete, watch.tried) = (true, true);
            }
            News::Heard => watch.current = Some(now),
            News::Dropped => {
                let error = match &mut watch.state {
                    State::Behind { error, .. } => error.take(),
                    State::Starting | State::Current | State::Absent => None,
                };
                watch.state = State::Behind { since, error };
            }
            News::Failed { message, lost } => {
                watch.tried = true;
                let error = Some((message.clone(), lost));
                watch.state = State::Behind { since, error };
                self.last_error = Some(SourceError { time: now, message });
            }
            News::Absent => {
                watch.state = State::Absent;
                watch.current = None;
                (watch.complete, watch.tried) = (true, true);
            }
        }
    }

    /// How many objects of a kind are in force.
    pub(super) fn count(&mut self, index: usize, objects: usize) {
        self.all[index].objects = objects;
    }

    /// Every kind has been read once.
    pub(super) fn complete(&self) -> bool {
        self.all.iter().all(|watch| watch.complete)
    }

    /// The first stage with a kind that was not tried yet.
    pub(super) fn open_stage(&self) -> usize {
        let untried = self.all.iter().find(|watch| !watch.tried);
        untried.map_or(usize::MAX, |watch| watch.kind.stage)
    }

    /// All of them together.
    pub(super) fn health(&self, problems: usize) -> Health {
        let errors = || self.all.iter().filter_map(Watch::error);
        let synced = self.complete();
        let lost = errors()
            .filter(|(_, _, lost)| *lost)
            .map(|(since, ..)| since);
        let current = self.all.iter().filter(|it| it.state != State::Absent);
        let objects = self.all.iter();
        Health {
            source: self.source.clone(),
            healthy: synced && errors().next().is_none(),
            last_sync: current
                .map(|watch| watch.current)
                .min()
                .flatten()
                .filter(|_| synced),
            last_error: self.last_error.clone(),
            watching: self.all.iter().all(|watch| match watch.state {
                State::Current | State::Absent => true,
                State::Starting | State::Behind { .. } => false,
            }),
            lost: lost.min(),
            objects: objects
                .map(|watch| (watch.kind.object.as_str(), watch.objects))
                .collect(),
            kinds: self.all.iter().map(Watch::health).collect(),
            problems,
        }
    }
}

impl Watch {
    fn error(&self) -> Option<(Timestamp, &str, bool)> {
        match &self.state {
            State::Behind {
                since,
                error: Some((message, lost)),
            } => Some((*since, message, *lost)),
            State::Behind { error: None, .. }
            | State::Starting
            | State::Current
            | State::Absent => None,
        }
    }

    fn health(&self) -> KindHealth {
        KindHealth {
            kind: self.kind.object.as_str(),
            installed: self.state != State::Absent,
            behind: self.error().map(|(since, message, _)| SourceError {
                time: since,
                message: message.to_owned(),
            }),
            watch_restarts: self.restarts,
            relists: self.relists.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind::KINDS;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn watches() -> Watches {
        Watches::new("kube".to_owned(), &[&KINDS[1], &KINDS[9]])
    }

    fn failed(message: &str, lost: bool) -> News {
        News::Failed {
            message: message.to_owned(),
            lost,
        }
    }

    #[test]
    fn is_synced_once_every_kind_was_read() {
        let mut watches = watches();
        assert_eq!((watches.complete(), watches.open_stage()), (false, 0));
        watches.hear(0, News::Listing(None), at(1));
        watches.hear(0, News::Watching, at(2));
        assert_eq!((watches.complete(), watches.open_stage()), (false, 3));
        assert_eq!(watches.health(0).last_sync, None);
        watches.hear(1, News::Absent, at(3));
        assert!(watches.complete());
        let health = watches.health(0);
        assert!(health.healthy && health.watching);
        assert_eq!(health.last_sync, Some(at(2)));
        assert!(!health.kinds[1].installed);
        watches.hear(0, News::Heard, at(60));
        assert_eq!(watches.health(0).last_sync, Some(at(60)));
    }

    #[test]
    fn a_failure_lets_the_next_stage_begin() {
        let mut watches = watches();
        watches.hear(0, failed("may not", false), at(1));
        assert_eq!(watches.open_stage(), 3);
        let health = watches.health(0);
        assert_eq!((health.healthy, health.lost), (false, None));
        assert_eq!(health.kinds[0].behind.as_ref().unwrap().message, "may not");
    }

    #[test]
    fn it_is_lost_since_the_connection_ended_and_only_once_it_can_not_be_made_again() {
        let mut watches = watches();
        for index in 0..2 {
            watches.hear(index, News::Watching, at(1));
        }
        watches.hear(0, News::Dropped, at(5));
        let health = watches.health(0);
        assert!(health.healthy && !health.watching);
        watches.hear(0, failed("refused", true), at(7));
        watches.hear(0, failed("refused", true), at(9));
        let health = watches.health(0);
        assert_eq!((health.healthy, health.lost), (false, Some(at(5))));
        assert_eq!(health.last_sync, Some(at(1)));
        assert_eq!(health.last_error.unwrap().time, at(9));
        watches.hear(0, News::Watching, at(20));
        let health = watches.health(0);
        assert!(health.healthy && health.lost.is_none());
        assert_eq!(health.kinds[0].watch_restarts, 1);
    }

    #[test]
    fn lists_are_counted_by_their_reason() {
        let mut watches = watches();
        watches.hear(0, News::Listing(None), at(1));
        watches.hear(0, News::Watching, at(2));
        for _ in 0..2 {
            watches.hear(0, News::Listing(Some(Relist::Expired)), at(3));
            watches.hear(0, News::Watching, at(4));
        }
        assert_eq!(watches.health(0).kinds[0].relists["expired"], 2);
    }
}
