//! Paths as redirects and rewrites change them.

use std::borrow::Cow;

use http::uri::{InvalidUri, PathAndQuery};

use crate::state::PathChange;

/// The path and query that a request goes on with. `prefix` is what the route's match
/// covered of the path. The query stays, unless the new path brings one.
pub(super) fn changed(
    before: &PathAndQuery,
    change: &PathChange,
    prefix: usize,
) -> Result<PathAndQuery, InvalidUri> {
    let path = match change {
        PathChange::Full(path) if path.is_empty() => Cow::Borrowed("/"),
        PathChange::Full(path) => Cow::Borrowed(&**path),
        PathChange::Prefix(replacement) => Cow::Owned(replace(before.path(), prefix, replacement)),
    };
    match before.query().filter(|_query| !path.contains('?')) {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(&*path),
    }
}

/// Whole elements are replaced, so that a slash at the end of either side means nothing.
fn replace(path: &str, prefix: usize, replacement: &str) -> String {
    let covered = path.get(..prefix).unwrap_or(path).trim_end_matches('/');
    let rest = &path[covered.len()..];
    let replacement = replacement.trim_end_matches('/');
    if replacement.is_empty() && rest.is_empty() {
        return "/".to_owned();
    }
    format!("{replacement}{rest}")
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;

    use super::changed;
    use crate::state::PathChange;

    #[track_caller]
    fn check(path: &str, prefix: &str, replacement: &str, expected: &str) {
        let before = PathAndQuery::try_from(path).unwrap();
        // A match of `/foo/` covers `/foo`, too.
        let covered = prefix.len().min(before.path().len());
        let change = PathChange::Prefix(replacement.into());
        let after = changed(&before, &change, covered).unwrap();
        assert_eq!(after, expected, "{path}: {prefix} -> {replacement}");
    }

    #[test]
    fn prefixes_are_replaced_as_the_specification_lists_it() {
        check("/foo/bar", "/foo", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo", "/xyz/", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz", "/xyz/bar");
        check("/foo/bar", "/foo/", "/xyz/", "/xyz/bar");
        check("/foo", "/foo", "/xyz", "/xyz");
        check("/foo/", "/foo", "/xyz", "/xyz/");
        check("/foo/bar", "/foo", "", "/bar");
        check("/foo/", "/foo", "", "/");
        check("/foo", "/foo", "", "/");
        check("/foo/", "/foo", "/", "/");
        check("/foo", "/foo", "/", "/");
    }

    #[test]
    fn the_root_is_a_prefix_too() {
        check("/a/b", "/", "/xyz", "/xyz/a/b");
        check("/", "/", "/xyz", "/xyz/");
        check("/", "/", "/", "/");
    }

    #[test]
    fn the_query_stays_unless_the_new_path_has_one() {
        check("/foo/bar?a=/foo", "/foo", "/xyz", "/xyz/bar?a=/foo");
        let before = PathAndQuery::from_static("/foo?a=1");
        let full = |text: &str| changed(&before, &PathChange::Full(text.into()), 0).unwrap();
        assert_eq!(full("/one"), "/one?a=1");
        assert_eq!(full("/one?b=2"), "/one?b=2");
        assert_eq!(full(""), "/?a=1");
    }

    #[test]
    fn what_makes_no_path_is_refused() {
        let before = PathAndQuery::from_static("/foo");
        let broken = PathChange::Full("/a b\r\n".into());
        assert!(changed(&before, &broken, 0).is_err());
    }
}
