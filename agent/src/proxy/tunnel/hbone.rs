//! What both ends say: one CONNECT for each connection of an application.
//!
//! `CONNECT <pod ip>:<port>` with `forwarded` (the client's address), `baggage` (what
//! kind of workload it is) and `traceparent` (the connection's name in both nodes' flow
//! records). 200: connected. 400: not a request that this pod can serve. 401: policy.
//! 403: the certificate is not that of the pod which owns the address. 503: the
//! application does not take the connection.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};

use super::error::TunnelError;
use crate::model::{ClientAddr, NamespacedName};
use crate::proxy::record::ConnectionId;
use crate::state::Pod;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// In an answer other than 200, between Fairlead agents: why, in the fixed word of a flow
/// record. It names no policy: those are for the destination's operator.
const REASON: HeaderName = HeaderName::from_static("fairlead-reason");

/// One connection as its client's node asks for it.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Connect {
    /// The pod's address and the application's port.
    pub(in crate::proxy) to: SocketAddr,
    /// Who dials.
    pub(in crate::proxy) client: ClientAddr,
    /// The Service that was dialled.
    pub(in crate::proxy) service: Option<NamespacedName>,
    /// Names the connection.
    pub(in crate::proxy) id: ConnectionId,
    /// What kind of workload dials.
    pub(in crate::proxy) baggage: Option<HeaderValue>,
}

/// What the server reads of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// `:authority`.
    pub(super) to: SocketAddr,
    /// The client's port, where it is credible.
    pub(super) client: ClientAddr,
    /// Names the connection; a new name where the peer gave none.
    pub(super) id: Option<ConnectionId>,
}

/// `baggage` of a pod's connections. None of names that could say more than they are.
pub(in crate::proxy) fn baggage(cluster: &str, pod: &Pod) -> Option<HeaderValue> {
    let plain = |name: &str| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        name.bytes().all(is_plain)
    };
    if ![cluster, &pod.name.namespace, &pod.workload]
        .into_iter()
        .all(plain)
    {
        return None;
    }
    let text = format!(
        "k8s.cluster.name={cluster},k8s.namespace.name={},k8s.deployment.name={},service.name={}",
        pod.name.namespace, pod.workload, pod.workload
    );
    HeaderValue::try_from(text).ok()
}

impl Connect {
    /// The request. Fails only where a name has characters that no name has.
    pub(super) fn request(&self) -> Result<Request<()>, http::Error> {
        let authority = self.to.to_string();
        let mut forwarded = format!("for=\"{}\"", self.client);
        if let Some(service) = &self.service {
            // Writing to a String does not fail.
            let _done = write!(
                forwarded,
                ";host={}.{}.svc",
                service.name, service.namespace
            );
        }
        // The trace id names the connection; a parent id may be anything but zero.
        let parent = (self.id.0 >> 64) as u64 | 1;
        let traceparent = format!("00-{}-{parent:016x}-00", self.id);
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(Uri::builder().authority(authority).build()?)
            .header(FORWARDED, HeaderValue::try_from(forwarded)?)
            .header(TRACEPARENT, HeaderValue::try_from(traceparent)?)
            .body(())?;
        if let Some(baggage) = &self.baggage {
            let _before = request.headers_mut().insert(BAGGAGE, baggage.clone());
        }
        Ok(request)
    }
}

/// Reads a request that came from `peer`.
pub(super) fn read<T>(request: &Request<T>, peer: IpAddr) -> Result<Asked, &'static str> {
    if request.method() != Method::CONNECT {
        return Err("not a CONNECT");
    }
    let authority = request.uri().authority().ok_or("no authority")?;
    let to: SocketAddr = authority
        .as_str()
        .parse()
        .map_err(|_error| "authority is not an address and a port")?;
    let port = forwarded_for(request.headers())
        .filter(|client| client.ip().to_canonical() == peer)
        .map_or(0, |client| client.port());
    Ok(Asked {
        to: crate::model::canonical(to),
        client: ClientAddr(SocketAddr::new(peer, port)),
        id: trace_id(request.headers()),
    })
}

/// An answer with its reason.
pub(super) fn answer(status: StatusCode, reason: Option<&str>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(Ok(value)) = reason.map(HeaderValue::try_from) {
        let _before = response.headers_mut().insert(REASON, value);
    }
    response
}

/// Whether the other node took the connection.
pub(super) fn taken<T>(response: &Response<T>) -> Result<(), TunnelError> {
    let reason = || -> Option<Arc<str>> {
        let word = response.headers().get(REASON)?.to_str().ok()?;
        // It comes from a peer and goes into records and terminals.
        let plain = |c: char| c.is_ascii_graphic() || c == ' ';
        (word.len() <= 128 && word.chars().all(plain)).then(|| word.into())
    };
    match response.status() {
        StatusCode::OK => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(TunnelError::Denied(reason())),
        StatusCode::SERVICE_UNAVAILABLE => Err(TunnelError::Unavailable(reason())),
        status => Err(TunnelError::Status(status)),
    }
}

/// The address of `for="ip:port"` in the first element.
fn forwarded_for(headers: &HeaderMap) -> Option<SocketAddr> {
    let text = headers.get(FORWARDED)?.to_str().ok()?;
    let first = text.split(',').next()?;
    let pair = first.split(';').map(str::trim).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    pair.trim_matches('"').parse().ok()
}

/// The trace id of a `traceparent`.
fn trace_id(headers: &HeaderMap) -> Option<ConnectionId> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let id = text.split('-').nth(1)?;
    let hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    let id = hex.then(|| u128::from_str_radix(id, 16).ok()).flatten()?;
    (id != 0).then_some(ConnectionId(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::tests::noise::Noise;

    fn connect(client: &str) -> Connect {
        Connect {
            to: "10.0.0.2:80".parse().unwrap(),
            client: ClientAddr(client.parse().unwrap()),
            service: Some(NamespacedName::new("shop", "cart")),
            id: ConnectionId(0x1234_5678_9abc_def0_1234_5678_9abc_def0),
            baggage: None,
        }
    }

    #[test]
    fn a_request_says_what_was_meant() {
        let request = connect("10.0.0.1:4242").request().unwrap();
        assert_eq!(request.uri().authority().unwrap().as_str(), "10.0.0.2:80");
        assert_eq!(
            request.headers()[FORWARDED],
            "for=\"10.0.0.1:4242\";host=cart.shop.svc"
        );
        assert_eq!(
            request.headers()[TRACEPARENT],
            "00-123456789abcdef0123456789abcdef0-123456789abcdef1-00"
        );
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for client in ["10.0.0.1:4242", "[fd00::1]:4242"] {
            let sent = connect(client);
            let asked = read(&sent.request().unwrap(), sent.client.0.ip()).unwrap();
            assert_eq!(asked.to, sent.to);
            assert_eq!(asked.client, sent.client);
            assert_eq!(asked.id, Some(sent.id));
        }
    }

    #[test]
    fn a_port_of_another_address_is_not_believed() {
        let request = connect("10.0.0.9:4242").request().unwrap();
        let asked = read(&request, "10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(asked.client, ClientAddr("10.0.0.1:0".parse().unwrap()));
    }

    #[test]
    fn what_is_not_a_connect_is_refused() {
        let peer = "10.0.0.1".parse().unwrap();
        let get = Request::get("http://10.0.0.2:80/").body(()).unwrap();
        assert_eq!(read(&get, peer), Err("not a CONNECT"));
        let named = Request::connect("cart.shop:80").body(()).unwrap();
        assert!(read(&named, peer).is_err());
        let no_port = Request::connect("10.0.0.2").body(()).unwrap();
        assert!(read(&no_port, peer).is_err());
    }

    #[test]
    fn answers_are_told_apart() {
        assert!(taken(&answer(StatusCode::OK, None)).is_ok());
        let denied = taken(&answer(StatusCode::UNAUTHORIZED, Some("no_rule_allows")));
        assert!(matches!(denied, Err(TunnelError::Denied(Some(why))) if &*why == "no_rule_allows"));
        let refused = taken(&answer(StatusCode::SERVICE_UNAVAILABLE, None));
        assert!(matches!(refused, Err(TunnelError::Unavailable(None))));
        let odd = taken(&answer(StatusCode::IM_A_TEAPOT, None));
        assert!(matches!(odd, Err(TunnelError::Status(_))));
    }

    /// A request with these headers, where HTTP takes them at all.
    fn noisy(noise: &mut Noise) -> Option<Request<()>> {
        let mut part = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            if noise.one_of(&["leave", "spoil"]) == "spoil" {
                noise.spoil(&mut bytes);
            }
            bytes
        };
        let authority = part("10.0.0.2:80");
        let headers = [
            (
                FORWARDED,
                part("for=\"10.0.0.1:4242\";host=cart.shop.svc, for=x"),
            ),
            (
                TRACEPARENT,
                part("00-123456789abcdef0123456789abcdef0-123456789abcdef1-00"),
            ),
            (
                BAGGAGE,
                part("k8s.cluster.name=c,k8s.namespace.name=shop,service.name=x"),
            ),
        ];
        let uri = Uri::builder().authority(authority.as_slice()).build();
        let mut request = Request::connect(uri.ok()?).body(()).ok()?;
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(&value).ok()?;
            let _before = request.headers_mut().insert(name, value);
        }
        Some(request)
    }

    #[test]
    fn whatever_a_peer_says_its_address_is_its_own() {
        let mut noise = Noise::new(3);
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let (mut understood, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let Some(request) = noisy(&mut noise) else {
                continue;
            };
            match read(&request, peer) {
                Ok(asked) => {
                    understood += 1;
                    assert_eq!(asked.client.0.ip(), peer);
                    assert_eq!(asked.to, crate::model::canonical(asked.to));
                    assert_ne!(asked.id, Some(ConnectionId(0)));
                }
                Err(_reason) => refused += 1,
            }
        }
        assert!(
            understood > 1000 && refused > 1000,
            "{understood}, {refused}"
        );
    }

    #[test]
    fn an_answers_reason_is_fit_for_a_terminal() {
        let mut noise = Noise::new(4);
        for _ in 0..20_000 {
            let Ok(value) = HeaderValue::from_bytes(&noise.bytes(160)) else {
                continue;
            };
            let mut response = answer(StatusCode::UNAUTHORIZED, None);
            let _before = response.headers_mut().insert(REASON, value);
            if let Err(TunnelError::Denied(Some(why))) = taken(&response) {
                assert!(why.len() <= 128 && why.is_ascii(), "{why}");
                assert!(!why.contains(|c: char| c.is_control()), "{why:?}");
            }
        }
    }

    #[test]
    fn baggage_has_its_four_members_or_is_not_sent() {
        let mut noise = Noise::new(5);
        let mut pod = crate::state::fixtures::pod("shop/web", &["10.0.0.1"]);
        let mut sent = 0;
        for _ in 0..2000 {
            let mut name = b"web-frontend.v2".to_vec();
            noise.spoil(&mut name);
            pod.workload = String::from_utf8_lossy(&name).into_owned().as_str().into();
            let Some(value) = baggage("Kubernetes", &pod) else {
                continue;
            };
            sent += 1;
            let text = value.to_str().unwrap();
            assert_eq!(text.matches([',', ';']).count(), 3, "{text}");
            assert_eq!(text.matches('=').count(), 4, "{text}");
        }
        assert!(sent > 100, "the noise is too loud: {sent}");
    }
}
