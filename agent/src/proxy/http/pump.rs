//! A body into a stream of HTTP/2.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::body::{Body, BodyError};

/// Copies a body into a stream, as far as the peer takes it.
#[derive(Debug)]
pub(super) struct Pump {
    body: Body,
    send: SendStream<Bytes>,
    /// Of the body, waiting for the peer's window.
    chunk: Bytes,
    of: Of,
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
        }
    }

    /// Copies on. A body that breaks off resets the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            let given = match self.poll_give(cx)? {
                Poll::Ready(given) => given,
                Poll::Pending => {
                    ready!(self.body.poll_over(cx));
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
                Some(Err(error)) => {
                    let reason = match (self.of, error.h2_reason()) {
                        (Of::Answer, Reason::NO_ERROR | Reason::CANCEL) => Reason::INTERNAL_ERROR,
                        (Of::Request, Reason::NO_ERROR) => Reason::CANCEL,
                        (_, reason) => reason,
                    };
                    self.send.send_reset(reason);
                    return Poll::Ready(Err(Stopped::Source(error)));
                }
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

    /// Gives what was read; whether that was the end.
    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Stopped>> {
        while !self.chunk.is_empty() {
            self.send.reserve_capacity(self.chunk.len());
            let room = match self.send.capacity() {
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
    use std::time::Duration;

    use http::{Request, Response};
    use tokio::time::{Instant, timeout};

    use super::{Body, BodyError, Of, Pump, Stopped};
    use crate::proxy::http::deadline::Deadline;
    use crate::proxy::http::timed::Timed;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_holds_though_the_peer_makes_no_room() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
        let _client = tokio::spawn(connection);
        let mut server = h2::server::handshake(far).await.unwrap();
        let request = Request::get("http://a/").body(()).unwrap();
        let (_answer, _upload) = requests.send_request(request, true).unwrap();
        let (_request, mut respond) = server.accept().await.unwrap().unwrap();
        let _server = tokio::spawn(async move { while server.accept().await.is_some() {} });
        let send = respond.send_response(Response::new(()), false).unwrap();

        let limit = Duration::from_secs(1);
        let deadline = Deadline::after(limit, Instant::now());
        let body = Body::full(vec![0; 200_000]);
        let body = Body::timed(Timed::new(body, deadline, None, false).unwrap());
        let mut pump = Pump::new(Of::Answer, body, send);
        let pumped = timeout(10 * limit, poll_fn(|cx| pump.poll(cx))).await;
        let stopped = pumped.expect("an end").unwrap_err();
        assert!(
            matches!(stopped, Stopped::Source(BodyError::Late(_))),
            "{stopped:?}"
        );
    }
}
