//! Values of single headers.

use std::sync::Arc;
use std::time::Duration;

use http::header::{COOKIE, HeaderValue};
use http::{HeaderMap, HeaderName, Request};

use super::super::authn::extract;
use super::super::deadline::{grpc_timeout, write_grpc_timeout};
use super::super::filter::session::{Endpoint, Scope, Token};
use crate::model::NamespacedName;
use crate::state::{JwtKeys, JwtProvider, SessionCarrier, SessionPersistence, TokenHeader};

/// What is passed on of a deadline is never later than what came.
pub(crate) fn deadline(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let name = HeaderName::from_static("grpc-timeout");
    let mut headers = HeaderMap::from_iter([(name.clone(), value)]);
    let Some(timeout) = grpc_timeout(&headers) else {
        return;
    };
    let shape = |value: &[u8]| {
        let (unit, digits) = value.split_last().expect("not empty");
        assert!(b"HMSmun".contains(unit) && (1..=8).contains(&digits.len()));
        assert!(digits.iter().all(u8::is_ascii_digit));
    };
    shape(data);
    write_grpc_timeout(&mut headers, timeout);
    shape(headers[&name].as_bytes());
    let left = grpc_timeout(&headers).expect("what is written can be read");
    assert!(
        left <= timeout && left.abs_diff(timeout) <= timeout / 1000,
        "{left:?} of {timeout:?}"
    );
}

/// Only what was issued names an endpoint. The bytes are a line of `Cookie`.
pub(crate) fn session(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else {
        return;
    };
    let session = SessionPersistence {
        carrier: SessionCarrier::Cookie {
            name: Some("sid".into()),
            path: "/".into(),
            permanent: true,
        },
        absolute_timeout: Some(Duration::from_mins(1)),
    };
    let service = NamespacedName::new("shop", "web");
    let scope = Scope {
        rule: "HTTPRoute shop/web#0",
        service: &service,
    };
    let endpoint = Endpoint {
        address: ([10, 0, 0, 1], 80).into(),
        uid: "a pod",
    };
    let headers = HeaderMap::from_iter([(COOKIE, value)]);
    let Some(token) = Token::of(&session, scope.rule, &headers) else {
        return;
    };
    let text = token.to_string();
    let sent = String::from_utf8_lossy(data);
    assert!(sent.contains(&text), "{text} is not what was sent");
    let other = Endpoint {
        uid: "another pod",
        ..endpoint
    };
    assert!(!token.names(scope, other));
    // The time that it was issued at is the first four bytes.
    let issued = issued(&text);
    let genuine = Token::issue(scope, endpoint, issued).to_string();
    assert_eq!(token.names(scope, endpoint), text == genuine);
}

fn issued(token: &str) -> u64 {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token);
    let bytes = bytes.expect("a token is base64");
    u32::from_be_bytes(*bytes.first_chunk().expect("a token has 24 bytes")).into()
}

/// Once the tokens of an issuer are taken out of a request none is found in it, and nothing
/// else is gone. The lines are the query, `authorization`, `x-token` and `cookie`.
pub(crate) fn tokens(data: &[u8]) {
    let provider = Arc::new(provider());
    let mut lines = data.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let Ok(request) = Request::get(format!("/path?{query}")).body(()) else {
        return;
    };
    let (mut parts, ()) = request.into_parts();
    for (name, line) in ["authorization", "x-token", "cookie"]
        .into_iter()
        .zip(lines)
    {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            let _more = parts.headers.append(name, value);
        }
    }
    let others = |parts: &http::request::Parts| -> Vec<String> {
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let cookies = parts.headers.get_all(COOKIE).iter();
        let cookies = cookies.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
        let cookies: Vec<String> = cookies.collect();
        let pairs = cookies.iter().flat_map(|line| line.split(';'));
        let pairs = pairs.map(str::trim).chain(query.split('&'));
        let marked = pairs
            .filter(|pair| pair.starts_with("keep"))
            .map(str::to_owned);
        marked.collect()
    };
    let before = others(&parts);
    let providers = [provider];
    let readable = extract::tokens(&parts, &providers).is_ok();
    extract::remove(&mut parts, &providers[0]);
    let left = extract::tokens(&parts, &providers);
    assert!(
        left.as_ref().is_ok_and(Vec::is_empty) || !readable,
        "{left:?} of {parts:?}"
    );
    assert_eq!(parts.uri.path(), "/path");
    if readable {
        assert_eq!(others(&parts), before, "{parts:?}");
    }
}

/// Tokens of its issuer may be wherever tokens may be.
pub(in crate::proxy::http) fn provider() -> JwtProvider {
    let header = |name: &str, prefix: &str| TokenHeader {
        name: name.into(),
        prefix: prefix.into(),
    };
    JwtProvider {
        from_headers: vec![header("authorization", "Bearer "), header("x-token", "")],
        from_params: vec!["token".into()],
        from_cookies: vec!["session".into()],
        ..JwtProvider::new("i", JwtKeys::Inline("".into()))
    }
}
