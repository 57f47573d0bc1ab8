//! Cross-origin requests of browsers: preflights are answered here, other responses say
//! whether their origin may read them.
//!
//! Gateway API's rules (GEP-1767) where they leave a choice: an origin is always echoed,
//! never answered with `*`, and so are the method and the headers that a wildcard allows,
//! because `*` would not cover `Authorization`.

use std::sync::Arc;

use crate::state::Cors;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

/// Response headers that a script may read without being told.
const SAFELISTED: [&str; 7] = [
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
];

/// The answer, where the request is a preflight. An origin that is not allowed is refused.
pub(super) fn preflight(parts: &Parts, cors: &Cors) -> Option<Response<()>> {
    let origin = parts.headers.get(ORIGIN)?;
    let method = parts.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    if parts.method != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(());
    let headers = response.headers_mut();
    let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    let _before = headers.insert(VARY, HeaderValue::from_static(vary));
    if !allows(cors, origin) {
        *response.status_mut() = StatusCode::FORBIDDEN;
        return Some(response);
    }
    admit(headers, cors, origin);
    put(
        headers,
        ACCESS_CONTROL_ALLOW_METHODS,
        listed(&cors.allow_methods, Some(method)),
    );
    let asked = parts.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    put(
        headers,
        ACCESS_CONTROL_ALLOW_HEADERS,
        asked.and_then(|_| listed(&cors.allow_headers, asked)),
    );
    put(
        headers,
        ACCESS_CONTROL_EXPOSE_HEADERS,
        exposed(cors, &HeaderMap::new()),
    );
    let age = HeaderValue::from(cors.max_age.as_secs());
    let _before = headers.insert(ACCESS_CONTROL_MAX_AGE, age);
    Some(response)
}

/// Says on a response whether `origin` may read it. What the application said of that is
/// replaced: there is one authority for it, and it is the route.
pub(super) fn decorate(headers: &mut HeaderMap, cors: &Cors, origin: &HeaderValue) {
    for name in [
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_EXPOSE_HEADERS,
    ] {
        let _before = headers.remove(name);
    }
    // Other origins get other headers: a cache must not mix them up.
    let _there = headers.append(VARY, HeaderValue::from_static("Origin"));
    if allows(cors, origin) {
        let exposed = exposed(cors, headers);
        admit(headers, cors, origin);
        put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
}

fn admit(headers: &mut HeaderMap, cors: &Cors, origin: &HeaderValue) {
    let _before = headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        let yes = HeaderValue::from_static("true");
        let _before = headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        let _before = headers.insert(name, value);
    }
}

/// The names as a list, or what was asked for where all are allowed.
fn listed(names: &[Arc<str>], asked: Option<&HeaderValue>) -> Option<HeaderValue> {
    if names.iter().any(|name| &**name == "*") {
        return asked.cloned();
    }
    join(names.iter().map(|name| &**name))
}

/// What scripts may read beyond the safelist. `*` means nothing to a browser that sends
/// credentials, so that the names are written out then.
fn exposed(cors: &Cors, response: &HeaderMap) -> Option<HeaderValue> {
    let all = cors.expose_headers.iter().any(|name| &**name == "*");
    if all && cors.allow_credentials {
        let names = response.keys().map(HeaderName::as_str);
        return join(names.filter(|name| !SAFELISTED.contains(name) && *name != "set-cookie"));
    }
    join(cors.expose_headers.iter().map(|name| &**name))
}

fn join<'a>(names: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let mut list = String::new();
    for name in names {
        if !list.is_empty() {
            list.push_str(", ");
        }
        list.push_str(name);
    }
    (!list.is_empty()).then(|| HeaderValue::try_from(list).ok())?
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    cors.allow_origins
        .iter()
        .any(|allowed| matches(allowed, origin))
}

/// `*` alone matches every origin, `null` of sandboxed documents too.
fn matches(allowed: &str, origin: &str) -> bool {
    if allowed == "*" {
        return true;
    }
    let (Some(allowed), Some(origin)) = (split(allowed), split(origin)) else {
        return false;
    };
    let hosts = match allowed.host.strip_prefix('*') {
        // The wildcard stands for at least one character, periods and all.
        Some(suffix) => ends_with(origin.host, suffix),
        None => allowed.host.eq_ignore_ascii_case(origin.host),
    };
    hosts && allowed.port == origin.port && allowed.scheme.eq_ignore_ascii_case(origin.scheme)
}

struct Origin<'a> {
    scheme: &'a str,
    host: &'a str,
    port: &'a str,
}

/// An origin with the port that it means.
fn split(origin: &str) -> Option<Origin<'_>> {
    let (scheme, rest) = origin.split_once("://")?;
    let default = if scheme.eq_ignore_ascii_case("https") {
        "443"
    } else {
        "80"
    };
    let colon = rest.rfind(':').filter(|&at| !rest[at..].contains(']'));
    let (host, port) = colon.map_or((rest, default), |at| (&rest[..at], &rest[at + 1..]));
    // An origin has nothing but a host there; what has more is no browser's.
    let bare = !host.contains(['/', '@', '?', '#', '\\']);
    bare.then_some(Origin { scheme, host, port })
}

fn ends_with(host: &str, suffix: &str) -> bool {
    let Some(at) = host.len().checked_sub(suffix.len()).filter(|&at| at > 0) else {
        return false;
    };
    host.get(at..)
        .is_some_and(|end| end.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::request::Parts;
    use http::{HeaderMap, HeaderValue, Request, StatusCode};

    use super::{decorate, matches, preflight};
    use crate::state::Cors;

    fn cors(origins: &[&str], methods: &[&str], headers: &[&str]) -> Cors {
        let list = |names: &[&str]| names.iter().map(|&name| name.into()).collect();
        Cors {
            allow_origins: list(origins),
            allow_methods: list(methods),
            allow_headers: list(headers),
            expose_headers: list(&["x-header-3", "x-header-4"]),
            allow_credentials: false,
            max_age: Duration::from_hours(1),
        }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
        let request = Request::builder().method(method).uri("/");
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        request.body(()).unwrap().into_parts().0
    }

    const ASK: [(&str, &str); 3] = [
        ("origin", "https://www.foo.com"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-header-1, x-header-2"),
    ];

    #[test]
    fn a_preflight_gets_what_is_configured() {
        let cors = cors(
            &["https://www.foo.com"],
            &["GET", "OPTIONS"],
            &["x-header-1", "x-header-2"],
        );
        let answer = preflight(&request("OPTIONS", &ASK), &cors).unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let headers = answer.headers();
        assert_eq!(
            headers["access-control-allow-origin"],
            "https://www.foo.com"
        );
        assert_eq!(headers["access-control-allow-methods"], "GET, OPTIONS");
        assert_eq!(
            headers["access-control-allow-headers"],
            "x-header-1, x-header-2"
        );
        assert_eq!(
            headers["access-control-expose-headers"],
            "x-header-3, x-header-4"
        );
        assert_eq!(headers["access-control-max-age"], "3600");
        assert!(!headers.contains_key("access-control-allow-credentials"));
    }

    #[test]
    fn wildcards_echo_what_was_asked_for() {
        let mut cors = cors(&["*"], &["*"], &["*"]);
        cors.allow_credentials = true;
        let answer = preflight(&request("OPTIONS", &ASK), &cors).unwrap();
        let headers = answer.headers();
        assert_eq!(
            headers["access-control-allow-origin"],
            "https://www.foo.com"
        );
        assert_eq!(headers["access-control-allow-methods"], "PUT");
        assert_eq!(
            headers["access-control-allow-headers"],
            "x-header-1, x-header-2"
        );
        assert_eq!(headers["access-control-allow-credentials"], "true");
        let no_headers = preflight(&request("OPTIONS", &ASK[..2]), &cors).unwrap();
        assert!(
            !no_headers
                .headers()
                .contains_key("access-control-allow-headers")
        );
    }

    #[test]
    fn a_preflight_of_another_origin_is_refused() {
        let cors = cors(&["https://other.com"], &["*"], &["*"]);
        let answer = preflight(&request("OPTIONS", &ASK), &cors).unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
    }

    #[test]
    fn other_requests_are_no_preflight() {
        let cors = cors(&["*"], &["*"], &["*"]);
        assert!(preflight(&request("GET", &ASK), &cors).is_none());
        assert!(preflight(&request("OPTIONS", &ASK[..1]), &cors).is_none());
        assert!(preflight(&request("OPTIONS", &ASK[1..]), &cors).is_none());
    }

    #[track_caller]
    fn decorated(cors: &Cors, origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("access-control-allow-origin", "https://the.application"),
            ("access-control-allow-credentials", "true"),
            ("content-type", "text/plain"),
            ("x-total", "3"),
        ] {
            let _before = headers.insert(name, HeaderValue::from_static(value));
        }
        decorate(&mut headers, cors, &HeaderValue::from_static(origin));
        assert_eq!(headers["vary"], "Origin");
        headers
    }

    #[test]
    fn responses_to_allowed_origins_say_so() {
        let cors = cors(&["https://*.bar.com"], &[], &[]);
        let headers = decorated(&cors, "https://www.bar.com");
        assert_eq!(
            headers["access-control-allow-origin"],
            "https://www.bar.com"
        );
        assert_eq!(
            headers["access-control-expose-headers"],
            "x-header-3, x-header-4"
        );
        assert!(!headers.contains_key("access-control-allow-credentials"));
        let headers = decorated(&cors, "https://bar.com");
        assert!(!headers.contains_key("access-control-allow-origin"));
    }

    #[test]
    fn with_credentials_exposed_names_are_written_out() {
        let mut cors = cors(&["*"], &[], &[]);
        cors.expose_headers = vec!["*".into()];
        assert_eq!(
            decorated(&cors, "http://a")["access-control-expose-headers"],
            "*"
        );
        cors.allow_credentials = true;
        let headers = decorated(&cors, "http://a");
        assert_eq!(headers["access-control-expose-headers"], "x-total, vary");
    }

    #[test]
    fn origins_match_by_scheme_host_and_port() {
        assert!(matches("https://*.bar.com", "https://xpto.www.bar.com"));
        assert!(matches("https://www.foo.com", "https://WWW.foo.com:443"));
        assert!(matches("http://foo.com:80", "http://foo.com"));
        assert!(matches("https://*", "https://any.host"));
        assert!(matches("http://*:8080", "http://any.host:8080"));
        assert!(matches("*", "null"));
        assert!(!matches("https://*.bar.com", "https://.bar.com"));
        assert!(!matches("https://*.bar.com", "https://foobar.com"));
        assert!(!matches(
            "https://*.bar.com",
            "https://www.bar.com.evil.org"
        ));
        assert!(!matches(
            "https://*.bar.com",
            "https://evil.org/.bar.com:443"
        ));
        assert!(!matches("https://www.foo.com", "http://www.foo.com"));
        assert!(!matches("https://www.foo.com", "https://www.foo.com:8443"));
        assert!(!matches("https://*", "null"));
    }
}
