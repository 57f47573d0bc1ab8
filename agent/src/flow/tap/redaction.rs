//! What of headers and queries nobody is to see.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::event::TapHeader;

/// Stands for what is hidden.
const HIDDEN: &str = "***";

/// Headers that carry credentials whatever their names say.
const CREDENTIALS: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::SET_COOKIE,
    header::SEC_WEBSOCKET_KEY,
];

/// Parts of names that say so: `x-api-key`, `x-csrf-token`, `x-amz-security-token`.
const TELLING: [&str; 11] = [
    "api-key",
    "apikey",
    "auth",
    "cookie",
    "credential",
    "jwt",
    "passw",
    "secret",
    "session",
    "signature",
    "token",
];

/// How credentials begin, wherever they are, in lower case.
const SCHEMES: [&str; 3] = ["bearer ", "basic ", "digest "];

/// Headers that have an address in them, and so a query and a fragment.
const ADDRESSES: [&str; 7] = [
    "content-location",
    "location",
    "referer",
    "refresh",
    "x-envoy-original-path",
    "x-forwarded-uri",
    "x-original-url",
];

/// Bytes of a value that are shown.
const VALUE_LIMIT: usize = 1024;
/// Headers that are shown.
const HEADER_LIMIT: usize = 100;

/// Hides values of headers: of those that are known to be secret, and of those that whoever
/// runs the agent names.
#[derive(Clone, Debug, Default)]
pub struct Redaction(Vec<String>);

impl Redaction {
    /// Also hides these headers.
    pub fn new(also: &[String]) -> Self {
        Self(also.iter().map(|it| it.to_ascii_lowercase()).collect())
    }

    /// The headers in their order, with what is secret hidden.
    pub(super) fn headers(&self, headers: &HeaderMap, also: &[String]) -> Vec<TapHeader> {
        let shown = headers.iter().take(HEADER_LIMIT).map(|(name, value)| {
            let named = |list: &[String]| list.iter().any(|it| it == name.as_str());
            let hidden = named(&self.0) || named(also) || is_secret(name, value);
            TapHeader {
                name: name.as_str().to_owned(),
                value: if hidden {
                    HIDDEN.to_owned()
                } else {
                    shown(name, value)
                },
            }
        });
        shown.collect()
    }
}

fn is_secret(name: &HeaderName, value: &HeaderValue) -> bool {
    if value.is_sensitive() || CREDENTIALS.contains(name) {
        return true;
    }
    if TELLING.iter().any(|part| name.as_str().contains(part)) {
        return true;
    }
    let start = value.as_bytes().get(..16).unwrap_or(value.as_bytes());
    let start = start.to_ascii_lowercase();
    SCHEMES.iter().any(|it| start.starts_with(it.as_bytes())) || is_token(value.as_bytes())
}

/// A JSON Web Token: three parts, of which the first is an object (`{"`) in Base64.
fn is_token(value: &[u8]) -> bool {
    value.starts_with(b"eyJ") && value.split(|byte| *byte == b'.').count() == 3
}

fn shown(name: &HeaderName, value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    let text = if *name == header::LINK {
        without_queries(&text)
    } else if ADDRESSES.contains(&name.as_str()) {
        without_query(&text)
    } else {
        text.into_owned()
    };
    match text.floor_char_boundary(VALUE_LIMIT) {
        end if end < text.len() => format!("{}...", &text[..end]),
        _ => text,
    }
}

/// An address without its query and its fragment: implicit grants have tokens there.
fn without_query(text: &str) -> String {
    match text.find(['?', '#']) {
        Some(start) => format!("{}{HIDDEN}", &text[..=start]),
        None => text.to_owned(),
    }
}

/// Several addresses in angle brackets, each without its query and its fragment.
fn without_queries(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(['?', '#']) {
        let (before, after) = rest.split_at(start + 1);
        let end = after.find('>').unwrap_or(after.len());
        shown.push_str(before);
        shown.push_str(HIDDEN);
        rest = &after[end..];
    }
    shown.push_str(rest);
    shown
}

/// The names of a query's parameters, with their values hidden; one without a name is
/// hidden whole.
pub(super) fn query(query: &str) -> String {
    let end = query.floor_char_boundary(VALUE_LIMIT);
    let hidden = query[..end]
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _value)) => format!("{name}={HIDDEN}"),
            None if pair.is_empty() => String::new(),
            None => HIDDEN.to_owned(),
        });
    hidden.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderMap, HeaderName, HeaderValue};

    use super::{Redaction, query};

    #[track_caller]
    fn check(name: &str, value: &str, expected: &str) {
        let mut headers = HeaderMap::new();
        let name: HeaderName = name.parse().unwrap();
        drop(headers.insert(name, HeaderValue::from_str(value).unwrap()));
        let redaction = Redaction::new(&["X-Ours".to_owned()]);
        let shown = redaction.headers(&headers, &["x-mine".to_owned()]);
        assert_eq!(shown[0].value, expected);
    }

    #[test]
    fn credentials_are_hidden() {
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "set-cookie",
            "x-api-key",
            "X-CSRF-Token",
            "x-amz-security-token",
            "x-session-id",
            "x-vault-token",
            "x-goog-iap-jwt-assertion",
            "x-hub-signature-256",
            "x-ours",
            "x-mine",
        ] {
            check(name, "abc", "***");
        }
        check("x-forwarded-access", "BEARER abc.def", "***");
        check("x-anything", "Basic dXNlcg==", "***");
        check("x-anything", "eyJhbGciOiJFUzI1NiJ9.eyJhIjoxfQ.c2ln", "***");
    }

    #[test]
    fn other_headers_are_shown() {
        check("accept", "text/html", "text/html");
        check("x-request-id", "7", "7");
        check("x-build", "eyJ.7", "eyJ.7");
        check("traceparent", "00-1-2-01", "00-1-2-01");
        let long = "v".repeat(2000);
        check("x-long", &long, &format!("{}...", &long[..1024]));
    }

    #[test]
    fn queries_are_hidden_wherever_they_are() {
        check("location", "https://a/cb?code=s#f", "https://a/cb?***");
        check("location", "/cb?scope=a, b&code=s", "/cb?***");
        check(
            "location",
            "https://a/cb#access_token=s",
            "https://a/cb#***",
        );
        check("referer", "https://a/b", "https://a/b");
        check(
            "link",
            "<https://a/?t=1,2;3>; rel=next",
            "<https://a/?***>; rel=next",
        );
        check(
            "link",
            "<https://a/?t=1>; rel=next, <b?t=2>; rel=x",
            "<https://a/?***>; rel=next, <b?***>; rel=x",
        );
        assert_eq!(query("a=1&b=&c&&d=x=y"), "a=***&b=***&***&&d=***");
    }
}
