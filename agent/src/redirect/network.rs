//! One enrolled pod's network, for the proxy.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fairlead_common::abi::{Endpoint, PortKey, Role};
use fairlead_common::decide;
use socket2::{Domain, SockRef};
use tokio::time::Instant;

use super::kernel::SharedMaps;
use super::listeners::tcp_socket;
use super::netns::Netns;
use super::{sock_diag, sys};
use crate::model::{ClientAddr, OrigDst};

/// `IP_BIND_ADDRESS_NO_PORT`: the port is chosen at connect, by the whole tuple.
const BIND_ADDRESS_NO_PORT: libc::c_int = 24;

/// A port of before the enrolment is looked at no more often than this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Sockets inside one pod's namespace. A clone is cheap; it is valid as long as
/// the pod is enrolled, and fails or does nothing afterwards.
#[derive(Clone, Debug)]
pub struct Network {
    pub(super) netns: Arc<Netns>,
    pub(super) maps: Arc<SharedMaps>,
    /// When ports of before the enrolment were looked at last.
    pub(super) looks: Arc<Mutex<HashMap<u16, Instant>>>,
}

impl Network {
    /// A new non-blocking TCP socket inside the pod's namespace. A source address that
    /// it is bound to costs no port.
    pub fn socket(&self, v4: bool) -> io::Result<OwnedFd> {
        let domain = if v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket: OwnedFd = self.netns.run(|| tcp_socket(domain))?.into();
        set_bind_address_no_port(socket.as_fd())?;
        Ok(socket)
    }

    /// Where the application wanted to go, of a socket that an outbound listener
    /// accepted. `None`: it came another way, and is to be dropped.
    pub fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        let key = accepted.as_raw_fd().cast_unsigned();
        let kept: Option<Endpoint> = sys::map_get(self.maps.endpoints(), &key)?;
        Ok(kept
            .filter(|endpoint| endpoint.is(Role::Destination))
            .map(|endpoint| OrigDst(endpoint.address())))
    }

    /// Kubelet dialled the socket that an inbound listener accepted.
    pub fn is_probe(&self, accepted: BorrowedFd<'_>) -> io::Result<bool> {
        let key = accepted.as_raw_fd().cast_unsigned();
        let kept: Option<Endpoint> = sys::map_get(self.maps.endpoints(), &key)?;
        Ok(kept.is_some_and(|endpoint| endpoint.is(Role::Probe)))
    }

    /// Prepares a new socket of [`Network::socket`] for dialling the application at
    /// the pod's own address: its accept and getpeername shall show `client`, and
    /// the connection is not steered back to the agent.
    ///
    /// The socket is bound to a loopback address, unless the caller has done that;
    /// nothing outside can be dialled with it.
    pub fn present_client(&self, socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()> {
        let reference = SockRef::from(&socket);
        let bound = reference.local_addr()?.as_socket();
        if bound.is_none_or(|address| address.ip().is_unspecified()) {
            let source = if reference.domain()? == Domain::IPV4 {
                IpAddr::V4(spread(rand::random()))
            } else {
                Ipv6Addr::LOCALHOST.into()
            };
            reference.bind(&SocketAddr::new(source, 0).into())?;
        }
        let ClientAddr(address) = client;
        let endpoint = Endpoint::new(address.ip().into(), address.port(), Role::Client);
        let key = socket.as_raw_fd().cast_unsigned();
        sys::map_set(self.maps.endpoints(), &key, endpoint)
    }

    /// Somebody in the pod listens on this port for this family of addresses, as far as is
    /// known. True where the kernel can't be asked.
    ///
    /// For dials over IPv6: Linux sends no reset to `::1`, so that a dial to a port
    /// that has closed, or that only IPv4 is taken on, would hang.
    pub fn is_listening(&self, address: SocketAddr) -> bool {
        let port = address.port();
        let key = PortKey::listening(self.netns.cookie(), port);
        let takes = |count: Option<u64>| decide::takes(count.unwrap_or(0), address.ip().into());
        match sys::map_get::<_, u64>(self.maps.listening(), &key) {
            Err(_) => return true,
            Ok(count) if takes(count) => return true,
            Ok(_) => {}
        }
        match sys::map_get::<_, u64>(self.maps.seeded(), &key) {
            Err(_) => true,
            // Of before the enrolment: nobody sees it close, so it is looked at.
            Ok(count) if takes(count) => {
                self.looked_at_lately(port) || takes(Some(self.still_listening(&key)))
            }
            Ok(_) => false,
        }
    }

    /// A dial to this port of the application was refused. If nobody listens there
    /// any more, the kernel answers next time itself.
    pub fn forget_listener(&self, port: u16) {
        let key = PortKey::listening(self.netns.cookie(), port);
        let seeded = sys::map_get::<_, u64>(self.maps.seeded(), &key);
        // Listeners of after the enrolment are tracked by the hooks.
        if matches!(seeded, Ok(Some(_))) {
            let _still = self.still_listening(&key);
        }
    }

    /// Looks who still listens on a port of before the enrolment, and forgets who does not.
    fn still_listening(&self, key: &PortKey) -> u64 {
        let looked = self.netns.run(|| {
            let still = listeners(&sock_diag::listening()?, key.port);
            if still == 0 {
                let _was = sys::map_remove(self.maps.seeded(), key)?;
            } else {
                sys::map_set(self.maps.seeded(), key, still)?;
            }
            Ok(still)
        });
        looked.unwrap_or_else(|error| {
            tracing::debug!(%error, port = key.port, "cannot tell whether the port is listened on");
            u64::MAX
        })
    }

    /// The port was looked at a moment ago; if not, it is to be now.
    fn looked_at_lately(&self, port: u16) -> bool {
        let now = Instant::now();
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let last = looks.insert(port, now);
        let lately = last.filter(|&last| now.duration_since(last) < LOOK_AGAIN);
        if let Some(last) = lately {
            let _now = looks.insert(port, last);
        }
        lately.is_some()
    }

    /// The smoothed round-trip time in microseconds, the segments sent again, and the
    /// bytes that the peer has not acknowledged (one more for a FIN), of a connected
    /// socket. `None` where the kernel does not tell.
    pub fn tcp_info(&self, socket: BorrowedFd<'_>) -> Option<(u32, u32, u32)> {
        let info = sys::tcp_info(socket).ok()?;
        let unacknowledged = sys::unacknowledged(socket).ok()?;
        Some((info.tcpi_rtt, info.tcpi_total_retrans, unacknowledged))
    }
}

/// A listener that others than the pod itself can reach.
pub(super) fn is_reachable(entry: &sock_diag::SocketEntry) -> bool {
    decide::is_reachable(entry.local.ip().into(), entry.device)
}

/// How many such listeners a port has, as the programs count them.
pub(super) fn listeners(listening: &[sock_diag::SocketEntry], port: u16) -> u64 {
    let of_port = listening
        .iter()
        .filter(|entry| entry.local.port() == port && is_reachable(entry));
    of_port
        .map(|entry| decide::listener(entry.local.ip().into()))
        .sum()
}

/// One of 127.128.0.0/10: with a single source there would be only so many ports.
fn spread(random: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f80_0000 | (random & 0x003f_ffff) | 1)
}

fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    sys::set_option(socket, libc::IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn sources_are_loopback_and_not_the_usual_one() {
        for random in [0, 1, u32::MAX] {
            let source = spread(random);
            assert!(source.is_loopback());
            assert!((128..192).contains(&source.octets()[1]), "{source}");
        }
    }
}
