//! A whole connection of HTTP/2, by bytes and by frames.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Method, Request, Response};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::server::{listen, within};
use crate::model::NodeName;
use crate::proxy::config::{Config, HttpConfig};
use crate::proxy::http::body::Body;
use crate::proxy::http::io::Io;
use crate::proxy::http::server::{Answer, Handler, http2};
use crate::proxy::reach::Stream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Small enough to be reached by few frames.
const STREAMS: u32 = 4;
const WINDOW: u32 = 64;
const HEADER_LIST: u32 = 512;

/// More than any answer of a frame or a request.
const LARGEST_ANSWER: usize = 128;

/// A field counts with so many bytes beside its own (RFC 9113, 6.5.2).
const OF_FIELD: usize = 32;

/// What a frame of the structured target may have in it: whole heads, fields in each form,
/// good and bad, settings and numbers.
const PIECES: [&[u8]; 24] = [
    b"\x82\x86\x84\x41\x01a",
    b"\x83\x86\x84\x41\x01a",
    b"\0\x07:method\x03PUT\x86\x84\x41\x01a",
    b"\0\x07:method\x04HEAD\x86\x84\x41\x01a",
    b"\0\x07:method\x07CONNECT\0\x09:protocol\x09websocket\x86\x84\x41\x01a",
    b"\x40\x01x\x01y",
    b"\xbe",
    b"\x0f\x0d\x014",
    b"\x5f\x10application/grpc",
    b"\0\x02te\x08trailers",
    b"\0\x0cgrpc-timeout\x021S",
    b"\0\x0aconnection\x05close",
    b"\0\x07:status\x03200",
    b"\0\x01X\x01y",
    b"\x00\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
    b"\x3f\xe1\x1f",
    b"\x20",
    b"\x80",
    b"\0\x01z\x7ezzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
    b"\0\x04\0\0\0\x01",
    b"\0\x04\x7f\xff\xff\xff",
    b"\0\x01\0\0\0\0",
    b"\0\0\0\x01",
    b"\x7f\xff\xff\xff",
];

/// A connection ends after its client's bytes, whatever they are; nothing that comes on it is
/// more than was granted.
pub(crate) fn http2_bytes(data: &[u8]) {
    within(serve(data));
}

/// The same of frames, each made of four bytes: type, flags, stream and what is in it, which
/// is pieces or bytes of its own.
pub(crate) fn http2_frames(data: &[u8]) {
    let mut bytes = frame(4, 0, 0, 0, b"");
    let mut rest = data;
    while let Some(([kind, flags, stream, shape], after)) = rest.split_first_chunk() {
        let (payload, after) = payload(*shape, after);
        // Beyond the known types, and one length in sixteen is a lie.
        let lie = usize::from(*kind >> 4 == 0xf);
        let stream = match stream {
            0xff => u32::MAX >> 1,
            0xfe => u32::MAX,
            stream => u32::from(stream & 0xf),
        };
        bytes.extend(frame(kind % 11, *flags, stream, lie, &payload));
        rest = after;
    }
    within(serve(&bytes));
}

/// The upper half of the shape is how many pieces there are; where there are none, the lower
/// half is how many bytes.
fn payload(shape: u8, rest: &[u8]) -> (Vec<u8>, &[u8]) {
    let (pieces, count) = (usize::from(shape >> 4), usize::from(shape & 0xf));
    let (taken, rest) = rest.split_at(if pieces > 0 { pieces } else { count }.min(rest.len()));
    if pieces == 0 {
        return (taken.to_vec(), rest);
    }
    let piece = |byte: &u8| PIECES[usize::from(*byte) % PIECES.len()];
    let mut payload: Vec<u8> = taken.iter().flat_map(piece).copied().collect();
    // Settings and numbers have no length of their own.
    payload.truncate(if count > 0 { count * 4 } else { usize::MAX });
    (payload, rest)
}

fn frame(kind: u8, flags: u8, stream: u32, lie: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + lie).unwrap_or(u32::MAX);
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

async fn serve(data: &[u8]) {
    let mut config = Config::recommended(NodeName("fuzz".into())).http;
    config.max_concurrent_streams = STREAMS;
    config.stream_window = WINDOW;
    config.header_list = HEADER_LIST;
    let front = listen().await;
    let near = front.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(near), front.accept());
    let (mut client, (accepted, _)) = client.ok().zip(accepted.ok()).expect("a connection");
    let (io, leaving) = (Io::new(Stream::Tcp(accepted)), CancellationToken::new());
    let handler = Arc::new(Trivial::new(&config));
    let serving = http2(io, Arc::clone(&handler), &leaving, &config);
    let asking = async move {
        let (mut read, mut write) = client.split();
        let mut heard = Vec::new();
        let say = async {
            // It may have heard enough.
            let _said = write.write_all(PREFACE).await;
            let _said = write.write_all(data).await;
            let _ended = write.shutdown().await;
        };
        let (_ended, ()) = tokio::join!(read.read_to_end(&mut heard), say);
        heard.len()
    };
    let (_outcome, heard) = tokio::join!(serving, asking);
    // No frame is shorter than its head.
    let most = LARGEST_ANSWER * (data.len() / 9 + 2);
    assert!(heard <= most, "{heard} bytes for {}", data.len());
    let served = handler.open.load(Ordering::Relaxed);
    assert_eq!(served, 0, "they go on after their connection");
}

/// Answers GET at once, others once it has their bodies, and PUT never.
struct Trivial {
    open: Arc<AtomicUsize>,
    most: usize,
}

/// A request that is served.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        let _before = self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Trivial {
    fn new(config: &HttpConfig) -> Self {
        Self {
            open: Arc::default(),
            // Those that were given up are still there until somebody looks.
            most: STREAMS as usize + config.pending_resets,
        }
    }
}

impl Handler for Trivial {
    async fn handle(&self, request: Request<Body>) -> Answer {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let _open = Open(Arc::clone(&self.open));
        assert!(before < self.most, "{before} at once");
        check(request.headers());
        let body = match *request.method() {
            Method::GET => Body::empty(),
            Method::PUT => pending().await,
            _ => match request.into_body().collect().await {
                Ok(whole) => {
                    whole.trailers().into_iter().for_each(check);
                    Body::full("taken")
                }
                Err(error) => Body::full(error.h2_reason().to_string()),
            },
        };
        Answer {
            response: Response::new(body),
            upgrade: None,
        }
    }
}

/// They are within the limit, and what they may be.
fn check(headers: &HeaderMap) {
    let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() + value.len() + OF_FIELD
    };
    let size: usize = headers.iter().map(size).sum();
    assert!(size <= HEADER_LIST as usize, "{size} bytes");
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive"] {
        assert!(!headers.contains_key(name), "{name}");
    }
}
