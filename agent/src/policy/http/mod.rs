//! What the routes of a Service do with a request. Pure.
//!
//! In: the routes of a snapshot, compiled for each port of the Services that they are of
//! ([`Routes`]). Out: the one rule that a request is for ([`Routes::find`]), with the
//! filters and back ends that it names, each resolved or known to be invalid.
//!
//! Invariant: a request is for the rule that its author meant, or for none. A rule that was
//! not understood still takes what it matches, and answers 500.

mod backend;
mod compile;
mod connections;
mod explain;
mod index;
mod matching;
mod routes;

#[cfg(test)]
pub(super) mod tests;

use http::{HeaderMap, Method};

pub use backend::{Backend, BackendTarget, CompiledRule, Filter, Mirror};
pub(super) use compile::{OfPort, RouteTable};
pub use connections::ConnectionRoutes;
pub use explain::describe_match;
pub use routes::{Matched, Routes};

/// What routes look at in a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The query, without the `?`.
    pub query: Option<&'a str>,
    /// The host that was asked for, from `:authority` or `host`.
    pub host: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}
