//! What each pod takes of the proxy, counted since it is served: what is behind
//! `fairlead top`.

use serde::{Deserialize, Serialize};

/// What the pods of a node take of its proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The node.
    pub node: String,
    /// Microseconds since the agent started, by a clock that nobody sets.
    pub at_us: u64,
    /// Its pods, those that are served.
    pub pods: Vec<PodUsage>,
}

/// What one pod takes. Counters grow as long as it is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Microseconds that a thread worked for it; none where pods take no turns.
    pub busy_us: u64,
    /// Times that its work had to wait for other pods.
    pub turns_over: u64,
    /// Connections that are open, whichever end it is.
    pub connections: usize,
    /// Connections refused because it had too many.
    pub connections_refused: u64,
    /// Requests in flight, whichever end it is.
    pub requests_in_flight: usize,
    /// Requests that began.
    pub requests: u64,
    /// Requests refused because it had too many in flight.
    pub requests_refused: u64,
    /// Application bytes that it sent.
    pub sent_bytes: u64,
    /// Application bytes that were sent to it.
    pub received_bytes: u64,
    /// Memory of its tasks, and of what is kept for it.
    pub memory_bytes: usize,
}
