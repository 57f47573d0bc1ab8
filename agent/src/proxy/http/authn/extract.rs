//! Where requests carry tokens.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::COOKIE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use crate::policy::JwtError;
use crate::proxy::http::headers::{cookies, unquoted};
use crate::state::{JwtProvider, TokenHeader};

/// More tokens in one request are no honest client's.
const MOST_TOKENS: usize = 8;

/// A token and where it was.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::proxy::http) struct Found {
    pub(in crate::proxy::http) text: String,
    pub(in crate::proxy::http) place: Place,
}

/// A place for tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy::http) enum Place {
    Header(TokenHeader),
    Param(Arc<str>),
    Cookie(Arc<str>),
}

impl Place {
    /// Tokens of this issuer are looked for here.
    pub(in crate::proxy::http) fn is_of(&self, provider: &JwtProvider) -> bool {
        match self {
            Self::Header(header) => provider.from_headers.contains(header),
            Self::Param(name) => provider.from_params.contains(name),
            Self::Cookie(name) => provider.from_cookies.contains(name),
        }
    }
}

/// All tokens in all places of all issuers, each place once.
pub(in crate::proxy::http) fn tokens(
    parts: &Parts,
    providers: &[Arc<JwtProvider>],
) -> Result<Vec<Found>, JwtError> {
    let mut places: Vec<Place> = Vec::new();
    for provider in providers {
        let headers = provider.from_headers.iter().cloned().map(Place::Header);
        let params = provider.from_params.iter().cloned().map(Place::Param);
        let cookies = provider.from_cookies.iter().cloned().map(Place::Cookie);
        for place in headers.chain(params).chain(cookies) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    let mut found = Vec::new();
    for place in places {
        let texts = match &place {
            Place::Header(header) => in_headers(parts, header)?,
            Place::Param(name) => in_query(parts, name)?,
            Place::Cookie(name) => in_cookies(parts, name)?,
        };
        found.extend(texts.into_iter().map(|text| Found {
            text,
            place: place.clone(),
        }));
    }
    if found.len() > MOST_TOKENS {
        return Err(JwtError::TooLarge);
    }
    Ok(found)
}

/// What stands behind the prefix. Schemes are of any case (RFC 9110, section 11.1), and the
/// space after them is any space to lenient servers.
fn behind_prefix<'v>(value: &'v HeaderValue, prefix: &str) -> Option<&'v [u8]> {
    let scheme = prefix.trim_end();
    let (start, rest) = value.as_bytes().split_at_checked(scheme.len())?;
    let spaced = scheme.len() == prefix.len() || matches!(rest.first(), Some(b' ' | b'\t'));
    (start.eq_ignore_ascii_case(scheme.as_bytes()) && spaced).then_some(rest)
}

fn in_headers(parts: &Parts, header: &TokenHeader) -> Result<Vec<String>, JwtError> {
    let values = parts.headers.get_all(&*header.name).iter();
    let behind = values.filter_map(|value| behind_prefix(value, &header.prefix));
    let mut found = Vec::new();
    for token in behind {
        let token = utf8(token)?.trim();
        if !token.is_empty() {
            found.push(token.to_owned());
        }
    }
    Ok(found)
}

fn in_query(parts: &Parts, name: &str) -> Result<Vec<String>, JwtError> {
    let pairs = parts.uri.query().unwrap_or_default().split('&');
    let mut found = Vec::new();
    for (key, value) in pairs.filter_map(|pair| pair.split_once('=')) {
        if is_encoded(key, name) {
            found.push(decoded(value)?.into_owned());
        }
    }
    Ok(found)
}

/// A key of a query is this name. What is no text is no name, and nobody's token either.
fn is_encoded(key: &str, name: &str) -> bool {
    percent_decode_str(key).eq(name.bytes())
}

fn decoded(text: &str) -> Result<Cow<'_, str>, JwtError> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_invalid| JwtError::Malformed)
}

fn in_cookies(parts: &Parts, name: &str) -> Result<Vec<String>, JwtError> {
    let mut found = Vec::new();
    for value in parts.headers.get_all(COOKIE) {
        for token in cookies(value.as_bytes()).filter_map(|cookie| cookie_value(cookie, name)) {
            found.push(utf8(token)?.to_owned());
        }
    }
    Ok(found)
}

/// The value of one cookie. Only the one that is looked for need be text.
fn cookie_value<'c>(cookie: &'c [u8], name: &str) -> Option<&'c [u8]> {
    let equals = cookie.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&cookie[..equals], cookie[equals + 1..].trim_ascii());
    (key.trim_ascii() == name.as_bytes()).then(|| unquoted(value))
}

fn utf8(bytes: &[u8]) -> Result<&str, JwtError> {
    std::str::from_utf8(bytes).map_err(|_invalid| JwtError::Malformed)
}

/// Takes the tokens of one issuer out of a request. What else is in the same places stays.
pub(in crate::proxy::http) fn remove(parts: &mut Parts, provider: &JwtProvider) {
    for header in &provider.from_headers {
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else {
            continue;
        };
        let is_other = |value: &HeaderValue| behind_prefix(value, &header.prefix).is_none();
        keep(parts, &name, |value| is_other(value).then(|| value.clone()));
    }
    for name in &provider.from_cookies {
        let is_other = |cookie: &&[u8]| cookie_value(cookie, name).is_none();
        keep(parts, &COOKIE, |value| {
            if cookies(value.as_bytes()).all(|cookie| is_other(&cookie)) {
                return Some(value.clone());
            }
            let rest = cookies(value.as_bytes())
                .filter(is_other)
                .map(<[u8]>::trim_ascii);
            let rest = rest.collect::<Vec<_>>().join(&b"; "[..]);
            HeaderValue::try_from(rest)
                .ok()
                .filter(|rest| !rest.is_empty())
        });
    }
    for name in &provider.from_params {
        remove_param(parts, name);
    }
}

/// The values of a header as `change` makes them; those that it makes nothing of go.
fn keep(
    parts: &mut Parts,
    name: &HeaderName,
    change: impl Fn(&HeaderValue) -> Option<HeaderValue>,
) {
    if !parts.headers.contains_key(name) {
        return;
    }
    let values: Vec<HeaderValue> = parts
        .headers
        .get_all(name)
        .iter()
        .filter_map(change)
        .collect();
    let _before = parts.headers.remove(name);
    for value in values {
        let _more = parts.headers.append(name.clone(), value);
    }
}

fn remove_param(parts: &mut Parts, name: &str) {
    let query = parts.uri.query().unwrap_or_default();
    let is_other = |pair: &&str| {
        let key = pair.split_once('=').map(|(key, _)| key);
        !key.is_some_and(|key| is_encoded(key, name))
    };
    if query.split('&').all(|pair| is_other(&pair)) {
        return;
    }
    let rest: Vec<&str> = query.split('&').filter(is_other).collect();
    let rest = rest.join("&");
    let path = parts.uri.path().to_owned();
    // A part of what was one before is one.
    let _changed = set_path(parts, &path, Some(&*rest).filter(|rest| !rest.is_empty()));
}

/// Gives a request another path and query; false where they are none.
pub(in crate::proxy::http) fn set_path(parts: &mut Parts, path: &str, query: Option<&str>) -> bool {
    let text = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let Ok(path_and_query) = PathAndQuery::try_from(text) else {
        return false;
    };
    let mut uri = parts.uri.clone().into_parts();
    uri.path_and_query = Some(path_and_query);
    let changed = Uri::from_parts(uri);
    let is_one = changed.is_ok();
    if let Ok(uri) = changed {
        parts.uri = uri;
    }
    is_one
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::request::Parts;
    use http::{HeaderValue, Request};

    use super::{remove, tokens};
    use crate::policy::JwtError;
    use crate::proxy::http::fuzzing;
    use crate::state::JwtProvider;

    fn provider() -> Arc<JwtProvider> {
        Arc::new(fuzzing::provider())
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(uri: &str, headers: &[(&str, &str)], expected: &[&str]) {
        let found = tokens(&parts(uri, headers), &[provider(), provider()]).unwrap();
        let found: Vec<&str> = found.iter().map(|found| &*found.text).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn tokens_are_found_wherever_they_may_be() {
        check("/", &[("authorization", "Bearer a.b.c")], &["a.b.c"]);
        check("/", &[("Authorization", "bEARER \t a.b.c ")], &["a.b.c"]);
        check("/", &[("authorization", "Bearer\ta.b.c")], &["a.b.c"]);
        check("/", &[("authorization", "Bearer ")], &[]);
        check("/", &[("authorization", "Bearera.b.c")], &[]);
        check("/", &[("authorization", "Basic eA==")], &[]);
        check("/", &[("x-token", "t")], &["t"]);
        let twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")];
        check("/", &twice, &["a", "b"]);
        check("/?token=t&x=1&toke%6e=u&token", &[], &["t", "u"]);
        check("/?Token=t", &[], &[]);
        check("/?%ff=a&%ff%6e=b&token=t&x=%ff", &[], &["t"]);
        check(
            "/",
            &[("cookie", "a=b; session=\"t\";session=u")],
            &["t", "u"],
        );
        check(
            "/",
            &[("cookie", "xsession=t"), ("cookie", "session = u")],
            &["u"],
        );
    }

    #[test]
    fn too_many_tokens_and_no_text_are_refused() {
        let uri = format!("/?{}", "token=t&".repeat(9));
        let many = tokens(&parts(&uri, &[]), &[provider()]);
        assert_eq!(many, Err(JwtError::TooLarge));
        let strange = tokens(&parts("/?token=%ff", &[]), &[provider()]);
        assert_eq!(strange, Err(JwtError::Malformed));
    }

    #[test]
    fn other_cookies_need_not_be_text() {
        let mut of = parts("/", &[]);
        let value = HeaderValue::from_bytes(b"a=\xff; session=t; \xfe; b=c").unwrap();
        let _more = of.headers.append("cookie", value);
        let found = tokens(&of, &[provider()]).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "t");
        remove(&mut of, &provider());
        assert_eq!(of.headers["cookie"].as_bytes(), b"a=\xff; \xfe; b=c");
        let value = HeaderValue::from_bytes(b"session=\xff").unwrap();
        let _more = of.headers.append("cookie", value);
        assert_eq!(tokens(&of, &[provider()]), Err(JwtError::Malformed));
    }

    #[test]
    fn tokens_are_removed_and_nothing_else() {
        let mut of = parts(
            "/p?a=1&token=t&b=%20",
            &[
                ("authorization", "Bearer t"),
                ("authorization", "Basic x"),
                ("cookie", "a=b; session=t; c=d"),
                ("cookie", "session=t"),
                ("x-token", "t"),
                ("x-other", "o"),
            ],
        );
        remove(&mut of, &provider());
        assert_eq!(of.uri, "/p?a=1&b=%20");
        assert_eq!(of.headers.len(), 3);
        assert_eq!(of.headers["authorization"], "Basic x");
        assert_eq!(of.headers["cookie"], "a=b; c=d");
        let mut alone = parts("/p?token=t", &[]);
        remove(&mut alone, &provider());
        assert_eq!(alone.uri, "/p");
    }
}
