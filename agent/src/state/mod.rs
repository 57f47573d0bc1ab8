//! The cluster as plain data.
//!
//! In: objects that a source has converted ([`crate::cluster`]). Out: immutable
//! [`Snapshot`]s, each an O(1) copy of the one before with O(log n) of change.
//! Nothing here does I/O, reads a clock or knows where objects come from.

mod access_log;
mod change;
mod claims;
mod derive;
mod dict;
mod endpoints;
mod exposed;
mod external;
mod intern;
mod jwt;
mod objects;
mod pattern;
mod problems;
mod references;
mod route;
mod rules;
mod snapshot;
mod targets;
pub mod traffic;
mod traffic_targets;
mod writer;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

pub use access_log::{AccessLog, AccessLogMode};
pub use change::{Change, Object, ObjectKey, ObjectKind, Origin};
pub use dict::Dict;
pub use exposed::{Exposed, embedded, is_local};
pub use external::{ExternalProvider, IncludedBody};
pub use jwt::{ClaimHeader, JwtKeys, JwtProvider, TokenHeader};
pub use objects::{
    Action, AuthorizationPolicy, Endpoint, EndpointSlice, From, MeshPolicy, MtlsMode, Namespace,
    Pod, PodPhase, PolicyScope, Problem, Rule, Selector, Service, ServicePort, SliceAddress,
    StringMatch, TargetPort, To,
};
pub use pattern::Pattern;
pub use references::{InForce, Unattached, Unresolved};
pub use route::{
    BackendRef, Cors, GrantFrom, GrantTo, HeaderChange, HeaderMatch, Invalid, MirrorRef, ParentRef,
    PathChange, PathMatch, QueryMatch, Redirect, Reference, ReferenceGrant, RequestMatch, Rewrite,
    Route, RouteFilter, RouteKind, RouteRetry, RouteRule, RouteTimeouts, Scheme, SessionCarrier,
    SessionPersistence, ValueMatch, is_framing,
};
pub use rules::{Condition, PathPart, PathPattern, PathTemplate, Test, Values};
pub use snapshot::Snapshot;
pub use traffic_targets::MissingTarget;
pub use writer::Writer;

/// Label of namespaces and pods: `enabled` or `disabled`.
pub const MESH_LABEL: &str = "fairlead.dev/mesh";

/// Policies of this namespace that select nothing in particular hold for the whole mesh.
pub const ROOT_NAMESPACE: &str = "fairlead-system";
