//! What of a request's own texts is kept: short, and without what may be secret.

use http::Method;

/// Bytes of a path that are kept.
const PATH_LIMIT: usize = 512;
/// Bytes of a host name: no longer one can be resolved.
const HOST_LIMIT: usize = 255;
/// Bytes of a method. Those that are registered have up to 16.
const METHOD_LIMIT: usize = 32;
/// Stands for what was cut off.
const CUT: &str = "...";

/// The path without its query.
pub(super) fn path(path: &str) -> Box<str> {
    let end = path.find(['?', '#']).unwrap_or(path.len());
    shortened(&path[..end], PATH_LIMIT)
}

/// The host, not longer than one can be.
pub(super) fn host(host: &str) -> Box<str> {
    shortened(host, HOST_LIMIT)
}

/// The method; a client may send one of any length.
pub(super) fn method(method: &Method) -> Method {
    match method.as_str().get(..METHOD_LIMIT) {
        None => method.clone(),
        Some(start) => Method::from_bytes(start.as_bytes()).unwrap_or_default(),
    }
}

fn shortened(text: &str, limit: usize) -> Box<str> {
    if text.len() <= limit {
        return text.into();
    }
    let end = text.floor_char_boundary(limit);
    [&text[..end], CUT].concat().into()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::{host, method, path};

    #[test]
    fn a_query_is_not_kept() {
        assert_eq!(&*path("/reset?token=secret"), "/reset");
        assert_eq!(&*path("/a#b?c"), "/a");
        assert_eq!(&*path("*"), "*");
    }

    #[test]
    fn what_clients_make_long_is_cut() {
        let long = "/ä".repeat(400);
        let kept = path(&long);
        assert!(kept.len() <= 515 && kept.ends_with("..."), "{kept}");
        assert_eq!(host(&"h".repeat(300)).len(), 258);
        let long = Method::from_bytes("M".repeat(5000).as_bytes()).unwrap();
        assert_eq!(method(&long).as_str().len(), 32);
        assert_eq!(method(&Method::PATCH), Method::PATCH);
    }
}
