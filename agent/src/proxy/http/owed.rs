//! What a connection of HTTP/1.1 owes its client: while there is something, the client has
//! nothing to say, however long that takes. What is owed can end while nobody asks for more
//! of it, because the client does not take what it was given.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::body::{Body, BodyError};
use super::timed::TimedOut;
use crate::proxy::lock::lock;

/// The answers that one connection owes its client.
#[derive(Clone, Debug, Default)]
pub(super) struct Owed(Arc<Debts>);

#[derive(Debug, Default)]
struct Debts {
    count: AtomicUsize,
    /// Of the answer that is on its way: one at a time is. The connection's task alone comes
    /// here, from where it writes and from where it asks for more.
    body: Mutex<Option<Body>>,
}

/// One answer, until it is dropped.
#[derive(Debug)]
pub(super) struct Debt(Arc<Debts>);

/// The body of an answer, with which the debt is paid.
#[derive(Debug)]
pub(super) struct Paid(Debt);

impl Owed {
    /// One more answer is owed.
    pub(super) fn begin(&self) -> Debt {
        let _before = self.0.count.fetch_add(1, Ordering::Relaxed);
        Debt(Arc::clone(&self.0))
    }

    /// There is one.
    pub(super) fn is_any(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    /// Is ready once the answer is over though nobody asks for more of it.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.body() {
            Some(body) => body.poll_over(cx),
            None => Poll::Pending,
        }
    }

    /// Ends the answer: it is over, or else the client is too slow.
    pub(super) fn break_off(&self, slow: Option<TimedOut>) {
        if let Some(body) = &mut *self.0.body() {
            let _why = body.break_off(slow);
        }
    }
}

impl Debt {
    /// The answer is there, and this is its body.
    pub(super) fn pay(self, body: Body) -> Paid {
        *self.0.body() = Some(body);
        Paid(self)
    }
}

impl Debts {
    fn body(&self) -> MutexGuard<'_, Option<Body>> {
        lock(&self.body)
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let _before = self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        let body = self.0.0.body().take();
        drop(body);
    }
}

impl http_body::Body for Paid {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self.0.0.body() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        let body = self.0.0.body();
        body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let body = self.0.0.body();
        body.as_ref()
            .map(http_body::Body::size_hint)
            .unwrap_or_default()
    }
}
