//! What a source tells the [`super::Writer`].

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::objects::{
    AuthorizationPolicy, EndpointSlice, MeshPolicy, Namespace, Pod, Problem, Service,
};
use super::route::{ReferenceGrant, Route};
use super::traffic::TrafficPolicy;
use crate::model::NamespacedName;

/// One step of a source.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a change moves once, from its source to the writer"
)]
pub enum Change {
    /// The object is new or differs.
    Upsert(Object, Origin),
    /// The object is gone.
    Remove(ObjectKey),
    /// All that is wrong with what `owner` stands for (a file, an object); replaces
    /// what was said of it before.
    Problems {
        /// Any name that the source uses again for the same thing.
        owner: Arc<str>,
        /// None: all is well now.
        problems: Vec<Problem>,
    },
}

/// An object as the state takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it moves once, from its source to the writer"
)]
pub enum Object {
    /// A Namespace.
    Namespace(Namespace),
    /// A Pod. Its `enrolled` is ignored: the writer decides that.
    Pod(Pod),
    /// A Service.
    Service(Service),
    /// An EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// A ReferenceGrant.
    ReferenceGrant(ReferenceGrant),
    /// A route of any kind.
    Route(Route),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(AuthorizationPolicy),
    /// A MeshPolicy.
    MeshPolicy(MeshPolicy),
    /// A TrafficPolicy.
    TrafficPolicy(TrafficPolicy),
}

impl Object {
    /// What identifies it among all objects.
    pub fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Namespace(namespace) => (
                ObjectKind::Namespace,
                NamespacedName::new("", Arc::clone(&namespace.name)),
            ),
            Self::Pod(pod) => (ObjectKind::Pod, pod.name.clone()),
            Self::Service(service) => (ObjectKind::Service, service.name.clone()),
            Self::EndpointSlice(slice) => (ObjectKind::EndpointSlice, slice.name.clone()),
            Self::ReferenceGrant(grant) => (ObjectKind::ReferenceGrant, grant.name.clone()),
            Self::Route(route) => return route.key(),
            Self::AuthorizationPolicy(policy) => {
                (ObjectKind::AuthorizationPolicy, policy.name.clone())
            }
            Self::MeshPolicy(policy) => (ObjectKind::MeshPolicy, policy.name.clone()),
            Self::TrafficPolicy(policy) => (ObjectKind::TrafficPolicy, policy.name.clone()),
        };
        ObjectKey { kind, name }
    }
}

/// The kinds that the state knows, in the order in which a source best applies them:
/// what is selected before what selects it, so that each is looked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum ObjectKind {
    /// Decides on the enrolment of its pods.
    Namespace,
    /// Selected by Services and policies.
    Pod,
    /// Belongs to a Service.
    EndpointSlice,
    /// Selects pods.
    Service,
    /// Permits routes to name Services.
    ReferenceGrant,
    /// Names Services.
    GrpcRoute,
    /// Names Services.
    HttpRoute,
    /// Names Services.
    TlsRoute,
    /// Names Services.
    TcpRoute,
    /// Selects pods and Services.
    AuthorizationPolicy,
    /// Selects pods and Services.
    MeshPolicy,
    /// Has Services as targets.
    TrafficPolicy,
}

impl ObjectKind {
    /// The kind as manifests spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::MeshPolicy => "MeshPolicy",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::EndpointSlice => "EndpointSlice",
            Self::Service => "Service",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRoute => "HTTPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::Pod => "Pod",
        }
    }
}

/// Kind and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: ObjectKind,
    /// The name; the namespace is empty for a kind without one.
    pub name: NamespacedName,
}

impl ObjectKey {
    /// `namespace/name`, or the bare name for a kind without a namespace.
    pub fn object(&self) -> String {
        if self.name.namespace.is_empty() {
            self.name.name.to_string()
        } else {
            self.name.to_string()
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.object())
    }
}

/// Where an object was read, for the problems that show only among several objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file; empty for an API server.
    pub file: Arc<str>,
    /// The line, from 1; 0 where unknown.
    pub line: usize,
}
