//! Live requests with their headers, for as long as somebody looks.
//!
//! In: heads of requests and answers, noted by the proxy where [`Taps::note`] says that
//! somebody wants them, and the records of those requests. Out: [`TapEvent`]s. The proxy's
//! threads clone two header maps at most, and only so many of them in a time; filtering,
//! redaction and limits are the hub's. What a slow reader does not take is dropped and
//! counted. Nothing is kept.

mod event;
mod redaction;
mod session;

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::event::{TapEvent, TapHeader, TapWish};
pub use self::redaction::Redaction;
use self::session::{Lost, Session};
pub use self::session::{Tap, TapLoss};
use super::request::RequestRecord;

/// Taps that may be open at a time.
const SESSIONS: usize = 16;
/// Events that a tap may be behind.
const LAG: usize = 1024;
/// Requests whose headers are noted between two turns of the hub, which are some
/// milliseconds apart.
const HEADS: i64 = 64;

/// Who looks at requests now. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Taps(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// How many look. All that a request costs when nobody does.
    open: AtomicUsize,
    /// How many of those want headers.
    with_headers: AtomicUsize,
    /// How many want to see requests begin.
    with_begin: AtomicUsize,
    /// Requests whose headers may still be noted in this turn.
    budget: AtomicI64,
    sessions: Mutex<Vec<Session>>,
}

/// What a tap makes the proxy note.
#[derive(Clone, Copy, Debug)]
struct Wants {
    headers: bool,
    begin: bool,
}

impl Wants {
    fn of(wish: &TapWish) -> Self {
        Self {
            headers: wish.headers,
            begin: wish.begin,
        }
    }
}

/// As many look already as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{SESSIONS} taps are open already: end one of them")]
pub struct TooManyTaps;

/// What was noted of a request for those who look.
#[derive(Clone)]
pub struct Tapped {
    target: Option<PathAndQuery>,
    heads: Heads,
}

#[derive(Clone)]
enum Heads {
    Unwanted,
    /// There was no time for it.
    Skipped,
    Noted {
        request: HeaderMap,
        answer: HeaderMap,
    },
}

impl fmt::Debug for Tapped {
    /// Without what is to be redacted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tapped").finish_non_exhaustive()
    }
}

impl Tapped {
    /// Notes the head of the answer.
    pub fn answered(&mut self, headers: &HeaderMap) {
        if let Heads::Noted { answer, .. } = &mut self.heads {
            answer.clone_from(headers);
        }
    }
}

impl Taps {
    /// Notes the head of a request as the client sent it; one relaxed load and `None` where
    /// nobody looks.
    pub(super) fn note(&self, uri: &Uri, headers: &HeaderMap) -> Option<Box<Tapped>> {
        let inner = &*self.0;
        if inner.open.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let heads = if inner.with_headers.load(Ordering::Relaxed) == 0 {
            Heads::Unwanted
        } else if inner.budget.fetch_sub(1, Ordering::Relaxed) <= 0 {
            Heads::Skipped
        } else {
            Heads::Noted {
                request: headers.clone(),
                answer: HeaderMap::new(),
            }
        };
        let target = uri.path_and_query().cloned();
        Some(Box::new(Tapped { target, heads }))
    }

    /// Somebody wants to see requests begin.
    pub(super) fn wants_begin(&self) -> bool {
        self.0.with_begin.load(Ordering::Relaxed) > 0
    }

    /// Hands a request that begins to those who asked for such.
    pub(super) fn offer_begun(
        &self,
        request: &RequestRecord,
        tapped: &Tapped,
        redaction: &Redaction,
    ) {
        let event = request.event();
        let now = Instant::now();
        for session in self.sessions().iter_mut() {
            session.offer_begun(&event, tapped, redaction, now);
        }
    }

    /// A turn of the hub begins.
    pub(super) fn turn(&self) {
        self.0.budget.store(HEADS, Ordering::Relaxed);
    }

    /// Hands a request to those who asked for such.
    pub(super) fn offer(&self, request: &RequestRecord, tapped: &Tapped, redaction: &Redaction) {
        let event = request.event();
        let now = Instant::now();
        for session in self.sessions().iter_mut() {
            session.offer(&event, tapped, redaction, now);
        }
    }

    /// Looks at requests from now on, until the [`Tap`] is dropped.
    pub fn open(&self, wish: TapWish) -> Result<Tap, TooManyTaps> {
        let mut sessions = self.sessions();
        if sessions.len() >= SESSIONS {
            return Err(TooManyTaps);
        }
        let (queue, events) = mpsc::channel(LAG);
        let lost = Arc::new(Lost::default());
        let wants = Wants::of(&wish);
        sessions.push(Session::new(wish, queue, Arc::clone(&lost)));
        drop(sessions);
        self.turn();
        let Inner {
            open,
            with_headers,
            with_begin,
            ..
        } = &*self.0;
        let _before = with_headers.fetch_add(usize::from(wants.headers), Ordering::Relaxed);
        let _before = with_begin.fetch_add(usize::from(wants.begin), Ordering::Relaxed);
        let _before = open.fetch_add(1, Ordering::Relaxed);
        Ok(Tap::new(self.clone(), events, lost, wants))
    }

    fn close(&self, lost: &Arc<Lost>, wants: Wants) {
        self.sessions().retain(|it| !it.is_of(lost));
        let Inner {
            open,
            with_headers,
            with_begin,
            ..
        } = &*self.0;
        let _before = with_headers.fetch_sub(usize::from(wants.headers), Ordering::Relaxed);
        let _before = with_begin.fetch_sub(usize::from(wants.begin), Ordering::Relaxed);
        let _before = open.fetch_sub(1, Ordering::Relaxed);
    }

    fn sessions(&self) -> MutexGuard<'_, Vec<Session>> {
        // The list is valid after each of its statements, so a poisoned one is too.
        self.0
            .sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
