//! The kernel's list of sockets (`NETLINK_SOCK_DIAG`), of the namespace that the
//! calling thread is in.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;
const ID_BYTES: usize = 48;
const RECORD_BYTES: usize = 72;
const CGROUP_ID: u16 = 21;
const LISTEN: u8 = 10;
/// States of connections that carry or will carry data, as bits.
const OPEN: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// A TCP socket.
#[derive(Clone, Debug)]
pub(super) struct SocketEntry {
    /// This end; an IPv4 address in its mapped form stays in it.
    pub(super) local: SocketAddr,
    /// The other end.
    pub(super) remote: SocketAddr,
    /// The device it is bound to, 0 for none.
    pub(super) device: u32,
    /// The cgroup that it was made in; 0 where the kernel does not say.
    pub(super) cgroup: u64,
    family: u8,
    id: [u8; ID_BYTES],
}

impl SocketEntry {
    /// Of the same socket: the kernel's id has a number that is never used twice.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// Sockets that listen.
pub(super) fn listening() -> io::Result<Vec<SocketEntry>> {
    dump(1 << LISTEN)
}

/// Connections.
pub(super) fn open() -> io::Result<Vec<SocketEntry>> {
    dump(OPEN)
}

/// Ends a connection: its owner gets ECONNABORTED, the peer a reset. `false`
/// where it has ended already.
pub(super) fn destroy(entry: &SocketEntry) -> io::Result<bool> {
    let socket = connect()?;
    let message = request(SOCK_DESTROY, REQUEST | ACK, entry.family, 0, &entry.id);
    let _sent = socket.send(&message)?;
    let mut buffer = vec![0; 4096];
    let length = (&socket).read(&mut buffer)?;
    match answer(buffer.get(..length).unwrap_or_default()) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn connect() -> io::Result<Socket> {
    Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(libc::NETLINK_SOCK_DIAG)),
    )
}

fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let tcp = u8::try_from(libc::IPPROTO_TCP).unwrap_or_default();
    let length = HEADER_BYTES + 8 + ID_BYTES;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, tcp, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    message
}

fn dump(states: u32) -> io::Result<Vec<SocketEntry>> {
    let mut entries = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).unwrap_or_default();
        let socket = connect()?;
        let message = request(
            SOCK_DIAG_BY_FAMILY,
            REQUEST | DUMP,
            family,
            states,
            &[0; ID_BYTES],
        );
        let _sent = socket.send(&message)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = (&socket).read(&mut buffer)?;
            let datagram = buffer.get(..length).unwrap_or_default();
            if length == 0 || read_datagram(datagram, &mut entries)? {
                break;
            }
        }
    }
    Ok(entries)
}

/// Takes the records of one datagram; `true` where it was the last.
fn read_datagram(mut rest: &[u8], entries: &mut Vec<SocketEntry>) -> io::Result<bool> {
    while let Some(length) = u32_at(rest, 0).map(|length| length as usize) {
        if length < HEADER_BYTES || length > rest.len() {
            break;
        }
        let (message, after) = rest.split_at(length);
        match u16_at(message, 4) {
            Some(MESSAGE_DONE) => return Ok(true),
            Some(MESSAGE_ERROR) => {
                answer(message)?;
                return Ok(true);
            }
            _ => entries.extend(record(message.get(HEADER_BYTES..).unwrap_or_default())),
        }
        let padding = length.next_multiple_of(4) - length;
        rest = after.get(padding..).unwrap_or_default();
    }
    Ok(false)
}

fn answer(message: &[u8]) -> io::Result<()> {
    if u16_at(message, 4) != Some(MESSAGE_ERROR) {
        return Ok(());
    }
    match u32_at(message, HEADER_BYTES).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn record(bytes: &[u8]) -> Option<SocketEntry> {
    let family = *bytes.first()?;
    let id: [u8; ID_BYTES] = bytes.get(4..4 + ID_BYTES)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes([*id.get(at)?, *id.get(at + 1)?]));
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == libc::AF_INET {
            let octets: [u8; 4] = id.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets).into())
        } else {
            let octets: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
    };
    Some(SocketEntry {
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        device: u32_at(&id, 36)?,
        cgroup: cgroup(bytes.get(RECORD_BYTES..)?).unwrap_or(0),
        family,
        id,
    })
}

/// The cgroup among the attributes of a record.
fn cgroup(mut rest: &[u8]) -> Option<u64> {
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        if u16_at(rest, 2)? == CGROUP_ID {
            let value: [u8; 8] = rest.get(4..12)?.try_into().ok()?;
            return Some(u64::from_ne_bytes(value));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::{HEADER_BYTES, RECORD_BYTES, destroy, listening, open, read_datagram, record};

    #[test]
    fn lists_what_listens() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let entries = listening().unwrap();
        let found = entries.iter().find(|entry| entry.local == address).unwrap();
        assert_eq!(found.device, 0);
    }

    #[test]
    fn lists_connections() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let local = client.local_addr().unwrap();
        let entries = open().unwrap();
        let found = entries.iter().find(|entry| entry.local == local).unwrap();
        assert_eq!(found.remote, listener.local_addr().unwrap());
        drop(client);
        // Without privilege it is refused, with it the connection is gone already
        // or is ended now: in no case does it fail otherwise.
        match destroy(found) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
    }

    #[test]
    fn any_bytes_are_read_to_an_end() {
        let mut random = StdRng::seed_from_u64(6);
        let good = dump_bytes();
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..random.random_range(0..6) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            let mut entries = Vec::new();
            let _last = read_datagram(&bytes, &mut entries);
            assert!(entries.len() <= 2);
        }
        let mut entries = Vec::new();
        assert!(!read_datagram(&good, &mut entries).unwrap());
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].cgroup, 77);
    }

    /// Two records, each with the cgroup among its attributes.
    fn dump_bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut record = vec![0; RECORD_BYTES];
            record[0] = u8::try_from(family).unwrap();
            record.extend([8, 0, 1, 0, 9, 9, 9, 9]);
            record.extend([12, 0, 21, 0]);
            record.extend(77_u64.to_ne_bytes());
            let length = u32::try_from(HEADER_BYTES + record.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend([20, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(record);
        }
        bytes
    }

    #[test]
    fn short_records_are_skipped() {
        for length in 0..72 {
            assert!(record(&vec![2; length]).is_none(), "{length}");
        }
    }
}
