//! The cluster as plain data.
//!
//! In: objects that a source has converted ([`crate::cluster`]). Out: immutable
//! [`Snapshot`]s, each an O(1) copy of the one before with O(log n) of change.
//! Nothing here does I/O, reads a clock or knows where objects come from.

mod objects;
mod snapshot;

pub use objects::{
    Action, AuthorizationPolicy, Endpoint, From, MeshPolicy, MtlsMode, Namespace, Pod, PodPhase,
    PolicyScope, Problem, Rule, Selector, Service, ServicePort, StringMatch, To,
};
pub use snapshot::{Change, Snapshot};
