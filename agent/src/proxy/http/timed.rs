//! Answers that come, and end, in time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::deadline::Deadline;
use super::reason::{Reason, ReasonKind};

/// Why a response ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::proxy) enum TimedOut {
    /// The whole took too long.
    #[error("timed out after {0:?}")]
    Deadline(Duration),
    /// Nothing came for too long.
    #[error("idle for {0:?}")]
    Idle(Duration),
}

/// A body that is cut at a deadline, or when nothing comes for too long. The response of a
/// gRPC call ends with a status then, as its client expects; any other one breaks off, so
/// that nobody takes half of it for the whole.
#[derive(Debug)]
pub(in crate::proxy) struct Timed<B> {
    body: B,
    timer: Pin<Box<Sleep>>,
    deadline: Option<Deadline>,
    idle: Option<Duration>,
    grpc: bool,
    over: bool,
}

impl TimedOut {
    /// What the client is told.
    pub(in crate::proxy) fn reason(self) -> Reason {
        let detail = match self {
            Self::Deadline(after) => format!("after {after:?}"),
            Self::Idle(after) => format!("idle for {after:?}"),
        };
        Reason::new(ReasonKind::TimedOut, detail)
    }
}

/// What comes of `doing` until the deadline.
pub(in crate::proxy) async fn in_time<T, E: From<Reason>>(
    until: Option<Deadline>,
    doing: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let Some(until) = until else {
        return doing.await;
    };
    let done = timeout_at(until.at, doing).await;
    done.unwrap_or_else(|_elapsed| Err(TimedOut::Deadline(until.after).reason().into()))
}

impl<B: Body<Data = Bytes> + Unpin> Timed<B> {
    /// Wraps `body`; `None`s: give it back.
    pub(in crate::proxy) fn new(
        body: B,
        deadline: Option<Deadline>,
        idle: Option<Duration>,
        grpc: bool,
    ) -> Result<Self, B> {
        let idle = idle.filter(|idle| !idle.is_zero());
        if deadline.is_none() && idle.is_none() || body.is_end_stream() {
            return Err(body);
        }
        let mut timed = Self {
            body,
            timer: Box::pin(sleep_until(Instant::now())),
            deadline,
            idle,
            grpc,
            over: false,
        };
        timed.arm();
        Ok(timed)
    }

    fn arm(&mut self) {
        let idle = self.idle.map(|idle| Instant::now() + idle);
        let deadline = self.deadline.map(|deadline| deadline.at);
        if let Some(at) = [idle, deadline].into_iter().flatten().min() {
            self.timer.as_mut().reset(at);
        }
    }

    /// Is ready once the deadline has passed, though nobody asks for a frame; in that time
    /// the body is not idle.
    pub(in crate::proxy) fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.over || self.deadline.is_none() {
            return Poll::Pending;
        }
        while !self.is_late() {
            std::task::ready!(self.timer.as_mut().poll(context));
            self.arm();
        }
        Poll::Ready(())
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| deadline.at <= Instant::now())
    }

    /// Why it is over, once its deadline has passed.
    pub(in crate::proxy) fn late(&self) -> Option<TimedOut> {
        self.is_late().then(|| self.cut())
    }

    fn cut(&self) -> TimedOut {
        let passed = self
            .deadline
            .filter(|deadline| deadline.at <= Instant::now());
        match (passed, self.idle) {
            (Some(deadline), _) => TimedOut::Deadline(deadline.after),
            (None, idle) => TimedOut::Idle(idle.unwrap_or_default()),
        }
    }
}

impl<B> Body for Timed<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: From<TimedOut>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if !self.is_late() {
            let polled = Pin::new(&mut self.body).poll_frame(context);
            if polled.is_ready() {
                if self.idle.is_some() {
                    self.arm();
                }
                return polled;
            }
            std::task::ready!(self.timer.as_mut().poll(context));
        }
        self.over = true;
        let cut = self.cut();
        if !self.grpc {
            return Poll::Ready(Some(Err(cut.into())));
        }
        let mut trailers = HeaderMap::new();
        let reason = cut.reason();
        reason.write_grpc(reason.kind.grpc_status(), &mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use http_body::{Body as _, Frame};
    use http_body_util::{BodyExt as _, Empty, StreamBody};
    use tokio::sync::mpsc;
    use tokio::time::Instant;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::{Deadline, Timed, TimedOut};

    type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, TimedOut>>;
    type Stream = StreamBody<UnboundedReceiverStream<Result<Frame<Bytes>, TimedOut>>>;

    const SECOND: Duration = Duration::from_secs(1);

    fn timed(
        deadline: Option<Duration>,
        idle: Option<Duration>,
        grpc: bool,
    ) -> (Sender, Timed<Stream>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let body = StreamBody::new(UnboundedReceiverStream::new(receiver));
        let deadline = Deadline::earliest([deadline], Instant::now());
        (sender, Timed::new(body, deadline, idle, grpc).ok().unwrap())
    }

    fn send(sender: &Sender) {
        sender
            .send(Ok(Frame::data(Bytes::from_static(b"x"))))
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_ends_at_its_deadline_however_busy_it_is() {
        let (sender, mut body) = timed(Some(3 * SECOND), Some(2 * SECOND), false);
        for _ in 0..2 {
            tokio::time::advance(SECOND).await;
            send(&sender);
            assert!(body.frame().await.unwrap().unwrap().is_data());
        }
        let cut = body.frame().await.unwrap().unwrap_err();
        assert_eq!(cut, TimedOut::Deadline(3 * SECOND));
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_body_ends_and_each_frame_gives_it_more_time() {
        let (sender, mut body) = timed(None, Some(2 * SECOND), false);
        let begun = Instant::now();
        tokio::time::advance(SECOND).await;
        send(&sender);
        let _frame = body.frame().await.unwrap().unwrap();
        let cut = body.frame().await.unwrap().unwrap_err();
        assert_eq!(cut, TimedOut::Idle(2 * SECOND));
        assert!(begun.elapsed() >= 3 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_waits_ends_at_its_deadline() {
        let (sender, mut body) = timed(Some(2 * SECOND), None, false);
        send(&sender);
        send(&sender);
        tokio::time::advance(SECOND).await;
        assert!(body.frame().await.unwrap().unwrap().is_data());
        tokio::time::advance(SECOND).await;
        let cut = body.frame().await.unwrap().unwrap_err();
        assert_eq!(cut, TimedOut::Deadline(2 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_grpc_response_ends_with_its_status() {
        let (_sender, body) = timed(Some(SECOND), None, true);
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert_eq!(trailers["grpc-message"], "timed_out; after 1s");
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_without_limits_or_bytes_are_left_as_they_are() {
        let deadline = Deadline::earliest([Some(SECOND)], Instant::now());
        let empty = || Empty::<Bytes>::new().map_err(|never| -> TimedOut { match never {} });
        assert!(Timed::new(empty(), deadline, None, false).is_err());
        let zero = Some(Duration::ZERO);
        assert!(Timed::new(empty(), None, zero, false).is_err());
        let (sender, body) = timed(Some(SECOND), None, false);
        drop(sender);
        assert!(!body.is_end_stream());
        assert!(body.collect().await.unwrap().to_bytes().is_empty());
    }
}
