//! The one type of all bodies, of requests and of answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::filter::grpc_web::{Decoded, Encoded, NotBase64};
use super::filter::mirror::{Copy, FellBehind, Tee};
use super::record::Exchange;
use super::replay::{ReplayBody, Superseded};
use super::stall::Stall;
use super::timed::{Timed, TimedOut};
use super::upload::{Upload, UploadEnd};
use super::upstream::{Answer1, Answer2, Socket};
use crate::proxy::account::Held;
use crate::proxy::outcome::Outcome;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum BodyError {
    /// Its HTTP/1.1 connection ended, or was not HTTP/1.1 any more.
    #[error("HTTP/1.1: {0}")]
    Http1(#[from] hyper::Error),
    /// Its stream of HTTP/2 ended.
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
    /// An answer took longer than the route or the policy lets it.
    #[error("{0}")]
    Late(#[from] TimedOut),
    /// Another try has the body now.
    #[error("{0}")]
    Superseded(#[from] Superseded),
    /// The copy for a mirror was given up.
    #[error("{0}")]
    FellBehind(#[from] FellBehind),
    /// The policy of the server does not let it be any more.
    #[error("revoked: {}", .0.close_reason())]
    Revoked(Outcome),
    /// A server's end of a WebSocket broke off.
    #[error("WebSocket: {0}")]
    Socket(#[source] std::io::Error),
    /// The body of a call of gRPC-Web is not what it says.
    #[error("{0}")]
    NotBase64(#[from] NotBase64),
}

impl BodyError {
    /// With what the stream that it was copied to is reset.
    pub(super) fn h2_reason(&self) -> h2::Reason {
        match self {
            Self::Http2(error) => error.reason().unwrap_or(h2::Reason::CANCEL),
            Self::Http1(_) => h2::Reason::INTERNAL_ERROR,
            Self::NotBase64(_) => h2::Reason::PROTOCOL_ERROR,
            Self::Late(_)
            | Self::Superseded(_)
            | Self::FellBehind(_)
            | Self::Revoked(_)
            | Self::Socket(_) => h2::Reason::CANCEL,
        }
    }
}

/// The body of a request or of an answer.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Body {
    kind: Kind,
    tail: Tail,
}

/// Where its bytes come from.
#[derive(Debug, Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    /// From a client that speaks HTTP/1.1.
    Http1(Incoming),
    /// From a client that speaks HTTP/2, and may not be silent for ever.
    Http2(RecvStream, Option<Stall>),
    /// From a server that speaks HTTP/1.1.
    Answer1(Box<Answer1>),
    /// From a server that speaks HTTP/2.
    Answer2(Box<Answer2>),
    /// What a server says on a connection that has switched.
    Socket(Box<Socket>),
    /// Some of it was read before it goes on.
    Begun(Box<Begun>),
    /// A request's, which may be sent again.
    Replay(Box<ReplayBody<Body, Held>>),
    /// A request's, of which a copy is made on the way.
    Tee(Box<Tee<Body>>),
    /// That copy.
    Copy(Box<Copy>),
    /// An answer's, which ends in time.
    Timed(Box<Timed<Body>>),
    /// Of gRPC-Web, as gRPC has it.
    Decoded(Box<Decoded<Body>>),
    /// Of gRPC, as gRPC-Web has it.
    Encoded(Box<Encoded<Body>>),
}

/// A body of which some was read.
#[derive(Debug)]
struct Begun {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    rest: Kind,
}

/// The beginning of a body.
#[derive(Debug)]
pub(super) struct Beginning {
    /// Its bytes; more than were asked for where they came together.
    pub(super) bytes: Bytes,
    /// There are no more, and not more than were asked for.
    pub(super) whole: bool,
}

/// Who is told of its bytes and of its end.
#[derive(Debug, Default)]
enum Tail {
    #[default]
    Nobody,
    /// A request's.
    Upload(UploadEnd),
    /// An answer's: the exchange ends with it.
    Exchange(Box<Exchange>),
}

impl Body {
    /// No body.
    pub(in crate::proxy) fn empty() -> Self {
        Self::default()
    }

    /// These bytes.
    pub(in crate::proxy) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(Kind::Full(bytes.into()))
    }

    pub(super) fn http1(incoming: Incoming) -> Self {
        Self::of(Kind::Http1(incoming))
    }

    /// `silence`: how long nothing of it may come while it is waited for.
    pub(super) fn http2(receive: RecvStream, silence: Option<Duration>) -> Self {
        Self::of(Kind::Http2(receive, silence.map(Stall::new)))
    }

    pub(super) fn answer1(answer: Answer1) -> Self {
        Self::of(Kind::Answer1(Box::new(answer)))
    }

    pub(super) fn answer2(answer: Answer2) -> Self {
        Self::of(Kind::Answer2(Box::new(answer)))
    }

    pub(super) fn socket(socket: Socket) -> Self {
        Self::of(Kind::Socket(Box::new(socket)))
    }

    pub(super) fn replay(body: ReplayBody<Self, Held>) -> Self {
        Self::of(Kind::Replay(Box::new(body)))
    }

    pub(super) fn tee(body: Tee<Self>) -> Self {
        Self::of(Kind::Tee(Box::new(body)))
    }

    pub(super) fn copy(body: Copy) -> Self {
        Self::of(Kind::Copy(Box::new(body)))
    }

    pub(super) fn timed(body: Timed<Self>) -> Self {
        Self::of(Kind::Timed(Box::new(body)))
    }

    pub(super) fn decoded(body: Decoded<Self>) -> Self {
        Self::of(Kind::Decoded(Box::new(body)))
    }

    pub(super) fn encoded(body: Encoded<Self>) -> Self {
        Self::of(Kind::Encoded(Box::new(body)))
    }

    fn of(kind: Kind) -> Self {
        Self {
            kind,
            tail: Tail::Nobody,
        }
    }

    /// The exchange ends with this body, however that ends.
    pub(super) fn ending(mut self, exchange: Box<Exchange>) -> Self {
        if self.is_end_stream() {
            exchange.end();
            return Self::empty();
        }
        self.tail = Tail::Exchange(exchange);
        self
    }

    /// Counts what is taken of it from now on. `None` where there is nothing to count.
    pub(super) fn counted(&mut self) -> Option<Arc<Upload>> {
        if self.is_end_stream() {
            return None;
        }
        let upload = Arc::new(Upload::default());
        self.tail = Tail::Upload(UploadEnd::of(&upload));
        Some(upload)
    }

    /// The count that was begun for it, or a new one.
    pub(super) fn upload(&mut self) -> Option<Arc<Upload>> {
        match &self.tail {
            Tail::Upload(end) => Some(Arc::clone(end.upload())),
            Tail::Nobody | Tail::Exchange(_) => self.counted(),
        }
    }

    /// Reads until there are more bytes than `most`, or no more. The body still has them.
    /// Not cancel safe: a body that was not read to the end of this is of no use.
    pub(super) async fn begin(&mut self, most: usize) -> Result<Beginning, BodyError> {
        let mut read = BytesMut::new();
        let mut trailers = None;
        while read.len() <= most {
            let frame = std::future::poll_fn(|cx| self.poll_kind(cx)).await;
            let Some(frame) = frame.transpose()? else {
                break;
            };
            match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let bytes = read.freeze();
        let rest = std::mem::take(&mut self.kind);
        let whole = bytes.len() <= most;
        self.kind = Kind::Begun(Box::new(Begun {
            bytes: bytes.clone(),
            trailers,
            rest,
        }));
        Ok(Beginning { bytes, whole })
    }

    /// What the exchange's guard has to say, where it may have something.
    fn poll_news(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match &self.tail {
            Tail::Exchange(exchange) if exchange.guard.has_news() => self.poll_revoked(cx),
            Tail::Nobody | Tail::Upload(_) | Tail::Exchange(_) => Poll::Pending,
        }
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        match &mut self.tail {
            Tail::Exchange(exchange) => exchange.guard.poll(cx).map(BodyError::Revoked),
            Tail::Nobody | Tail::Upload(_) => Poll::Pending,
        }
    }

    /// Is ready once it ends though nobody asks for its next frame, which says why.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Tail::Exchange(exchange) = &mut self.tail
            && exchange.guard.poll_due(cx).is_ready()
        {
            return Poll::Ready(());
        }
        match &mut self.kind {
            Kind::Timed(body) => body.poll_deadline(cx),
            Kind::Encoded(body) => body.inner().poll_over(cx),
            _ => Poll::Pending,
        }
    }

    /// Its end needs room at the peer's, as anything else of it does.
    pub(super) fn ends_with_data(&self) -> bool {
        matches!(self.kind, Kind::Encoded(_))
    }

    /// Ends it without what is left of it, and says why: it is over, or else the peer that
    /// it goes to is too slow.
    pub(super) fn break_off(&mut self, slow: Option<TimedOut>) -> BodyError {
        let mut cx = Context::from_waker(Waker::noop());
        let error = match self.poll_revoked(&mut cx) {
            Poll::Ready(revoked) => revoked,
            Poll::Pending => {
                let late = self.kind.late().or(slow);
                BodyError::Late(late.unwrap_or(TimedOut::Idle(Duration::ZERO)))
            }
        };
        if let Tail::Exchange(mut exchange) = std::mem::take(&mut self.tail) {
            exchange.broken(&error);
            exchange.end();
        }
        self.kind = Kind::Empty;
        error
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.kind = Kind::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Http1(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1)))
            }
            Kind::Http2(receive, stall) => {
                let polled = poll_h2(receive, cx);
                let Some(stall) = stall else {
                    return polled;
                };
                if polled.is_ready() {
                    stall.moved();
                    return polled;
                }
                Poll::Ready(Some(Err(ready!(stall.poll(cx)).into())))
            }
            Kind::Answer1(answer) => answer.poll_frame(cx),
            Kind::Answer2(answer) => poll_h2(answer.receive(), cx),
            Kind::Socket(socket) => socket.poll_frame(cx),
            Kind::Begun(begun) => {
                let bytes = std::mem::take(&mut begun.bytes);
                if !bytes.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                if let Some(trailers) = begun.trailers.take() {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                self.kind = std::mem::take(&mut begun.rest);
                self.poll_kind(cx)
            }
            Kind::Replay(body) => Pin::new(body).poll_frame(cx),
            Kind::Tee(body) => Pin::new(body).poll_frame(cx),
            Kind::Copy(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::FellBehind),
            Kind::Timed(body) => Pin::new(body).poll_frame(cx),
            Kind::Decoded(body) => Pin::new(body).poll_frame(cx),
            Kind::Encoded(body) => Pin::new(body).poll_frame(cx),
        }
    }
}

impl Kind {
    /// It is an answer whose deadline has passed.
    fn late(&mut self) -> Option<TimedOut> {
        match self {
            Self::Timed(body) => body.late(),
            Self::Encoded(body) => body.inner().kind.late(),
            _ => None,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2(receive, _) => receive.is_end_stream(),
            Self::Answer1(answer) => answer.is_end_stream(),
            Self::Answer2(answer) => answer.is_end_stream(),
            Self::Socket(socket) => socket.is_end_stream(),
            Self::Replay(body) => body.is_end_stream(),
            Self::Tee(body) => body.is_end_stream(),
            Self::Copy(body) => body.is_end_stream(),
            Self::Timed(body) => body.is_end_stream(),
            Self::Decoded(body) => body.is_end_stream(),
            Self::Encoded(body) => body.is_end_stream(),
            Self::Begun(begun) => {
                begun.bytes.is_empty() && begun.trailers.is_none() && begun.rest.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(incoming) => incoming.size_hint(),
            Self::Answer1(answer) => answer.size_hint(),
            Self::Replay(body) => body.size_hint(),
            Self::Tee(body) => body.size_hint(),
            Self::Copy(body) => body.size_hint(),
            Self::Timed(body) => body.size_hint(),
            Self::Decoded(body) => body.size_hint(),
            Self::Encoded(body) => body.size_hint(),
            Self::Http2(..) | Self::Answer2(_) | Self::Socket(_) => SizeHint::default(),
            Self::Begun(begun) => {
                let read = begun.bytes.len() as u64;
                let mut hint = begun.rest.size_hint();
                if let Some(upper) = hint.upper() {
                    hint.set_upper(upper + read);
                }
                hint.set_lower(hint.lower() + read);
                hint
            }
        }
    }
}

/// The next frame of a stream. What was taken makes room for as much at once: whoever polls
/// a body has a place for it.
fn poll_h2(
    receive: &mut RecvStream,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    match ready!(receive.poll_data(cx)) {
        Some(Ok(bytes)) => {
            // Fails only for more than was received.
            let _done = receive.flow_control().release_capacity(bytes.len());
            Poll::Ready(Some(Ok(Frame::data(bytes))))
        }
        // Also where the peer calls it NO_ERROR: that follows an end (RFC 9113, section 8.1), and
        // one that came is told before it.
        Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
        None => {
            let trailers: Result<Option<HeaderMap>, _> = ready!(receive.poll_trailers(cx));
            let frame = trailers.map(|trailers| trailers.map(Frame::trailers));
            Poll::Ready(frame.map_err(BodyError::Http2).transpose())
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Tail::Upload(end) = &this.tail {
            ready!(end.upload().poll_held(cx));
        }
        let polled = match this.poll_news(cx) {
            Poll::Ready(revoked) => Some(Err(revoked)),
            Poll::Pending => match this.poll_kind(cx) {
                Poll::Ready(polled) => polled,
                Poll::Pending => Some(Err(ready!(this.poll_revoked(cx)))),
            },
        };
        match (&mut this.tail, &polled) {
            (Tail::Upload(end), Some(Ok(frame))) => {
                let count = frame.data_ref().map_or(0, Bytes::len) as u64;
                end.upload().took(count);
            }
            (Tail::Exchange(exchange), Some(Ok(frame))) => {
                exchange.received(frame);
            }
            (Tail::Exchange(exchange), Some(Err(error))) => exchange.broken(error),
            (Tail::Nobody | Tail::Upload(_) | Tail::Exchange(_), _) => {}
        }
        let over = match &polled {
            None | Some(Err(_)) => true,
            Some(Ok(frame)) => frame.is_trailers() || this.is_end_stream(),
        };
        if over && let Tail::Exchange(exchange) = std::mem::take(&mut this.tail) {
            exchange.end();
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}
