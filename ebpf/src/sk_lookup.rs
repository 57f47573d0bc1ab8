//! `sk_lookup`: new connections into an enrolled namespace.
//!
//! Fail-closed: what is not the agent's to take, or finds no listener of the
//! agent, is reset.

use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use aya_log_ebpf::debug;
use fairlead_common::abi::{
    Counter, Direction, Endpoint, EventKind, Ip, ListenerKey, ListenerKind, PortKey,
};
use fairlead_common::decide::{self, Lookup, PassedInbound, Reset};

use crate::count::{count, tell};
use crate::ctx::Arrival;
use crate::maps::{ADDRESSES, EXCLUDE_PORTS, LISTENERS, LISTENING, SEEDED};

/// Steers to the agent. Fail-closed; leaves other protocols than TCP alone.
#[sk_lookup]
pub fn fl_lookup(context: SkLookupContext) -> u32 {
    let arrival = Arrival::new(&context);
    if !arrival.is_tcp() {
        return SK_PASS;
    }
    let local = arrival.local();
    let remote = arrival.remote();
    let decision = decide::lookup(
        remote.ip,
        (local.ip, local.port),
        || cookie_of(local.ip),
        |cookie| {
            let key = PortKey::excluded(cookie, local.port, Direction::Inbound);
            EXCLUDE_PORTS.get_ptr(key).is_some()
        },
        |cookie| is_listening(PortKey::listening(cookie, local.port), local.ip),
    );
    match decision {
        Lookup::Pass(PassedInbound::Loopback) => {
            count(Counter::LoopbackInbound);
            SK_PASS
        }
        Lookup::Pass(PassedInbound::Excluded) => {
            count(Counter::ExcludedInbound);
            tell_with_cookie(EventKind::BypassedInbound, local, remote);
            SK_PASS
        }
        Lookup::Reset(Reset::UnknownAddress) => {
            count(Counter::UnknownAddress);
            SK_DROP
        }
        // No event: a scan of ports would be a flood of them.
        Lookup::Reset(Reset::ClosedPort) => {
            count(Counter::ClosedPort);
            SK_DROP
        }
        Lookup::Steer(kind) => steer(&context, kind, local, remote),
    }
}

#[inline(always)]
fn steer(context: &SkLookupContext, kind: ListenerKind, local: Endpoint, remote: Endpoint) -> u32 {
    debug!(
        context,
        "connection from {:i} to {:i} port {}",
        remote.ip.octets(),
        local.ip.octets(),
        local.port
    );
    let key = ListenerKey::new(local.ip, kind);
    if LISTENERS.redirect_sk_lookup(context, key, 0).is_ok() {
        count(match kind {
            ListenerKind::Inbound => Counter::Steered,
            ListenerKind::Tunnel => Counter::SteeredTunnel,
        });
        return SK_PASS;
    }
    count(Counter::NoListener);
    tell_with_cookie(EventKind::RefusedInbound, local, remote);
    SK_DROP
}

#[inline(always)]
fn tell_with_cookie(kind: EventKind, local: Endpoint, remote: Endpoint) {
    tell(kind, cookie_of(local.ip).unwrap_or(0), local, remote);
}

#[inline(always)]
fn cookie_of(ip: Ip) -> Option<u64> {
    // SAFETY: only the agent writes the map; an address moves to another
    // namespace only after its entry was removed.
    unsafe { ADDRESSES.get(ip) }.copied()
}

#[inline(always)]
fn is_listening(key: PortKey, local: Ip) -> bool {
    // SAFETY: a count that changes meanwhile is as good as the one after it.
    let counted = unsafe { LISTENING.get(key) }.copied().unwrap_or(0);
    // SAFETY: only the agent writes the map, which may change it meanwhile.
    let seeded = unsafe { SEEDED.get(key) }.copied().unwrap_or(0);
    decide::takes(counted, local) || decide::takes(seeded, local)
}
