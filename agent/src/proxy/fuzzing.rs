//! First bytes, tunnels and HTTP.

pub(crate) use super::http::fuzzing::{
    deadline, external, framing, grpc_web, headers, server, session, tokens,
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
    settled(data, |bytes| classify(bytes));
    settled(data, |bytes| is_settings(bytes));
    settled(data, |bytes| asked(bytes));
    let Some(name) = name_for_server(data) else {
        return;
    };
    match (asked(data), name) {
        (Some(Asked::Name(asked)), Some(name)) => assert!(asked.eq_ignore_ascii_case(&name)),
        (Some(Asked::Nothing), None) => {}
        // Such as an address, which is no name to servers, and none that a route can have.
        (Some(Asked::Name(asked)), None) => assert!(DnsName::try_from(asked).is_err()),
        (told, name) => panic!("{told:?} of {name:?}"),
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

/// The name in a hello that a server takes; `None` where none would.
fn name_for_server(data: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Cursor::new(data);
    loop {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
}
