//! Where the state comes from.
//!
//! In: Kubernetes objects and our own kinds, from files or an API server. Out: changes for the one
//! [`crate::state::Writer`], and the snapshots that it publishes. One conversion,
//! [`convert`], serves every source.
//!
//! Invariant: what can't be read never stops the rest. An object that can't be
//! understood keeps its last good version; a policy that can't be understood denies
//! what it selects.

pub mod api;
pub mod convert;
pub mod dir;
mod field;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub mod kube;
mod lint;
mod manifest;
mod source;

#[cfg(test)]
mod tests;

pub use field::{FieldPath, FieldProblem, Segment};
pub use lint::{Finding, Level, LintOptions, lint};
pub use source::{
    AGENT_KINDS, CA_KINDS, Config, Health, KindHealth, Source, SourceError, Work, start,
};
