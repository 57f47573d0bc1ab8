//! Session persistence (GEP-1619): a token of the client names the endpoint that it is to
//! stay with.
//!
//! ```text
//! token = base64url( issued: u32 | hint: u32 | mac: 16 bytes )
//! mac   = HMAC-SHA256( key: the pod's UID, rule | service | endpoint | issued )
//! ```
//! The key is the UID of the endpoint's pod: every agent knows it, and a new pod has another
//! one even at the same address. So a token holds on all nodes and over restarts, tells no
//! address, ends with its pod, and can't be made up by who may not read Pods. It is compared
//! with the endpoints that the rule has now and with nothing else: whatever a client sends,
//! it never reaches an address that the route would not give it.
//!
//! A session goes before weights: it stays with its endpoint even where that back end's
//! weight has become 0.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::model::NamespacedName;
use crate::proxy::http::headers::{cookies, unquoted};
use crate::state::{SessionCarrier, SessionPersistence};

/// Bytes of a token.
const LENGTH: usize = 24;
/// Characters of a token.
const CHARACTERS: usize = 32;

/// What a session is of: two rules that share a Service do not share sessions.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Scope<'a> {
    /// The rule's label.
    pub(in crate::proxy) rule: &'a str,
    /// The Service that the endpoint is of.
    pub(in crate::proxy) service: &'a NamespacedName,
}

/// An endpoint that a session may be with.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Endpoint<'a> {
    pub(in crate::proxy) address: SocketAddr,
    /// UID of its pod; empty for one that has no pod.
    pub(in crate::proxy) uid: &'a str,
}

/// A client's word for its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Token {
    /// Seconds of Unix time.
    issued: u32,
    /// Finds the endpoint without a MAC for each.
    hint: u32,
    mac: [u8; 16],
}

impl Token {
    /// A new session with this endpoint; `now` is Unix time in seconds.
    pub(in crate::proxy) fn issue(scope: Scope<'_>, endpoint: Endpoint<'_>, now: u64) -> Self {
        let issued = u32::try_from(now).unwrap_or(u32::MAX);
        Self {
            issued,
            hint: hint(endpoint),
            mac: mac(scope, endpoint, issued),
        }
    }

    /// The session that a request belongs to, if it names one.
    pub(in crate::proxy) fn of(
        session: &SessionPersistence,
        rule: &str,
        headers: &HeaderMap,
    ) -> Option<Self> {
        match &session.carrier {
            SessionCarrier::Header { name } => Self::parse(headers.get(name)?.as_bytes()),
            SessionCarrier::Cookie { name, .. } => {
                let name = cookie_name(name.as_ref(), rule);
                let lines = headers.get_all(COOKIE).iter();
                lines
                    .filter_map(|line| cookie(line.as_bytes(), name.as_bytes()))
                    .find_map(Self::parse)
            }
        }
    }

    /// The session is with this endpoint.
    pub(in crate::proxy) fn names(&self, scope: Scope<'_>, endpoint: Endpoint<'_>) -> bool {
        self.hint == hint(endpoint)
            && verify_slices_are_equal(&self.mac, &mac(scope, endpoint, self.issued)).is_ok()
    }

    /// It has not lasted longer than it may. Only of use once [`Self::names`] is true.
    pub(in crate::proxy) fn is_current(&self, session: &SessionPersistence, now: u64) -> bool {
        let age = Duration::from_secs(now.saturating_sub(u64::from(self.issued)));
        lifetime(session).is_none_or(|lifetime| age < lifetime)
    }

    /// Tells the client of its session.
    pub(in crate::proxy) fn write(
        &self,
        session: &SessionPersistence,
        rule: &str,
        headers: &mut HeaderMap,
    ) {
        let token = self.to_string();
        match &session.carrier {
            SessionCarrier::Header { name } => {
                let value = HeaderValue::try_from(token).expect("base64url");
                let _before = headers.insert(name.clone(), value);
            }
            SessionCarrier::Cookie {
                name,
                path,
                permanent,
            } => {
                let mut line = cookie_name(name.as_ref(), rule).to_string();
                let _infallible = write!(line, "={token}; Path={path}; HttpOnly");
                if let Some(lifetime) = lifetime(session).filter(|_| *permanent) {
                    let _infallible = write!(line, "; Max-Age={}", lifetime.as_secs());
                }
                // A path that no header can hold leaves the client without a session.
                if let Ok(line) = HeaderValue::try_from(line) {
                    let _there = headers.append(SET_COOKIE, line);
                }
            }
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != CHARACTERS {
            return None;
        }
        let bytes: [u8; LENGTH] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
        let (issued, rest) = bytes.split_first_chunk()?;
        let (hint, rest) = rest.split_first_chunk()?;
        Some(Self {
            issued: u32::from_be_bytes(*issued),
            hint: u32::from_be_bytes(*hint),
            mac: *rest.first_chunk()?,
        })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&self.issued.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.hint.to_be_bytes());
        bytes[8..].copy_from_slice(&self.mac);
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

fn lifetime(session: &SessionPersistence) -> Option<Duration> {
    session
        .absolute_timeout
        .filter(|timeout| !timeout.is_zero())
}

/// The name that was given, or one that no other rule has.
fn cookie_name(given: Option<&Arc<str>>, rule: &str) -> Arc<str> {
    given.map_or_else(
        || format!("fairlead-session-{:016x}", xxh3_64(rule.as_bytes())).into(),
        Arc::clone,
    )
}

/// The value of a cookie in one line of `Cookie`.
fn cookie<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    cookies(line).find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
        Some(unquoted(value))
    })
}

/// Told apart among the endpoints of a rule without a MAC for each.
fn hint(endpoint: Endpoint<'_>) -> u32 {
    let ip = match endpoint.address.ip() {
        IpAddr::V4(ip) => xxh3_64(&ip.octets()),
        IpAddr::V6(ip) => xxh3_64(&ip.octets()),
    };
    let hash = xxh3_64_with_seed(
        endpoint.uid.as_bytes(),
        ip ^ u64::from(endpoint.address.port()),
    );
    u32::try_from(hash >> 32).expect("the upper half of 64 bits")
}

fn mac(scope: Scope<'_>, endpoint: Endpoint<'_>, issued: u32) -> [u8; 16] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, endpoint.uid.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    let address = endpoint.address.to_string();
    let parts = [
        scope.rule,
        &scope.service.namespace,
        &scope.service.name,
        &address,
    ];
    for part in parts {
        // Lengths first, so that no two lists of parts are the same bytes.
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    context.update(&issued.to_be_bytes());
    let tag = context.sign();
    *tag.as_ref().first_chunk().expect("32 bytes")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{Endpoint, Scope, Token};
    use crate::model::NamespacedName;
    use crate::state::{SessionCarrier, SessionPersistence};

    const NOW: u64 = 1_800_000_000;

    fn service() -> NamespacedName {
        NamespacedName::new("shop", "web")
    }

    fn scope(service: &NamespacedName) -> Scope<'_> {
        Scope {
            rule: "HTTPRoute shop/web#0",
            service,
        }
    }

    fn endpoint(address: &str, uid: &'static str) -> Endpoint<'static> {
        Endpoint {
            address: address.parse().unwrap(),
            uid,
        }
    }

    fn cookie(permanent: bool, timeout: Option<u64>) -> SessionPersistence {
        SessionPersistence {
            carrier: SessionCarrier::Cookie {
                name: Some("sid".into()),
                path: "/shop".into(),
                permanent,
            },
            absolute_timeout: timeout.map(Duration::from_secs),
        }
    }

    fn header() -> SessionPersistence {
        SessionPersistence {
            carrier: SessionCarrier::Header {
                name: HeaderName::from_static("x-session"),
            },
            absolute_timeout: None,
        }
    }

    /// What a client sends back of a response.
    fn returned(response: &HeaderMap) -> HeaderMap {
        let line = response["set-cookie"].to_str().unwrap();
        let pair = line.split(';').next().unwrap();
        let line = format!("a=b; xsid=1; {pair}; c=d");
        HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::try_from(line).unwrap())])
    }

    #[test]
    fn a_token_comes_back_and_names_its_endpoint() {
        let (service, web) = (service(), endpoint("10.0.0.1:80", "uid-1"));
        let token = Token::issue(scope(&service), web, NOW);
        for session in [cookie(false, None), header()] {
            let mut response = HeaderMap::new();
            token.write(&session, "HTTPRoute shop/web#0", &mut response);
            let request = match session.carrier {
                SessionCarrier::Cookie { .. } => returned(&response),
                SessionCarrier::Header { .. } => response,
            };
            let found = Token::of(&session, "HTTPRoute shop/web#0", &request);
            assert_eq!(found, Some(token));
            assert!(found.unwrap().names(scope(&service), web));
        }
    }

    #[test]
    fn a_token_holds_for_its_endpoint_service_and_rule_only() {
        let (service, web) = (service(), endpoint("10.0.0.1:80", "uid-1"));
        let token = Token::issue(scope(&service), web, NOW);
        assert!(!token.names(scope(&service), endpoint("10.0.0.2:80", "uid-1")));
        assert!(!token.names(scope(&service), endpoint("10.0.0.1:80", "uid-2")));
        let other = NamespacedName::new("shop", "api");
        assert!(!token.names(scope(&other), web));
        let rule = Scope {
            rule: "HTTPRoute shop/web#1",
            service: &service,
        };
        assert!(!token.names(rule, web));
    }

    #[test]
    fn a_token_that_was_changed_names_nothing() {
        let (service, web) = (service(), endpoint("10.0.0.1:80", "uid-1"));
        let token = Token::issue(scope(&service), web, NOW);
        let longer = Token {
            issued: token.issued + 3600,
            ..token
        };
        assert!(!longer.names(scope(&service), web));
        let mut mac = token.mac;
        mac[15] ^= 1;
        assert!(!Token { mac, ..token }.names(scope(&service), web));
    }

    #[test]
    fn other_texts_are_no_token() {
        let names = ["", "10.0.0.1:80", "AAAA", &"A".repeat(33), &"!".repeat(32)];
        for text in names {
            let value = HeaderValue::from_str(text).unwrap();
            let headers = HeaderMap::from_iter([(HeaderName::from_static("x-session"), value)]);
            assert_eq!(Token::of(&header(), "r", &headers), None, "{text}");
        }
    }

    #[test]
    fn the_absolute_timeout_ends_a_session_however_it_is_used() {
        let (service, web) = (service(), endpoint("10.0.0.1:80", "uid-1"));
        let token = Token::issue(scope(&service), web, NOW);
        let limited = cookie(false, Some(60));
        assert!(token.is_current(&limited, NOW + 59));
        assert!(!token.is_current(&limited, NOW + 60));
        assert!(token.is_current(&cookie(false, None), NOW + 1_000_000));
        assert!(token.is_current(&cookie(false, Some(0)), NOW + 1_000_000));
    }

    #[test]
    fn cookies_live_as_long_as_the_route_says() {
        let token = Token::issue(scope(&service()), endpoint("10.0.0.1:80", "u"), NOW);
        let line = |session| {
            let mut headers = HeaderMap::new();
            token.write(&session, "r", &mut headers);
            headers["set-cookie"].to_str().unwrap().to_owned()
        };
        let session = line(cookie(false, Some(60)));
        assert_eq!(session, format!("sid={token}; Path=/shop; HttpOnly"));
        let permanent = line(cookie(true, Some(60)));
        assert_eq!(
            permanent,
            format!("sid={token}; Path=/shop; HttpOnly; Max-Age=60")
        );
    }

    #[test]
    fn a_cookie_without_a_name_gets_one_of_its_rule() {
        let session = SessionPersistence {
            carrier: SessionCarrier::Cookie {
                name: None,
                path: "/".into(),
                permanent: false,
            },
            absolute_timeout: None,
        };
        let token = Token::issue(scope(&service()), endpoint("10.0.0.1:80", "u"), NOW);
        let mut response = HeaderMap::new();
        token.write(&session, "rule-a", &mut response);
        let request = returned(&response);
        assert_eq!(Token::of(&session, "rule-a", &request), Some(token));
        assert_eq!(Token::of(&session, "rule-b", &request), None);
    }
}
