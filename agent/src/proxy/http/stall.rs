//! Peers that make no progress though they are waited for.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::timed::TimedOut;

/// A timer for an end that moves. It is set again only when it fires, or when the end comes
/// earlier: to put it off costs nothing.
#[derive(Debug, Default)]
pub(super) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Is ready from `end` on.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, end: Instant) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if timer.deadline() > end {
            timer.as_mut().reset(end);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
    }
}

/// How long nothing has moved.
#[derive(Debug)]
pub(super) struct Stall {
    limit: Duration,
    since: Option<Instant>,
    timer: Timer,
}

impl Stall {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            timer: Timer::default(),
        }
    }

    /// Something has moved.
    pub(super) fn moved(&mut self) {
        self.since = None;
    }

    /// Nothing moves: is ready once that has been so for too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TimedOut> {
        let since = *self.since.get_or_insert_with(Instant::now);
        ready!(self.timer.poll(cx, since + self.limit));
        Poll::Ready(TimedOut::Idle(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::{Stall, TimedOut};

    #[tokio::test(start_paused = true)]
    async fn what_moves_now_and_then_is_waited_for() {
        let limit = Duration::from_secs(10);
        let mut stall = Stall::new(limit);
        let begun = Instant::now();
        for _ in 0..3 {
            let waited = timeout(limit / 2, poll_fn(|cx| stall.poll(cx))).await;
            assert!(waited.is_err());
            stall.moved();
        }
        let late = poll_fn(|cx| stall.poll(cx)).await;
        assert_eq!(late, TimedOut::Idle(limit));
        assert_eq!(begun.elapsed(), limit / 2 * 3 + limit);
    }
}
