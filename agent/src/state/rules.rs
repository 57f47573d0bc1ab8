//! What rules of an AuthorizationPolicy ask of requests.

use std::sync::Arc;

use serde::Serialize;

use super::objects::{From, StringMatch, To};

/// How a policy matches a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PathPattern {
    /// As any other text.
    Text(StringMatch),
    /// With `{*}` and `{**}` in it.
    Template(PathTemplate),
}

impl PathPattern {
    /// The path, in its normal form, is one of those that are meant.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

/// A path with `{*}`, which stands for one segment, and `{**}`, which stands for
/// whatever there is, slashes too, and is the last of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathTemplate(pub Vec<PathPart>);

/// A part of a [`PathTemplate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathPart {
    /// This text.
    Literal(String),
    /// One or more characters other than a slash.
    Segment,
    /// Anything, or nothing.
    Rest,
}

impl PathTemplate {
    fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        let mut parts = self.0.iter();
        while let Some(part) = parts.next() {
            match part {
                PathPart::Literal(text) => match rest.strip_prefix(text.as_str()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                PathPart::Segment => {
                    let end = rest.find('/').unwrap_or(rest.len());
                    if end == 0 {
                        return false;
                    }
                    rest = &rest[end..];
                }
                PathPart::Rest => {
                    return match parts.next() {
                        Some(PathPart::Literal(text)) => rest.ends_with(text.as_str()),
                        Some(PathPart::Segment | PathPart::Rest) => false,
                        None => true,
                    };
                }
            }
        }
        rest.is_empty()
    }
}

/// One condition of a rule (`when`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The key as it was written, such as `request.headers[x-role]`.
    pub key: Arc<str>,
    /// What it asks.
    pub test: Test,
}

/// What a [`Condition`] asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Test {
    /// The same as a field of `from`.
    Source(Box<From>),
    /// The same as a field of `to`.
    Destination(Box<To>),
    /// A header of the request.
    Header {
        /// Its name, in lower case.
        name: Arc<str>,
        /// What is listed.
        values: Values,
    },
    /// A claim of the end user's token, such as `realm`, `roles`.
    Claim {
        /// The names from the outermost to the claim's own.
        path: Vec<Arc<str>>,
        /// What is listed.
        values: Values,
    },
}

/// Any of some values, and none of others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Values {
    /// Any of these.
    pub values: Vec<StringMatch>,
    /// None of these.
    pub not_values: Vec<StringMatch>,
}

#[cfg(test)]
mod tests {
    use super::{PathPart, PathTemplate};

    #[track_caller]
    fn check(parts: &[PathPart], matching: &[&str], others: &[&str]) {
        let template = PathTemplate(parts.to_vec());
        for path in matching {
            assert!(template.matches(path), "{path}");
        }
        for path in others {
            assert!(!template.matches(path), "{path}");
        }
    }

    fn literal(text: &str) -> PathPart {
        PathPart::Literal(text.to_owned())
    }

    #[test]
    fn one_segment() {
        check(
            &[literal("/foo/"), PathPart::Segment],
            &["/foo/bar", "/foo/b%20r"],
            &["/foo/", "/foo", "/foo/bar/", "/foo/bar/baz", "/fo/bar"],
        );
        check(
            &[
                literal("/"),
                PathPart::Segment,
                literal("/b/"),
                PathPart::Segment,
            ],
            &["/a/b/c"],
            &["/a/b/", "/a/c/c", "//b/c", "/a/b/c/d"],
        );
    }

    #[test]
    fn any_number_of_segments() {
        check(
            &[literal("/foo/"), PathPart::Rest],
            &["/foo/", "/foo/a", "/foo/a/b/"],
            &["/foo", "/fo"],
        );
        check(
            &[
                literal("/"),
                PathPart::Segment,
                literal("/bar/"),
                PathPart::Rest,
            ],
            &["/x/bar/", "/x/bar/y/z"],
            &["/x/bar", "/x/y/bar/"],
        );
        check(
            &[literal("/foo/"), PathPart::Rest, literal("/x.txt")],
            &["/foo/a/x.txt", "/foo/a/b/x.txt"],
            &["/foo/x.txt", "/foo/a/x.txt/"],
        );
    }
}
