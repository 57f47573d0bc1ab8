//! Which endpoint a request goes to, and whether it may go at all.
//!
//! In: the endpoints of one port of a Service, its [`TrafficSettings`], and what became
//! of the requests before. Out: a [`Picked`] endpoint or a [`Refusal`]. No I/O, no clock,
//! no randomness: the caller hands in the time and a random number with each question, so
//! that nothing ever happens but in a call.
//!
//! ```text
//! update ──► members ──┐              ┌──► sample: ewma, outliers, adaptive limit
//!                      ├─► View ─► pick ──► Picked ─┤
//! ejections, returns ──┘  (ArcSwap)   └──► drop: out of flight
//! ```
//!
//! A [`Balancer`] is shared by all pods of the node. [`Balancer::pick`] takes no lock and
//! allocates nothing for `PEAK_EWMA`, `LEAST_REQUEST` and `RANDOM`: it reads the published
//! `View` and counts in atomics. Whatever changes who may be picked (other endpoints, an
//! ejection, a return) makes a new view.

mod adaptive;
mod admission;
mod balancer;
mod bucket;
mod budget;
mod endpoint;
mod ewma;
mod hash;
mod members;
mod outlier;
mod view;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::model::{NamespacedName, below};
#[cfg(doc)]
use crate::policy::traffic::TrafficSettings;

pub use admission::{ConnectionGuard, PendingGuard, RetryGuard};
pub use balancer::{Balancer, Carried, Picked};
pub use bucket::TokenBucket;
pub use budget::RetryBudget;
pub use endpoint::{EndpointFigures, Health};
pub use hash::hash_of;

/// An endpoint of the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    /// Its address.
    pub address: SocketAddr,
    /// It may be sent new requests. One that may not counts among those that are unhealthy.
    pub ready: bool,
    /// How far it is.
    pub near: Near,
}

/// How far an endpoint is from the clients, all of which are on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Near {
    /// On this node.
    Node,
    /// In its zone.
    Zone,
    /// Elsewhere, or nobody knows.
    Far,
}

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The pod that asks.
    pub client: &'a NamespacedName,
    /// What of the request leads to an endpoint, of [`hash_of`]; counts for
    /// `CONSISTENT_HASH` only, and without it that is random.
    pub hash: Option<u64>,
    /// Where the request goes if that may be picked: the endpoint of its session.
    pub prefer: Option<SocketAddr>,
    /// Where a connection is being opened for the request already. It counts as the first of
    /// those that are drawn, where endpoints are.
    pub open: Option<SocketAddr>,
    /// Where it failed already: picked only if there is nothing else.
    pub exclude: &'a [SocketAddr],
    /// Spread over all values.
    pub random: u64,
}

/// What became of a request, for [`Picked::sample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer that is no failure of the server's.
    Success,
    /// 500 to 599, but for those of a gateway; or what stands for it in gRPC.
    ServerError,
    /// 502, 503 or 504; or what stands for it in gRPC.
    GatewayError,
    /// No answer: no connection, a reset, or it took too long.
    Failed,
}

impl Outcome {
    /// Of an answer in HTTP.
    pub fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::GatewayError,
            500..=599 => Self::ServerError,
            _ => Self::Success,
        }
    }

    /// Of a `grpc-status`, as Envoy and the table of gRPC's codes have it: `UNAVAILABLE`
    /// is 503, `DEADLINE_EXCEEDED` 504; `UNKNOWN`, `INTERNAL` and `DATA_LOSS` are 500.
    pub fn of_grpc(status: u16) -> Self {
        match status {
            14 | 4 => Self::GatewayError,
            2 | 13 | 15 => Self::ServerError,
            _ => Self::Success,
        }
    }

    fn is_failure(self) -> bool {
        self != Self::Success
    }
}

/// Why nothing is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No endpoint is ready, or all are ejected.
    NoEndpoints,
    /// So much is in flight already as may be.
    CircuitOpen(Circuit),
    /// The limit that was found out is reached.
    Overloaded,
}

impl From<Circuit> for Refusal {
    fn from(circuit: Circuit) -> Self {
        Self::CircuitOpen(circuit)
    }
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Circuit {
    /// Connections to the Service's port.
    Connections,
    /// Connections of the client to it.
    ClientConnections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests in flight.
    Requests,
    /// Requests in flight of the client.
    ClientRequests,
    /// Retries in flight.
    Retries,
    /// Retries, of all requests.
    RetryBudget,
}

impl Circuit {
    /// The word for the reason that a client is told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ClientConnections => "connections of this client",
            Self::Pending => "pending",
            Self::Requests => "requests",
            Self::ClientRequests => "requests of this client",
            Self::Retries => "retries",
            Self::RetryBudget => "retry budget",
        }
    }
}

/// Nanoseconds since the beginning of a balancer, from 1: 0 is never.
#[derive(Clone, Copy, Debug)]
struct Epoch(Instant);

impl Epoch {
    fn nanos(self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.0)).max(1)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An index below `len`, as [`below`]. `len` must not be 0.
fn index(random: u64, len: usize) -> usize {
    usize::try_from(below(random, len as u64)).unwrap_or(0)
}

/// Another random number (the finalizer of `SplitMix64`, by Sebastiano Vigna).
fn mix(random: u64) -> u64 {
    let mut z = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
