//! A WebSocket of a client of HTTP/2 (RFC 8441) with a server that speaks HTTP/1.1, or HTTP/2
//! too.
//!
//! ```text
//! client ─ CONNECT, :protocol websocket ─► GET, upgrade: websocket ─┬─ HTTP/1.1: the same, 101
//!          its stream is the body of both  as all rules see it      └─ HTTP/2: CONNECT again, 200
//! ```

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio_util::io::poll_read_buf;

use super::{Failed, Sent, Why};
use crate::proxy::http::body::{Body, BodyError};
use crate::proxy::http::io::Io;
use crate::proxy::tasks::Tasks;

/// What a server adds to the key before it hashes it (RFC 6455, section 1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Read at a time.
const CHUNK: usize = 16 << 10;

/// The client's side, while a server of HTTP/1.1 is asked.
#[derive(Debug)]
pub(super) struct Client {
    stream: Body,
    /// What the server must say that has understood the question.
    accept: String,
}

/// The server's side, as the body of an answer.
#[derive(Debug)]
pub(in crate::proxy::http) struct Socket {
    /// Read of it already.
    first: Bytes,
    /// `None`: it has ended.
    read: Option<ReadHalf<Io>>,
    buffer: BytesMut,
    /// Tells whoever writes that the server has ended, or by its drop that the client has.
    ended: Option<oneshot::Sender<()>>,
}

/// The request as a server of HTTP/2 wants it.
pub(super) fn to_http2(request: &mut Request<Body>) {
    *request.method_mut() = Method::CONNECT;
    for name in [CONNECTION, UPGRADE] {
        let _before = request.headers_mut().remove(name);
    }
}

impl Client {
    /// Makes the request what a server of HTTP/1.1 wants, and keeps the stream that is to be
    /// joined to it.
    pub(super) fn take(request: &mut Request<Body>) -> Self {
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let mut hashed = key.clone();
        hashed.push_str(GUID);
        let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, hashed.as_bytes());
        if let Ok(key) = HeaderValue::try_from(key) {
            let _before = request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
        }
        Self {
            stream: std::mem::take(request.body_mut()),
            accept: STANDARD.encode(hash),
        }
    }

    /// Nobody has seen the request: it is again what it was.
    pub(super) fn give_back(self, request: &mut Request<Body>) {
        *request.body_mut() = self.stream;
    }

    /// Joins the two ends, if the server has switched. An answer in which it refuses is the
    /// client's; one that looks like a success and is none is not.
    pub(super) fn join(self, sent: Sent, tasks: &Tasks) -> Result<Sent, Failed> {
        let (mut response, upgrade) = (sent.response, sent.upgrade);
        let status = response.status();
        let refused = || Failed {
            why: Why::Unsupported,
            request: None,
        };
        let Some((io, first)) = upgrade else {
            let is_refusal = !status.is_success();
            return is_refusal
                .then(|| Sent::whole(response))
                .ok_or_else(refused);
        };
        let headers = response.headers_mut();
        let accept = headers.remove(SEC_WEBSOCKET_ACCEPT);
        if accept.is_none_or(|accept| accept.as_bytes() != self.accept.as_bytes()) {
            return Err(refused());
        }
        for name in [CONNECTION, UPGRADE, CONTENT_LENGTH, TRANSFER_ENCODING] {
            let _before = headers.remove(name);
        }
        *response.status_mut() = StatusCode::OK;
        let (read, write) = tokio::io::split(io);
        let (ended, over) = oneshot::channel();
        tasks.spawn(upload(self.stream, write, over));
        let socket = Socket {
            first,
            read: Some(read),
            buffer: BytesMut::new(),
            ended: Some(ended),
        };
        Ok(Sent::whole(response.map(|_nothing| Body::socket(socket))))
    }
}

/// Writes what the client says, until either end is over.
async fn upload(mut stream: Body, mut write: WriteHalf<Io>, mut over: oneshot::Receiver<()>) {
    let written = async {
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            write.write_all(&data).await.map_err(BodyError::Socket)?;
        }
        Ok::<_, BodyError>(())
    };
    let at_end = tokio::select! {
        biased;
        ended = &mut over => ended.is_ok(),
        written = written => written.is_ok(),
    };
    // What is not shut down is reset.
    if at_end && let Err(error) = write.shutdown().await {
        tracing::debug!(%error, "a WebSocket was not closed in order");
    }
}

impl Socket {
    pub(in crate::proxy::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(read) = &mut self.read else {
            return Poll::Ready(None);
        };
        self.buffer.reserve(CHUNK);
        let read = ready!(poll_read_buf(Pin::new(read), cx, &mut self.buffer));
        Poll::Ready(match read {
            Ok(0) => {
                self.read = None;
                if let Some(ended) = self.ended.take() {
                    // Whoever writes may have ended too.
                    let _told = ended.send(()).is_ok();
                }
                None
            }
            Ok(_) => Some(Ok(Frame::data(self.buffer.split().freeze()))),
            Err(error) => {
                self.read = None;
                Some(Err(BodyError::Socket(error)))
            }
        })
    }

    pub(in crate::proxy::http) fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.read.is_none()
    }
}
