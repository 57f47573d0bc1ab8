//! What the ring buffer carries: what the agent can't see otherwise.

use super::{Endpoint, shared};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum EventKind {
    /// A connect went past the mesh: an excluded port or block.
    Bypassed = 1,
    /// A connect was refused: the agent's own port, or a blocked pod.
    Refused = 2,
    /// A connection came past the mesh: an excluded port.
    BypassedInbound = 3,
    /// A connection was reset: the agent does not listen.
    RefusedInbound = 4,
    /// The pod began to listen on a port.
    ListenOpened = 5,
    /// The pod stopped listening on a port.
    ListenClosed = 6,
}

impl EventKind {
    /// Of the number in an [`Event`].
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Bypassed,
            2 => Self::Refused,
            3 => Self::BypassedInbound,
            4 => Self::RefusedInbound,
            5 => Self::ListenOpened,
            6 => Self::ListenClosed,
            _ => return None,
        })
    }
}

shared! {
    /// An entry of `EVENTS`.
    pub struct Event {
        /// The pod's namespace.
        pub cookie: u64,
        /// An [`EventKind`].
        pub kind: u32,
        /// Zero.
        pub reserved: u32,
        /// The pod's end.
        pub local: Endpoint,
        /// The other end.
        pub remote: Endpoint,
    }
}

shared! {
    /// Value of `TOLD`: how much was told of one namespace lately.
    pub struct Told {
        /// The second, of the machine's clock since its start.
        pub second: u64,
        /// Events in it.
        pub events: u64,
    }
}
