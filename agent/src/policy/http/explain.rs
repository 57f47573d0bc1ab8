//! Why a request is for a rule and not for another, for people.

use std::fmt::Write as _;

use super::RequestHead;
use super::matching::{Condition, header, parameter};
use super::routes::{Routes, covers};
use crate::policy::explanation::RuleCandidate;
use crate::state::{PathMatch, RequestMatch, ValueMatch};

/// Rules that are told of: a Service may have thousands.
const TOLD: usize = 24;

impl Routes {
    /// The matches that the request could be for, and the number of those that are left out:
    /// first the one that is taken, then others that match too, then those of which only
    /// something beside the path does not match, then the rest.
    pub(in crate::policy) fn explain(&self, head: &RequestHead<'_>) -> (Vec<RuleCandidate>, usize) {
        let mut taken = false;
        let entries = self.entries.iter();
        let mut told: Vec<(u8, RuleCandidate)> = entries
            .map(|entry| {
                let path = covers_whole(&entry.path, head.path);
                let failing = entry.condition.failing(head);
                let matches = path && failing.is_none();
                let chosen = matches && !taken;
                taken |= matches;
                let (rank, why) = match (path, failing) {
                    (true, None) if chosen => (0, "it is the best match".to_owned()),
                    (true, None) => (1, "it matches too, but less specifically".to_owned()),
                    (true, Some(failing)) => (2, failing),
                    (false, _) => (3, "the path is another".to_owned()),
                };
                let candidate = RuleCandidate {
                    rule: entry.rule.label.to_string(),
                    wants: wants(&entry.path, &entry.condition),
                    matches,
                    chosen,
                    why,
                };
                (rank, candidate)
            })
            .collect();
        told.sort_by_key(|(rank, _)| *rank);
        let left_out = told.len().saturating_sub(TOLD);
        told.truncate(TOLD);
        (told.into_iter().map(|(_, it)| it).collect(), left_out)
    }
}

/// Where routes find the path by their index, it is compared here.
fn covers_whole(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) => {
            let rest = path.strip_prefix(&**prefix);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(_) | PathMatch::Grpc { .. } => covers(wanted, path),
    }
}

/// What a match asks of a request, in words.
pub fn describe_match(of: &RequestMatch) -> String {
    wants(&of.path, &Condition::new(of))
}

fn wants(path: &PathMatch, condition: &Condition) -> String {
    let text = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => text.to_string(),
        ValueMatch::Regex(pattern) => format!("/{}/", pattern.as_str()),
    };
    let any = |value: &Option<ValueMatch>| value.as_ref().map_or("*".to_owned(), text);
    let mut wants = match path {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(prefix) if prefix.is_empty() => "any path".to_owned(),
        PathMatch::Prefix(prefix) => format!("path {prefix} and below"),
        PathMatch::Regex(pattern) => format!("path like {}", pattern.as_str()),
        PathMatch::Grpc { service, method } => {
            format!("gRPC {}/{}", any(service), any(method))
        }
    };
    if let Some(method) = condition.method() {
        let _written = write!(wants, ", method {method}");
    }
    for it in condition.headers() {
        let _written = write!(wants, ", header {}: {}", it.name, text(&it.value));
    }
    for it in condition.query() {
        let _written = write!(wants, ", query {}={}", it.name, text(&it.value));
    }
    wants
}

impl Condition {
    /// What of it the request does not have.
    fn failing(&self, head: &RequestHead<'_>) -> Option<String> {
        let method = self.method().filter(|wanted| *wanted != head.method);
        let method = method.map(|wanted| format!("the method is not {wanted}"));
        let value = |what: &str, found: Option<&[u8]>, wanted: &ValueMatch| match found {
            None => Some(format!("there is no {what}")),
            Some(found) if wanted.matches(found) => None,
            Some(_) => Some(format!("{what} has another value")),
        };
        method
            .or_else(|| {
                self.headers().iter().find_map(|it| {
                    let found = header(head, &it.name);
                    value(&format!("header {}", it.name), found.as_deref(), &it.value)
                })
            })
            .or_else(|| {
                self.query().iter().find_map(|it| {
                    let found = parameter(head.query, &it.name);
                    let what = format!("parameter {}", it.name);
                    value(&what, found.as_deref(), &it.value)
                })
            })
    }
}
