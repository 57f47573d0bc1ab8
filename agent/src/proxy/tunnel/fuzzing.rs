//! Requests between nodes.

use std::net::{IpAddr, Ipv4Addr};

use http::header::HeaderValue;
use http::{Request, StatusCode, Uri};

use super::error::TunnelError;
use super::hbone;

/// Whatever a peer says, its address is its own, and its words are fit for a terminal.
/// The lines are `:authority` and the headers that are read.
pub(crate) fn connect(data: &[u8]) {
    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let mut lines = data.split(|byte| *byte == b'\n');
    let authority = lines.next().unwrap_or_default();
    let Ok(uri) = Uri::builder().authority(authority).build() else {
        return;
    };
    let mut request = Request::connect(uri).body(()).expect("a CONNECT");
    let names = ["forwarded", "traceparent", "baggage", "fairlead-reason"];
    let mut values = names.into_iter().zip(lines);
    while let Some((name, Ok(value))) = values
        .next()
        .map(|(name, line)| (name, HeaderValue::from_bytes(line)))
    {
        let _before = request.headers_mut().insert(name, value);
    }
    if let Ok(asked) = hbone::read(&request, PEER) {
        assert_eq!(asked.client.0.ip(), PEER);
        assert_eq!(asked.to, crate::model::canonical(asked.to));
        if let Some(id) = asked.id {
            let parent = request.headers()["traceparent"].as_bytes();
            let parent = String::from_utf8_lossy(parent).to_ascii_lowercase();
            assert!(
                id.0 != 0 && parent.contains(&id.to_string()),
                "{id} of {parent}"
            );
        }
        let meant = request.uri().authority().expect("it was read");
        assert_eq!(
            meant.as_str().parse().map(crate::model::canonical),
            Ok(asked.to)
        );
    }
    let mut answer = hbone::answer(StatusCode::UNAUTHORIZED, None);
    answer.headers_mut().clone_from(request.headers());
    if let Err(TunnelError::Denied(Some(why))) = hbone::taken(&answer) {
        assert!(why.len() <= 128 && why.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}
