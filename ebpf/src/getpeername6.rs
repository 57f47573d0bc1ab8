//! `cgroup/getpeername6`: what an `AF_INET6` socket's owner sees as its peer, from
//! getpeername and from accept.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use fairlead_common::decide;

use crate::connect::PROCEED;
use crate::ctx::{Address, is_agent};
use crate::maps::ENDPOINTS;
use crate::storage;

/// Shows the destination that was asked for, or the true client. Fail-open: the
/// kernel's answer names the agent, and nothing depends on it.
#[cgroup_sock_addr(getpeername6)]
pub fn fl_getpeer6(context: SockAddrContext) -> i32 {
    let address = Address::new(&context);
    if let Some(socket) = address.socket()
        && let Some(kept) = storage::get(&ENDPOINTS, socket)
        && let Some(words) = decide::peer6(&kept)
        && !is_agent()
    {
        address.set_peer6(words, kept.port);
    }
    PROCEED
}
