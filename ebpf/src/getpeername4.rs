//! `cgroup/getpeername4`: what an `AF_INET` socket's owner sees as its peer, from
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
#[cgroup_sock_addr(getpeername4)]
pub fn fl_getpeer4(context: SockAddrContext) -> i32 {
    let address = Address::new(&context);
    if let Some(socket) = address.socket()
        && let Some(kept) = storage::get(&ENDPOINTS, socket)
        && let Some(word) = decide::peer4(&kept)
        && !is_agent()
    {
        address.set_peer4(word, kept.port);
    }
    PROCEED
}
