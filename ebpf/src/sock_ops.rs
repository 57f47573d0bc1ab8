//! `sock_ops`: carries what is kept on a dialling socket to the accepted one, takes
//! both off congestion controls that pace, and keeps the list of ports that pods
//! listen on.
//!
//! Fail-closed: an accepted socket without a destination is dropped by the
//! agent, and a port that is not on the list is not reachable.

use core::arch::asm;
use core::ptr::NonNull;

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use fairlead_common::abi::{Counter, Endpoint, EventKind, Flight, PortKey, Role};
use fairlead_common::decide::{self, SockOp};

use crate::count::{count, tell};
use crate::ctx::{Operation, device_of};
use crate::maps::{COUNTED, ENDPOINTS, INFLIGHT, LISTENING, PODS};
use crate::{probe, storage};

/// The verdict is of no meaning for the operations handled here.
const DONE: u32 = 1;
/// `BPF_NOEXIST`.
const ONLY_NEW: u64 = 1;

/// Never interferes with the connection itself.
#[sock_ops]
pub fn fl_sockops(context: SockOpsContext) -> u32 {
    let operation = Operation::new(&context);
    let decision = decide::sock_op(operation.number(), || operation.states());
    if decision == SockOp::Ignore {
        return DONE;
    }
    let cookie = operation.cookie();
    let Some(socket) = operation.socket() else {
        return DONE;
    };
    if PODS.get_ptr(cookie).is_none() {
        match decision {
            SockOp::Depart => probe::depart(&context, &operation, socket),
            SockOp::Ended => probe::ended(&operation, socket),
            SockOp::Ignore | SockOp::Arrive | SockOp::ListenOpened | SockOp::ListenClosed => {}
        }
        return DONE;
    }
    match decision {
        SockOp::Ignore | SockOp::Ended => {}
        SockOp::Depart => depart(cookie, &operation, socket),
        SockOp::Arrive => arrive(cookie, &operation, socket),
        SockOp::ListenOpened => listen_opened(cookie, &context, &operation, socket),
        SockOp::ListenClosed => listen_closed(cookie, &operation, socket),
    }
    DONE
}

/// The key of a connection into or inside a namespace.
#[inline(always)]
pub fn flight(cookie: u64, source: Endpoint, destination: Endpoint) -> Flight {
    Flight {
        cookie,
        source: source.ip,
        destination: destination.ip,
        source_port: source.port,
        destination_port: destination.port,
        reserved: 0,
    }
}

#[inline(always)]
fn depart(cookie: u64, operation: &Operation, socket: NonNull<bpf_sock>) {
    let key = flight(cookie, operation.local(), operation.remote());
    match storage::get(&ENDPOINTS, socket) {
        Some(kept) => {
            operation.unpace();
            if INFLIGHT.insert(key, kept, 0).is_err() {
                count(Counter::CarryFailed);
            }
        }
        // An earlier connection of the same tuple may have left something.
        None => {
            let _removed = INFLIGHT.remove(key);
        }
    }
}

#[inline(always)]
fn arrive(cookie: u64, operation: &Operation, socket: NonNull<bpf_sock>) {
    let key = flight(cookie, operation.remote(), operation.local());
    // SAFETY: nobody else writes the entry of this one connection.
    let Some(kept) = (unsafe { INFLIGHT.get(key) }).copied() else {
        return;
    };
    let _removed = INFLIGHT.remove(key);
    if !kept.is(Role::Probe) {
        operation.unpace();
    }
    count(if storage::set(&ENDPOINTS, socket, &kept) {
        Counter::Carried
    } else {
        Counter::CarryFailed
    });
}

#[inline(always)]
fn listen_opened(
    cookie: u64,
    context: &SockOpsContext,
    operation: &Operation,
    socket: NonNull<bpf_sock>,
) {
    let local = operation.local();
    if !decide::is_reachable(local.ip, device_of(socket)) {
        return;
    }
    let flags = context.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG;
    let is_marked =
        context.set_cb_flags(flags as i32).is_ok() && storage::set(&COUNTED, socket, &1);
    let listener = decide::listener(local.ip);
    if !(is_marked && add(PortKey::listening(cookie, local.port), listener)) {
        count(Counter::ListenFailed);
        return;
    }
    count(Counter::ListenOpened);
    tell(EventKind::ListenOpened, cookie, local, Endpoint::NONE);
}

/// Counts a listener; `false` where the map is full.
#[inline(always)]
fn add(key: PortKey, listener: u64) -> bool {
    if LISTENING.insert(key, listener, ONLY_NEW).is_ok() {
        return true;
    }
    match LISTENING.get_ptr_mut(key) {
        Some(listeners) => {
            change(listeners, listener as i64);
            true
        }
        None => false,
    }
}

/// Changes a count that other CPUs change too. The target has the instruction,
/// but `core` has no method for it there.
#[inline(always)]
fn change(listeners: *mut u64, by: i64) {
    // SAFETY: the map returned the pointer for this run, and its value is one
    // aligned 64-bit word.
    unsafe {
        asm!("lock *(u64 *)({count} + 0) += {by}", count = in(reg) listeners, by = in(reg) by);
    }
}

#[inline(always)]
fn listen_closed(cookie: u64, operation: &Operation, socket: NonNull<bpf_sock>) {
    // Only what was counted is taken off: a listener of before the enrolment
    // was not.
    if !storage::delete(&COUNTED, socket) {
        return;
    }
    let local = operation.local();
    if let Some(listeners) = LISTENING.get_ptr_mut(PortKey::listening(cookie, local.port))
        // The agent forgets a namespace's counts when it lets the pod go, and the
        // pod may come back: what was counted then is no part of the count of now.
        // SAFETY: the map returned the pointer for this run.
        && unsafe { listeners.read_volatile() } != 0
    {
        change(listeners, -(decide::listener(local.ip) as i64));
    }
    count(Counter::ListenClosed);
    tell(EventKind::ListenClosed, cookie, local, Endpoint::NONE);
}
