//! Socket addresses that may not be mistaken for one another.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where the application asked to go, before redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub SocketAddr);

/// The client as its server should see it: the pod's own address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

impl fmt::Display for OrigDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The address with an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`) as plain IPv4.
///
/// A dual-stack socket reports its IPv4 peers in the mapped form; every look-up
/// in this agent is by the plain one.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(_) => addr,
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), addr.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn mapped_addresses_become_ipv4() {
        let mapped = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:80".parse().unwrap());
        let v6 = "[fd00::1]:80".parse().unwrap();
        assert_eq!(canonical(v6), v6);
    }
}
