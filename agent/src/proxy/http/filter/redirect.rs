//! Redirects: the answer that sends a client elsewhere.

use http::header::LOCATION;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Response, StatusCode};

use super::{path, rewrite};
use crate::state::{Redirect, Scheme};

/// The redirect makes no location.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoLocation;

/// The answer to a request that came to `port`; `prefix` is what the route's match covered
/// of the path.
pub(super) fn answer(
    parts: &Parts,
    wanted: &Redirect,
    prefix: usize,
    port: u16,
) -> Result<Response<()>, NoLocation> {
    let location = location(parts, wanted, prefix, port)?;
    let location = HeaderValue::try_from(location).map_err(|_invalid| NoLocation)?;
    let status = StatusCode::from_u16(wanted.status).map_err(|_invalid| NoLocation)?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    let _before = response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn location(
    parts: &Parts,
    wanted: &Redirect,
    prefix: usize,
    port: u16,
) -> Result<String, NoLocation> {
    let root = PathAndQuery::from_static("/");
    let before = parts.uri.path_and_query().unwrap_or(&root);
    let changed = match &wanted.path {
        Some(change) => Some(path::changed(before, change, prefix).map_err(|_invalid| NoLocation)?),
        None => None,
    };
    let target = changed.as_ref().unwrap_or(before);
    let asked = rewrite::host(&parts.uri, &parts.headers);
    let host = match &wanted.hostname {
        Some(hostname) => hostname,
        None => without_port(asked.ok_or(NoLocation)?),
    };
    // What the pod's application speaks to its Service is plain HTTP.
    let scheme = wanted.scheme.unwrap_or(Scheme::Http);
    let (scheme_name, well_known) = match scheme {
        Scheme::Http => ("http", 80),
        Scheme::Https => ("https", 443),
    };
    let implied = wanted.scheme.map_or(port, |_named| well_known);
    match wanted.port.unwrap_or(implied) {
        port if port == well_known => Ok(format!("{scheme_name}://{host}{target}")),
        port => Ok(format!("{scheme_name}://{host}:{port}{target}")),
    }
}

/// The host alone; the brackets of an IPv6 address belong to it.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};

    use super::{NoLocation, answer};
    use crate::state::{PathChange, Redirect, Scheme};

    fn plain() -> Redirect {
        Redirect {
            scheme: None,
            hostname: None,
            port: None,
            path: None,
            status: 302,
        }
    }

    #[track_caller]
    fn check(host: &str, uri: &str, port: u16, wanted: &Redirect, expected: &str) {
        let request = Request::get(uri).header("host", host).body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let response = answer(&parts, wanted, 4, port).unwrap();
        assert_eq!(response.headers()["location"], expected);
        assert_eq!(response.status().as_u16(), wanted.status);
    }

    #[test]
    fn hosts_change_and_the_rest_stays() {
        let wanted = Redirect {
            hostname: Some("example.org".into()),
            ..plain()
        };
        check("web", "/foo?a=1", 80, &wanted, "http://example.org/foo?a=1");
        check(
            "web:8080",
            "/foo",
            8080,
            &wanted,
            "http://example.org:8080/foo",
        );
    }

    #[test]
    fn a_scheme_brings_its_own_port() {
        let https = Redirect {
            scheme: Some(Scheme::Https),
            ..plain()
        };
        check("web:8080", "/foo", 8080, &https, "https://web/foo");
        let http = Redirect {
            scheme: Some(Scheme::Http),
            ..plain()
        };
        check("web:8080", "/foo", 8080, &http, "http://web/foo");
        check(
            "[fd00::1]:8080",
            "/foo",
            8080,
            &http,
            "http://[fd00::1]/foo",
        );
    }

    #[test]
    fn a_port_that_is_named_is_there_unless_it_is_the_schemes_own() {
        let with = |scheme, port| Redirect {
            scheme,
            port: Some(port),
            ..plain()
        };
        check("web", "/a", 80, &with(None, 8083), "http://web:8083/a");
        check("web", "/a", 8080, &with(None, 80), "http://web/a");
        let https = Some(Scheme::Https);
        check("web", "/a", 80, &with(https, 443), "https://web/a");
        check("web", "/a", 80, &with(https, 80), "https://web:80/a");
    }

    #[test]
    fn paths_change_whole_or_by_prefix() {
        let with = |path, status| Redirect {
            path: Some(path),
            status,
            ..plain()
        };
        let prefix = with(PathChange::Prefix("/xyz".into()), 301);
        check("web", "/foo/bar?q", 80, &prefix, "http://web/xyz/bar?q");
        let full = with(PathChange::Full("/one".into()), 308);
        check("web", "/foo/bar?q", 80, &full, "http://web/one?q");
    }

    #[test]
    fn without_any_host_there_is_no_location() {
        let (parts, ()) = Request::get("/a").body(()).unwrap().into_parts();
        assert_eq!(answer(&parts, &plain(), 0, 80).unwrap_err(), NoLocation);
        let odd = Redirect {
            status: 1000,
            hostname: Some("x".into()),
            ..plain()
        };
        assert!(answer(&parts, &odd, 0, 80).is_err());
        let see_other = Redirect {
            status: 303,
            hostname: Some("x".into()),
            ..plain()
        };
        let response = answer(&parts, &see_other, 0, 80).unwrap();
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
    }
}
