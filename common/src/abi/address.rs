//! Addresses of both families in one form.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Shared, shared};

/// An IP address as 16 bytes in network order; IPv4 in the mapped form
/// `::ffff:a.b.c.d`, whatever the family of the socket that used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Ip {
    /// The address as four words whose bytes are in network order, as the
    /// kernel's contexts have them.
    words: [u32; 4],
}

// SAFETY: `repr(C)` around one array of integers.
#[expect(unsafe_code, reason = "one array of integers is plain bytes")]
unsafe impl Shared for Ip {}

/// The third word of a mapped IPv4 address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Ip {
    /// `::`, which stands for "no address".
    pub const NONE: Self = Self { words: [0; 4] };
    /// `::1`.
    pub const LOOPBACK6: Self = Self {
        words: [0, 0, 0, 1_u32.to_be()],
    };

    /// From a word whose bytes are in network order.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self {
            words: [0, 0, MAPPED, word],
        }
    }

    /// From four words whose bytes are in network order.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The word of an IPv4 address, its bytes in network order.
    #[inline(always)]
    pub const fn v4(self) -> Option<u32> {
        if self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED {
            Some(self.words[3])
        } else {
            None
        }
    }

    /// The four words, their bytes in network order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.words
    }

    /// The 16 bytes.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (
            a.to_ne_bytes(),
            b.to_ne_bytes(),
            c.to_ne_bytes(),
            d.to_ne_bytes(),
        );
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// Not [`Ip::NONE`].
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.words[0] | self.words[1] | self.words[2] | self.words[3] != 0
    }

    /// Never leaves the host: 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        match self.v4() {
            Some(word) => u32::from_be(word) >> 24 == 127,
            None => {
                self.words[0] | self.words[1] | self.words[2] == 0 && self.words[3] == 1_u32.to_be()
            }
        }
    }

    /// 0.0.0.0 or `::`, which a connect takes for the loopback.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        match self.v4() {
            Some(word) => word == 0,
            None => !self.is_some(),
        }
    }
}

impl From<IpAddr> for Ip {
    fn from(ip: IpAddr) -> Self {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            words: [word(0), word(4), word(8), word(12)],
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        if let Some(word) = ip.v4() {
            return Self::V4(Ipv4Addr::from(word.to_ne_bytes()));
        }
        Self::from(ip.octets())
    }
}

/// What an [`Endpoint`] on a socket means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Role {
    /// Where the application wanted to go: written by the connect hooks.
    Destination = 1,
    /// Who the client is: written by the agent on a socket that it dials with.
    Client = 2,
    /// Kubelet dials a pod: written by the connect hooks on its sockets. The address
    /// is the one that is dialled, and is shown to nobody.
    Probe = 3,
}

shared! {
    /// Value of `ENDPOINTS` (socket storage) and `INFLIGHT`: the peer that a
    /// socket's owner is to see.
    pub struct Endpoint {
        /// The address.
        pub ip: Ip,
        /// The port, in the host's order.
        pub port: u16,
        /// A [`Role`]; 0 in events where there is none.
        pub role: u16,
    }
}

impl Endpoint {
    /// No address.
    pub const NONE: Self = Self {
        ip: Ip::NONE,
        port: 0,
        role: 0,
    };

    /// An address with its meaning.
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16, role: Role) -> Self {
        Self {
            ip,
            port,
            role: role as u16,
        }
    }

    /// An address in an event.
    #[inline(always)]
    pub const fn plain(ip: Ip, port: u16) -> Self {
        Self { ip, port, role: 0 }
    }

    /// It has that meaning.
    #[inline(always)]
    pub const fn is(&self, role: Role) -> bool {
        self.role == role as u16
    }

    /// As the standard library has it; a mapped address as plain IPv4.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip.into(), self.port)
    }
}

/// Which way a connection goes, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Direction {
    /// Out of the pod.
    Outbound = 1,
    /// Into the pod.
    Inbound = 2,
}
