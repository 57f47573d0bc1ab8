//! Another host or path for a request that goes on.

use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Uri};

use super::path;
use crate::state::{HeaderChange, Rewrite};

/// The rewritten request is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAUri;

/// Rewrites the request; `prefix` is what the route's match covered of the path.
pub(super) fn rewrite(parts: &mut Parts, wanted: &Rewrite, prefix: usize) -> Result<(), NotAUri> {
    if let Some(change) = &wanted.path {
        let root = PathAndQuery::from_static("/");
        let before = parts.uri.path_and_query().unwrap_or(&root);
        let after = path::changed(before, change, prefix).map_err(|_invalid| NotAUri)?;
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(after);
        parts.uri = Uri::from_parts(uri).map_err(|_invalid| NotAUri)?;
    }
    if let Some(hostname) = &wanted.hostname {
        let value = HeaderValue::from_str(hostname).map_err(|_invalid| NotAUri)?;
        set_host(parts, value)?;
    }
    Ok(())
}

/// `Host` of a header modifier: the last that is set or added, since there is only one.
pub(super) fn host_of(change: &HeaderChange) -> Option<&HeaderValue> {
    let entries = change.set.iter().chain(&change.add);
    let hosts = entries.filter(|(name, _)| name == HOST);
    hosts.last().map(|(_, value)| value)
}

/// Names the host in both places where a request may have it: the header of HTTP/1.1 and
/// the authority of HTTP/2 and of absolute URIs.
pub(super) fn set_host(parts: &mut Parts, host: HeaderValue) -> Result<(), NotAUri> {
    let authority = Authority::try_from(host.as_bytes()).map_err(|_invalid| NotAUri)?;
    if parts.uri.authority().is_some() {
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.authority = Some(authority);
        parts.uri = Uri::from_parts(uri).map_err(|_invalid| NotAUri)?;
        if !parts.headers.contains_key(HOST) {
            return Ok(());
        }
    }
    let _before = parts.headers.insert(HOST, host);
    Ok(())
}

/// The host that a request names, with its port.
pub(super) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority()
        .map(Authority::as_str)
        .or_else(|| headers.get(HOST)?.to_str().ok())
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::request::Parts;

    use super::{NotAUri, host, rewrite};
    use crate::state::{PathChange, Rewrite};

    fn request(uri: &str, host: Option<&str>) -> Parts {
        let mut request = Request::get(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn to_host(hostname: &str) -> Rewrite {
        Rewrite {
            hostname: Some(hostname.into()),
            path: None,
        }
    }

    #[test]
    fn the_host_changes_where_the_request_has_it() {
        let mut http1 = request("/a", Some("web.shop:8080"));
        rewrite(&mut http1, &to_host("one.example.org"), 0).unwrap();
        assert_eq!(http1.headers["host"], "one.example.org");
        assert_eq!(http1.uri, "/a");

        let mut http2 = request("http://web.shop:8080/a?b", None);
        rewrite(&mut http2, &to_host("one.example.org"), 0).unwrap();
        assert_eq!(http2.uri, "http://one.example.org/a?b");
        assert!(http2.headers.is_empty());

        let mut absolute = request("http://web.shop/a", Some("web.shop"));
        rewrite(&mut absolute, &to_host("x.org"), 0).unwrap();
        assert_eq!(host(&absolute.uri, &absolute.headers), Some("x.org"));
        assert_eq!(absolute.headers["host"], "x.org");
    }

    #[test]
    fn path_and_host_change_together() {
        let mut parts = request("/v1/cart?id=7", Some("web"));
        let both = Rewrite {
            hostname: Some("api".into()),
            path: Some(PathChange::Prefix("/v2".into())),
        };
        rewrite(&mut parts, &both, 3).unwrap();
        assert_eq!(parts.uri, "/v2/cart?id=7");
        assert_eq!(parts.headers["host"], "api");
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let mut parts = request("/a", Some("web"));
        let refused = rewrite(&mut parts, &to_host("a b\r\nx: y"), 0);
        assert_eq!(refused, Err(NotAUri));
    }
}
