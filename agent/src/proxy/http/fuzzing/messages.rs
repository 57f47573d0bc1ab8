//! Heads and bodies of messages.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, TE, UPGRADE};
use http::{HeaderMap, Method, Request, Version};
use http_body::{Body, Frame};

use super::super::external::fuzzing as services;
use super::super::filter::grpc_web::{Decoded, Encoded, Encoding, NotBase64};
use super::super::{headers as heads, upstream};

/// Headers that are for one connection, and never go on to the next.
const HOP_BY_HOP: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

/// Whatever head comes, what goes on has one host, which is the client's, and nothing that
/// was for the client's connection. The first byte is the version, the first line method
/// and target; each further line is a header.
pub(crate) fn headers(data: &[u8]) {
    let Some(mut parts) = head(data) else {
        return;
    };
    let named = options(&parts.headers);
    let asked = heads::host(&parts).to_ascii_lowercase();
    if heads::receive(&mut parts).is_err() {
        return;
    }
    let host = heads::host(&parts).to_ascii_lowercase();
    if !asked.is_empty() {
        assert_eq!(host, asked);
    }
    let upgrade = heads::wants_upgrade(&parts);
    for version in [upstream::Version::Http1, upstream::Version::Http2] {
        let mut sent = parts.clone();
        if heads::send(&mut sent, version, false).is_err() {
            continue;
        }
        let hosts: Vec<&HeaderValue> = sent.headers.get_all(HOST).iter().collect();
        if parts.method != Method::CONNECT {
            assert_eq!(heads::host(&sent).to_ascii_lowercase(), host);
            let in_headers = usize::from(version == upstream::Version::Http1);
            assert_eq!(hosts.len(), in_headers, "{sent:?}");
        }
        for name in HOP_BY_HOP {
            assert!(!sent.headers.contains_key(name), "{name}: {sent:?}");
        }
        let te: Vec<&HeaderValue> = sent.headers.get_all(TE).iter().collect();
        assert!(te.is_empty() || te == ["trailers"], "{sent:?}");
        let lists = |name: &HeaderName| named.contains(name);
        let kept = |name: &HeaderName| {
            let framing = ["host", "content-length", "transfer-encoding", "te"];
            framing.contains(&name.as_str()) || (upgrade && *name == UPGRADE)
        };
        let passed = sent.headers.keys().find(|name| lists(name) && !kept(name));
        assert!(passed.is_none(), "{passed:?}: {sent:?}");
        let connection = sent.headers.get_all(CONNECTION).iter();
        let connection: Vec<&HeaderValue> = connection.collect();
        assert!(
            connection.is_empty() || (upgrade && connection == ["upgrade"]),
            "{sent:?}"
        );
        assert_eq!(sent.headers.contains_key(UPGRADE), upgrade, "{sent:?}");
    }
}

/// The headers that `connection` names.
fn options(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter();
    let options = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let options = options.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok());
    options.filter(|name| *name != CONNECTION).collect()
}

fn head(data: &[u8]) -> Option<http::request::Parts> {
    let (version, text) = data.split_first()?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let mut request = Request::builder()
        .version(match version {
            b'0' => Version::HTTP_10,
            b'2' => Version::HTTP_2,
            _ => Version::HTTP_11,
        })
        .method(first.next()?)
        .uri(first.next()?);
    for line in lines {
        let mut field = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(field.next()?).ok()?;
        let value = HeaderValue::from_bytes(field.next()?.trim_ascii()).ok()?;
        request = request.header(name, value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

/// Pieces of a body.
struct Pieces(std::vec::IntoIter<Frame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = NotBase64;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, NotBase64>>> {
        Poll::Ready(self.0.next().map(Ok))
    }
}

impl Pieces {
    /// Cut where the first byte says, again and again.
    fn of(cut: u8, bytes: &[u8], trailers: Option<HeaderMap>) -> Self {
        let pieces = bytes.chunks(usize::from(cut % 61) + 1);
        let frames = pieces.map(|piece| Frame::data(Bytes::copy_from_slice(piece)));
        let frames = frames.chain(trailers.map(Frame::trailers));
        Self(frames.collect::<Vec<_>>().into_iter())
    }
}

/// All bytes of a body that never waits.
fn collect<B: Body<Data = Bytes, Error = NotBase64> + Unpin>(
    mut body: B,
) -> Result<Vec<u8>, NotBase64> {
    let mut whole = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        match Pin::new(&mut body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                whole.extend_from_slice(&frame.into_data().expect("gRPC-Web has no trailers"));
            }
            Poll::Ready(Some(Err(error))) => return Err(error),
            Poll::Ready(None) => return Ok(whole),
            Poll::Pending => panic!("it waits for nothing"),
        }
    }
}

/// Text of gRPC-Web is read as it was written, however it is cut; what was written as bytes
/// ends with one message that has the trailers.
pub(crate) fn grpc_web(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else {
        return;
    };
    let whole = collect(Decoded::new(Pieces::of(60, bytes, None)));
    let decoded = collect(Decoded::new(Pieces::of(*cut, bytes, None)));
    assert_eq!(decoded, whole, "cut otherwise");
    if let Ok(plain) = STANDARD.decode(bytes) {
        assert_eq!(decoded, Ok(plain), "base64 of one piece");
    }
    if let Ok(decoded) = &decoded {
        assert!(bytes.len() % 4 == 0 && decoded.len() <= bytes.len() / 4 * 3);
    }
    let trailers = HeaderMap::from_iter([(
        HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]);
    let pieces = || Pieces::of(*cut, bytes, Some(trailers.clone()));
    let binary = collect(Encoded::new(pieces(), Encoding::Binary));
    let binary = binary.expect("bytes are not decoded");
    assert_eq!(
        binary.strip_prefix(bytes),
        Some(&b"\x80\0\0\0\x10grpc-status: 0\r\n"[..])
    );
    let text = collect(Encoded::new(pieces(), Encoding::Text));
    let text = text.expect("bytes are not decoded");
    let back = collect(Decoded::new(Pieces::of(*cut, &text, None)));
    assert_eq!(back, Ok(binary), "there and back");
}

/// Whoever is asked about a request changes nothing that frames it or its answer. The first
/// byte says who is asked.
pub(crate) fn external(data: &[u8]) {
    let Some((kind, message)) = data.split_first() else {
        return;
    };
    if kind % 2 == 1 {
        services::rate_limit(message);
        return;
    }
    services::authorization(message);
}
