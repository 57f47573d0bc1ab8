//! The bytes of the leaner protocol.

use std::net::{IpAddr, SocketAddr};

use crate::model::{ClientAddr, canonical};
use crate::proxy::record::ConnectionId;
use crate::proxy::tunnel::hbone::Asked;

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 4;
/// The longest OPEN or STATUS.
pub(super) const CONTROL: usize = 256;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Open,
    Status,
    Data,
    Fin,
    Reset,
}

/// What the server's node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy::tunnel) enum Code {
    /// The application is connected.
    Connected,
    /// Not a request that this pod can serve.
    BadRequest,
    /// Policy, or the certificate.
    Denied,
    /// The application does not take the connection.
    Unavailable,
}

/// The header of a frame of `length` bytes.
pub(super) fn header(kind: Kind, length: usize) -> [u8; HEADER] {
    let kind = match kind {
        Kind::Open => 1,
        Kind::Status => 2,
        Kind::Data => 3,
        Kind::Fin => 4,
        Kind::Reset => 5,
    };
    // No caller has more than one read's worth.
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [kind, length[1], length[2], length[3]]
}

/// Type and length.
pub(super) fn read_header(bytes: [u8; HEADER]) -> Option<(Kind, usize)> {
    let [kind, a, b, c] = bytes;
    let kind = match kind {
        1 => Kind::Open,
        2 => Kind::Status,
        3 => Kind::Data,
        4 => Kind::Fin,
        5 => Kind::Reset,
        _ => return None,
    };
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    let fits = match kind {
        Kind::Open | Kind::Status => length <= CONTROL,
        Kind::Data => length > 0,
        Kind::Fin | Kind::Reset => length == 0,
    };
    fits.then_some((kind, length))
}

/// An OPEN, whole.
pub(super) fn open(id: ConnectionId, to: SocketAddr, client: ClientAddr) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(&id.0.to_be_bytes());
    address(&mut bytes, to);
    address(&mut bytes, client.0);
    finish(bytes, Kind::Open)
}

/// A STATUS, whole.
pub(super) fn status(code: Code, reason: &str) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.push(match code {
        Code::Connected => 0,
        Code::BadRequest => 1,
        Code::Denied => 2,
        Code::Unavailable => 3,
    });
    let plain = |c: &char| c.is_ascii_graphic() || *c == ' ';
    let reason: String = reason.chars().filter(plain).take(128).collect();
    bytes.extend_from_slice(reason.as_bytes());
    finish(bytes, Kind::Status)
}

/// Reads the body of an OPEN that came from `peer`.
pub(super) fn read_open(body: &[u8], peer: IpAddr) -> Option<Asked> {
    let (id, rest) = body.split_first_chunk::<16>()?;
    let (to, rest) = read_address(rest)?;
    // A later version may say more after it.
    let (client, _) = read_address(rest)?;
    let same = client.ip() == peer;
    let port = if same { client.port() } else { 0 };
    let id = u128::from_be_bytes(*id);
    Some(Asked {
        to,
        client: ClientAddr(SocketAddr::new(peer, port)),
        id: (id != 0).then_some(ConnectionId(id)),
    })
}

/// Reads the body of a STATUS.
pub(super) fn read_status(body: &[u8]) -> Option<(Code, String)> {
    let (code, reason) = body.split_first()?;
    let code = match code {
        0 => Code::Connected,
        1 => Code::BadRequest,
        2 => Code::Denied,
        3 => Code::Unavailable,
        _ => return None,
    };
    // It comes from a peer and goes into records and terminals.
    let plain = |b: &&u8| b.is_ascii_graphic() || **b == b' ';
    let reason = reason.iter().filter(plain).take(128);
    Some((code, reason.map(|b| char::from(*b)).collect()))
}

fn finish(mut bytes: Vec<u8>, kind: Kind) -> Vec<u8> {
    let header = header(kind, bytes.len() - HEADER);
    bytes[..HEADER].copy_from_slice(&header);
    bytes
}

fn address(bytes: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(4);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(6);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (family, rest) = bytes.split_first()?;
    let (ip, rest): (IpAddr, _) = match family {
        4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            ((*ip).into(), rest)
        }
        6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            ((*ip).into(), rest)
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let address = SocketAddr::new(ip, u16::from_be_bytes(*port));
    Some((canonical(address), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::tests::noise::Noise;

    #[test]
    fn an_open_is_read_as_it_was_written() {
        for (to, client) in [
            ("10.0.0.2:80", "10.0.0.1:4242"),
            ("[fd00::2]:80", "[fd00::1]:4242"),
        ] {
            let (to, client) = (to.parse().unwrap(), ClientAddr(client.parse().unwrap()));
            let bytes = open(ConnectionId(7), to, client);
            let (head, body) = bytes.split_first_chunk().unwrap();
            assert_eq!(read_header(*head), Some((Kind::Open, body.len())));
            let asked = read_open(body, client.0.ip()).unwrap();
            assert_eq!((asked.to, asked.client), (to, client));
            assert_eq!(asked.id, Some(ConnectionId(7)));
            // Another's port is not believed, half a message is none.
            let other = read_open(body, "192.0.2.1".parse().unwrap()).unwrap();
            assert_eq!(other.client.0, "192.0.2.1:0".parse().unwrap());
            for end in 0..body.len() {
                assert!(read_open(&body[..end], client.0.ip()).is_none());
            }
        }
    }

    #[test]
    fn a_status_is_read_as_it_was_written() {
        for code in [
            Code::Connected,
            Code::BadRequest,
            Code::Denied,
            Code::Unavailable,
        ] {
            let bytes = status(code, "why\x1b[31m\n");
            let read = read_status(&bytes[HEADER..]).unwrap();
            assert_eq!(read, (code, "why[31m".to_owned()));
        }
        assert_eq!(read_status(&[]), None);
        assert_eq!(read_status(&[9]), None);
    }

    #[test]
    fn headers_that_mean_nothing_are_refused() {
        assert_eq!(read_header([3, 0, 1, 0]), Some((Kind::Data, 256)));
        assert_eq!(
            read_header([3, 0xff, 0xff, 0xff]),
            Some((Kind::Data, 0xff_ffff))
        );
        for bad in [
            [0, 0, 0, 1],
            [6, 0, 0, 0],
            [1, 0, 1, 1],
            [2, 1, 0, 0],
            [3, 0, 0, 0],
            [4, 0, 0, 1],
            [5, 0, 0, 1],
        ] {
            assert_eq!(read_header(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn of_any_bytes_only_what_could_have_been_written_is_read() {
        let mut noise = Noise::new(2);
        let (to, peer) = ("10.0.0.2:80".parse().unwrap(), "10.0.0.1:4242");
        let client = ClientAddr(peer.parse().unwrap());
        let mut read = 0;
        for _ in 0..20_000 {
            let mut bytes = match noise.one_of(&["any", "open", "status"]) {
                "open" => open(ConnectionId(7), to, client),
                "status" => status(Code::Denied, "no_rule_allows"),
                _ => noise.bytes(CONTROL + HEADER),
            };
            noise.spoil(&mut bytes);
            let Some((head, body)) = bytes.split_first_chunk() else {
                continue;
            };
            if let Some((kind, length)) = read_header(*head) {
                assert_eq!(header(kind, length), *head);
            }
            if let Some(asked) = read_open(body, client.0.ip()) {
                read += 1;
                assert_eq!(asked.client.0.ip(), client.0.ip());
                let id = asked.id.unwrap_or(ConnectionId(0));
                let again = open(id, asked.to, asked.client);
                assert_eq!(read_open(&again[HEADER..], client.0.ip()), Some(asked));
            }
            if let Some((_code, reason)) = read_status(body) {
                assert!(reason.len() <= 128, "{reason}");
                assert!(!reason.contains(|c: char| c.is_control()), "{reason:?}");
            }
        }
        assert!(read > 1000, "the noise is too loud: {read}");
    }
}
