//! What tells clients which kinds there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::kind::Kind;
use super::store::Store;

/// The answer for a path that is no resource's; text for the health checks.
pub(super) fn answer(store: &Store, path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => Some(Value::String("ok".to_owned())),
        ["version"] => Some(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0", "platform": "linux/amd64",
        })),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["apis"] => Some(groups(&store.kinds())),
        ["api", version] => resources(&store.kinds(), "", version),
        ["apis", name] => group(&store.kinds(), name),
        ["apis", group, version] => resources(&store.kinds(), group, version),
        _ => None,
    }
}

fn groups(kinds: &[Arc<Kind>]) -> Value {
    let mut names: Vec<&str> = kinds.iter().map(|kind| &*kind.group).collect();
    names.sort_unstable();
    names.dedup();
    let groups = names.into_iter().filter(|name| !name.is_empty());
    let groups: Vec<Value> = groups.filter_map(|name| group(kinds, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group(kinds: &[Arc<Kind>], name: &str) -> Option<Value> {
    let of_group = kinds.iter().filter(|kind| *kind.group == *name);
    let versions: BTreeMap<&str, Value> = of_group
        .map(|kind| {
            let entry = json!({"groupVersion": kind.api_version(), "version": *kind.version});
            (&*kind.version, entry)
        })
        .collect();
    let preferred = versions.values().next()?.clone();
    Some(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": versions.into_values().collect::<Vec<_>>(),
        "preferredVersion": preferred,
    }))
}

fn resources(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let served = kinds
        .iter()
        .filter(|kind| *kind.group == *group && *kind.version == *version);
    let mut entries: Vec<Value> = served.flat_map(|kind| kind.discovered()).collect();
    if entries.is_empty() {
        return None;
    }
    if group.is_empty() {
        entries.push(json!({
            "name": "serviceaccounts/token", "singularName": "", "namespaced": true,
            "group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest",
            "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": entries,
    }))
}
