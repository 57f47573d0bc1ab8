//! The source of objects as the admin side shows it. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::admin::{SourceStatus, WatchStatus};
use crate::cluster::{Health, KindHealth};
use crate::state::Snapshot;

/// How the source is, at `now`.
pub(super) fn status(health: &Health, snapshot: &Snapshot, now: Timestamp) -> SourceStatus {
    let policies = [
        snapshot.authorization_policies.len(),
        snapshot.mesh_policies.len(),
        snapshot.traffic_policies.len(),
    ];
    let objects = health.objects.iter();
    SourceStatus {
        name: health.source.clone(),
        synced: snapshot.revision > 0,
        healthy: health.healthy,
        error: error(health, snapshot.revision > 0, now),
        last_sync: health.last_sync,
        lost: health.lost,
        objects: objects
            .map(|(kind, count)| ((*kind).to_owned(), *count))
            .collect(),
        watches: health.kinds.iter().map(watch).collect(),
        revision: snapshot.revision,
        pods: snapshot.pods.len(),
        services: snapshot.services.len(),
        policies: policies.iter().sum(),
    }
}

/// Why the agent has no state to work with.
pub(super) fn not_read_yet(source: &SourceStatus) -> String {
    let name = &source.name;
    match &source.error {
        Some(error) => format!("{name} has not been read yet: {error}"),
        None => format!("{name} has not been read yet"),
    }
}

fn error(health: &Health, synced: bool, now: Timestamp) -> Option<String> {
    if health.healthy {
        return None;
    }
    let behind = health.kinds.iter().filter_map(|kind| kind.behind.as_ref());
    let messages: BTreeSet<&str> = behind.map(|error| error.message.as_str()).collect();
    let mut messages: Vec<&str> = messages.into_iter().collect();
    if messages.is_empty() {
        // A source that is read as a whole, or one of whose watches none has failed yet.
        let last = health
            .last_error
            .as_ref()
            .filter(|_| health.kinds.is_empty());
        messages.extend(last.map(|error| error.message.as_str()));
    }
    if messages.is_empty() {
        return None;
    }
    let messages = messages.join("; ");
    Some(match (health.lost, health.last_sync.filter(|_| synced)) {
        (Some(since), Some(state)) => {
            let seconds = now.duration_since(since).as_secs().max(0);
            format!(
                "lost the API server {seconds} s ago, serving the state of {state:.0}: {messages}"
            )
        }
        (Some(_), None) => format!("can't reach the API server: {messages}"),
        (None, _) => messages,
    })
}

fn watch(kind: &KindHealth) -> WatchStatus {
    let relists = kind.relists.iter();
    WatchStatus {
        kind: kind.kind.to_owned(),
        installed: kind.installed,
        behind_since: kind.behind.as_ref().map(|error| error.time),
        restarts: kind.watch_restarts,
        relists: relists
            .map(|(reason, count)| ((*reason).to_owned(), *count))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cluster::SourceError;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn health(lost: Option<i64>, messages: &[&str]) -> Health {
        let kind = |message: &&str| KindHealth {
            kind: "Pod",
            installed: true,
            behind: Some(SourceError {
                time: at(10),
                message: (*message).to_owned(),
            }),
            watch_restarts: 0,
            relists: BTreeMap::new(),
        };
        Health {
            source: "kube:https://api".to_owned(),
            healthy: false,
            last_sync: Some(at(5)),
            last_error: None,
            watching: false,
            lost: lost.map(at),
            objects: BTreeMap::new(),
            kinds: messages.iter().map(kind).collect(),
            problems: 0,
        }
    }

    #[track_caller]
    fn check(health: &Health, revision: u64, expected: &str) {
        let snapshot = Snapshot {
            revision,
            ..Snapshot::default()
        };
        let status = status(health, &snapshot, at(44));
        assert_eq!(status.error.as_deref().unwrap_or_default(), expected);
    }

    #[test]
    fn a_lost_api_server_is_said_with_the_age_of_the_state() {
        let both = health(Some(10), &["refused", "refused"]);
        check(
            &both,
            3,
            "lost the API server 34 s ago, serving the state of 1970-01-01T00:00:05Z: refused",
        );
        check(&both, 0, "can't reach the API server: refused");
    }

    #[test]
    fn missing_rights_are_all_named() {
        check(
            &health(None, &["no pods", "no services"]),
            0,
            "no pods; no services",
        );
        let status = status(&health(None, &["no pods"]), &Snapshot::default(), at(44));
        assert_eq!(
            not_read_yet(&status),
            "kube:https://api has not been read yet: no pods"
        );
    }

    #[test]
    fn a_source_that_starts_or_is_well_has_no_error() {
        check(&health(None, &[]), 0, "");
        let mut well = health(None, &[]);
        well.healthy = true;
        check(&well, 1, "");
    }
}
