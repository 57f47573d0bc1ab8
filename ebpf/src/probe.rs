//! Kubelet's connections to pods: its socket is marked at connect, and the mark travels to
//! the socket that the agent accepts in the pod's namespace.
//!
//! Fail-closed: a connection whose mark does not arrive is one like any other. The mark
//! travels by the tuple of the connection and only while the dialling socket lives, whose
//! tuple nobody else can have meanwhile.

use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock};
use aya_ebpf::programs::SockOpsContext;
use fairlead_common::abi::{Counter, Endpoint, Flight, Ip, Role};
use fairlead_common::decide;

use crate::count::count;
use crate::ctx::{Operation, kubelets_namespace};
use crate::maps::{ADDRESSES, ENDPOINTS, INFLIGHT};
use crate::sock_ops::flight;
use crate::storage;

/// A connect from the namespace `cookie` to `ip` is kubelet's, to an enrolled pod.
#[inline(always)]
pub fn is_ours(cookie: u64, ip: Ip) -> bool {
    decide::is_probe(cookie, kubelets_namespace, || {
        ADDRESSES.get_ptr(ip).is_some()
    })
}

/// Puts the mark where the accepting socket finds it.
#[inline(always)]
pub fn depart(context: &SockOpsContext, operation: &Operation, socket: NonNull<bpf_sock>) {
    let Some((key, kept)) = marked(operation, socket) else {
        return;
    };
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    // Without word of its end the mark would outlive the socket.
    let is_followed = context.set_cb_flags(flags as i32).is_ok();
    count(if is_followed && INFLIGHT.insert(key, kept, 0).is_ok() {
        Counter::Probe
    } else {
        Counter::CarryFailed
    });
}

/// Takes back what nobody has taken.
#[inline(always)]
pub fn ended(operation: &Operation, socket: NonNull<bpf_sock>) {
    if let Some((key, _kept)) = marked(operation, socket) {
        let _removed = INFLIGHT.remove(key);
    }
}

/// The connection into the pod's namespace, and the mark of its dialling socket.
#[inline(always)]
fn marked(operation: &Operation, socket: NonNull<bpf_sock>) -> Option<(Flight, Endpoint)> {
    let kept = storage::get(&ENDPOINTS, socket)?;
    if !kept.is(Role::Probe) {
        return None;
    }
    let (local, remote) = (operation.local(), operation.remote());
    // SAFETY: only the agent writes the map; an address moves to another namespace only
    // after its entry was removed.
    let pod = unsafe { ADDRESSES.get(remote.ip) }.copied()?;
    Some((flight(pod, local, remote), kept))
}
