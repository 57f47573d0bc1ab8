//! What both connect hooks share.
//!
//! Fail-closed: where a destination can't be kept on the socket, or there is no
//! listener to redirect to, the call fails with EPERM.

use core::ptr::NonNull;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::maps::lpm_trie::Key;
use fairlead_common::abi::{
    CidrKey, Counter, Direction, Endpoint, EventKind, Ip, Pod, PortKey, Role,
};
use fairlead_common::decide::{self, Connect, Passed, Redirect, Refused};

use crate::count::{count, tell};
use crate::ctx::{Address, is_agent};
use crate::maps::{ENDPOINTS, EXCLUDE_CIDRS, EXCLUDE_PORTS, PODS};
use crate::{probe, storage};

/// The call goes on.
pub const PROCEED: i32 = 1;
/// The call fails with EPERM.
pub const REFUSE: i32 = 0;

/// What is left to the hook of one family.
pub enum Outcome {
    /// Return this.
    Return(i32),
    /// Rewrite the call.
    Redirect(NonNull<bpf_sock>, Redirect),
}

/// Decides on a connect and keeps what must be kept.
#[inline(always)]
pub fn connect(address: &Address, (ip, port): (Ip, u16)) -> Outcome {
    if !address.is_tcp() {
        return Outcome::Return(PROCEED);
    }
    let Some(socket) = address.socket() else {
        return Outcome::Return(PROCEED);
    };
    let cookie = address.cookie();
    // SAFETY: only the agent writes the map, whole values at a time; a value that
    // is replaced meanwhile is as good as the one after it.
    let pod = unsafe { PODS.get(cookie) };
    let decision = decide::connect(
        pod,
        (ip, port),
        is_agent,
        |pod| is_excluded(cookie, pod, ip, port),
        // SAFETY: the helper takes no argument.
        || unsafe { bpf_get_prandom_u32() },
    );
    match decision {
        Connect::Agent => Outcome::Return(PROCEED),
        Connect::Pass(Passed::NotEnrolled) if probe::is_ours(cookie, ip) => {
            // Without its mark it is refused where plaintext is, and nothing else.
            if !storage::set(&ENDPOINTS, socket, &Endpoint::new(ip, port, Role::Probe)) {
                count(Counter::NoStorage);
            }
            Outcome::Return(PROCEED)
        }
        Connect::Pass(reason) => {
            let _forgotten = storage::delete(&ENDPOINTS, socket);
            passed(reason, cookie, Endpoint::plain(ip, port));
            Outcome::Return(PROCEED)
        }
        Connect::Refuse(reason) => {
            refused(reason, cookie, Endpoint::plain(ip, port));
            Outcome::Return(REFUSE)
        }
        Connect::Redirect(redirect) => {
            let destination = Endpoint::new(ip, port, Role::Destination);
            if storage::set(&ENDPOINTS, socket, &destination) {
                count(Counter::Redirected);
                Outcome::Redirect(socket, redirect)
            } else {
                count(Counter::NoStorage);
                Outcome::Return(REFUSE)
            }
        }
    }
}

#[inline(always)]
fn is_excluded(cookie: u64, pod: &Pod, ip: Ip, port: u16) -> bool {
    if pod.has(Pod::EXCLUDES_PORTS) {
        let key = PortKey::excluded(cookie, port, Direction::Outbound);
        if EXCLUDE_PORTS.get_ptr(key).is_some() {
            return true;
        }
    }
    pod.has(Pod::EXCLUDES_CIDRS)
        && EXCLUDE_CIDRS
            .get(Key::new(CidrKey::FULL_BITS, CidrKey::new(cookie, ip)))
            .is_some()
}

#[inline(always)]
fn passed(reason: Passed, cookie: u64, remote: Endpoint) {
    match reason {
        Passed::NotEnrolled => {}
        Passed::Loopback => count(Counter::Loopback),
        Passed::Excluded => {
            count(Counter::ExcludedOutbound);
            tell(EventKind::Bypassed, cookie, Endpoint::NONE, remote);
        }
    }
}

#[inline(always)]
fn refused(reason: Refused, cookie: u64, remote: Endpoint) {
    count(match reason {
        Refused::OwnPort => Counter::OwnPort,
        Refused::Blocked => Counter::Blocked,
        Refused::NoFamily => Counter::NoFamily,
    });
    tell(EventKind::Refused, cookie, Endpoint::NONE, remote);
}
