//! Which records someone wants to see.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event::{Direction, FlowEvent, FlowProtocol, Verdict};

/// Selects records: every field that is given must match. A field about pods matches
/// either end of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The namespace of the client or the server.
    pub namespace: Option<String>,
    /// The client or the server.
    pub pod: Option<PodFilter>,
    /// The Service that was dialled: `name` or `namespace/name`.
    pub service: Option<PodFilter>,
    /// The port that was dialled.
    pub port: Option<u16>,
    /// How it ended.
    pub verdict: Option<Verdict>,
    /// Which side reported.
    pub direction: Option<Direction>,
    /// What it carried.
    pub protocol: Option<FlowProtocol>,
    /// Records of connections or of requests; of both where absent. The fields that follow
    /// match requests only.
    pub kind: Option<RecordKind>,
    /// Any of these methods, in upper case.
    pub method: Vec<String>,
    /// What was asked for.
    pub path: Option<PathFilter>,
    /// The host that was asked.
    pub host: Option<String>,
    /// Any of these answers.
    pub status: Vec<StatusFilter>,
    /// The label of the rule that matched, or a part of it.
    pub route: Option<String>,
    /// It took so long at least.
    pub min_latency: Option<Duration>,
    /// Only what ended within this time before now.
    pub since: Option<Duration>,
    /// At most so many, the newest; what follows later is not limited.
    pub last: Option<usize>,
}

/// What a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// A connection.
    Connection,
    /// A request.
    Request,
}

impl RecordKind {
    /// Every value, for the command line.
    pub const ALL: &[Self] = &[Self::Connection, Self::Request];

    /// As the JSON form spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Request => "request",
        }
    }
}

/// A path: a prefix of whole segments, or a pattern of the whole path where it has a `*`,
/// which stands for any number of characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathFilter(String);

/// A status (`404`) or a class of them (`5xx`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum StatusFilter {
    /// Exactly this one; 0 is a request that got no answer.
    Code(u16),
    /// All that begin with this digit.
    Class(u16),
}

/// `name`, or `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFilter {
    /// Any namespace where absent.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
}

impl Filter {
    /// It asks for what is known of a request only when that has ended.
    pub(super) fn waits_for_end(&self) -> bool {
        self.verdict.is_some()
            || !self.status.is_empty()
            || self.route.is_some()
            || self.min_latency.is_some()
    }
}

impl FromStr for PodFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        let empty = name.is_empty() || namespace.as_deref() == Some("");
        if empty || name.contains('/') {
            return Err(format!("\"{text}\" is neither NAME nor NAMESPACE/NAME"));
        }
        Ok(Self {
            namespace,
            name: name.to_owned(),
        })
    }
}

impl fmt::Display for PodFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl PodFilter {
    fn matches(&self, namespace: Option<&str>, name: Option<&str>) -> bool {
        name == Some(&self.name)
            && self
                .namespace
                .as_deref()
                .is_none_or(|wanted| namespace == Some(wanted))
    }
}

impl FromStr for PathFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.starts_with(['/', '*']) {
            return Err(format!(
                "\"{text}\" begins with neither / nor *: no path would match"
            ));
        }
        if text.contains('?') {
            return Err("queries are not recorded: give the path alone".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl PathFilter {
    fn matches(&self, path: &str) -> bool {
        if self.0.contains('*') {
            return matches_pattern(&self.0, path);
        }
        let prefix = self.0.strip_suffix('/').unwrap_or(&self.0);
        let rest = path.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The pattern covers the whole text. Each `*` takes as little as it can.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(start) => rest = &rest[start + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl FromStr for StatusFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let class = text
            .strip_suffix("xx")
            .or_else(|| text.strip_suffix("XX"))
            .and_then(|digit| digit.parse().ok());
        match (class, text.parse()) {
            (Some(class @ 1..=9), _) => Ok(Self::Class(class)),
            (None, Ok(code @ (0 | 100..=999))) => Ok(Self::Code(code)),
            _ => Err(format!(
                "\"{text}\" is neither a status such as 404 nor a class such as 5xx"
            )),
        }
    }
}

impl TryFrom<String> for StatusFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StatusFilter> for String {
    fn from(status: StatusFilter) -> Self {
        match status {
            StatusFilter::Code(code) => code.to_string(),
            StatusFilter::Class(class) => format!("{class}xx"),
        }
    }
}

impl StatusFilter {
    fn matches(self, status: u16) -> bool {
        match self {
            Self::Code(code) => code == status,
            Self::Class(class) => status / 100 == class,
        }
    }
}

impl Filter {
    /// The record matches every field but [`Filter::since`] and [`Filter::last`].
    pub fn matches(&self, event: &FlowEvent) -> bool {
        let (from, to) = (&event.source, &event.destination);
        let ends = [
            (from.namespace.as_deref(), from.pod.as_deref()),
            (to.namespace.as_deref(), to.pod.as_deref()),
        ];
        let namespace = |wanted: &String| ends.iter().any(|end| end.0 == Some(wanted));
        let pod = |wanted: &PodFilter| ends.iter().any(|end| wanted.matches(end.0, end.1));
        let service = |wanted: &PodFilter| {
            let service = to.service.as_deref().unwrap_or_default();
            match service.split_once('/') {
                Some((namespace, name)) => wanted.matches(Some(namespace), Some(name)),
                None => wanted.matches(to.namespace.as_deref(), Some(service)),
            }
        };
        self.namespace.as_ref().is_none_or(namespace)
            && self.pod.as_ref().is_none_or(pod)
            && self.service.as_ref().is_none_or(service)
            && self.port.is_none_or(|port| port == to.port)
            && self.verdict.is_none_or(|verdict| verdict == event.verdict)
            && self.direction.is_none_or(|side| side == event.direction)
            && self.protocol.is_none_or(|what| what == event.protocol)
            && self.matches_request(event)
    }

    fn matches_request(&self, event: &FlowEvent) -> bool {
        let Some(http) = &event.http else {
            return self.kind != Some(RecordKind::Request) && !self.is_about_requests();
        };
        let slow = |limit: Duration| u128::from(event.duration_ms) >= limit.as_millis();
        self.kind != Some(RecordKind::Connection)
            && (self.method.is_empty() || self.method.iter().any(|it| **it == *http.method))
            && self.path.as_ref().is_none_or(|it| it.matches(&http.path))
            && self
                .host
                .as_ref()
                .is_none_or(|it| it.eq_ignore_ascii_case(&http.host))
            && (self.status.is_empty() || self.status.iter().any(|it| it.matches(http.status)))
            && self.min_latency.is_none_or(slow)
            && self.route.as_ref().is_none_or(|wanted| {
                let route = http.route.as_deref().unwrap_or_default();
                route.contains(wanted.as_str())
            })
    }

    /// A field is given that no connection has.
    fn is_about_requests(&self) -> bool {
        !self.method.is_empty()
            || self.path.is_some()
            || self.host.is_some()
            || !self.status.is_empty()
            || self.route.is_some()
            || self.min_latency.is_some()
    }

    /// The record is not older than [`Filter::since`].
    pub fn is_recent(&self, time: Timestamp, now: Timestamp) -> bool {
        self.since.is_none_or(|since| {
            let age = now.duration_since(time);
            age.is_negative() || age.unsigned_abs() <= since
        })
    }
}
