//! What a proxy does to the head of a request and of an answer before it passes it on
//! (RFC 9110, section 7.6).

use h2::ext::Protocol;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Extensions, Method, StatusCode, Version, response};

use super::reason::{Extra, Reason, ReasonKind};
use super::upstream;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The one protocol that a connection of HTTP/1.1, or a stream of HTTP/2, may turn into: no
/// rule sees what is said after that, so it must not be requests again, as it is with `h2c`.
const UPGRADES_TO: &[u8] = b"websocket";

/// Makes one form of all that clients may send, or says why it is none: the host is known,
/// and what was for this connection alone is gone. An upgrade stays where it may be.
pub(super) fn receive(parts: &mut Parts) -> Result<(), Reason> {
    let is_connect = parts.method == Method::CONNECT;
    if parts.version < Version::HTTP_2 {
        receive_http1(parts, is_connect)?;
    } else {
        receive_http2(parts)?;
    }
    let keeps_upgrade = wants_upgrade(parts) || is_extended(&parts.extensions);
    drop_hop_by_hop(&mut parts.headers, keeps_upgrade);
    Ok(())
}

/// The client asks to speak on its connection of HTTP/1.1 what it may.
pub(super) fn wants_upgrade(parts: &Parts) -> bool {
    let mut asked = parts.headers.get_all(UPGRADE).iter();
    let one = asked.next().filter(|_| asked.next().is_none());
    parts.version == Version::HTTP_11
        && one.is_some_and(|it| it.as_bytes().eq_ignore_ascii_case(UPGRADES_TO))
        && lists(&parts.headers, "upgrade")
}

/// The client of HTTP/2 asks to speak something else on its stream (RFC 8441). All rules see
/// a GET with an upgrade, as of HTTP/1.1.
pub(super) fn is_extended(extensions: &Extensions) -> bool {
    extensions.get::<Protocol>().is_some()
}

/// The host that the request is for, with its port where it names one.
pub(super) fn host(parts: &Parts) -> &str {
    match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts
            .headers
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default(),
    }
}

/// Another host than the client has asked for.
pub(super) fn set_authority(parts: &mut Parts, authority: Authority) -> Result<(), Reason> {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.authority = Some(authority);
    if parts.method != Method::CONNECT || uri.path_and_query.is_some() {
        let _given = uri.scheme.get_or_insert(Scheme::HTTP);
        let _given = uri
            .path_and_query
            .get_or_insert(PathAndQuery::from_static("/"));
    }
    parts.uri = Uri::from_parts(uri).map_err(|_invalid| bad("target is not a target"))?;
    Ok(())
}

/// Gives the request the form in which a server of this version wants it.
pub(super) fn send(
    parts: &mut Parts,
    version: upstream::Version,
    at_end: bool,
) -> Result<(), Reason> {
    match version {
        upstream::Version::Http1 => send_http1(parts, at_end),
        upstream::Version::Http2 => send_http2(parts),
    }
}

/// Gives the answer the form in which the client wants it.
pub(super) fn answer(parts: &mut response::Parts, to: Version, upgraded: bool) {
    drop_hop_by_hop(&mut parts.headers, upgraded);
    if to >= Version::HTTP_2 {
        let _before = parts.headers.remove(TRANSFER_ENCODING);
        parts.version = Version::HTTP_2;
    } else {
        parts.version = Version::HTTP_11;
    }
}

/// The cookies in one line of `Cookie`.
pub(super) fn cookies(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| *byte == b';')
}

/// The value of a cookie without the quotes that it may have (RFC 6265, section 4.1.1).
pub(super) fn unquoted(value: &[u8]) -> &[u8] {
    let bare = value.strip_prefix(b"\"");
    let bare = bare.and_then(|value| value.strip_suffix(b"\""));
    bare.unwrap_or(value)
}

/// Of an answer before the answer.
pub(super) fn interim(headers: &mut HeaderMap) {
    drop_hop_by_hop(headers, false);
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING] {
        let _before = headers.remove(name);
    }
}

fn receive_http1(parts: &mut Parts, is_connect: bool) -> Result<(), Reason> {
    let host = the_host(&parts.headers)?;
    if host.is_none() {
        if parts.version == Version::HTTP_11 {
            return Err(bad("no host"));
        }
        // HTTP/1.0 has none, and goes on as HTTP/1.1, which must (RFC 9112, section 3.2).
        let _before = parts.headers.insert(HOST, HeaderValue::from_static(""));
    }
    let host = the_host(&parts.headers)?;
    if let Some(host) = host
        && !host.is_empty()
        && Authority::try_from(host.as_bytes()).is_err()
    {
        return Err(bad("host is not a host"));
    }
    let Some(authority) = parts.uri.authority().filter(|_| !is_connect) else {
        return Ok(());
    };
    // The absolute form: whoever reads the one must not read anything else in the other.
    if host.is_some_and(|host| !is_same(host, authority)) {
        return Err(bad("the target's host is not the header's"));
    }
    if authority.as_str().contains('@') {
        return Err(bad("the target has user information"));
    }
    let named = HeaderValue::from_str(authority.as_str());
    let named = named.map_err(|_invalid| bad("target is not a target"))?;
    let _before = parts.headers.insert(HOST, named);
    to_origin_form(parts);
    Ok(())
}

fn receive_http2(parts: &mut Parts) -> Result<(), Reason> {
    let host = the_host(&parts.headers)?;
    match (parts.uri.authority(), host) {
        (Some(authority), Some(host)) if !is_same(host, authority) => {
            return Err(bad(":authority is not the header's host"));
        }
        (Some(_), _) => {}
        (None, host) => {
            let host = host.ok_or_else(|| bad("no :authority and no host"))?;
            let authority = Authority::try_from(host.as_bytes());
            let authority = authority.map_err(|_invalid| bad("host is not a host"))?;
            set_authority(parts, authority)?;
        }
    }
    let _before = parts.headers.remove(HOST);
    receive_extended(parts)
}

/// What follows the head of an extended CONNECT is no body of the request's.
fn receive_extended(parts: &mut Parts) -> Result<(), Reason> {
    let Some(protocol) = parts.extensions.get::<Protocol>() else {
        return Ok(());
    };
    let protocol = protocol.as_str().as_bytes();
    if !protocol.eq_ignore_ascii_case(UPGRADES_TO) {
        let extra = Extra::status(StatusCode::NOT_IMPLEMENTED);
        return Err(bad("no such protocol: only websocket").with(extra));
    }
    parts.method = Method::GET;
    for name in [CONTENT_LENGTH, EXPECT] {
        let _before = parts.headers.remove(name);
    }
    let upgrade = HeaderValue::from_static("websocket");
    let _before = parts.headers.insert(UPGRADE, upgrade);
    Ok(())
}

fn is_same(host: &HeaderValue, authority: &Authority) -> bool {
    let authority = authority.as_str().as_bytes();
    host.as_bytes().eq_ignore_ascii_case(authority)
}

/// The one `host`, if there is one.
fn the_host(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Reason> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("more than one host"));
    }
    Ok(host)
}

fn to_origin_form(parts: &mut Parts) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    (uri.scheme, uri.authority) = (None, None);
    let _given = uri
        .path_and_query
        .get_or_insert(PathAndQuery::from_static("/"));
    // A path alone is a URI.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

fn send_http1(parts: &mut Parts, at_end: bool) -> Result<(), Reason> {
    let was_http2 = parts.version >= Version::HTTP_2;
    parts.version = Version::HTTP_11;
    if parts.method == Method::CONNECT {
        return Ok(());
    }
    if let Some(authority) = parts.uri.authority() {
        let host = HeaderValue::from_str(authority.as_str());
        let host = host.map_err(|_invalid| bad("target is not a target"))?;
        let _before = parts.headers.insert(HOST, host);
        to_origin_form(parts);
    }
    if was_http2 {
        join_cookies(&mut parts.headers);
        // A body of unknown length needs it said, whatever the method.
        if !at_end && !is_extended(&parts.extensions) && !parts.headers.contains_key(CONTENT_LENGTH)
        {
            let chunked = HeaderValue::from_static("chunked");
            let _before = parts.headers.insert(TRANSFER_ENCODING, chunked);
        }
    }
    Ok(())
}

fn send_http2(parts: &mut Parts) -> Result<(), Reason> {
    parts.version = Version::HTTP_2;
    let _before = parts.headers.remove(TRANSFER_ENCODING);
    if parts.uri.authority().is_none() {
        let host = parts.headers.remove(HOST);
        let host = host.ok_or_else(|| bad("no host"))?;
        let authority = Authority::try_from(host.as_bytes());
        set_authority(
            parts,
            authority.map_err(|_invalid| bad("host is not a host"))?,
        )?;
    } else if parts.method != Method::CONNECT {
        // It says the same, or less than `:authority` does.
        let _before = parts.headers.remove(HOST);
    }
    Ok(())
}

/// HTTP/2 splits them for its compression; HTTP/1.1 has one line (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(_second)) = (cookies.next(), cookies.next()) {
        let mut joined = first.as_bytes().to_vec();
        for cookie in headers.get_all(COOKIE).iter().skip(1) {
            joined.extend_from_slice(b"; ");
            joined.extend_from_slice(cookie.as_bytes());
        }
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            let _before = headers.insert(COOKIE, joined);
        }
    }
}

/// Drops what was for one connection alone. `transfer-encoding` is left to the one who
/// writes the message.
fn drop_hop_by_hop(headers: &mut HeaderMap, keep_upgrade: bool) {
    if headers.contains_key(CONNECTION) {
        drop_named(headers, keep_upgrade);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, HTTP2_SETTINGS] {
        let _before = headers.remove(name);
    }
    if let Some(te) = headers.get(TE) {
        let trailers = te.to_str().is_ok_and(|te| {
            te.split(',')
                .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        });
        if trailers {
            let _before = headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            let _before = headers.remove(TE);
        }
    }
    if keep_upgrade {
        let upgrade = HeaderValue::from_static("upgrade");
        let _before = headers.insert(CONNECTION, upgrade);
    } else {
        let _before = headers.remove(UPGRADE);
    }
}

/// Drops `connection` and the headers that it names.
fn drop_named(headers: &mut HeaderMap, keep_upgrade: bool) {
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(CONNECTION) {
        let options = value.as_bytes().split(|byte| *byte == b',');
        named.extend(options.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()));
    }
    let _before = headers.remove(CONNECTION);
    for name in named {
        // What the message cannot do without is no option of a connection.
        let is_kept = (name == UPGRADE && keep_upgrade)
            || [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, TE].contains(&name);
        if !is_kept {
            let _before = headers.remove(name);
        }
    }
}

/// `connection` lists the option.
fn lists(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .any(|listed| listed.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    })
}

fn bad(what: &'static str) -> Reason {
    Reason::new(ReasonKind::BadRequest, what)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn get(uri: &str) -> http::request::Builder {
        Request::get(uri).version(Version::HTTP_11)
    }

    #[test]
    fn what_is_for_one_connection_is_not_passed_on() {
        let mut parts = head(
            get("/")
                .header("host", "shop")
                .header("connection", "close, X-Secret")
                .header("x-secret", "1")
                .header("keep-alive", "timeout=5")
                .header("proxy-connection", "keep-alive")
                .header("te", "gzip, trailers")
                .header("upgrade", "h2c")
                .header("x-kept", "1"),
        );
        receive(&mut parts).unwrap();
        let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(parts.headers["te"], "trailers");
        assert!(parts.headers.contains_key("x-kept"));
    }

    #[test]
    fn an_upgrade_is_passed_on_with_its_two_headers_alone() {
        let mut parts = head(
            get("/chat")
                .header("host", "shop")
                .header("connection", "keep-alive, Upgrade")
                .header("upgrade", "websocket"),
        );
        receive(&mut parts).unwrap();
        assert_eq!(parts.headers["connection"], "upgrade");
        assert_eq!(parts.headers["upgrade"], "websocket");
    }

    #[test]
    fn no_other_upgrade_is_passed_on() {
        for asked in [
            &["h2c"][..],
            &["websocket, h2c"],
            &["websocket", "h2c"],
            &["TLS/1.2"],
        ] {
            let mut request = get("/")
                .header("host", "shop")
                .header("connection", "Upgrade, HTTP2-Settings")
                .header("http2-settings", "AAMAAABkAAQAAP__");
            for protocol in asked {
                request = request.header("upgrade", *protocol);
            }
            let mut parts = head(request);
            receive(&mut parts).unwrap();
            let names: Vec<_> = parts.headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, ["host"], "{asked:?}");
        }
        let mut parts = head(
            get("/chat")
                .header("host", "shop")
                .header("connection", "upgrade")
                .header("upgrade", "WebSocket")
                .header("http2-settings", "AAMAAABkAAQAAP__"),
        );
        receive(&mut parts).unwrap();
        assert_eq!(parts.headers["upgrade"], "WebSocket");
        assert!(!parts.headers.contains_key("http2-settings"));
    }

    #[test]
    fn framing_is_never_an_option_of_a_connection() {
        let mut parts = head(
            get("/")
                .header("host", "shop")
                .header("connection", "content-length, host, transfer-encoding")
                .header("content-length", "3"),
        );
        receive(&mut parts).unwrap();
        assert!(parts.headers.contains_key("host"));
        assert!(parts.headers.contains_key("content-length"));
    }

    #[test]
    fn hosts_that_differ_or_are_missing_are_refused() {
        for request in [
            get("/"),
            get("/").header("host", "a").header("host", "b"),
            get("/").header("host", "a b"),
            get("http://a/").header("host", "b"),
            get("http://user@a/").header("host", "user@a"),
        ] {
            let reason = receive(&mut head(request)).unwrap_err();
            assert_eq!(reason.kind, ReasonKind::BadRequest);
        }
    }

    #[test]
    fn the_absolute_form_becomes_the_origin_form() {
        let mut parts = head(get("http://shop:80/a?b").header("host", "SHOP:80"));
        receive(&mut parts).unwrap();
        assert_eq!(parts.uri, "/a?b");
        assert_eq!(host(&parts), "shop:80");
    }

    #[test]
    fn a_request_of_http1_can_go_on_as_http2_and_back() {
        let mut parts = head(get("/a?b").header("host", "shop:80"));
        receive(&mut parts).unwrap();
        send(&mut parts, upstream::Version::Http2, true).unwrap();
        assert_eq!(parts.uri, "http://shop:80/a?b");
        assert!(!parts.headers.contains_key("host"));
        parts
            .headers
            .append("cookie", HeaderValue::from_static("a=1"));
        parts
            .headers
            .append("cookie", HeaderValue::from_static("b=2"));
        receive(&mut parts).unwrap();
        send(&mut parts, upstream::Version::Http1, false).unwrap();
        assert_eq!(parts.uri, "/a?b");
        assert_eq!(parts.headers["host"], "shop:80");
        assert_eq!(parts.headers["cookie"], "a=1; b=2");
        assert_eq!(parts.headers["transfer-encoding"], "chunked");
    }
}
