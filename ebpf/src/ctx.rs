//! The kernel's contexts in this project's terms.
//!
//! The verifier permits only loads and stores of whole fields at constant offsets
//! from the context. Optimisers like to choose an offset first and load then, also
//! where the loads are volatile: so the loads are instructions written down here.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr::{self, NonNull};

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_setsockopt,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};
use fairlead_common::abi::{Endpoint, Ip};

use crate::maps::{AGENTS, KUBELETS};

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SOL_TCP: i32 = 6;
const TCP_CONGESTION: i32 = 13;

/// Loads a field of two, four or eight bytes.
macro_rules! load_sized {
    ($size:literal, $base:expr, $offset:expr) => {{
        let value: u64;
        // SAFETY: the kernel passes a valid context, and the verifier checks that
        // the field may be read.
        unsafe {
            asm!(
                concat!("{value} = *(", $size, " *)({base} + {offset})"),
                value = out(reg) value,
                base = in(reg) $base,
                offset = const $offset,
                options(nostack, readonly),
            );
        }
        value
    }};
}

/// Loads a field of four bytes.
macro_rules! load {
    ($base:expr, $type:ty, $field:ident) => {
        load_sized!("u32", $base, offset_of!($type, $field)) as u32
    };
}

/// Loads a field of four times four bytes.
macro_rules! load_words {
    ($base:expr, $type:ty, $field:ident) => {
        [
            load_sized!("u32", $base, offset_of!($type, $field)) as u32,
            load_sized!("u32", $base, offset_of!($type, $field) + 4) as u32,
            load_sized!("u32", $base, offset_of!($type, $field) + 8) as u32,
            load_sized!("u32", $base, offset_of!($type, $field) + 12) as u32,
        ]
    };
}

/// Loads a field that is a pointer to a socket.
macro_rules! load_socket {
    ($base:expr, $type:ty, $field:ident) => {{
        let socket: *mut bpf_sock;
        // SAFETY: as above. The output is a pointer, not a number made into one.
        unsafe {
            asm!(
                "{socket} = *(u64 *)({base} + {offset})",
                socket = out(reg) socket,
                base = in(reg) $base,
                offset = const offset_of!($type, $field),
                options(nostack, readonly),
            );
        }
        NonNull::new(socket)
    }};
}

macro_rules! store {
    ($context:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: the kernel passes a valid context, and the verifier checks that
        // the field may be written.
        unsafe { ptr::write_volatile(&raw mut (*$context).$($field)+, $value) }
    };
}

/// The process that makes the call is an agent.
#[inline(always)]
pub fn is_agent() -> bool {
    // SAFETY: the helper takes no argument.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    AGENTS.get_ptr(cgroup).is_some()
}

/// The namespace in which the process that makes the call is kubelet.
#[inline(always)]
pub fn kubelets_namespace() -> Option<u64> {
    // SAFETY: the helper takes no argument.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: only the agent writes the map, and a value never changes.
    unsafe { KUBELETS.get(cgroup) }.copied()
}

/// The port of a field that has it in network order in the low half of a word.
#[inline(always)]
fn port_of_be16(word: u32) -> u16 {
    u16::from_be(word as u16)
}

/// The context of connect and getpeername hooks.
pub struct Address(*mut bpf_sock_addr);

impl Address {
    /// Of the program's argument.
    #[inline(always)]
    pub fn new(context: &SockAddrContext) -> Self {
        Self(context.sock_addr)
    }

    /// The socket is TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        load!(self.0, bpf_sock_addr, protocol) == IPPROTO_TCP
    }

    /// The namespace of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is this run's.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// The socket.
    #[inline(always)]
    pub fn socket(&self) -> Option<NonNull<bpf_sock>> {
        load_socket!(self.0, bpf_sock_addr, __bindgen_anon_1)
    }

    /// The address and port of an `AF_INET` call.
    #[inline(always)]
    pub fn peer4(&self) -> (Ip, u16) {
        (
            Ip::from_v4(load!(self.0, bpf_sock_addr, user_ip4)),
            self.port(),
        )
    }

    /// The address and port of an `AF_INET6` call.
    #[inline(always)]
    pub fn peer6(&self) -> (Ip, u16) {
        (
            Ip::from_v6(load_words!(self.0, bpf_sock_addr, user_ip6)),
            self.port(),
        )
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        port_of_be16(load!(self.0, bpf_sock_addr, user_port))
    }

    /// Replaces the address of an `AF_INET` call.
    #[inline(always)]
    pub fn set_peer4(&self, word: u32, port: u16) {
        store!(self.0, word, user_ip4);
        store!(self.0, u32::from(port.to_be()), user_port);
    }

    /// Replaces the address of an `AF_INET6` call.
    #[inline(always)]
    pub fn set_peer6(&self, words: [u32; 4], port: u16) {
        store!(self.0, words[0], user_ip6[0]);
        store!(self.0, words[1], user_ip6[1]);
        store!(self.0, words[2], user_ip6[2]);
        store!(self.0, words[3], user_ip6[3]);
        store!(self.0, u32::from(port.to_be()), user_port);
    }

    /// Binds an `AF_INET` socket to an address, its port left open. It fails
    /// where the application has bound it, and that is right.
    #[inline(always)]
    pub fn bind4(&self, word: u32) {
        let mut address = [0_u32; 4];
        address[0] = AF_INET;
        address[1] = word;
        self.bind(&mut address, 16);
    }

    /// Binds an `AF_INET6` socket to an address, its port left open.
    #[inline(always)]
    pub fn bind6(&self, words: [u32; 4]) {
        let mut address = [0_u32; 7];
        address[0] = AF_INET6;
        address[2] = words[0];
        address[3] = words[1];
        address[4] = words[2];
        address[5] = words[3];
        self.bind(&mut address, 28);
    }

    #[inline(always)]
    fn bind<const WORDS: usize>(&self, address: &mut [u32; WORDS], length: i32) {
        // SAFETY: the context is this run's; `address` is a sockaddr of `length`
        // bytes: family, port 0, address.
        let _bound = unsafe { bpf_bind(self.0, address.as_mut_ptr().cast(), length) };
    }

    /// Takes the socket off the device that the application bound it to: the
    /// agent is on `lo`. `false` where the kernel does not.
    #[inline(always)]
    pub fn unbind_device(&self) -> bool {
        let mut none = [0_u8; 4];
        // SAFETY: the context is this run's; the option's value is four bytes.
        let result = unsafe {
            bpf_setsockopt(
                self.0.cast(),
                SOL_SOCKET,
                SO_BINDTODEVICE,
                none.as_mut_ptr().cast(),
                4,
            )
        };
        result == 0
    }
}

/// The device that a socket is bound to, 0 for none.
#[inline(always)]
pub fn device_of(socket: NonNull<bpf_sock>) -> u32 {
    load!(socket.as_ptr(), bpf_sock, bound_dev_if)
}

/// The application has bound an `AF_INET` socket to an address.
#[inline(always)]
pub fn is_bound4(socket: NonNull<bpf_sock>) -> bool {
    load!(socket.as_ptr(), bpf_sock, src_ip4) != 0
}

/// The application has bound an `AF_INET6` socket to an address.
#[inline(always)]
pub fn is_bound6(socket: NonNull<bpf_sock>) -> bool {
    let words = load_words!(socket.as_ptr(), bpf_sock, src_ip6);
    words[0] | words[1] | words[2] | words[3] != 0
}

/// The context of `sock_ops`.
pub struct Operation(*mut bpf_sock_ops);

impl Operation {
    /// Of the program's argument.
    #[inline(always)]
    pub fn new(context: &SockOpsContext) -> Self {
        Self(context.ops)
    }

    /// Which operation.
    #[inline(always)]
    pub fn number(&self) -> u32 {
        load!(self.0, bpf_sock_ops, op)
    }

    /// The first two arguments: the old and the new state of a state change.
    #[inline(always)]
    pub fn states(&self) -> (u32, u32) {
        const ARGUMENTS: usize = offset_of!(bpf_sock_ops, __bindgen_anon_1);
        (
            load_sized!("u32", self.0, ARGUMENTS) as u32,
            load_sized!("u32", self.0, ARGUMENTS + 4) as u32,
        )
    }

    /// The namespace of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is this run's.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// The socket, where it is a full one.
    #[inline(always)]
    pub fn socket(&self) -> Option<NonNull<bpf_sock>> {
        load_socket!(self.0, bpf_sock_ops, __bindgen_anon_2)
    }

    /// Takes the socket off a congestion control that paces, such as BBR: on a hop
    /// that stays inside the namespace pacing only stalls, by milliseconds.
    #[inline(always)]
    pub fn unpace(&self) {
        // Every kernel has the second.
        if !self.set_congestion(*b"cubic\0") {
            let _done = self.set_congestion(*b"reno\0\0");
        }
    }

    #[inline(always)]
    fn set_congestion(&self, mut name: [u8; 6]) -> bool {
        // SAFETY: the context is this run's; the option's value is the name.
        let result = unsafe {
            bpf_setsockopt(
                self.0.cast(),
                SOL_TCP,
                TCP_CONGESTION,
                name.as_mut_ptr().cast(),
                6,
            )
        };
        result == 0
    }

    /// This end.
    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let ip = if self.is_v6() {
            Ip::from_v6(load_words!(self.0, bpf_sock_ops, local_ip6))
        } else {
            Ip::from_v4(load!(self.0, bpf_sock_ops, local_ip4))
        };
        Endpoint::plain(ip, load!(self.0, bpf_sock_ops, local_port) as u16)
    }

    /// The other end.
    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        let ip = if self.is_v6() {
            Ip::from_v6(load_words!(self.0, bpf_sock_ops, remote_ip6))
        } else {
            Ip::from_v4(load!(self.0, bpf_sock_ops, remote_ip4))
        };
        let port = u32::from_be(load!(self.0, bpf_sock_ops, remote_port));
        Endpoint::plain(ip, port as u16)
    }

    #[inline(always)]
    fn is_v6(&self) -> bool {
        load!(self.0, bpf_sock_ops, family) == AF_INET6
    }
}

/// The context of `sk_lookup`.
pub struct Arrival(*mut bpf_sk_lookup);

impl Arrival {
    /// Of the program's argument.
    #[inline(always)]
    pub fn new(context: &SkLookupContext) -> Self {
        Self(context.lookup)
    }

    /// It is TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        load!(self.0, bpf_sk_lookup, protocol) == IPPROTO_TCP
    }

    /// Where it goes.
    #[inline(always)]
    pub fn local(&self) -> Endpoint {
        let ip = if load!(self.0, bpf_sk_lookup, family) == AF_INET6 {
            Ip::from_v6(load_words!(self.0, bpf_sk_lookup, local_ip6))
        } else {
            Ip::from_v4(load!(self.0, bpf_sk_lookup, local_ip4))
        };
        Endpoint::plain(ip, load!(self.0, bpf_sk_lookup, local_port) as u16)
    }

    /// Where it comes from.
    #[inline(always)]
    pub fn remote(&self) -> Endpoint {
        let ip = if load!(self.0, bpf_sk_lookup, family) == AF_INET6 {
            Ip::from_v6(load_words!(self.0, bpf_sk_lookup, remote_ip6))
        } else {
            Ip::from_v4(load!(self.0, bpf_sk_lookup, remote_ip4))
        };
        let port = load_sized!("u16", self.0, offset_of!(bpf_sk_lookup, remote_port)) as u16;
        Endpoint::plain(ip, u16::from_be(port))
    }
}
