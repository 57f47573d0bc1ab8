//! What a match asks of a request beside its path.

use std::borrow::Cow;

use http::header::{HOST, HeaderName};
use http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

use super::RequestHead;
use crate::state::{HeaderMatch, QueryMatch, RequestMatch};

/// Method, headers and query of a match.
#[derive(Debug)]
pub(super) struct Condition {
    method: Option<Method>,
    headers: Box<[HeaderMatch]>,
    query: Box<[QueryMatch]>,
}

impl Condition {
    pub(super) fn new(of: &RequestMatch) -> Self {
        Self {
            method: of.method.clone(),
            headers: of.headers.as_slice().into(),
            query: of.query.as_slice().into(),
        }
    }

    pub(super) fn holds(&self, head: &RequestHead<'_>) -> bool {
        let method = self.method.as_ref();
        method.is_none_or(|method| method == head.method)
            && self.headers.iter().all(|it| {
                let value = header(head, &it.name);
                value.is_some_and(|value| it.value.matches(&value))
            })
            && self.query.iter().all(|it| {
                let value = parameter(head.query, &it.name);
                value.is_some_and(|value| it.value.matches(&value))
            })
    }

    pub(super) fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }

    pub(super) fn headers(&self) -> &[HeaderMatch] {
        &self.headers
    }

    pub(super) fn query(&self) -> &[QueryMatch] {
        &self.query
    }
}

/// The value of a header; several are joined, as they may be on the way (RFC 9110, 5.3).
pub(super) fn header<'h>(head: &RequestHead<'h>, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    if name == HOST {
        // HTTP/2 has it in a place of its own.
        return Some(Cow::Borrowed(head.host.as_bytes()));
    }
    let headers: &HeaderMap = head.headers;
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let joined = joined.to_mut();
        joined.extend_from_slice(b",");
        joined.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

/// The first value of a parameter of the query, decoded.
pub(super) fn parameter<'q>(query: Option<&'q str>, name: &str) -> Option<Cow<'q, [u8]>> {
    let pairs = query?.split('&');
    let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find_map(|(key, value)| (*decoded(key) == *name.as_bytes()).then(|| decoded(value)))
}

/// As forms encode it: `+` is a space, `%2B` a plus.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        return Cow::Owned(percent_decode_str(&spaced).collect());
    }
    percent_decode_str(text).into()
}
