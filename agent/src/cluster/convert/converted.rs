//! What became of an object, and of one that nobody asked for.

use std::borrow::Cow;

use serde_json::Value;

use super::{API_VERSION, FieldProblem, GROUP, Outcome, name, policy, problem};
use crate::model::NamespacedName;
use crate::state::{Object, ObjectKey, ObjectKind};

/// What became of an object.
#[derive(Debug)]
pub struct Converted {
    /// The kind, such as `Pod`; empty where it could not be read.
    pub kind: Cow<'static, str>,
    /// The name; `None` where it could not be read.
    pub name: Option<NamespacedName>,
    /// Which object of the state it is; `None` where the mesh has no use for it or
    /// this could not be read.
    pub key: Option<ObjectKey>,
    /// The object; `None` where it can't be understood. A policy that can't be is
    /// still there, marked as invalid.
    pub object: Option<Object>,
    /// What is wrong with it.
    pub problems: Vec<FieldProblem>,
}

const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Kinds of the core group, so that a misspelt one is told apart from one that the
/// mesh has no use for.
const CORE_KINDS: [&str; 14] = [
    "Binding",
    "ConfigMap",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
    "ComponentStatus",
    "Endpoints",
];

/// Kinds that protect something: where they can't be understood, they deny.
const SECURITY_KINDS: [&str; 4] = [
    "AuthorizationPolicy",
    "MeshPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
];

impl Converted {
    /// Of an object of a kind, before anything else of it is known.
    pub(super) fn of(kind: Cow<'static, str>) -> Self {
        Self {
            kind,
            name: None,
            key: None,
            object: None,
            problems: Vec::new(),
        }
    }

    /// `namespace/name`, or the bare name for a kind without a namespace; empty where it
    /// could not be read.
    pub fn object_name(&self) -> String {
        match (&self.key, &self.name) {
            (Some(key), _) => key.object(),
            (None, Some(name)) => name.to_string(),
            (None, None) => String::new(),
        }
    }

    /// What becomes of an object that has problems, as the end of each one's message;
    /// `had` where an earlier version of it is in force.
    pub fn fate(&self, had: bool) -> &'static str {
        match (&self.object, &self.key) {
            (Some(Object::AuthorizationPolicy(policy)), _) if policy.invalid.is_some() => {
                "; the policy denies what it selects"
            }
            (Some(Object::MeshPolicy(policy)), _) if policy.jwt_invalid => {
                "; the policy denies what it selects"
            }
            (Some(Object::MeshPolicy(policy)), _) if policy.invalid.is_some() => {
                "; the policy is STRICT for what it selects"
            }
            (Some(Object::TrafficPolicy(policy)), _) if policy.invalid.is_some() => {
                if had {
                    "; what was last understood of the policy stays in force"
                } else {
                    "; of the policy only limits that are understood are in force"
                }
            }
            (None, Some(_)) if had => "; its last good version stays in force",
            (None, Some(_)) => "; it is left out",
            (Some(_), _) | (None, None) => "",
        }
    }

    pub(super) fn take(&mut self, outcome: Outcome<Object>) {
        match outcome {
            Ok((object, problems)) => {
                self.object = Some(object);
                self.problems.extend(problems);
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    pub(super) fn is(&mut self, kind: ObjectKind, name: NamespacedName) {
        self.key = Some(ObjectKey { kind, name });
    }

    pub(super) fn unknown(&mut self, value: &Value, version: &str, kind: &str) {
        let (group, _) = version.split_once('/').unwrap_or(("", version));
        let ours = group == GROUP && kind != "TrafficPolicy";
        if ours || SECURITY_KINDS.contains(&kind) {
            let message = format!(
                "kind {kind} of {version} is not known, and denies what it selects; known are \
                 AuthorizationPolicy and MeshPolicy of {API_VERSION}"
            );
            let problem = problem(&["apiVersion"], message);
            return match kind {
                "MeshPolicy" | "PeerAuthentication" => policy::mesh(self, value, Some(problem)),
                _ => policy::authorization(self, value, Some(problem)),
            };
        }
        self.name = name(value, true).ok();
        let (field, message) = match group {
            GROUP => {
                let message = format!(
                    "{version} is not an API version of {kind}, {API_VERSION} is: it has no effect"
                );
                ("apiVersion", message)
            }
            // They are there for those who serve gateways.
            GATEWAY_GROUP if matches!(kind, "Gateway" | "GatewayClass" | "ListenerSet") => return,
            GATEWAY_GROUP => {
                let message = format!("kind {kind} of {version} has no effect in the mesh");
                ("kind", message)
            }
            "" if version == "v1" && CORE_KINDS.contains(&kind) => return,
            "" => ("kind", format!("there is no kind {kind} in {version}")),
            _ if matches!(kind, "Pod" | "Service" | "Namespace" | "EndpointSlice") => {
                let message = format!("{version} is not an API version of {kind}");
                ("apiVersion", message)
            }
            _ => return,
        };
        self.problems.push(problem(&[field], message));
    }
}
