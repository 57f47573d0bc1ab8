//! What each hook does, as pure functions.
//!
//! A hook reads its context, calls one of these and does what it says. Facts
//! that cost a map look-up are closures: they are called only where the answer
//! depends on them.

use crate::abi::{Endpoint, Ip, ListenerKind, Pod, Role, TUNNEL_PORT, Told};

/// What a connect hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// The agent's own socket: it goes where it was going, and keeps what the
    /// agent wrote on it.
    Agent,
    /// Goes where it was going. What an earlier connect left on the socket is
    /// deleted, or a reused socket would show its old destination.
    Pass(Passed),
    /// The call fails with EPERM.
    Refuse(Refused),
    /// Goes to the agent.
    Redirect(Redirect),
}

/// Why a connect is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Its namespace is not enrolled.
    NotEnrolled,
    /// It stays inside the namespace.
    Loopback,
    /// The pod's bypass lists name its port or block.
    Excluded,
}

/// Why a connect is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It goes straight to one of the agent's listeners, which only hooks may.
    OwnPort,
    /// The pod should be meshed and can't be.
    Blocked,
    /// The agent has no listener of that family in the namespace.
    NoFamily,
}

/// Where a connect is sent instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// A loopback address of the family that was dialled.
    pub ip: Ip,
    /// The agent's outbound listener of that family.
    pub port: u16,
    /// The address that the socket is bound to where the application has not
    /// bound it, so that getsockname shows it; [`Ip::NONE`] where there is none.
    pub source: Ip,
}

/// Decides on a TCP connect to `ip` and `port`.
///
/// `random` spreads connections over loopback addresses: with one there would
/// be a single tuple of destination, and ephemeral ports run out.
#[inline(always)]
pub fn connect(
    pod: Option<&Pod>,
    (ip, port): (Ip, u16),
    is_agent: impl FnOnce() -> bool,
    is_excluded: impl FnOnce(&Pod) -> bool,
    random: impl FnOnce() -> u32,
) -> Connect {
    let Some(pod) = pod else {
        return Connect::Pass(Passed::NotEnrolled);
    };
    if is_agent() {
        return Connect::Agent;
    }
    if ip.is_loopback() || ip.is_unspecified() {
        return if pod.ports.contains(port) {
            Connect::Refuse(Refused::OwnPort)
        } else {
            Connect::Pass(Passed::Loopback)
        };
    }
    if pod.has(Pod::BLOCKED) {
        return Connect::Refuse(Refused::Blocked);
    }
    if pod.flags & (Pod::EXCLUDES_PORTS | Pod::EXCLUDES_CIDRS) != 0 && is_excluded(pod) {
        return Connect::Pass(Passed::Excluded);
    }
    let redirect = if ip.v4().is_some() {
        Redirect {
            ip: spread(random()),
            port: pod.ports.outbound4,
            source: pod.ip4,
        }
    } else {
        Redirect {
            ip: Ip::LOOPBACK6,
            port: pod.ports.outbound6,
            source: pod.ip6,
        }
    };
    if redirect.port == 0 {
        return Connect::Refuse(Refused::NoFamily);
    }
    Connect::Redirect(redirect)
}

/// One of 127.128.0.0/10, never its first.
#[inline(always)]
const fn spread(random: u32) -> Ip {
    Ip::from_v4((0x7f80_0000 | (random & 0x003f_ffff) | 1).to_be())
}

/// A connect that no enrolled namespace makes is kubelet's to an enrolled pod: such a
/// socket carries [`Role::Probe`], and the agent finds it on the one that it accepts.
///
/// Kubelet is a cgroup and a namespace together: `trusted` is the namespace in which
/// processes of the caller's own cgroup, not of one below it, are believed. Sockets that
/// it may have elsewhere are not.
#[inline(always)]
pub fn is_probe(
    namespace: u64,
    trusted: impl FnOnce() -> Option<u64>,
    is_pod: impl FnOnce() -> bool,
) -> bool {
    trusted() == Some(namespace) && is_pod()
}

/// What the `sk_lookup` hook does with a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The kernel finds the socket as if there were no mesh.
    Pass(PassedInbound),
    /// The kernel answers with a reset.
    Reset(Reset),
    /// One of the agent's listeners takes it; a reset where it has gone.
    Steer(ListenerKind),
}

/// Why an inbound connection is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassedInbound {
    /// It stays inside the namespace: the pod's own, redirected to the agent, or the
    /// agent's to the application. No packet from outside may carry such an address.
    Loopback,
    /// The pod's bypass list names its port.
    Excluded,
}

/// Why an inbound connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The address is no pod's.
    UnknownAddress,
    /// Nobody listens on the port. It is not left to the kernel, which would
    /// give it to a listener that opened a moment ago and is not yet known.
    ClosedPort,
}

/// Decides on a connection from `remote` to `local` of an enrolled namespace.
#[inline(always)]
pub fn lookup(
    remote: Ip,
    (local, port): (Ip, u16),
    cookie: impl FnOnce() -> Option<u64>,
    is_excluded: impl FnOnce(u64) -> bool,
    is_listening: impl FnOnce(u64) -> bool,
) -> Lookup {
    if remote.is_loopback() || local.is_loopback() {
        return Lookup::Pass(PassedInbound::Loopback);
    }
    let Some(cookie) = cookie() else {
        return Lookup::Reset(Reset::UnknownAddress);
    };
    if port == TUNNEL_PORT {
        return Lookup::Steer(ListenerKind::Tunnel);
    }
    if is_excluded(cookie) {
        return Lookup::Pass(PassedInbound::Excluded);
    }
    if is_listening(cookie) {
        Lookup::Steer(ListenerKind::Inbound)
    } else {
        Lookup::Reset(Reset::ClosedPort)
    }
}

/// What the `sock_ops` hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockOp {
    /// Nothing.
    Ignore,
    /// A connect is about to send its first segment: what the socket carries is
    /// put where the accepting socket finds it.
    Depart,
    /// A connection was accepted: what is in flight for it becomes its own.
    Arrive,
    /// A socket began to listen.
    ListenOpened,
    /// A socket stopped listening.
    ListenClosed,
    /// A connection is over, or was never made: nothing of it is in flight any more.
    Ended,
}

/// The operations and states of `linux/bpf.h` that matter here.
pub mod op {
    /// `BPF_SOCK_OPS_TCP_CONNECT_CB`.
    pub const CONNECT: u32 = 3;
    /// `BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB`.
    pub const PASSIVE_ESTABLISHED: u32 = 5;
    /// `BPF_SOCK_OPS_STATE_CB`.
    pub const STATE: u32 = 10;
    /// `BPF_SOCK_OPS_TCP_LISTEN_CB`.
    pub const LISTEN: u32 = 11;
    /// `BPF_TCP_CLOSE`.
    pub const STATE_CLOSE: u32 = 7;
    /// `BPF_TCP_LISTEN`.
    pub const STATE_LISTEN: u32 = 10;
}

/// Decides on an operation; `states` are the arguments of a state change, the old one
/// and the new one.
#[inline(always)]
pub fn sock_op(operation: u32, states: impl FnOnce() -> (u32, u32)) -> SockOp {
    match operation {
        op::CONNECT => SockOp::Depart,
        op::PASSIVE_ESTABLISHED => SockOp::Arrive,
        op::LISTEN => SockOp::ListenOpened,
        op::STATE => match states() {
            (op::STATE_LISTEN, _) => SockOp::ListenClosed,
            (_, op::STATE_CLOSE) => SockOp::Ended,
            _ => SockOp::Ignore,
        },
        _ => SockOp::Ignore,
    }
}

/// Events that one namespace may tell in a second: with more, a pod that dials what is
/// refused on and on would push out what happens to others.
pub const EVENTS_PER_SECOND: u64 = 512;

/// Whether one more event of a namespace is told at `now_ns`, and what was told by then.
/// CPUs may come in between each other: the bound is no sharper than that.
#[inline(always)]
pub const fn tell(before: Told, now_ns: u64) -> (bool, Told) {
    let second = now_ns / 1_000_000_000;
    let events = if before.second == second {
        before.events
    } else {
        0
    };
    if events >= EVENTS_PER_SECOND {
        return (false, before);
    }
    let events = events + 1;
    (true, Told { second, events })
}

/// The interface number of `lo`, the same in every namespace.
pub const LOOPBACK_DEVICE: u32 = 1;

/// A listener that others than the pod itself can reach. The agent's own are
/// bound to loopback or to its device.
#[inline(always)]
pub fn is_reachable(local: Ip, device: u32) -> bool {
    !local.is_loopback() && device != LOOPBACK_DEVICE
}

/// What a socket that listens on `local` adds to the count of its port: the lower half counts
/// all of them, the upper half those of IPv6.
#[inline(always)]
pub const fn listener(local: Ip) -> u64 {
    match local.v4() {
        Some(_) => 1,
        None => 1 | 1 << 32,
    }
}

/// One of those that are counted may take connections to `local`: one of IPv6 takes those of
/// both families, unless it was told otherwise.
#[inline(always)]
pub const fn takes(listeners: u64, local: Ip) -> bool {
    match local.v4() {
        Some(_) => listeners != 0,
        None => listeners >> 32 != 0,
    }
}

/// What getpeername shows to a caller that is not the agent: IPv4 for an
/// `AF_INET` socket; `None` leaves the kernel's answer.
#[inline(always)]
pub fn peer4(kept: &Endpoint) -> Option<u32> {
    if kept.is(Role::Probe) {
        return None;
    }
    kept.ip.v4()
}

/// What getpeername shows on an `AF_INET6` socket: IPv4 in its mapped form; `None` leaves
/// the kernel's answer.
#[inline(always)]
pub fn peer6(kept: &Endpoint) -> Option<[u32; 4]> {
    if kept.is(Role::Probe) {
        return None;
    }
    Some(kept.ip.words())
}

#[cfg(test)]
mod tests;
