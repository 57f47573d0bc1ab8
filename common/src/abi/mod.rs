//! Map keys, map values and events.
//!
//! Invariant: every type here is made by [`shared!`], which proves at compile
//! time that it has no padding, so that the kernel compares and copies only
//! bytes that were written. Addresses are in network order, everything else is
//! in the host's order.

mod address;
mod count;
mod event;

pub use address::{Direction, Endpoint, Ip, Role};
pub use count::Counter;
pub use event::{Event, EventKind, Told};

/// Types that kernel and agent share as bytes.
///
/// # Safety
///
/// The type is `repr(C)` or `repr(transparent)`, has no padding, and every bit
/// pattern is a value of it.
#[expect(
    unsafe_code,
    reason = "a promise about layout that unsafe code relies on"
)]
pub unsafe trait Shared: Copy + 'static {}

macro_rules! integers {
    ($($integer:ty),*) => {$(
        // SAFETY: integers have no padding and no invalid bit pattern.
        #[expect(unsafe_code, reason = "integers are plain bytes")]
        unsafe impl Shared for $integer {}
    )*};
}

integers!(u8, u16, u32, u64);

// SAFETY: an array is its elements, one after the other.
#[expect(unsafe_code, reason = "arrays of plain bytes are plain bytes")]
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct that kernel and agent share: `repr(C)`, only [`Shared`]
/// fields, and a compile-time proof that they fill it without padding.
macro_rules! shared {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        const _: () = {
            const fn is_shared<T: $crate::abi::Shared>() {}
            $(is_shared::<$type>();)*
            assert!(
                size_of::<$name>() == 0 $(+ size_of::<$type>())*,
                "the struct has padding"
            );
        };

        // SAFETY: `repr(C)`; the assertion above proves that the fields, each of
        // them `Shared`, fill it.
        #[expect(unsafe_code, reason = "proven by the assertion beside it")]
        unsafe impl $crate::abi::Shared for $name {}
    };
}
pub(crate) use shared;

/// A shared value as the kernel sees it.
pub fn bytes_of<T: Shared>(value: &T) -> &[u8] {
    let start = core::ptr::from_ref(value).cast::<u8>();
    // SAFETY: `value` is valid for reads of its size, and `Shared` promises that
    // each of its bytes is initialised.
    #[expect(unsafe_code, reason = "the one place that turns values into bytes")]
    unsafe {
        core::slice::from_raw_parts(start, size_of::<T>())
    }
}

/// A shared value from bytes of the kernel; `None` where there are too few.
pub fn from_bytes<T: Shared>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes; the read assumes no alignment; `Shared`
    // promises that any bit pattern is a value.
    #[expect(unsafe_code, reason = "the one place that turns bytes into values")]
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

shared! {
    /// Value of `PODS`: what the hooks know of an enrolled network namespace.
    pub struct Pod {
        /// Its IPv4 address; zero where it has none.
        pub ip4: Ip,
        /// Its IPv6 address; zero where it has none.
        pub ip6: Ip,
        /// The agent's listeners on the namespace's loopback; 0 where there is none.
        pub ports: Ports,
        /// [`Pod::BLOCKED`], [`Pod::EXCLUDES_PORTS`], [`Pod::EXCLUDES_CIDRS`].
        pub flags: u32,
    }
}

impl Pod {
    /// The pod should be meshed and can't be: nothing may leave it.
    pub const BLOCKED: u32 = 1;
    /// `EXCLUDE_PORTS` has entries for it.
    pub const EXCLUDES_PORTS: u32 = 2;
    /// `EXCLUDE_CIDRS` has entries for it.
    pub const EXCLUDES_CIDRS: u32 = 4;

    /// All of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}

shared! {
    /// The agent's ports inside one pod's namespace, in the host's order.
    pub struct Ports {
        /// Takes redirected connections, at 0.0.0.0 on device lo.
        pub outbound4: u16,
        /// Takes redirected connections, at `[::1]`.
        pub outbound6: u16,
        /// Takes steered connections, at 127.0.0.1.
        pub inbound4: u16,
        /// Takes steered connections, at `[::1]`.
        pub inbound6: u16,
        /// Takes connections to [`TUNNEL_PORT`], at 127.0.0.1.
        pub tunnel4: u16,
        /// Takes connections to [`TUNNEL_PORT`], at `[::1]`.
        pub tunnel6: u16,
    }
}

impl Ports {
    /// One of the agent's listeners has this port.
    #[inline(always)]
    pub const fn contains(&self, port: u16) -> bool {
        port != 0
            && (self.outbound4 == port
                || self.outbound6 == port
                || self.inbound4 == port
                || self.inbound6 == port
                || self.tunnel4 == port
                || self.tunnel6 == port)
    }
}

/// The port of a pod's address that takes HBONE.
pub const TUNNEL_PORT: u16 = 15008;

shared! {
    /// Key of `INFLIGHT`: a connection between two sockets of one namespace.
    pub struct Flight {
        /// The namespace.
        pub cookie: u64,
        /// The dialling end.
        pub source: Ip,
        /// The accepting end.
        pub destination: Ip,
        /// The dialling end's port.
        pub source_port: u16,
        /// The accepting end's port.
        pub destination_port: u16,
        /// Zero.
        pub reserved: u32,
    }
}

shared! {
    /// Key of `LISTENING` and `SEEDED`: a port in a namespace.
    pub struct PortKey {
        /// The namespace.
        pub cookie: u64,
        /// The port.
        pub port: u16,
        /// Zero, or a [`Direction`] in `EXCLUDE_PORTS`.
        pub direction: u16,
        /// Zero.
        pub reserved: u32,
    }
}

impl PortKey {
    /// Of a port that is listened on.
    #[inline(always)]
    pub const fn listening(cookie: u64, port: u16) -> Self {
        Self {
            cookie,
            port,
            direction: 0,
            reserved: 0,
        }
    }

    /// Of a port that the mesh leaves alone in one direction.
    #[inline(always)]
    pub const fn excluded(cookie: u64, port: u16, direction: Direction) -> Self {
        Self {
            cookie,
            port,
            direction: direction as u16,
            reserved: 0,
        }
    }
}

shared! {
    /// Key of `LISTENERS`: where connections to a pod's address are steered.
    pub struct ListenerKey {
        /// The pod's address.
        pub ip: Ip,
        /// A [`ListenerKind`].
        pub kind: u32,
    }
}

/// Which of the agent's listeners a connection is steered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ListenerKind {
    /// Connections to ports of the application.
    Inbound = 1,
    /// Connections to [`TUNNEL_PORT`].
    Tunnel = 2,
}

impl ListenerKey {
    /// The key of one listener.
    #[inline(always)]
    pub const fn new(ip: Ip, kind: ListenerKind) -> Self {
        Self {
            ip,
            kind: kind as u32,
        }
    }
}

shared! {
    /// Data of the keys of `EXCLUDE_CIDRS`, a longest-prefix-match trie: the
    /// namespace in full, then the prefix.
    pub struct CidrKey {
        /// The namespace.
        pub cookie: [u8; 8],
        /// The prefix.
        pub ip: Ip,
    }
}

impl CidrKey {
    /// Bits before the prefix.
    pub const COOKIE_BITS: u32 = 64;
    /// Bits of a whole address.
    pub const FULL_BITS: u32 = Self::COOKIE_BITS + 128;

    /// The key for an address of a namespace.
    #[inline(always)]
    pub const fn new(cookie: u64, ip: Ip) -> Self {
        Self {
            cookie: cookie.to_be_bytes(),
            ip,
        }
    }
}

#[cfg(test)]
mod tests;
