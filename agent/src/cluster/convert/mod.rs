//! Kubernetes objects to objects of the state: the one conversion of all sources.

mod access_log;
mod converted;
mod grant;
mod jwt;
mod lean;
mod pod;
mod policy;
mod provider;
mod reader;
mod route;
mod rules;
mod service;
mod traffic;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use lean::{Labels, Metadata, label};

use super::field::{FieldPath, FieldProblem};
use crate::model::{NamespacedName, TrustDomain};
use crate::state::{MESH_LABEL, Namespace, Object, ObjectKind, RouteKind};

/// Where the network namespace of a pod is known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetnsFrom {
    /// The annotation `fairlead.dev/netns`, for those who write the manifests own the node.
    Annotation,
    /// The node itself. Users of an API server could write any path into the annotation,
    /// such as that of somebody else's pod: it means nothing there.
    Node,
}

/// The conversion, with what it has to know of where objects come from.
#[derive(Debug)]
pub struct Converter {
    trust_domain: TrustDomain,
    netns: NetnsFrom,
    /// One copy of each, however many objects are in it.
    namespaces: HashSet<Arc<str>>,
}

/// An object as an API server sends it.
#[derive(Debug)]
pub struct Received {
    /// `metadata.name` and, for a kind that has one, namespace.
    pub name: NamespacedName,
    /// `metadata.resourceVersion`; empty where there is none.
    pub version: String,
    /// What became of it.
    pub converted: Converted,
}

pub use converted::Converted;
pub(super) use policy::in_place_of_text;

const GROUP: &str = "fairlead.dev";
const API_VERSION: &str = "fairlead.dev/v1alpha1";

/// The API versions of each kind that are alike for the mesh, the preferred one first.
const VERSIONS: [(ObjectKind, &[&str]); 12] = [
    (ObjectKind::Namespace, &["v1"]),
    (ObjectKind::Pod, &["v1"]),
    (ObjectKind::EndpointSlice, &["discovery.k8s.io/v1"]),
    (ObjectKind::Service, &["v1"]),
    (
        ObjectKind::ReferenceGrant,
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1beta1",
        ],
    ),
    (
        ObjectKind::GrpcRoute,
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha2",
        ],
    ),
    (
        ObjectKind::HttpRoute,
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1beta1",
        ],
    ),
    (
        ObjectKind::TlsRoute,
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha3",
            "gateway.networking.k8s.io/v1alpha2",
        ],
    ),
    (
        ObjectKind::TcpRoute,
        &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha2",
        ],
    ),
    (ObjectKind::AuthorizationPolicy, &[API_VERSION]),
    (ObjectKind::MeshPolicy, &[API_VERSION]),
    (ObjectKind::TrafficPolicy, &[API_VERSION]),
];

/// The API versions in which a kind is read, the preferred one first.
pub fn api_versions(kind: ObjectKind) -> &'static [&'static str] {
    let found = VERSIONS.iter().find(|(of, _)| *of == kind);
    found.map_or(&[API_VERSION], |(_, versions)| versions)
}

/// The API version in which a kind is preferably read.
pub fn api_version(kind: ObjectKind) -> &'static str {
    api_versions(kind)[0]
}

/// The kind that a version and a name stand for.
fn object_kind(version: &str, kind: &str) -> Option<ObjectKind> {
    let mut kinds = VERSIONS.iter().filter(|(of, _)| of.as_str() == kind);
    let found = kinds.find(|(_, versions)| versions.contains(&version));
    found.map(|(of, _)| *of)
}

type Outcome<T> = Result<(T, Vec<FieldProblem>), FieldProblem>;

/// A kind of which only some fields are read.
trait Lean<'a>: Deserialize<'a> {
    const KIND: ObjectKind;
    fn metadata(&self) -> Option<&Metadata<'a>>;
    fn convert(self, name: NamespacedName, converter: &Converter) -> Outcome<Object>;
}

impl Converter {
    /// A conversion that has seen nothing yet.
    pub fn new(trust_domain: TrustDomain, netns: NetnsFrom) -> Self {
        Self {
            trust_domain,
            netns,
            namespaces: HashSet::new(),
        }
    }

    /// Converts an object of any kind.
    pub fn value(&mut self, value: &Value) -> Converted {
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let mut converted = Converted::of(Cow::Owned(kind.to_owned()));
        let missing = match (version, kind) {
            (_, "") => Some("kind"),
            ("", _) => Some("apiVersion"),
            _ => None,
        };
        if let Some(field) = missing {
            let message = "is missing: an object must say what it is";
            converted.problems.push(problem(&[field], message));
            return converted;
        }
        let out = &mut converted;
        match object_kind(version, kind) {
            Some(ObjectKind::Namespace) => self.known::<lean::Namespace<'_>>(out, value),
            Some(ObjectKind::Pod) => self.known::<lean::Pod<'_>>(out, value),
            Some(ObjectKind::Service) => self.known::<lean::Service<'_>>(out, value),
            Some(ObjectKind::EndpointSlice) => self.known::<lean::EndpointSlice<'_>>(out, value),
            Some(ObjectKind::ReferenceGrant) => grant::convert(out, value),
            Some(ObjectKind::GrpcRoute) => route::convert(out, value, RouteKind::Grpc),
            Some(ObjectKind::HttpRoute) => route::convert(out, value, RouteKind::Http),
            Some(ObjectKind::TlsRoute) => route::convert(out, value, RouteKind::Tls),
            Some(ObjectKind::TcpRoute) => route::convert(out, value, RouteKind::Tcp),
            Some(ObjectKind::AuthorizationPolicy) => policy::authorization(out, value, None),
            Some(ObjectKind::MeshPolicy) => policy::mesh(out, value, None),
            Some(ObjectKind::TrafficPolicy) => traffic::convert(out, value),
            None => out.unknown(value, version, kind),
        }
        converted
    }

    /// Converts an object of a kind that is known, from JSON that is well formed. Fails
    /// where not even its name can be read.
    pub fn text(&mut self, kind: ObjectKind, text: &str) -> Result<Received, FieldProblem> {
        let read = match kind {
            ObjectKind::Namespace => self.read::<lean::Namespace<'_>>(text),
            ObjectKind::Pod => self.read::<lean::Pod<'_>>(text),
            ObjectKind::EndpointSlice => self.read::<lean::EndpointSlice<'_>>(text),
            ObjectKind::Service => self.read::<lean::Service<'_>>(text),
            // What they say beside what is understood matters.
            ObjectKind::AuthorizationPolicy
            | ObjectKind::MeshPolicy
            | ObjectKind::ReferenceGrant
            | ObjectKind::GrpcRoute
            | ObjectKind::HttpRoute
            | ObjectKind::TlsRoute
            | ObjectKind::TcpRoute
            | ObjectKind::TrafficPolicy => None,
        };
        match read {
            Some(received) => Ok(received),
            None => self.read_all(kind, text),
        }
    }

    /// `metadata.name`, with the namespace for a kind that has one, and
    /// `metadata.resourceVersion` of an object in JSON.
    pub fn identify(
        &mut self,
        kind: ObjectKind,
        text: &str,
    ) -> Result<(NamespacedName, String), FieldProblem> {
        let object: lean::AnyObject<'_> = from_text(text)?;
        let metadata = object.metadata.unwrap_or_default();
        let name = metadata.name.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| problem(&["metadata", "name"], "is missing"))?;
        let namespace = metadata.namespace.as_deref().filter(|_| namespaced(kind));
        let name = self.shared(NamespacedName::new(namespace.unwrap_or_default(), name));
        Ok((name, version(&metadata)))
    }

    /// An object that is as it should be, in one pass over its text.
    fn read<'t, T: Lean<'t>>(&mut self, text: &'t str) -> Option<Received> {
        let object: T = serde_json::from_str(text).ok()?;
        let metadata = object.metadata()?;
        let (name, namespace) = (metadata.name.as_deref(), metadata.namespace.as_deref());
        let name = checked_name(namespaced(T::KIND), name, namespace).ok()?;
        let name = self.shared(name);
        let version = version(metadata);
        let mut converted = Converted::of(Cow::Borrowed(T::KIND.as_str()));
        converted.is(T::KIND, name.clone());
        converted.take(object.convert(name.clone(), self));
        Some(Received {
            name,
            version,
            converted,
        })
    }

    /// Any other object, with everything that it says.
    fn read_all(&mut self, kind: ObjectKind, text: &str) -> Result<Received, FieldProblem> {
        let (name, version) = self.identify(kind, text)?;
        let (mut value, unreadable) = match from_text::<Value>(text) {
            Ok(value) => (value, None),
            // Such as one that is nested too deep. What is left of a policy is invalid.
            Err(problem) => (Value::Object(serde_json::Map::new()), Some(problem)),
        };
        if let Value::Object(fields) = &mut value {
            // Items of a list may leave out what they are.
            fields.insert("kind".to_owned(), kind.as_str().into());
            fields.insert("apiVersion".to_owned(), api_version(kind).into());
            if unreadable.is_some() {
                let metadata = serde_json::json!({
                    "name": *name.name,
                    "namespace": *name.namespace,
                });
                fields.insert("metadata".to_owned(), metadata);
                fields.insert("spec".to_owned(), "can't be read".into());
            }
        }
        let mut converted = self.value(&value);
        converted.problems.extend(unreadable);
        Ok(Received {
            name,
            version,
            converted,
        })
    }

    fn known<'v, T: Lean<'v>>(&mut self, converted: &mut Converted, value: &'v Value) {
        match name(value, namespaced(T::KIND)) {
            Ok(name) => {
                let name = self.shared(name);
                converted.is(T::KIND, name.clone());
                let object = typed::<T>(value);
                converted.take(object.and_then(|object| object.convert(name, self)));
            }
            Err(problem) => converted.problems.push(problem),
        }
    }

    fn shared(&mut self, mut name: NamespacedName) -> NamespacedName {
        if let Some(known) = self.namespaces.get(&*name.namespace) {
            name.namespace = Arc::clone(known);
            return name;
        }
        if self.namespaces.len() >= NAMESPACES {
            self.namespaces.clear();
        }
        self.namespaces.insert(Arc::clone(&name.namespace));
        name
    }
}

/// So many namespaces' names are kept; with more, some are kept twice.
const NAMESPACES: usize = 16_384;

impl<'a> Lean<'a> for lean::Namespace<'a> {
    const KIND: ObjectKind = ObjectKind::Namespace;

    fn metadata(&self) -> Option<&Metadata<'a>> {
        self.metadata.as_ref()
    }

    fn convert(self, name: NamespacedName, _converter: &Converter) -> Outcome<Object> {
        let mut problems = Vec::new();
        let opaque_ports = pod::opaque_ports(self.metadata.as_ref(), &mut problems);
        let labels = self.metadata.unwrap_or_default().labels.unwrap_or_default();
        problems.extend(mesh_label(label(&labels, MESH_LABEL)));
        let namespace = Namespace {
            name: name.name,
            labels: owned(&labels),
            opaque_ports,
        };
        Ok((Object::Namespace(namespace), problems))
    }
}

impl<'a> Lean<'a> for lean::Pod<'a> {
    const KIND: ObjectKind = ObjectKind::Pod;

    fn metadata(&self) -> Option<&Metadata<'a>> {
        self.metadata.as_ref()
    }

    fn convert(self, name: NamespacedName, converter: &Converter) -> Outcome<Object> {
        let (pod, problems) = pod::convert(self, name, converter)?;
        Ok((Object::Pod(pod), problems))
    }
}

impl<'a> Lean<'a> for lean::Service<'a> {
    const KIND: ObjectKind = ObjectKind::Service;

    fn metadata(&self) -> Option<&Metadata<'a>> {
        self.metadata.as_ref()
    }

    fn convert(self, name: NamespacedName, _converter: &Converter) -> Outcome<Object> {
        let (service, problems) = service::convert(self, name);
        Ok((Object::Service(service), problems))
    }
}

impl<'a> Lean<'a> for lean::EndpointSlice<'a> {
    const KIND: ObjectKind = ObjectKind::EndpointSlice;

    fn metadata(&self) -> Option<&Metadata<'a>> {
        self.metadata.as_ref()
    }

    fn convert(self, name: NamespacedName, _converter: &Converter) -> Outcome<Object> {
        let (slice, problems) = service::convert_slice(self, name)?;
        Ok((Object::EndpointSlice(slice), problems))
    }
}

fn problem(field: &[&str], message: impl Into<String>) -> FieldProblem {
    FieldProblem {
        field: FieldPath::of(field),
        message: message.into(),
    }
}

/// As the type that holds what is read of it, with the path of what does not fit it.
fn typed<'v, T: Deserialize<'v>>(value: &'v Value) -> Result<T, FieldProblem> {
    serde_path_to_error::deserialize(value).map_err(|error| FieldProblem {
        field: FieldPath::from(error.path()),
        message: error.inner().to_string(),
    })
}

fn from_text<'t, T: Deserialize<'t>>(text: &'t str) -> Result<T, FieldProblem> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| FieldProblem {
        field: FieldPath::from(error.path()),
        message: error.inner().to_string(),
    })
}

fn version(metadata: &Metadata<'_>) -> String {
    let version = metadata.resource_version.as_deref();
    version.unwrap_or_default().to_owned()
}

fn namespaced(kind: ObjectKind) -> bool {
    kind != ObjectKind::Namespace
}

/// Name and, for a kind that has one, namespace; `default` where none is given.
fn name(value: &Value, namespaced: bool) -> Result<NamespacedName, FieldProblem> {
    let metadata = |key| match value.get("metadata").and_then(|m| m.get(key)) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(problem(&["metadata", key], NOT_A_NAME)),
    };
    let namespace = if namespaced {
        metadata("namespace")?
    } else {
        None
    };
    checked_name(namespaced, metadata("name")?, namespace)
}

fn checked_name(
    namespaced: bool,
    name: Option<&str>,
    namespace: Option<&str>,
) -> Result<NamespacedName, FieldProblem> {
    let name = name.ok_or_else(|| problem(&["metadata", "name"], "is missing"))?;
    let namespace = if namespaced {
        namespace.unwrap_or("default")
    } else {
        ""
    };
    // A Namespace is named as what is in it names it.
    if !(if namespaced {
        is_dns_name(name)
    } else {
        is_dns_label(name)
    }) {
        return Err(problem(&["metadata", "name"], NOT_A_NAME));
    }
    if namespaced && !is_dns_label(namespace) {
        return Err(problem(&["metadata", "namespace"], NOT_A_NAME));
    }
    Ok(NamespacedName::new(namespace, name))
}

const NOT_A_NAME: &str = "must be of a-z, 0-9 and '-', which no part begins or ends with; a name \
                          has at most 253 characters and may have parts by '.', a namespace has \
                          at most 63 and no '.'";

/// What a name of Kubernetes consists of. A name becomes part of an identity, so that
/// a slash in it could make two identities look the same.
fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_part)
}

/// What the name of a namespace consists of.
fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_part(text)
}

fn is_dns_part(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && !text.starts_with('-') && !text.ends_with('-') && text.bytes().all(allowed)
}

/// Labels as the state keeps them.
fn owned(labels: &Labels<'_>) -> BTreeMap<String, String> {
    let pairs = labels.iter();
    pairs
        .map(|(key, value)| ((**key).to_owned(), (**value).to_owned()))
        .collect()
}

/// A value of the label that means nothing.
fn mesh_label(value: Option<&str>) -> Option<FieldProblem> {
    let value = value.filter(|value| !matches!(*value, "enabled" | "disabled"))?;
    let message = format!("\"{value}\" means nothing here: say \"enabled\" or \"disabled\"");
    Some(problem(&["metadata", "labels", MESH_LABEL], message))
}
