//! One connection of HTTP/1.1 to a server. It has no task: whoever waits for the answer
//! drives it.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::{Exit, Failed, Sent, Upstreams, Why};
use crate::proxy::http::body::{Body, BodyError};
use crate::proxy::http::io::{Io, Meter};
use crate::proxy::http::upload::Upload;
use crate::proxy::reach::Reached;
use crate::proxy::tunnel::Under;

/// How long a body waits for word of the server.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(1);

/// One connection.
#[derive(Debug)]
pub(in crate::proxy::http) struct Http1 {
    to: Reached,
    sender: SendRequest<Body>,
    /// `None`: it has ended, and whoever waits for an answer was told.
    connection: Option<Connection<TokioIo<Io>, Body>>,
    meter: Arc<Meter>,
    under: Option<Under>,
    /// How long it is kept, where its Service says so.
    idle: Option<Duration>,
    /// It may not be polled any more.
    over: bool,
    idle_since: Instant,
}

impl Http1 {
    /// On a stream that nothing was said on yet.
    pub(super) async fn open(to: Reached, mut io: Io) -> Result<Box<Self>, hyper::Error> {
        let (meter, under, idle) = (io.meter(), io.under(), io.idle());
        let mut builder = Builder::new();
        let _same = builder.preserve_header_case(true);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await?;
        Ok(Box::new(Self {
            to,
            sender,
            connection: Some(connection),
            meter,
            under,
            idle,
            over: false,
            idle_since: Instant::now(),
        }))
    }

    /// The server.
    pub(super) fn to(&self) -> &Reached {
        &self.to
    }

    /// It may be used still: not idle for too long, not closed by the server.
    pub(super) fn is_usable(&mut self, now: Instant, limit: Duration) -> bool {
        // A server that has closed it, or speaks out of turn, is found by one look.
        self.drive(&mut Context::from_waker(Waker::noop()));
        let current = self.under.as_ref().is_none_or(Under::is_current);
        let limit = self.idle.unwrap_or(limit);
        let fresh = now.duration_since(self.idle_since) < limit;
        current && fresh && !self.over && self.sender.is_ready()
    }

    /// Reads and writes what there is.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && !self.over
        {
            // Why it ended is for the request to be told, if there is one.
            self.over = Pin::new(connection).poll(cx).is_ready();
        }
    }

    /// Sends the request and waits for the head of its answer.
    pub(super) async fn send(
        mut self: Box<Self>,
        mut request: Request<Body>,
        exit: &Exit<'_>,
    ) -> Result<Sent, Failed> {
        let upload = request.body_mut().upload();
        let asked = upload.as_ref().filter(|_| asks_first(&request));
        let mut asked = asked.map(|upload| Asked::on(Arc::clone(upload), &mut request));
        let is_connect = request.method() == Method::CONNECT;
        let before = self.meter.moved().outward;
        let mut answer = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            self.drive(cx);
            if let Some(asked) = &mut asked {
                asked.poll(cx);
            }
            let polled = answer.as_mut().poll(cx);
            if polled.is_pending() && self.over {
                // Its drop tells that there will be none.
                drop(self.connection.take());
                return answer.as_mut().poll(cx);
            }
            polled
        });
        let response = match answered.await {
            Ok(response) => response,
            Err(mut error) => {
                let request = error.take_message().map(Box::new);
                let silent = self.meter.moved().outward == before;
                let why = why(error.into_error(), silent);
                return Err(Failed { why, request });
            }
        };
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || (is_connect && response.status().is_success());
        if upgraded {
            return self.upgrade(response).await;
        }
        let uploading = upload.is_some_and(|upload| !upload.is_over());
        let response = response.map(|incoming| {
            Body::answer1(Answer1 {
                incoming,
                drive: if uploading {
                    Drive::Task(self.detach(exit))
                } else {
                    Drive::Own(self, Arc::clone(exit.upstreams))
                },
            })
        });
        let upgrade = None;
        Ok(Sent { response, upgrade })
    }

    /// The server has agreed to speak something else from here on.
    async fn upgrade(mut self: Box<Self>, response: Response<Incoming>) -> Result<Sent, Failed> {
        poll_fn(|cx| {
            self.drive(cx);
            if self.over {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let Some(connection) = self.connection.take() else {
            let (why, request) = (Why::Closed { silent: false }, None);
            return Err(Failed { why, request });
        };
        let parts = connection.into_parts();
        Ok(Sent {
            response: response.map(|_nothing| Body::empty()),
            upgrade: Some((parts.io.into_inner(), parts.read_buf)),
        })
    }

    /// The answer has begun before the request's body has ended: both go on, whichever is
    /// waited for.
    fn detach(self, exit: &Exit<'_>) -> oneshot::Sender<Infallible> {
        let Self {
            connection, sender, ..
        } = self;
        let (guard, mut dropped) = oneshot::channel();
        exit.tasks.spawn(async move {
            if let Some(connection) = connection {
                tokio::select! {
                    biased;
                    _dropped = &mut dropped => {}
                    ended = connection => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, "an upstream connection ended");
                        }
                    }
                }
            }
            drop(sender);
        });
        guard
    }
}

/// The client waits for word before it sends its body.
fn asks_first(request: &Request<Body>) -> bool {
    let expect = request.headers().get(EXPECT);
    expect.is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// A request whose body waits for word of the server, but not for ever: there are servers
/// that never give it.
#[derive(Debug)]
struct Asked {
    upload: Arc<Upload>,
    /// `None`: it has been waited long enough.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Asked {
    fn on(upload: Arc<Upload>, request: &mut Request<Body>) -> Self {
        upload.hold();
        let told = Arc::clone(&upload);
        on_informational(request, move |head| {
            if head.status() == StatusCode::CONTINUE {
                told.release();
            }
        });
        Self {
            upload,
            patience: Some(Box::pin(tokio::time::sleep(CONTINUE_PATIENCE))),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        let patience = self.patience.as_mut();
        if patience.is_some_and(|patience| patience.as_mut().poll(cx).is_ready()) {
            self.patience = None;
            self.upload.release();
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(in crate::proxy::http) struct Answer1 {
    incoming: Incoming,
    drive: Drive,
}

/// Who drives its connection.
#[derive(Debug)]
enum Drive {
    /// This body, which gives it back when it has ended.
    Own(Box<Http1>, Arc<Upstreams>),
    /// A task, which ends with this.
    Task(#[expect(dead_code, reason = "its drop tells the task")] oneshot::Sender<Infallible>),
    /// The body has ended.
    Over,
}

impl Answer1 {
    pub(in crate::proxy::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Drive::Own(connection, _) = &mut self.drive {
                    connection.drive(cx);
                }
                ready!(Pin::new(&mut self.incoming).poll_frame(cx))
            }
        };
        match &frame {
            Some(Err(_)) => self.drive = Drive::Over,
            None => self.finish(cx),
            Some(Ok(_)) if self.incoming.is_end_stream() => self.finish(cx),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1)))
    }

    /// The answer has ended: the next request may come.
    fn finish(&mut self, cx: &mut Context<'_>) {
        if let Drive::Own(mut connection, home) = std::mem::replace(&mut self.drive, Drive::Over) {
            connection.drive(cx);
            if !connection.over && connection.sender.is_ready() {
                connection.idle_since = Instant::now();
                home.put_back(connection);
            }
        }
    }

    pub(in crate::proxy::http) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub(in crate::proxy::http) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Answer1 {
    fn drop(&mut self) {
        // An answer without a body is never polled.
        if self.incoming.is_end_stream() {
            self.finish(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// What it means that there is no answer. Of all that can go wrong only the request's body
/// is the client's.
fn why(error: hyper::Error, silent: bool) -> Why {
    let of_body = error.source().and_then(|it| it.downcast_ref());
    match (of_body, error.is_parse()) {
        (Some(error), _) => Why::of_body(error),
        (None, true) => Why::Reset(error.into()),
        (None, false) => Why::Closed { silent },
    }
}
