//! `cgroup/connect4`: connects of `AF_INET` sockets.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use fairlead_common::abi::Counter;
use fairlead_common::decide::LOOPBACK_DEVICE;

use crate::connect::{Outcome, PROCEED, REFUSE, connect};
use crate::count::count;
use crate::ctx::{Address, device_of, is_bound4};

/// Redirects. Fail-closed.
#[cgroup_sock_addr(connect4)]
pub fn fl_connect4(context: SockAddrContext) -> i32 {
    let address = Address::new(&context);
    let (ip, port) = address.peer4();
    let (socket, redirect) = match connect(&address, (ip, port)) {
        Outcome::Return(verdict) => return verdict,
        Outcome::Redirect(socket, redirect) => (socket, redirect),
    };
    let Some(word) = redirect.ip.v4() else {
        return REFUSE;
    };
    if let Some(source) = redirect.source.v4()
        && !is_bound4(socket)
    {
        address.bind4(source);
    }
    debug!(&context, "connect to {:i} port {}", ip.octets(), port);
    let device = device_of(socket);
    if device != 0 && device != LOOPBACK_DEVICE && !address.unbind_device() {
        // Left on its device it would go out there, in plaintext.
        count(Counter::DeviceKept);
        return REFUSE;
    }
    address.set_peer4(word, redirect.port);
    PROCEED
}
