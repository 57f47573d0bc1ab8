//! Whether a client of HTTP/1.1 still waits for an answer: while it does, it has nothing to
//! say, however long that takes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::body::{Body, BodyError};

/// The answers that one connection owes its client.
#[derive(Clone, Debug, Default)]
pub(super) struct Owed(Arc<AtomicUsize>);

/// One answer, until it is dropped.
#[derive(Debug)]
pub(super) struct Debt(Arc<AtomicUsize>);

/// The body of an answer, with which the debt is paid.
#[derive(Debug)]
pub(super) struct Paid {
    body: Body,
    #[expect(dead_code, reason = "its drop is the end of the debt")]
    debt: Debt,
}

impl Owed {
    /// One more answer is owed.
    pub(super) fn begin(&self) -> Debt {
        let _before = self.0.fetch_add(1, Ordering::Relaxed);
        Debt(Arc::clone(&self.0))
    }

    /// There is one.
    pub(super) fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Debt {
    /// The answer is there, and this is its body.
    pub(super) fn pay(self, body: Body) -> Paid {
        Paid { body, debt: self }
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let _before = self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl http_body::Body for Paid {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
