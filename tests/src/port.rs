//! Ports that stay free while nobody listens there.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to whoever dials: one of those may be somebody's
/// near end by the time that it is listened at again, or for the first time.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

/// Listens at a port that no other call in this process returns.
pub(crate) fn listen(ip: IpAddr) -> io::Result<TcpListener> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run side by side begin apart from one another.
    let offset = std::process::id().wrapping_mul(101) % u32::from(COUNT);
    for _ in 0..COUNT {
        let number = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = (offset + number) % u32::from(COUNT);
        let port = FIRST + u16::try_from(port).unwrap_or_default();
        match TcpListener::bind((ip, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

/// A port of the loopback for a program that is started next.
pub fn free_port() -> io::Result<u16> {
    Ok(listen(Ipv4Addr::LOCALHOST.into())?.local_addr()?.port())
}
