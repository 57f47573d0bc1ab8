//! What the hooks count.

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident = $text:literal,)*) => {
        /// Index into `COUNTERS`, a per-CPU array of 64-bit counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[$meta])* $name,)*
        }

        impl Counter {
            /// Every counter, in the order of the array.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name that status and metrics show.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

counters! {
    /// Connects rewritten to the agent.
    Redirected = "redirected",
    /// Connects to loopback, untouched.
    Loopback = "loopback",
    /// Connects to an excluded port or block, untouched.
    ExcludedOutbound = "excluded_outbound",
    /// Connects to the agent's own ports, refused.
    OwnPort = "own_port",
    /// Connects of a pod that should be meshed and can't be, refused.
    Blocked = "blocked",
    /// Connects of a family that the agent has no listener for, refused.
    NoFamily = "no_family",
    /// Connects whose destination could not be kept on the socket, refused.
    NoStorage = "no_storage",
    /// Connects that could not be taken off the device that they were bound to, refused.
    DeviceKept = "device_kept",
    /// Connects of kubelet to an enrolled pod, marked as such.
    Probe = "kubelet_probe",
    /// Destinations and clients handed from the dialling to the accepted socket.
    Carried = "carried",
    /// Hand-overs that failed for want of memory.
    CarryFailed = "carry_failed",
    /// Connections steered to the agent's inbound listener.
    Steered = "steered",
    /// Connections steered to the agent's tunnel listener.
    SteeredTunnel = "steered_tunnel",
    /// Connections to a port on which nobody listens, reset.
    ClosedPort = "closed_port",
    /// Connections to a port that is excluded, untouched.
    ExcludedInbound = "excluded_inbound",
    /// Connections from loopback, untouched.
    LoopbackInbound = "loopback_inbound",
    /// Connections to an address of the namespace that is no pod's, reset.
    UnknownAddress = "unknown_address",
    /// Connections that found no listener of the agent, reset.
    NoListener = "no_listener",
    /// Listening sockets of pods that opened.
    ListenOpened = "listen_opened",
    /// Listening sockets of pods that closed.
    ListenClosed = "listen_closed",
    /// Listening sockets that could not be tracked; their ports stay closed.
    ListenFailed = "listen_failed",
    /// Events that found the ring buffer full.
    EventsLost = "events_lost",
    /// Events that were not told, because their pod had told enough in that second.
    EventsLimited = "events_limited",
}
