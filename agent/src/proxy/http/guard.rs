//! The policy of a server of this node, over a request that it has let in: an answer that
//! goes on for long, or a connection that has switched, ends when it may no longer be.

use std::task::{Context, Poll, ready};

use tokio_util::sync::ReusableBoxFuture;

use crate::proxy::outcome::Outcome;
use crate::proxy::permit::Watch;

/// Says when a request may no longer be.
#[derive(Debug)]
pub(super) enum Guard {
    /// Nobody has had to wait yet.
    Idle(Watch),
    /// Somebody waits.
    Waiting(ReusableBoxFuture<'static, Outcome>),
    /// It is to be said.
    Due(Outcome),
    /// It has been said, or its server is of another node, which looks by itself.
    Silent,
}

impl Guard {
    /// It may have something to say, though nobody waits for it.
    pub(super) fn has_news(&self) -> bool {
        match self {
            Self::Idle(watch) => watch.has_news(),
            Self::Waiting(_) | Self::Due(_) => true,
            Self::Silent => false,
        }
    }

    /// Is ready, once, with why the request may no longer be.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        *self = match std::mem::replace(self, Self::Silent) {
            Self::Idle(mut watch) => {
                let revoked = async move { watch.revoked().await };
                Self::Waiting(ReusableBoxFuture::new(revoked))
            }
            Self::Due(outcome) => return Poll::Ready(outcome),
            state @ (Self::Waiting(_) | Self::Silent) => state,
        };
        let Self::Waiting(revoked) = self else {
            return Poll::Pending;
        };
        let polled = revoked.poll(cx);
        if polled.is_ready() {
            *self = Self::Silent;
        }
        polled
    }

    /// Is ready when `poll` is, and leaves it so.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let outcome = ready!(self.poll(cx));
        *self = Self::Due(outcome);
        Poll::Ready(())
    }

    /// Waits until the request may no longer be. Cancel safe.
    pub(super) async fn revoked(&mut self) -> Outcome {
        match self {
            Self::Idle(watch) => watch.revoked().await,
            Self::Waiting(_) | Self::Due(_) | Self::Silent => {
                std::future::poll_fn(|cx| self.poll(cx)).await
            }
        }
    }
}
