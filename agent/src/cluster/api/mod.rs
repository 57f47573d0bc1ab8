//! The kinds of `fairlead.dev`, as Kubernetes is told of them.
//!
//! The definitions are made from these types: `cargo xtask codegen` writes them to
//! `deploy/crds/`. Which fields there are and which values they take is the same here
//! and in [`super::convert`], which reads the objects; tests compare the two, field by
//! field.
//!
//! Invariant: the API server refuses only what the conversion refuses too: that holds every
//! object to its schema ([`bounds`]). The other way round it takes more: a field that a
//! schema does not know, or a null, an API server drops without a word, and a rule of a
//! policy without one of its conditions says something else. So the schemas keep both
//! everywhere; the conversion finds them, the policy denies what it selects, and its status
//! says why.

mod authorization_policy;
pub(super) mod bounds;
mod columns;
mod mesh_policy;
mod schema;
mod selection;
mod status;
mod traffic_policy;
mod traffic_schema;

pub use authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Destination, Operation, Origin, Rule,
    Source,
};
pub use mesh_policy::{
    AccessLog, AccessLogMode, MeshPolicy, MeshPolicySpec, Mtls, MtlsMode, PortMtls,
};
pub use selection::{Selector, TargetKind, TargetRef};
pub use status::{Condition, ConditionStatus, PolicyStatus};
pub use traffic_policy::{
    Abort, AdaptiveConcurrency, Algorithm, Backoff, Budget, Connections, ConsistentHash, Delay,
    Descriptor, DescriptorEntry, DescriptorOrigin, Fault, GlobalLimit, HashTable, HeaderMatch,
    LatencyOutlier, LimitKey, LoadBalancing, LocalLimit, Locality, Match, OnFailure,
    OutlierDetection, RateLimit, Requests, Retries, RetryOn, ServiceRef, SlowStart, SuccessRate,
    Timeouts, TrafficPolicy, TrafficPolicySpec, TrafficTargetRef,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use kube::CustomResourceExt as _;

/// The definition of every kind, as the API server takes it.
pub fn definitions() -> Vec<apiextensions::CustomResourceDefinition> {
    let authorization = schema::finish(AuthorizationPolicy::crd());
    let mesh = schema::finish(MeshPolicy::crd());
    let traffic = schema::finish(TrafficPolicy::crd());
    vec![
        columns::add(authorization, "Action", "What it does where it matches"),
        columns::add(mesh, "mTLS", "What it demands of connections"),
        columns::add(traffic, "Says", "What it speaks of"),
    ]
}
