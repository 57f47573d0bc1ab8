//! First bytes, tunnels and HTTP.

pub(crate) use super::http::fuzzing::{
    deadline, external, framing, grpc_web, headers, http2_bytes, http2_frames, server, session,
    tokens,
};
pub(crate) use super::tunnel::fuzzing::connect;

use std::io::Cursor;

use rustls::pki_types::DnsName;
use rustls::server::Acceptor;

use super::hello::{Asked, asked};
use super::http::detect::{classify, is_settings};

/// More cuts than these find nothing that fewer don't.
const CUTS: usize = 300;

/// What is told of a client by its first bytes does not change with more of them, and the
/// name that it asks for is the one that its server will read.
pub(crate) fn first_bytes(data: &[u8]) {
    settled(data, classify);
    settled(data, is_settings);
    settled(data, asked);
    match (asked(data), asked_of_server(data)) {
        (_, None) | (Some(Asked::Nothing), Some(Asked::Nothing)) => {}
        (Some(Asked::Name(asked)), Some(Asked::Name(name))) => {
            assert!(asked.eq_ignore_ascii_case(&name), "{asked} of {name}");
        }
        // Such as an address, which is no name to servers, and none that a route can have.
        (Some(Asked::Name(asked)), Some(Asked::Nothing)) => {
            assert!(DnsName::try_from(asked).is_err());
        }
        (told, asked) => panic!("{told:?} of {asked:?}"),
    }
}

fn settled<T: Clone + PartialEq + std::fmt::Debug>(data: &[u8], tell: impl Fn(&[u8]) -> Option<T>) {
    let mut told = None;
    for cut in (0..data.len().min(CUTS)).chain([data.len()]) {
        let now = tell(&data[..cut]);
        if told.is_some() {
            assert_eq!(now, told, "with {cut} bytes");
        }
        told = now;
    }
}

/// What a hello asks for as a server reads it; `None` where none would take it.
fn asked_of_server(data: &[u8]) -> Option<Asked> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Cursor::new(data);
    loop {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let name = hello.server_name().map(str::to_owned);
            return Some(name.map_or(Asked::Nothing, Asked::Name));
        }
    }
}
