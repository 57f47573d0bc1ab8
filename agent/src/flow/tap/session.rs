//! One who looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::event::{TapEvent, TapWish};
use super::redaction::{self, Redaction};
use super::{Heads, Tapped, Taps, Wants};
use crate::flow::FlowEvent;

/// Over which requests are counted for [`TapWish::rate`].
const WINDOW: Duration = Duration::from_secs(1);

/// Requests that matched and were not shown, since the start.
#[derive(Debug, Default)]
pub(super) struct Lost {
    slow_reader: AtomicU64,
    over_rate: AtomicU64,
}

/// Requests that matched and were not shown, since the last time that this was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapLoss {
    /// The reader was too slow.
    pub slow_reader: u64,
    /// There were more than were asked for, or than headers can be noted of.
    pub over_rate: u64,
}

/// The hub's end.
#[derive(Debug)]
pub(super) struct Session {
    wish: TapWish,
    queue: mpsc::Sender<TapEvent>,
    lost: Arc<Lost>,
    matched: u64,
    window: Instant,
    in_window: u32,
}

impl Session {
    pub(super) fn new(wish: TapWish, queue: mpsc::Sender<TapEvent>, lost: Arc<Lost>) -> Self {
        Self {
            wish,
            queue,
            lost,
            matched: 0,
            window: Instant::now(),
            in_window: 0,
        }
    }

    pub(super) fn is_of(&self, lost: &Arc<Lost>) -> bool {
        Arc::ptr_eq(&self.lost, lost)
    }

    pub(super) fn offer(
        &mut self,
        event: &FlowEvent,
        tapped: &Tapped,
        redaction: &Redaction,
        now: Instant,
    ) {
        if !self.wish.filter.matches(event) {
            return;
        }
        let number = self.matched;
        self.matched += 1;
        if !number.is_multiple_of(u64::from(self.wish.sample.max(1))) {
            return;
        }
        let unnoted = self.wish.headers && matches!(tapped.heads, Heads::Skipped);
        if unnoted || self.is_over_rate(now) {
            let _before = self.lost.over_rate.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let event = self.event(event, tapped, redaction);
        if self.queue.try_send(event).is_err() {
            let _before = self.lost.slow_reader.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What is not shown of these is shown when it ends, and counted then.
    pub(super) fn offer_begun(
        &mut self,
        event: &FlowEvent,
        tapped: &Tapped,
        redaction: &Redaction,
        now: Instant,
    ) {
        let TapWish {
            begin,
            ref filter,
            sample,
            ..
        } = self.wish;
        if !begin || sample > 1 || filter.waits_for_end() || !filter.matches(event) {
            return;
        }
        if !self.is_over_rate(now) {
            let begun = TapEvent {
                begun: true,
                ..self.event(event, tapped, redaction)
            };
            let _shown = self.queue.try_send(begun).is_ok();
        }
    }

    fn is_over_rate(&mut self, now: Instant) -> bool {
        if now.duration_since(self.window) >= WINDOW {
            self.window = now;
            self.in_window = 0;
        }
        self.in_window = self.in_window.saturating_add(1);
        self.in_window > self.wish.rate
    }

    fn event(&self, event: &FlowEvent, tapped: &Tapped, redaction: &Redaction) -> TapEvent {
        let (request_headers, response_headers) = match &tapped.heads {
            Heads::Noted { request, answer } if self.wish.headers => (
                redaction.headers(request, &self.wish.redact),
                redaction.headers(answer, &self.wish.redact),
            ),
            Heads::Noted { .. } | Heads::Unwanted | Heads::Skipped => Default::default(),
        };
        let query = tapped.target.as_ref().and_then(|it| it.query());
        TapEvent {
            flow: event.clone(),
            begun: false,
            query: query.map(redaction::query),
            request_headers,
            response_headers,
        }
    }
}

/// The reader's end. Its drop ends the tap.
#[derive(Debug)]
pub struct Tap {
    taps: Taps,
    events: mpsc::Receiver<TapEvent>,
    lost: Arc<Lost>,
    wants: Wants,
    told: TapLoss,
}

impl Tap {
    pub(super) fn new(
        taps: Taps,
        events: mpsc::Receiver<TapEvent>,
        lost: Arc<Lost>,
        wants: Wants,
    ) -> Self {
        Self {
            taps,
            events,
            lost,
            wants,
            told: TapLoss::default(),
        }
    }

    /// The next request that matches; an error says what was not shown since the last one,
    /// and the next call goes on. Never ends by itself. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Box<TapEvent>, TapLoss>> {
        let lost = self.newly_lost();
        if lost != TapLoss::default() {
            return Some(Err(lost));
        }
        let event = self.events.recv().await?;
        Some(Ok(Box::new(event)))
    }

    fn newly_lost(&mut self) -> TapLoss {
        let all = TapLoss {
            slow_reader: self.lost.slow_reader.load(Ordering::Relaxed),
            over_rate: self.lost.over_rate.load(Ordering::Relaxed),
        };
        let new = TapLoss {
            slow_reader: all.slow_reader - self.told.slow_reader,
            over_rate: all.over_rate - self.told.over_rate,
        };
        self.told = all;
        new
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.taps.close(&self.lost, self.wants);
    }
}
