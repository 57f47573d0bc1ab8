//! gRPC-Web of browsers to gRPC, and back.
//!
//! By the protocol's PROTOCOL-WEB: the same length-prefixed messages, but trailers travel as
//! a last message whose flag has the highest bit, since a browser's script sees no trailers;
//! and as text everything is base64, with padding wherever the sender flushed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, request, response};
use http_body::{Body, Frame, SizeHint};

const BINARY: &str = "application/grpc-web";
const TEXT: &str = "application/grpc-web-text";
const GRPC: &str = "application/grpc";

/// The flag of the message that has the trailers.
const TRAILERS: u8 = 0x80;

/// The text of a request is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gRPC-Web text is not base64")]
pub(in crate::proxy) struct NotBase64;

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Encoding {
    Binary,
    Text,
}

/// A call of gRPC-Web, and how its answer is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Call {
    /// How the request's body comes.
    pub(in crate::proxy) request: Encoding,
    /// How the response's body goes.
    pub(in crate::proxy) response: Encoding,
}

/// Makes a gRPC request of one of gRPC-Web; `None` where it is none.
pub(in crate::proxy) fn translate_request(parts: &mut request::Parts) -> Option<Call> {
    let (request, suffix) = encoding(parts.headers.get(CONTENT_TYPE)?)?;
    let content_type = HeaderValue::try_from(format!("{GRPC}{suffix}")).ok()?;
    let accepted = parts.headers.get(ACCEPT).and_then(encoding);
    let response = accepted.map_or(request, |(encoding, _)| encoding);
    let _before = parts.headers.insert(CONTENT_TYPE, content_type);
    let _before = parts
        .headers
        .insert(TE, HeaderValue::from_static("trailers"));
    let _before = parts.headers.remove(CONTENT_LENGTH);
    parts.version = http::Version::HTTP_2;
    Some(Call { request, response })
}

impl Call {
    /// Makes the head of the response one of gRPC-Web; false where it is not of gRPC, such
    /// as an error page, which the client is to see as it is.
    pub(in crate::proxy) fn translate_response(&self, parts: &mut response::Parts) -> bool {
        let suffix = parts
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok()?.strip_prefix(GRPC));
        let Some(suffix) = suffix else {
            return false;
        };
        let kind = match self.response {
            Encoding::Binary => BINARY,
            Encoding::Text => TEXT,
        };
        if let Ok(value) = HeaderValue::try_from(format!("{kind}{suffix}")) {
            let _before = parts.headers.insert(CONTENT_TYPE, value);
        }
        let _before = parts.headers.remove(CONTENT_LENGTH);
        true
    }
}

/// The encoding that a content type names, and the rest of it, such as `+proto`.
fn encoding(value: &HeaderValue) -> Option<(Encoding, &str)> {
    let value = value.to_str().ok()?;
    let (encoding, rest) = match value.strip_prefix(TEXT) {
        Some(rest) => (Encoding::Text, rest),
        None => (Encoding::Binary, value.strip_prefix(BINARY)?),
    };
    (rest.is_empty() || rest.starts_with(['+', ';'])).then_some((encoding, rest))
}

/// The body of a request, decoded.
#[derive(Debug)]
pub(in crate::proxy) struct Decoded<B> {
    body: B,
    /// Characters of a group of four that is not complete yet.
    left: BytesMut,
    over: bool,
}

impl<B> Decoded<B> {
    /// Of a body in text.
    pub(in crate::proxy) fn new(body: B) -> Self {
        Self {
            body,
            left: BytesMut::new(),
            over: false,
        }
    }

    /// As many bytes as there are whole groups for.
    fn decode(&mut self, text: &[u8]) -> Result<Bytes, NotBase64> {
        self.left.extend_from_slice(text);
        let whole = self.left.len() / 4 * 4;
        let groups = self.left.split_to(whole);
        let mut decoded = Vec::with_capacity(whole / 4 * 3);
        // Padding ends a run of groups, and the next run begins right after it.
        let mut rest = &groups[..];
        while !rest.is_empty() {
            let padded = rest.iter().position(|&byte| byte == b'=');
            let end = padded.map_or(rest.len(), |at| (at / 4 + 1) * 4);
            let (run, after) = rest.split_at(end);
            let appended = STANDARD.decode_vec(run, &mut decoded);
            appended.map_err(|_invalid| NotBase64)?;
            rest = after;
        }
        Ok(decoded.into())
    }
}

impl<B> Body for Decoded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: From<NotBase64>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        while !this.over {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                None => {
                    this.over = true;
                    let cut = (!this.left.is_empty()).then(|| Err(NotBase64.into()));
                    return Poll::Ready(cut);
                }
                Some(frame) => frame?,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let decoded = this.decode(&data).inspect_err(|_broken| this.over = true)?;
            if !decoded.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(decoded))));
            }
        }
        Poll::Ready(None)
    }
}

/// The body of a response, with its trailers as a last message.
#[derive(Debug)]
pub(in crate::proxy) struct Encoded<B> {
    body: B,
    encoding: Encoding,
    over: bool,
}

impl<B> Encoded<B> {
    /// Of a gRPC response.
    pub(in crate::proxy) fn new(body: B, encoding: Encoding) -> Self {
        Self {
            body,
            encoding,
            over: false,
        }
    }

    /// The response itself.
    pub(in crate::proxy) fn inner(&mut self) -> &mut B {
        &mut self.body
    }

    fn encode(&self, bytes: Bytes) -> Bytes {
        match self.encoding {
            Encoding::Binary => bytes,
            Encoding::Text => STANDARD.encode(&bytes).into(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Encoded<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)?) else {
            self.over = true;
            return Poll::Ready(None);
        };
        let bytes = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                self.over = true;
                trailers(frame.trailers_ref().unwrap_or(&HeaderMap::new()))
            }
        };
        Poll::Ready(Some(Ok(Frame::data(self.encode(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.body.is_end_stream() {
            SizeHint::with_exact(0)
        } else {
            SizeHint::new()
        }
    }
}

/// The message that has the trailers, one line each.
fn trailers(trailers: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in trailers {
        lines.extend_from_slice(name.as_str().as_bytes());
        lines.extend_from_slice(b": ");
        lines.extend_from_slice(value.as_bytes());
        lines.extend_from_slice(b"\r\n");
    }
    let mut message = BytesMut::with_capacity(5 + lines.len());
    message.put_u8(TRAILERS);
    // Trailers are bounded by the limits of headers, far below this.
    message.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    message.extend_from_slice(&lines);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
    use http_body::{Body, Frame};
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_stream::iter;

    use super::{Call, Decoded, Encoded, Encoding, NotBase64, translate_request};

    fn frames(frames: Vec<Frame<Bytes>>) -> impl Body<Data = Bytes, Error = NotBase64> + Unpin {
        StreamBody::new(iter(frames.into_iter().map(Ok)))
    }

    fn data(text: &[u8]) -> Frame<Bytes> {
        Frame::data(Bytes::copy_from_slice(text))
    }

    #[track_caller]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "values are made where they are handed in"
    )]
    fn check(content_type: &str, accept: Option<&str>, expected: Option<(&str, Call)>) {
        let mut request = Request::post("/pkg.Service/Method")
            .header("content-type", content_type)
            .header("content-length", "5");
        if let Some(accept) = accept {
            request = request.header("accept", accept);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let call = translate_request(&mut parts);
        let after = call.clone().map(|call| {
            assert_eq!(parts.headers["te"], "trailers");
            assert!(!parts.headers.contains_key("content-length"));
            (parts.headers["content-type"].to_str().unwrap(), call)
        });
        assert_eq!(after, expected);
    }

    fn call(request: Encoding, response: Encoding) -> Call {
        Call { request, response }
    }

    #[test]
    fn requests_are_known_by_their_content_type() {
        use Encoding::{Binary, Text};
        let binary = call(Binary, Binary);
        check(
            "application/grpc-web+proto",
            None,
            Some(("application/grpc+proto", binary.clone())),
        );
        check(
            "application/grpc-web",
            None,
            Some(("application/grpc", binary)),
        );
        let text = call(Text, Text);
        check(
            "application/grpc-web-text",
            None,
            Some(("application/grpc", text)),
        );
        let mixed = call(Binary, Text);
        let accept = Some("application/grpc-web-text");
        check(
            "application/grpc-web",
            accept,
            Some(("application/grpc", mixed)),
        );
        check("application/grpc", None, None);
        check("application/grpc-website", None, None);
        check("text/plain", None, None);
    }

    #[test]
    fn responses_get_the_type_that_the_client_takes() {
        let head = |content_type: &'static str, encoding| {
            let response = Response::builder().header("content-type", content_type);
            let (mut parts, ()) = response.body(()).unwrap().into_parts();
            let translated = call(encoding, encoding).translate_response(&mut parts);
            let content_type = parts.headers["content-type"].to_str().unwrap();
            (translated, content_type.to_owned())
        };
        let text = head("application/grpc+proto", Encoding::Text);
        assert_eq!(text, (true, "application/grpc-web-text+proto".to_owned()));
        assert_eq!(
            head("application/grpc", Encoding::Binary),
            (true, "application/grpc-web".to_owned())
        );
        assert_eq!(
            head("text/html", Encoding::Binary),
            (false, "text/html".to_owned())
        );
    }

    #[tokio::test]
    async fn text_is_decoded_wherever_it_was_cut_and_padded() {
        // "abc" + "d" (padded, flushed) + "efg"
        let text = b"YWJjZA==ZWZn";
        for cut in 0..text.len() {
            let (one, two) = text.split_at(cut);
            let body = Decoded::new(frames(vec![data(one), data(two)]));
            assert_eq!(body.collect().await.unwrap().to_bytes(), "abcdefg", "{cut}");
        }
    }

    #[tokio::test]
    async fn what_is_not_base64_breaks_the_request() {
        for text in [&b"YWJ"[..], b"YW!j", b"Y=Jj", b"=AAA"] {
            let body = Decoded::new(frames(vec![data(text)]));
            assert_eq!(body.collect().await.unwrap_err(), NotBase64, "{text:?}");
        }
    }

    #[tokio::test]
    async fn trailers_become_the_last_message() {
        let trailers = HeaderMap::from_iter([
            (
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("5"),
            ),
            (
                HeaderName::from_static("grpc-message"),
                HeaderValue::from_static("gone"),
            ),
        ]);
        let response = || {
            frames(vec![
                data(b"\0\0\0\0\x01x"),
                Frame::trailers(trailers.clone()),
            ])
        };
        let lines = "grpc-status: 5\r\ngrpc-message: gone\r\n";
        let mut expected = b"\0\0\0\0\x01x\x80\0\0\0".to_vec();
        expected.push(u8::try_from(lines.len()).unwrap());
        expected.extend_from_slice(lines.as_bytes());
        let binary = Encoded::new(response(), Encoding::Binary)
            .collect()
            .await
            .unwrap();
        assert!(binary.trailers().is_none());
        assert_eq!(binary.to_bytes(), expected);
        let text = Encoded::new(response(), Encoding::Text)
            .collect()
            .await
            .unwrap();
        let decoded = Decoded::new(frames(vec![data(&text.to_bytes())]));
        assert_eq!(decoded.collect().await.unwrap().to_bytes(), expected);
    }
}
