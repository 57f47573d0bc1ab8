//! Headers that are set, added and removed.

use http::header::HOST;
use http::{HeaderMap, HeaderName};

use crate::state::{HeaderChange, is_framing};

/// Changes headers: what is set replaces, what is added stays beside what is there.
/// `Host` is not among a message's plain headers: see [`super::rewrite`].
pub(super) fn change(headers: &mut HeaderMap, change: &HeaderChange) {
    for (name, value) in plain(&change.set) {
        let _before = headers.insert(name, value.clone());
    }
    for (name, value) in plain(&change.add) {
        let _there = headers.append(name, value.clone());
    }
    for name in &change.remove {
        if !is_framing(name) && name != HOST {
            let _before = headers.remove(name);
        }
    }
}

fn plain<V>(entries: &[(HeaderName, V)]) -> impl Iterator<Item = &(HeaderName, V)> {
    entries
        .iter()
        .filter(|(name, _)| !is_framing(name) && name != HOST)
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::change;
    use crate::state::HeaderChange;

    type Entry = (&'static str, &'static str);

    #[track_caller]
    fn check(
        before: &[Entry],
        set: &[Entry],
        add: &[Entry],
        remove: &[&'static str],
        after: &[Entry],
    ) {
        let entries = |entries: &[Entry]| {
            let pair = |&(name, value): &Entry| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            };
            entries.iter().map(pair).collect::<Vec<_>>()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in entries(before) {
            let _there = headers.append(name, value);
        }
        let wanted = HeaderChange {
            set: entries(set),
            add: entries(add),
            remove: remove
                .iter()
                .map(|name| HeaderName::from_static(name))
                .collect(),
        };
        change(&mut headers, &wanted);
        let found: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(found, after);
    }

    #[test]
    fn set_replaces_all_values() {
        let before = [("my-header", "a"), ("my-header", "b")];
        check(
            &before,
            &[("my-header", "c")],
            &[],
            &[],
            &[("my-header", "c")],
        );
        check(&[], &[("my-header", "c")], &[], &[], &[("my-header", "c")]);
    }

    #[test]
    fn add_keeps_what_is_there() {
        let after = [("my-header", "foo"), ("my-header", "bar,baz")];
        check(
            &[("my-header", "foo")],
            &[],
            &[("my-header", "bar,baz")],
            &[],
            &after,
        );
    }

    #[test]
    fn remove_takes_all_values() {
        let before = [("my-header", "a"), ("my-header", "b"), ("other", "c")];
        check(
            &before,
            &[],
            &[],
            &["my-header", "absent"],
            &[("other", "c")],
        );
    }

    #[test]
    fn what_frames_the_message_is_left_alone() {
        let before = [("content-length", "5")];
        let set = [("content-length", "0"), ("transfer-encoding", "chunked")];
        check(
            &before,
            &set,
            &[("connection", "x-secret")],
            &["content-length"],
            &before,
        );
    }
}
