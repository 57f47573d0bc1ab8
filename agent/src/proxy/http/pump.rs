//! A body into a stream of HTTP/2.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::body::{Body, BodyError};
use super::stall::Stall;
use super::timed::TimedOut;

/// The longest beginning of a body that is given without asking for room, in bytes. It is in
/// memory either way, and waits for the peer's window like anything else.
const FIRST: usize = 16 << 10;

/// Copies a body into a stream, as far as the peer takes it.
#[derive(Debug)]
pub(super) struct Pump {
    body: Body,
    send: SendStream<Bytes>,
    /// Of the body, waiting for the peer's window.
    chunk: Bytes,
    of: Of,
    /// Nothing of a request was given yet.
    first: bool,
    /// How long the peer may take nothing.
    stall: Option<Stall>,
}

/// Whose body it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// A client's, which may give it up.
    Request,
    /// A server's. There are clients that take what is cancelled for what has ended.
    Answer,
}

/// Why it was not copied to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// The body broke off.
    Source(BodyError),
    /// The peer takes no more.
    Sink(h2::Error),
}

impl Pump {
    pub(super) fn new(of: Of, body: Body, send: SendStream<Bytes>) -> Self {
        Self {
            body,
            send,
            chunk: Bytes::new(),
            of,
            first: of == Of::Request,
            stall: None,
        }
    }

    /// The same, which ends where the peer takes nothing for so long.
    pub(super) fn within(self, limit: Duration) -> Self {
        let stall = Some(Stall::new(limit));
        Self { stall, ..self }
    }

    /// Copies on. A body that breaks off resets the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            let given = match self.poll_give(cx)? {
                Poll::Ready(given) => given,
                Poll::Pending => {
                    let slow = ready!(self.poll_over(cx));
                    if slow.is_some() || self.body.ends_with_data() {
                        let error = self.body.break_off(slow);
                        return Poll::Ready(Err(self.stop(error)));
                    }
                    // It has no time left to wait for room.
                    self.chunk.clear();
                    false
                }
            };
            if given {
                return Poll::Ready(Ok(()));
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                // The peer may refuse more while there is nothing to be sent.
                return match self.send.poll_reset(cx) {
                    Poll::Ready(Ok(reason)) => Poll::Ready(Err(Stopped::Sink(reason.into()))),
                    Poll::Ready(Err(error)) => Poll::Ready(Err(Stopped::Sink(error))),
                    Poll::Pending => Poll::Pending,
                };
            };
            let frame = match frame {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(self.stop(error))),
                None => {
                    let sent = self.send.send_data(Bytes::new(), true);
                    return Poll::Ready(sent.map_err(Stopped::Sink));
                }
            };
            match frame.into_data() {
                Ok(data) => self.chunk = data,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let sent = self.send.send_trailers(trailers);
                    return Poll::Ready(sent.map_err(Stopped::Sink));
                }
            }
        }
    }

    /// There is no room: is ready once the body is over, or the peer too slow.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Option<TimedOut>> {
        if self.body.poll_over(cx).is_ready() {
            return Poll::Ready(None);
        }
        match &mut self.stall {
            Some(stall) => stall.poll(cx).map(Some),
            None => Poll::Pending,
        }
    }

    /// Resets the stream.
    fn stop(&mut self, error: BodyError) -> Stopped {
        let reason = match (self.of, error.h2_reason()) {
            (Of::Answer, Reason::NO_ERROR | Reason::CANCEL) => Reason::INTERNAL_ERROR,
            (Of::Request, Reason::NO_ERROR) => Reason::CANCEL,
            (_, reason) => reason,
        };
        self.send.send_reset(reason);
        Stopped::Source(error)
    }

    /// Gives what was read; whether that was the end.
    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        while !self.chunk.is_empty() {
            self.send.reserve_capacity(self.chunk.len());
            let first = std::mem::take(&mut self.first);
            let room = match self.send.capacity() {
                // A request's has none before its head was sent, with which this goes.
                0 if first && self.chunk.len() <= FIRST => self.chunk.len(),
                0 => match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(room)) => room,
                    Some(Err(error)) => return Poll::Ready(Err(Stopped::Sink(error))),
                    None => {
                        let error = Reason::CANCEL.into();
                        return Poll::Ready(Err(Stopped::Sink(error)));
                    }
                },
                room => room,
            };
            let piece = self.chunk.split_to(room.min(self.chunk.len()));
            let last = self.chunk.is_empty() && self.body.is_end_stream();
            let sent = self.send.send_data(piece, last);
            sent.map_err(Stopped::Sink)?;
            if let Some(stall) = &mut self.stall {
                stall.moved();
            }
            if last {
                return Poll::Ready(Ok(true));
            }
        }
        Poll::Ready(Ok(false))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, Response};
    use tokio::io::{AsyncReadExt as _, DuplexStream};
    use tokio::time::{Instant, timeout};

    use super::{Body, BodyError, Of, Pump, Stopped, TimedOut};
    use crate::proxy::cork::Cork;
    use crate::proxy::http::deadline::Deadline;
    use crate::proxy::http::filter::grpc_web::{Encoded, Encoding};
    use crate::proxy::http::timed::Timed;

    const LIMIT: Duration = Duration::from_secs(1);
    /// That of a peer that says nothing of it.
    const WINDOW: u32 = 65_535;

    /// How a body ends whose peer makes no room for it, or for no more than so many bytes.
    async fn without_room(body: Body, window: u32) -> Stopped {
        let (near, far) = tokio::io::duplex(1 << 20);
        let mut client = h2::client::Builder::new();
        let client = client
            .initial_window_size(window)
            .handshake::<_, Bytes>(near);
        let (mut requests, connection) = client.await.unwrap();
        let _client = tokio::spawn(connection);
        let mut server = h2::server::handshake(far).await.unwrap();
        let request = Request::get("http://a/").body(()).unwrap();
        let (_answer, _upload) = requests.send_request(request, true).unwrap();
        let (_request, mut respond) = server.accept().await.unwrap().unwrap();
        let _server = tokio::spawn(async move { while server.accept().await.is_some() {} });
        let send = respond.send_response(Response::new(()), false).unwrap();
        let mut pump = Pump::new(Of::Answer, body, send).within(5 * LIMIT);
        let pumped = timeout(10 * LIMIT, poll_fn(|cx| pump.poll(cx))).await;
        pumped.expect("an end").unwrap_err()
    }

    fn timed(grpc: bool) -> Body {
        let deadline = Deadline::after(LIMIT, Instant::now());
        let body = Body::full(vec![0; 200_000]);
        Body::timed(Timed::new(body, deadline, None, grpc).unwrap())
    }

    #[track_caller]
    fn check(stopped: &Stopped, expected: TimedOut) {
        let late = matches!(stopped, Stopped::Source(BodyError::Late(late)) if *late == expected);
        assert!(late, "{stopped:?}");
    }

    /// What arrives together is what was written together: the memory between has room for
    /// all of it.
    async fn frames(peer: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = peer.read(&mut bytes).await.unwrap();
        let mut rest = &bytes[..count];
        let mut types = Vec::new();
        while let [a, b, c, kind, _, _, _, _, _, behind @ ..] = rest {
            types.push(*kind);
            let length = u32::from_be_bytes([0, *a, *b, *c]);
            rest = &behind[usize::try_from(length).unwrap()..];
        }
        types
    }

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;

    #[tokio::test]
    async fn a_call_leaves_in_one_write() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (cork, corked) = Cork::new(near);
        let (mut requests, connection) = h2::client::handshake(corked).await.unwrap();
        let _client = tokio::spawn(async move { cork.drive(connection).await });
        let mut preface = [0; 24];
        let _count = far.read_exact(&mut preface).await.unwrap();
        let _settings = frames(&mut far).await;
        let mut answers = Vec::new();
        // As for the first of a connection, so for all others: none has room before its head.
        for size in [14, 2000] {
            let request = Request::post("http://a/").body(()).unwrap();
            let (answer, send) = requests.send_request(request, false).unwrap();
            answers.push(answer);
            let mut pump = Pump::new(Of::Request, Body::full(vec![0; size]), send);
            let given = poll_fn(|cx| Poll::Ready(pump.poll(cx).is_ready())).await;
            assert!(given);
            assert_eq!(frames(&mut far).await, [HEADERS, DATA]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_holds_though_the_peer_makes_no_room() {
        check(
            &without_room(timed(false), WINDOW).await,
            TimedOut::Deadline(LIMIT),
        );
        // Its status would need room too.
        let web = Body::encoded(Encoded::new(timed(true), Encoding::Binary));
        check(&without_room(web, WINDOW).await, TimedOut::Deadline(LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_makes_no_room_is_not_waited_for_without_end() {
        for (size, window) in [(200_000, WINDOW), (100, 0)] {
            let body = Body::full(vec![0; size]);
            let stopped = without_room(body, window).await;
            check(&stopped, TimedOut::Idle(5 * LIMIT));
        }
    }
}
