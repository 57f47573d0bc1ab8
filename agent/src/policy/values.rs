//! How single values of connections and requests are compared.

use http::HeaderValue;

use super::matching::Doubt;
use super::request::HttpRequest;
use crate::model::{SpiffeId, without_parameters};
use crate::state::{PathPattern, StringMatch};

/// The identity without `spiffe://` is one of those that are meant.
pub(super) fn is_principal(pattern: &StringMatch, id: &SpiffeId) -> bool {
    let parts = [
        &*id.trust_domain.0,
        "/ns/",
        &*id.namespace,
        "/sa/",
        &*id.service_account,
    ];
    match pattern {
        StringMatch::Exact(exact) => {
            let rest = parts
                .iter()
                .try_fold(exact.as_str(), |rest, part| rest.strip_prefix(part));
            rest.is_some_and(str::is_empty)
        }
        StringMatch::Prefix(prefix) => {
            let mut rest = prefix.as_str();
            for part in parts {
                match rest.strip_prefix(part) {
                    Some(after) => rest = after,
                    None => return part.starts_with(rest),
                }
            }
            rest.is_empty()
        }
        StringMatch::Suffix(suffix) => {
            let mut rest = suffix.as_str();
            for part in parts.iter().rev() {
                match rest.strip_suffix(part) {
                    Some(before) => rest = before,
                    None => return part.ends_with(rest),
                }
            }
            rest.is_empty()
        }
        StringMatch::Present => true,
    }
}

/// Methods are case-sensitive, but not to every server.
pub(super) fn is_method(pattern: &StringMatch, http: &HttpRequest<'_>, doubt: Doubt) -> bool {
    match doubt {
        Doubt::Fails => pattern.matches(http.method.as_str()),
        Doubt::Matches => pattern.matches_any_case(http.method.as_str()),
    }
}

/// Some servers take what follows `;` in a segment for no part of the path.
pub(super) fn is_path(pattern: &PathPattern, http: &HttpRequest<'_>, doubt: Doubt) -> bool {
    let Some(path) = http.path else {
        return doubt == Doubt::Matches;
    };
    let matches = pattern.matches(path);
    if matches || doubt == Doubt::Fails {
        return matches;
    }
    without_parameters(path).is_some_and(|bare| pattern.matches(&bare))
}

/// The values of a header are among those that are listed. Of a header that is given
/// several times, one server takes the first, another the last, another all of them.
pub(super) fn is_header(
    list: &[StringMatch],
    http: &HttpRequest<'_>,
    name: &str,
    doubt: Doubt,
) -> bool {
    let mut given = http.headers.get_all(name).iter().peekable();
    let is_any = |text: &str| list.iter().any(|pattern| pattern.matches(text));
    // What is no text can be anything.
    let certainly = |value: &HeaderValue| value.to_str().is_ok_and(is_any);
    let perhaps = |value: &HeaderValue| value.to_str().map_or(true, is_any);
    match doubt {
        Doubt::Fails => given.peek().is_some() && given.all(certainly),
        Doubt::Matches => given.any(perhaps),
    }
}
