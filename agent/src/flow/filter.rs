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
    /// Only what ended within this time before now.
    pub since: Option<Duration>,
    /// At most so many, the newest; what follows later is not limited.
    pub last: Option<usize>,
}

/// `name`, or `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFilter {
    /// Any namespace where absent.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
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
    }

    /// The record is not older than [`Filter::since`].
    pub fn is_recent(&self, time: Timestamp, now: Timestamp) -> bool {
        self.since.is_none_or(|since| {
            let age = now.duration_since(time);
            age.is_negative() || age.unsigned_abs() <= since
        })
    }
}
