//! Finds the few matches that a request could be for, however many there are.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;

use super::RequestHead;
use super::matching::{Condition, header, parameter};
use crate::state::ValueMatch;

/// The place of a match among all, the best first.
pub(super) type Rank = usize;

/// So many are looked at one after the other.
const FEW: usize = 8;

/// Matches of one path, in the order of their ranks.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Those that do not ask for a value of the key.
    ranks: Vec<Rank>,
    /// Where there are many: by the one header or parameter that most of them ask for.
    by_value: Option<ByValue>,
}

/// Matches by the value of a key that they ask for.
#[derive(Debug)]
struct ByValue {
    key: Key,
    ranks: HashMap<Box<[u8]>, Vec<Rank>>,
}

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Header(HeaderName),
    Parameter(Arc<str>),
}

impl Key {
    fn value<'h>(&self, head: &RequestHead<'h>) -> Option<Cow<'h, [u8]>> {
        match self {
            Self::Header(name) => header(head, name),
            Self::Parameter(name) => parameter(head.query, name),
        }
    }

    /// What a condition asks of it, where that is one value.
    fn wanted<'c>(&self, condition: &'c Condition) -> Option<&'c str> {
        exact_values(condition).find_map(|(key, value)| (key == *self).then_some(value))
    }
}

/// The values that a condition asks for.
fn exact_values(condition: &Condition) -> impl Iterator<Item = (Key, &str)> {
    let headers = condition.headers().iter().filter_map(|it| {
        let key = Key::Header(it.name.clone());
        exact_value(&it.value).map(|value| (key, value))
    });
    let query = condition.query().iter().filter_map(|it| {
        let key = Key::Parameter(Arc::clone(&it.name));
        exact_value(&it.value).map(|value| (key, value))
    });
    headers.chain(query)
}

fn exact_value(value: &ValueMatch) -> Option<&str> {
    match value {
        ValueMatch::Exact(value) => Some(value),
        ValueMatch::Regex(_) => None,
    }
}

impl Bucket {
    /// Adds a match of a higher rank than all so far.
    pub(super) fn push(&mut self, rank: Rank) {
        self.ranks.push(rank);
    }

    /// Tells the matches apart, once all are there.
    pub(super) fn finish<'c>(&mut self, condition: impl Fn(Rank) -> &'c Condition) {
        if self.ranks.len() <= FEW {
            return;
        }
        let mut counts: HashMap<Key, usize> = HashMap::new();
        for &rank in &self.ranks {
            for (key, _) in exact_values(condition(rank)) {
                *counts.entry(key).or_default() += 1;
            }
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let Some((key, _)) = most.filter(|(_, count)| *count > FEW) else {
            return;
        };
        let mut ranks: HashMap<Box<[u8]>, Vec<Rank>> = HashMap::new();
        self.ranks.retain(|&rank| {
            let value = key.wanted(condition(rank));
            if let Some(value) = value {
                ranks.entry(value.as_bytes().into()).or_default().push(rank);
            }
            value.is_none()
        });
        self.by_value = Some(ByValue { key, ranks });
    }

    /// Those that the request could be for, the best first.
    pub(super) fn candidates(&self, head: &RequestHead<'_>) -> impl Iterator<Item = Rank> {
        let asked = self.by_value.as_ref().and_then(|by| {
            let value = by.key.value(head)?;
            by.ranks.get(&*value)
        });
        let mut asked = asked
            .map_or(&[][..], |ranks| ranks)
            .iter()
            .copied()
            .peekable();
        let mut others = self.ranks.iter().copied().peekable();
        std::iter::from_fn(move || match (asked.peek(), others.peek()) {
            (Some(one), Some(other)) if one < other => asked.next(),
            (Some(_), None) => asked.next(),
            _ => others.next(),
        })
    }
}

/// Buckets by a text, such as a path.
#[derive(Debug)]
pub(super) struct Texts(HashMap<Box<str>, Bucket>);

impl Texts {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(super) fn bucket(&mut self, text: &str) -> &mut Bucket {
        self.0.entry(text.into()).or_default()
    }

    pub(super) fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.0.values_mut()
    }

    pub(super) fn get(&self, text: &str) -> Option<&Bucket> {
        self.0.get(text)
    }
}

/// Buckets by the first segments of a path: a tree of segments.
#[derive(Debug)]
pub(super) struct Prefixes {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, usize>,
    /// The node that this one is a child of; the root is its own.
    parent: usize,
    /// The bytes of the prefix.
    length: usize,
    bucket: Option<Bucket>,
}

impl Prefixes {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }

    /// The bucket of a prefix, such as `/a/b`; of any path where it is empty.
    pub(super) fn bucket(&mut self, prefix: &str) -> &mut Bucket {
        let mut at = 0;
        for segment in prefix.split('/').skip(1) {
            at = if let Some(&child) = self.nodes[at].children.get(segment) {
                child
            } else {
                let child = self.nodes.len();
                let length = self.nodes[at].length + 1 + segment.len();
                self.nodes[at].children.insert(segment.into(), child);
                self.nodes.push(Node {
                    parent: at,
                    length,
                    ..Node::default()
                });
                child
            };
        }
        self.nodes[at].bucket.get_or_insert_default()
    }

    pub(super) fn buckets(&mut self) -> impl Iterator<Item = &mut Bucket> {
        let nodes = self.nodes.iter_mut();
        nodes.filter_map(|node| node.bucket.as_mut())
    }

    /// The buckets of a path's prefixes with their lengths, the longest first.
    pub(super) fn of_path(&self, path: &str) -> impl Iterator<Item = (usize, &Bucket)> {
        let mut at = 0;
        for segment in path.split('/').skip(1) {
            match self.nodes[at].children.get(segment) {
                Some(&child) => at = child,
                None => break,
            }
        }
        let mut next = Some(at);
        let upwards = std::iter::from_fn(move || {
            let at = next?;
            let node = &self.nodes[at];
            next = (at != 0).then_some(node.parent);
            Some(node)
        });
        upwards.filter_map(|node| Some((node.length, node.bucket.as_ref()?)))
    }
}
