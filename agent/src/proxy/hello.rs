//! The name that a client of TLS asks for, which it says before anything is encrypted.

use tokio::net::TcpStream;

use super::http::detect::look;

/// Waits for what a client asks for (SNI), and leaves its bytes. `None` where it asks for no
/// server by name, or does not speak TLS. Cancel safe.
pub(super) async fn asked_name(client: &TcpStream) -> Option<String> {
    match look(client, asked).await? {
        Asked::Name(name) => Some(name),
        Asked::Nothing => None,
    }
}

/// What a client's first bytes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A server of this name.
    Name(String),
    /// No server by name, or it is no TLS.
    Nothing,
}

const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: usize = 1;
const SERVER_NAME: usize = 0;
const HOST_NAME: usize = 0;
/// No name of a host is longer.
const LONGEST_NAME: usize = 253;

/// What these bytes ask for; `None`: too few to tell. A hello may lie in several records
/// (RFC 8446, sections 4.1.2 and 5.1).
pub(super) fn asked(bytes: &[u8]) -> Option<Asked> {
    let mut records = Reader(bytes);
    let mut handshake = Vec::new();
    loop {
        if records
            .0
            .first()
            .is_some_and(|kind| *kind != HANDSHAKE_RECORD)
        {
            return Some(Asked::Nothing);
        }
        let (_kind, version) = (records.number(1)?, records.number(2)?);
        let length = records.number(2)?;
        if version >> 8 != 3 || length == 0 {
            return Some(Asked::Nothing);
        }
        let here = length.min(records.0.len());
        handshake.extend_from_slice(records.take(here)?);
        let mut message = Reader(&handshake);
        if message.number(1)? != CLIENT_HELLO {
            return Some(Asked::Nothing);
        }
        if let Some(hello) = message.block(3) {
            let name = Reader(hello).name_of_hello();
            return Some(name.map_or(Asked::Nothing, Asked::Name));
        }
        if here < length {
            return None;
        }
    }
}

/// Reads numbers and blocks from the front of bytes; `None` where they end before.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A number of so many bytes, at most three.
    fn number(&mut self, bytes: usize) -> Option<usize> {
        let bytes = self.take(bytes)?.iter();
        Some(bytes.fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A block behind its length, which has so many bytes.
    fn block(&mut self, bytes: usize) -> Option<&'b [u8]> {
        let length = self.number(bytes)?;
        self.take(length)
    }

    fn name_of_hello(&mut self) -> Option<String> {
        let _version_and_random = self.take(2 + 32)?;
        let _session = self.block(1)?;
        let _ciphers = self.block(2)?;
        let _compression = self.block(1)?;
        let mut extensions = Reader(self.block(2)?);
        loop {
            let kind = extensions.number(2)?;
            let content = extensions.block(2)?;
            if kind == SERVER_NAME {
                let mut names = Reader(Reader(content).block(2)?);
                return names.host();
            }
        }
    }

    fn host(&mut self) -> Option<String> {
        let kind = self.number(1)?;
        let name = std::str::from_utf8(self.block(2)?).ok()?;
        let is_host = kind == HOST_NAME && !name.is_empty() && name.len() <= LONGEST_NAME;
        (is_host && name.bytes().all(|byte| byte.is_ascii_graphic())).then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::{Asked, asked};

    /// What a client sends first that asks for this.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[track_caller]
    fn check(bytes: &[u8], name: &str) {
        assert_eq!(asked(bytes), Some(Asked::Name(name.to_owned())));
    }

    #[test]
    fn the_name_is_found_once_all_of_the_hello_is_there() {
        let bytes = hello("shop.example.com");
        check(&bytes, "shop.example.com");
        for cut in 0..bytes.len() {
            assert_eq!(asked(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_hello_in_many_records_is_one() {
        let whole = hello("shop.example.com");
        let mut bytes = Vec::new();
        for piece in whole[5..].chunks(7) {
            bytes.extend([22, 3, 1, 0, u8::try_from(piece.len()).unwrap()]);
            bytes.extend(piece);
        }
        check(&bytes, "shop.example.com");
        for cut in 0..bytes.len() {
            assert_eq!(asked(&bytes[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_client_that_asks_for_an_address_asks_for_no_name() {
        assert_eq!(asked(&hello("10.0.0.1")), Some(Asked::Nothing));
    }

    #[test]
    fn what_is_no_hello_asks_for_nothing() {
        let nothing = Some(Asked::Nothing);
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02\x00\x00\x05\x01",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x05\x02",
            b"\x15\x03\x01\x00\x02",
            b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        ] {
            assert_eq!(asked(bytes), nothing, "{:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn noise_is_never_more_than_a_name() {
        let whole = hello("shop.example.com");
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            if let Some(Asked::Name(name)) = asked(&bytes) {
                assert!(name.len() <= 253 && name.is_ascii());
            }
        }
    }
}
