//! The agent's listeners inside a pod's namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use fairlead_common::abi::Ports;
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel lowers it to the namespace's `net.core.somaxconn`.
const BACKLOG: i32 = 16_384;

/// One pod's listeners, one for each address family that its namespace has.
/// Non-blocking.
#[derive(Debug)]
pub struct Listeners {
    /// Connections of the pod, redirected. An accepted socket without an original
    /// destination came another way and must be dropped.
    pub outbound: Vec<TcpListener>,
    /// Connections to the pod's ports, steered: the local address of an accepted
    /// socket is the one that was dialled.
    pub inbound: Vec<TcpListener>,
    /// Connections to port 15008 of the pod, steered.
    pub tunnel: Vec<TcpListener>,
}

/// Opens the listeners in the namespace that the calling thread is in.
pub(super) fn open() -> io::Result<(Listeners, Ports)> {
    let v4 = Ipv4Addr::LOCALHOST.into();
    let outbound4 = listen(Ipv4Addr::UNSPECIFIED.into())?;
    let inbound4 = listen(v4)?;
    let tunnel4 = listen(v4)?;
    let mut ports = Ports {
        outbound4: port(&outbound4)?,
        outbound6: 0,
        inbound4: port(&inbound4)?,
        inbound6: 0,
        tunnel4: port(&tunnel4)?,
        tunnel6: 0,
    };
    let mut listeners = Listeners {
        outbound: vec![outbound4],
        inbound: vec![inbound4],
        tunnel: vec![tunnel4],
    };
    let v6 = Ipv6Addr::LOCALHOST.into();
    match listen(v6) {
        Ok(outbound6) => {
            let inbound6 = listen(v6)?;
            let tunnel6 = listen(v6)?;
            ports.outbound6 = port(&outbound6)?;
            ports.inbound6 = port(&inbound6)?;
            ports.tunnel6 = port(&tunnel6)?;
            listeners.outbound.push(outbound6);
            listeners.inbound.push(inbound6);
            listeners.tunnel.push(tunnel6);
        }
        // IPv6 is off in the namespace, or in the kernel.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
            ) => {}
        Err(error) => return Err(error),
    }
    Ok((listeners, ports))
}

/// A listener on a port that the kernel chooses. One for any address is bound to
/// the device `lo`, so that nobody outside reaches it.
fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    let socket = tcp_socket(if ip.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    })?;
    // Steered connections are bound to the application's port. Without this the
    // application could not bind it again while they live.
    socket.set_reuse_address(true)?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if ip.is_unspecified() {
        socket.bind_device(Some(b"lo"))?;
    }
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A non-blocking TCP socket in the namespace that the calling thread is in.
pub(super) fn tcp_socket(domain: Domain) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    Socket::new(domain, kind, Some(Protocol::TCP))
}

fn port(listener: &TcpListener) -> io::Result<u16> {
    Ok(listener.local_addr()?.port())
}
