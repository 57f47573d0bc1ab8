//! What the cluster's objects mean for one connection.
//!
//! In: a [`crate::state::Snapshot`]. Out: a [`Table`], which says where a
//! connection goes ([`Table::route`]), whether a pod takes it
//! ([`InboundPolicy::authorize`]) and why ([`Table::explain`]). Everything here is
//! pure: no I/O, no clock, no randomness but what the caller hands in.
//!
//! Invariant: what was not understood denies. A missing identity never satisfies
//! an ALLOW that speaks of identities, not even of those that it excludes.

mod access_log;
mod authorization;
pub mod balance;
mod explain;
mod explain_effects;
mod explain_request;
mod explain_traffic;
mod explanation;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod inbound;
mod jwt;
mod matching;
mod mtls;
mod protocol;
mod request;
mod route;
mod table;
mod target;
pub mod traffic;
mod values;

#[cfg(test)]
mod tests;

pub use access_log::{AccessLog, Ended};
pub use authorization::{Admission, Decision, DenyReason, PathUse, Permission, Request};
pub use explain_traffic::describe_traffic;
pub use explanation::{
    AccessLogStep, BackendStep, Candidate, Explanation, MtlsStep, Outcome, PodSummary, PolicyStep,
    RequestQuestion, RequestSteps, RuleCandidate, RuleStep, Server, TrafficStep, Verdict,
};
pub use http::{
    Backend, BackendTarget, CompiledRule, ConnectionRoutes, Filter, Matched, Mirror, RequestHead,
    Routes, describe_match,
};
pub use inbound::InboundPolicy;
#[cfg(test)]
pub(crate) use jwt::fixtures as jwt_fixtures;
pub use jwt::{Claims, JwtError, KeySet, NotAKeySet, Token};
pub use protocol::AppProtocol;
pub use request::HttpRequest;
pub use route::{Route, Towards, UnavailableReason};
pub use table::Table;
pub use target::ExplainError;
