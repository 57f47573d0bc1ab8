//! The routes of one port of a Service, as one.

use std::cmp::Reverse;
use std::sync::Arc;

use super::RequestHead;
use super::backend::CompiledRule;
use super::index::{Bucket, Prefixes, Rank, Texts};
use super::matching::Condition;
use crate::model::NamespacedName;
use crate::state::{PathMatch, RequestMatch, Route, ValueMatch};

/// The rules of all routes of a Service's port, each request to one of them.
///
/// Of several matches the first of these decides, as the Gateway API has it:
/// 1. an exact path; then a regular expression, the longest first; then a prefix, the
///    longest first. (Where regular expressions stand is left to implementations: after
///    prefixes they would never be reached, since rules without a path have prefix `/`.)
///    For gRPC: an exact service, a regular expression, any; then the same of the method.
/// 2. a match of the method;
/// 3. the most headers, then the most parameters of the query;
/// 4. the oldest route, then the first by namespace and name;
/// 5. the first of its rules.
#[derive(Debug)]
pub struct Routes {
    /// The best first.
    pub(super) entries: Vec<Entry>,
    /// By the whole path.
    exact: Texts,
    /// By the service of gRPC, with whatever method.
    services: Texts,
    /// Those that have to be tried one after the other.
    patterns: Bucket,
    prefixes: Prefixes,
}

/// What was found for a request.
#[derive(Clone, Debug)]
pub struct Matched {
    /// The rule.
    pub rule: Arc<CompiledRule>,
    /// The bytes of the path that the rule's prefix covers; all of it for another match.
    pub prefix: usize,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathMatch,
    pub(super) condition: Condition,
    pub(super) rule: Arc<CompiledRule>,
}

/// What two matches are compared by: the smaller is the better.
type Order<'r> = (
    (u8, Reverse<usize>),
    (u8, Reverse<usize>),
    Reverse<(bool, usize, usize)>,
    (i64, &'r NamespacedName, usize, usize),
);

impl Routes {
    /// All rules of all of these routes, which are of one kind.
    pub(in crate::policy) fn new<'r>(
        routes: impl IntoIterator<Item = (&'r Route, &'r [Arc<CompiledRule>])>,
    ) -> Self {
        let mut all = Vec::new();
        for (route, rules) in routes {
            for (at, (rule, compiled)) in route.rules.iter().zip(rules).enumerate() {
                for (index, one) in rule.matches.iter().enumerate() {
                    all.push((order(route, (at, index), one), one, compiled));
                }
            }
        }
        all.sort_by_key(|(order, ..)| *order);
        let entries = all.into_iter().map(|(_, one, rule)| Entry {
            path: one.path.clone(),
            condition: Condition::new(one),
            rule: Arc::clone(rule),
        });
        let mut routes = Self {
            entries: entries.collect(),
            exact: Texts::new(),
            services: Texts::new(),
            patterns: Bucket::default(),
            prefixes: Prefixes::new(),
        };
        routes.index();
        routes
    }

    fn index(&mut self) {
        for (rank, entry) in self.entries.iter().enumerate() {
            let bucket = match &entry.path {
                PathMatch::Exact(path) => self.exact.bucket(path),
                PathMatch::Prefix(prefix) => self.prefixes.bucket(prefix),
                PathMatch::Regex(_) => &mut self.patterns,
                PathMatch::Grpc { service, method } => match (service, method) {
                    (Some(ValueMatch::Exact(service)), Some(ValueMatch::Exact(method))) => {
                        self.exact.bucket(&format!("/{service}/{method}"))
                    }
                    (Some(ValueMatch::Exact(service)), _) => self.services.bucket(service),
                    _ => &mut self.patterns,
                },
            };
            bucket.push(rank);
        }
        let condition = |rank: Rank| &self.entries[rank].condition;
        let texts = self.exact.buckets().chain(self.services.buckets());
        for bucket in texts.chain(self.prefixes.buckets()) {
            bucket.finish(condition);
        }
        self.patterns.finish(condition);
    }

    /// The rule that a request is for. `None`: there are routes, and none is for it.
    pub fn find(&self, head: &RequestHead<'_>) -> Option<Matched> {
        self.search(head, &mut 0)
    }

    /// As [`Self::find`]; counts the matches that were looked at.
    pub(super) fn search(&self, head: &RequestHead<'_>, looked: &mut usize) -> Option<Matched> {
        let path = head.path;
        let mut first = |bucket: &Bucket| {
            let mut candidates = bucket.candidates(head);
            candidates.find_map(|rank| {
                *looked += 1;
                let entry = &self.entries[rank];
                let holds = covers(&entry.path, path) && entry.condition.holds(head);
                holds.then_some(entry)
            })
        };
        let whole = self.exact.get(path).and_then(&mut first);
        let whole = whole.or_else(|| {
            let (service, _) = grpc_call(path)?;
            self.services.get(service).and_then(&mut first)
        });
        if let Some(entry) = whole.or_else(|| first(&self.patterns)) {
            return Some(entry.matched(path.len()));
        }
        let mut prefixes = self.prefixes.of_path(path);
        prefixes.find_map(|(length, bucket)| Some(first(bucket)?.matched(length)))
    }
}

impl Entry {
    fn matched(&self, prefix: usize) -> Matched {
        Matched {
            rule: Arc::clone(&self.rule),
            prefix,
        }
    }
}

fn order<'r>(route: &'r Route, place: (usize, usize), one: &RequestMatch) -> Order<'r> {
    let none = (0, Reverse(0));
    let length = |text: &str| Reverse(text.chars().count());
    let value = |value: &Option<ValueMatch>| match value {
        Some(ValueMatch::Exact(text)) => (0, length(text)),
        Some(ValueMatch::Regex(pattern)) => (1, length(pattern.as_str())),
        None => (2, Reverse(0)),
    };
    let (path, method) = match &one.path {
        PathMatch::Exact(path) => ((0, length(path)), none),
        PathMatch::Regex(pattern) => ((1, length(pattern.as_str())), none),
        PathMatch::Prefix(prefix) => ((2, length(prefix)), none),
        PathMatch::Grpc { service, method } => (value(service), value(method)),
    };
    let (rule, index) = place;
    (
        path,
        method,
        Reverse((one.method.is_some(), one.headers.len(), one.query.len())),
        (route.created, &route.name, rule, index),
    )
}

/// What is left to be checked of a path once its bucket is known.
pub(super) fn covers(path: &PathMatch, of: &str) -> bool {
    match path {
        PathMatch::Exact(_) | PathMatch::Prefix(_) => true,
        PathMatch::Regex(pattern) => pattern.matches(of.as_bytes()),
        PathMatch::Grpc { service, method } => grpc_call(of).is_some_and(|call| {
            let is = |wanted: &Option<ValueMatch>, text: &str| {
                let wanted = wanted.as_ref();
                wanted.is_none_or(|wanted| wanted.matches(text.as_bytes()))
            };
            is(service, call.0) && is(method, call.1)
        }),
    }
}

/// Service and method of a call of gRPC.
fn grpc_call(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/'))
        .then_some((service, method))
}
