//! What is to be said of an object, and how it is written.

use std::collections::BTreeMap;

use ::kube::api::{DynamicObject, Patch, PatchParams};
use ::kube::core::{ApiResource, GroupVersionKind};
use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::routes::{RouteVerdict, verdicts_of_routes};
use super::verdict::{Verdict, verdicts};
use crate::cluster::api::PolicyStatus;
use crate::cluster::convert;
use crate::state::{ObjectKey, ObjectKind, Snapshot};

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Of a kind of ours, whose whole status is the mesh's.
    Policy(Verdict),
    /// Of a route, whose status has a part of each of those that serve it.
    Route(RouteVerdict),
}

/// Of every object that has a status and is in the API server.
pub(super) fn words(snapshot: &Snapshot) -> BTreeMap<ObjectKey, Word> {
    let policies = verdicts(snapshot).into_iter();
    let routes = verdicts_of_routes(snapshot).into_iter();
    policies
        .map(|(key, verdict)| (key, Word::Policy(verdict)))
        .chain(routes.map(|(key, verdict)| (key, Word::Route(verdict))))
        .collect()
}

impl Word {
    /// The version of the spec that it is of.
    pub(super) fn generation(&self) -> i64 {
        match self {
            Self::Policy(verdict) => verdict.generation,
            Self::Route(verdict) => verdict.generation,
        }
    }

    /// The object's status says this already.
    pub(super) fn is_said_by(&self, object: &DynamicObject) -> bool {
        match self {
            Self::Policy(verdict) => verdict.is_said_by(&policy_status(object)),
            Self::Route(verdict) => verdict.is_said_by(&entries(object)),
        }
    }

    /// The change of the object's status that says this. It is of the object as it was read,
    /// so that a writer that leads no more and does not know it changes nothing.
    pub(super) fn patch(
        &self,
        (resource, object): (&ApiResource, &DynamicObject),
        now: Timestamp,
    ) -> (PatchParams, Patch<Value>) {
        let metadata = json!({
            "namespace": object.metadata.namespace,
            "name": object.metadata.name,
            "uid": object.metadata.uid,
            "resourceVersion": object.metadata.resource_version,
        });
        let body = |status: Value| {
            json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": metadata,
                "status": status,
            })
        };
        match self {
            Self::Policy(verdict) => {
                let status = json!(verdict.status(&policy_status(object), now));
                let params = PatchParams::apply(FIELD_MANAGER).force();
                (params, Patch::Apply(body(status)))
            }
            Self::Route(verdict) => {
                // The list of parents has no keys to merge by: the others' are repeated.
                let parents = verdict.entries(&entries(object), now);
                let params = PatchParams {
                    field_manager: Some(FIELD_MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                (params, Patch::Merge(body(json!({"parents": parents}))))
            }
        }
    }
}

/// The ways to ask for a kind, the preferred one first.
pub(super) fn resources(kind: ObjectKind) -> Vec<ApiResource> {
    let versions = convert::api_versions(kind).iter();
    let resources = versions.map(|version| {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind.as_str()))
    });
    resources.collect()
}

/// What a policy's status says; nothing where that is not of the form that we write.
fn policy_status(object: &DynamicObject) -> PolicyStatus {
    let status = object.data.get("status");
    let status = status.and_then(|status| PolicyStatus::deserialize(status).ok());
    status.unwrap_or_default()
}

/// `status.parents`, each as somebody has written it.
fn entries(object: &DynamicObject) -> Vec<Value> {
    let parents = object.data.get("status").and_then(|it| it.get("parents"));
    let parents = parents.and_then(Value::as_array);
    parents.cloned().unwrap_or_default()
}
