//! `cgroup/connect6`: connects of `AF_INET6` sockets, also those to IPv4 in its
//! mapped form.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use fairlead_common::abi::Counter;
use fairlead_common::decide::LOOPBACK_DEVICE;

use crate::connect::{Outcome, PROCEED, REFUSE, connect};
use crate::count::count;
use crate::ctx::{Address, device_of, is_bound6};

/// Redirects. Fail-closed.
#[cgroup_sock_addr(connect6)]
pub fn fl_connect6(context: SockAddrContext) -> i32 {
    let address = Address::new(&context);
    let (ip, port) = address.peer6();
    let (socket, redirect) = match connect(&address, (ip, port)) {
        Outcome::Return(verdict) => return verdict,
        Outcome::Redirect(socket, redirect) => (socket, redirect),
    };
    if redirect.source.is_some() && !is_bound6(socket) {
        address.bind6(redirect.source.words());
    }
    debug!(&context, "connect to {:i} port {}", ip.octets(), port);
    let device = device_of(socket);
    if device != 0 && device != LOOPBACK_DEVICE && !address.unbind_device() {
        // Left on its device it would go out there, in plaintext.
        count(Counter::DeviceKept);
        return REFUSE;
    }
    address.set_peer6(redirect.ip.words(), redirect.port);
    PROCEED
}
