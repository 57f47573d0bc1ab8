//! New connections out of a pod's network namespace, and the options of every socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use super::config::{Config, Keepalive};
use super::network::{Family, PodNetwork};
use super::outcome::ConnectError;
use crate::model::ClientAddr;

/// The longest segment to and from an application of the agent's own node: as on an Ethernet.
///
/// Loopback's own is 64 KiB, with which most of what applications write is less than one
/// segment. By Nagle's rule the second such write waits until the first is acknowledged, and
/// the kernel delays that by 40 ms where less than a segment has come. The kernel moves
/// 64 KiB at a time all the same.
const NEAR_SEGMENT: u32 = 1460;

/// Dials `to` from the pod's namespace, with `source` as the address on the wire.
pub(super) async fn network(
    network: &dyn PodNetwork,
    source: Option<IpAddr>,
    to: SocketAddr,
    config: &Config,
) -> Result<TcpStream, ConnectError> {
    let socket = socket(network, to, config)?;
    if let Some(ip) = source {
        socket.bind(SocketAddr::new(ip, 0))?;
    }
    connect(socket, to, config.connect_timeout).await
}

/// Dials the pod's application, which sees `client` as its peer.
///
/// The source is a random loopback address: the kernel passes connections from loopback
/// by the redirection, and the spread keeps one application's port from running out of
/// source ports.
pub(super) async fn application(
    network: &dyn PodNetwork,
    client: ClientAddr,
    to: SocketAddr,
    config: &Config,
) -> Result<TcpStream, ConnectError> {
    // Linux sends no reset from an IPv6 address to `::1`: such a dial would time out.
    if to.is_ipv6() && !network.is_listening(to) {
        return Err(ConnectError::Refused);
    }
    let socket = socket(network, to, config)?;
    SockRef::from(&socket).set_tcp_mss(NEAR_SEGMENT)?;
    socket.bind(SocketAddr::new(loopback_source(to.ip(), rand::random()), 0))?;
    network.present_client(socket.as_fd(), client)?;
    let connected = connect(socket, to, config.connect_timeout).await;
    if matches!(connected, Err(ConnectError::Refused)) {
        network.forget_listener(to.port());
    }
    connected
}

/// Options that accepted sockets inherit from their listener.
pub(super) fn prepare_listener(
    listener: &std::net::TcpListener,
    keepalive: Keepalive,
) -> io::Result<()> {
    set_options(&SockRef::from(listener), keepalive)?;
    listener.set_nonblocking(true)
}

/// What a listener for applications of the same pod has besides.
pub(super) fn prepare_near_listener(listener: &std::net::TcpListener) -> io::Result<()> {
    SockRef::from(listener).set_tcp_mss(NEAR_SEGMENT)
}

/// Ends a connection of which both directions have ended in order: what waits to be sent
/// still arrives.
pub(super) fn close(stream: TcpStream) {
    send_on_close(&stream);
    drop(stream);
}

/// Makes the close of a connection an end in order, after all that was written.
pub(super) fn send_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(None) {
        tracing::debug!(%error, "a connection is reset instead of closed");
    }
}

/// Ends a connection whose peer acknowledges nothing for so long, also after its close: a
/// peer whose node is gone must not keep the pod's network namespace. Only for a peer
/// that always reads.
pub(super) fn give_up_after(stream: &TcpStream, limit: Duration) {
    if let Err(error) = SockRef::from(stream).set_tcp_user_timeout(Some(limit)) {
        tracing::debug!(%error, "a silent peer is waited for as long as the kernel likes");
    }
}

/// Ends a connection with a RST: what waits to be sent is discarded, and the peer's next
/// call says so.
pub(super) fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

/// Makes the close of a connection a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection is closed instead of reset");
    }
}

/// Like [`reset`], after what was written has arrived, or the peer had a second for it.
pub(super) async fn reset_when_sent(stream: TcpStream, network: &dyn PodNetwork) {
    until_sent(&stream, network).await;
    reset(stream);
}

/// What was written has arrived, or the peer had a second for it.
pub(super) async fn until_sent(stream: &TcpStream, network: &dyn PodNetwork) {
    for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] {
        match network.tcp_info(stream.as_fd()) {
            Some(info) if info.unacknowledged > 0 => {
                tokio::time::sleep(Duration::from_millis(wait)).await;
            }
            _ => break,
        }
    }
}

fn socket(network: &dyn PodNetwork, to: SocketAddr, config: &Config) -> io::Result<TcpSocket> {
    let socket = StdStream::from(network.socket(Family::of(to.ip()))?);
    set_options(&SockRef::from(&socket), config.keepalive)?;
    Ok(TcpSocket::from_std_stream(socket))
}

async fn connect(
    socket: TcpSocket,
    to: SocketAddr,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    match tokio::time::timeout(limit, socket.connect(to)).await {
        Ok(connected) => Ok(connected?),
        Err(_elapsed) => Err(ConnectError::TimedOut),
    }
}

/// Sets what every socket of an application's connection has. It resets when it is closed
/// without more: an agent that is killed, or gives a connection up, must not look like an
/// application that has said all it had to say. [`close`] takes that back.
fn set_options(socket: &SockRef<'_>, keepalive: Keepalive) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    let params = TcpKeepalive::new()
        .with_time(keepalive.idle)
        .with_interval(keepalive.interval)
        .with_retries(keepalive.probes);
    socket.set_tcp_keepalive(&params)
}

/// An address of 127.128.0.0/10 that is neither its network nor its broadcast address.
/// IPv6 has one loopback address only.
fn loopback_source(to: IpAddr, random: u32) -> IpAddr {
    const HOSTS: u32 = (1 << 22) - 2;
    match to {
        IpAddr::V4(_) => Ipv4Addr::from_bits(0x7f80_0000 + 1 + random % HOSTS).into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::loopback_source;

    #[test]
    fn sources_stay_in_their_block() {
        let to = "10.0.0.1".parse().unwrap();
        let block: ipnet::IpNet = "127.128.0.0/10".parse().unwrap();
        for random in [0, 1, (1 << 22) - 3, 1 << 22, u32::MAX] {
            let ip = loopback_source(to, random);
            assert!(block.contains(&ip), "{ip}");
            assert_ne!(ip, block.network());
            assert_ne!(ip, block.broadcast());
        }
    }
}
