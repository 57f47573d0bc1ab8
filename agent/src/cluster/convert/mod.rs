//! Kubernetes objects to objects of the state: the one conversion of all sources.

mod pod;
mod policy;
mod reader;
mod service;

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::field::{FieldPath, FieldProblem};
use crate::model::{NamespacedName, TrustDomain};
use crate::state::{MESH_LABEL, Namespace, Object, ObjectKey, ObjectKind};

/// What became of an object.
#[derive(Debug)]
pub struct Converted {
    /// The kind, such as `Pod`; empty where it could not be read.
    pub kind: String,
    /// `namespace/name`; empty where it could not be read.
    pub name: String,
    /// Which object of the state it is; `None` where the mesh has no use for it or
    /// this could not be read.
    pub key: Option<ObjectKey>,
    /// The object; `None` where it can't be understood. A policy that can't be is
    /// still there, marked as invalid.
    pub object: Option<Object>,
    /// What is wrong with it.
    pub problems: Vec<FieldProblem>,
}

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

pub(super) use policy::in_place_of_text;

const GROUP: &str = "fairlead.dev";
const API_VERSION: &str = "fairlead.dev/v1alpha1";

/// Converts an object as JSON.
pub fn object(value: &Value, trust_domain: &TrustDomain) -> Converted {
    let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = text("kind").to_owned();
    let version = text("apiVersion").to_owned();
    let mut converted = Converted {
        kind,
        name: String::new(),
        key: None,
        object: None,
        problems: Vec::new(),
    };
    let missing = match (version.as_str(), converted.kind.as_str()) {
        (_, "") => Some("kind"),
        ("", _) => Some("apiVersion"),
        _ => None,
    };
    if let Some(field) = missing {
        let message = "is missing: an object must say what it is";
        converted.problems.push(problem(&[field], message));
        return converted;
    }
    match (version.as_str(), converted.kind.as_str()) {
        ("v1", "Namespace") => converted.known(ObjectKind::Namespace, value, |name| {
            let (object, problems) = namespace(&typed::<core::Namespace>(value)?, &name);
            Ok((Object::Namespace(object), problems))
        }),
        ("v1", "Pod") => converted.known(ObjectKind::Pod, value, |name| {
            let object = typed::<core::Pod>(value)?;
            let (object, problems) = pod::convert(object, name, trust_domain)?;
            Ok((Object::Pod(object), problems))
        }),
        ("v1", "Service") => converted.known(ObjectKind::Service, value, |name| {
            let (object, problems) = service::convert(typed::<core::Service>(value)?, name);
            Ok((Object::Service(object), problems))
        }),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            converted.known(ObjectKind::EndpointSlice, value, |name| {
                let slice = typed::<discovery::EndpointSlice>(value)?;
                let (object, problems) = service::convert_slice(slice, name)?;
                Ok((Object::EndpointSlice(object), problems))
            });
        }
        (API_VERSION, "AuthorizationPolicy") => {
            policy::authorization(&mut converted, value, None);
        }
        (API_VERSION, "MeshPolicy") => policy::mesh(&mut converted, value, None),
        (version, kind) => {
            let (version, kind) = (version.to_owned(), kind.to_owned());
            converted.unknown(value, &version, &kind);
        }
    }
    converted
}

type Outcome<T> = Result<(T, Vec<FieldProblem>), FieldProblem>;

impl Converted {
    fn known(
        &mut self,
        kind: ObjectKind,
        value: &Value,
        convert: impl FnOnce(NamespacedName) -> Outcome<Object>,
    ) {
        let name = match name(value, kind != ObjectKind::Namespace) {
            Ok(name) => name,
            Err(problem) => return self.problems.push(problem),
        };
        self.is(kind, name.clone());
        match convert(name) {
            Ok((object, problems)) => {
                self.object = Some(object);
                self.problems.extend(problems);
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    fn is(&mut self, kind: ObjectKind, name: NamespacedName) {
        let key = ObjectKey { kind, name };
        self.name = key.object();
        self.key = Some(key);
    }

    fn unknown(&mut self, value: &Value, version: &str, kind: &str) {
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
        let name = name(value, true);
        self.name = name.map(|name| name.to_string()).unwrap_or_default();
        let (field, message) = match group {
            GROUP | "gateway.networking.k8s.io" => {
                let message = format!("kind {kind} is not supported yet: it has no effect");
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

fn problem(field: &[&str], message: impl Into<String>) -> FieldProblem {
    FieldProblem {
        field: FieldPath::of(field),
        message: message.into(),
    }
}

/// As the generated type, with the path of what does not fit it.
fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, FieldProblem> {
    serde_path_to_error::deserialize(value).map_err(|error| FieldProblem {
        field: FieldPath::from(error.path()),
        message: error.inner().to_string(),
    })
}

/// Name and, for a kind that has one, namespace; `default` where none is given.
fn name(value: &Value, namespaced: bool) -> Result<NamespacedName, FieldProblem> {
    let metadata = |key| match value.get("metadata").and_then(|m| m.get(key)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_dns_name(text) => Ok(Some(text.as_str())),
        Some(_) => {
            let message = "must be of a-z, 0-9, '-' and '.', at most 253 characters";
            Err(problem(&["metadata", key], message))
        }
    };
    let name = metadata("name")?.ok_or_else(|| problem(&["metadata", "name"], "is missing"))?;
    let namespace = if namespaced {
        metadata("namespace")?.unwrap_or("default")
    } else {
        ""
    };
    Ok(NamespacedName::new(namespace, name))
}

/// What a name of Kubernetes consists of. A name becomes part of an identity, so that
/// a slash in it could make two identities look the same.
fn is_dns_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let edges = edge(bytes.first()) && edge(bytes.last());
    edges && bytes.len() <= 253 && bytes.iter().copied().all(allowed)
}

fn namespace(object: &core::Namespace, name: &NamespacedName) -> (Namespace, Vec<FieldProblem>) {
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let problems = mesh_label(labels.get(MESH_LABEL)).into_iter().collect();
    let name = Arc::clone(&name.name);
    (Namespace { name, labels }, problems)
}

/// A value of the label that means nothing.
fn mesh_label(value: Option<&String>) -> Option<FieldProblem> {
    let value = value.filter(|value| !matches!(value.as_str(), "enabled" | "disabled"))?;
    let message = format!("\"{value}\" means nothing here: say \"enabled\" or \"disabled\"");
    Some(problem(&["metadata", "labels", MESH_LABEL], message))
}
