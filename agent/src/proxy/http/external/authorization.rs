//! Envoy's external authorization: one question for each request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};

use super::channels::Channels;
use super::generated::auth::attribute_context::{HttpRequest, Peer, Request};
use super::generated::auth::authorization_client::AuthorizationClient;
use super::generated::auth::{
    Address, AttributeContext, CheckRequest, CheckResponse, HeaderValueOption, SocketAddress,
};
use crate::model::SpiffeId;
use crate::proxy::caller::Caller;
use crate::state::ExternalProvider;

/// What is called.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Headers of the message itself, which nobody else may set or remove.
const OWN: [&str; 7] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "upgrade",
    "trailer",
];

/// Who is at the ends of the connection.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy::http) struct Ends<'a> {
    /// The client's address.
    pub(in crate::proxy::http) client: SocketAddr,
    /// Its proven identity.
    pub(in crate::proxy::http) peer: Option<&'a SpiffeId>,
    /// The application's address.
    pub(in crate::proxy::http) server: SocketAddr,
    /// The identity of its pod.
    pub(in crate::proxy::http) identity: &'a SpiffeId,
    /// The host that the request is for.
    pub(in crate::proxy::http) host: &'a str,
}

/// What the Service says.
#[derive(Debug)]
pub(in crate::proxy::http) enum Verdict {
    /// The request may go on, changed.
    Permitted(Changes),
    /// It may not, and this is the answer.
    Denied(Denied),
    /// It said nothing.
    Unavailable,
}

/// What becomes of the headers of a permitted request and of its answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::proxy::http) struct Changes {
    set: Vec<Change>,
    remove: Vec<HeaderName>,
    answer: Vec<Change>,
}

/// An answer in place of the application's.
#[derive(Debug)]
pub(in crate::proxy::http) struct Denied {
    pub(in crate::proxy::http) status: StatusCode,
    pub(in crate::proxy::http) body: String,
    headers: Vec<Change>,
}

#[derive(Debug, PartialEq, Eq)]
struct Change {
    name: HeaderName,
    value: HeaderValue,
    how: How,
}

/// What becomes of a header that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Append,
    Overwrite,
    /// It stays.
    AddIfAbsent,
    /// Only such a header is set.
    OverwriteIfPresent,
}

/// Asks about one request. `body`: its beginning, where the Service is shown it.
pub(in crate::proxy::http) async fn check(
    provider: &ExternalProvider,
    (channels, caller): (&Channels, &Caller),
    parts: &Parts,
    body: Option<Bytes>,
    ends: Ends<'_>,
) -> Verdict {
    let Some(channel) = channels.to(caller, (&provider.service, provider.port), CHECK) else {
        return Verdict::Unavailable;
    };
    let mut client = AuthorizationClient::new(channel);
    let question = question(provider, parts, body, ends);
    match tokio::time::timeout(provider.timeout, client.check(question)).await {
        Ok(Ok(answer)) => verdict(answer.into_inner()),
        Ok(Err(error)) => {
            tracing::debug!(service = %provider.service, %error, "external authorization failed");
            Verdict::Unavailable
        }
        Err(_elapsed) => Verdict::Unavailable,
    }
}

fn question(
    provider: &ExternalProvider,
    parts: &Parts,
    body: Option<Bytes>,
    ends: Ends<'_>,
) -> CheckRequest {
    let peer = |address: SocketAddr, identity: Option<&SpiffeId>| Peer {
        address: Some(Address {
            socket_address: Some(SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        service: String::new(),
        principal: identity.map(ToString::to_string).unwrap_or_default(),
    };
    let path = parts.uri.path_and_query();
    let length = parts.headers.get(http::header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let http = HttpRequest {
        id: String::new(),
        method: parts.method.as_str().to_owned(),
        headers: shown(&parts.headers, &provider.headers),
        path: path.map_or_else(String::new, ToString::to_string),
        host: ends.host.to_owned(),
        scheme: "http".to_owned(),
        size: length.unwrap_or(-1),
        protocol: protocol(parts.version).to_owned(),
        body: String::new(),
        raw_body: body.map(Vec::from).unwrap_or_default(),
    };
    let request = Request {
        time: Some(SystemTime::now().into()),
        http: Some(http),
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(ends.client, ends.peer)),
            destination: Some(peer(ends.server, Some(ends.identity))),
            request: Some(request),
            context_extensions: HashMap::new(),
        }),
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

/// The headers that are listed, or all; several of one name as one, with commas.
fn shown(headers: &HeaderMap, listed: &[std::sync::Arc<str>]) -> HashMap<String, String> {
    let is_shown = |name: &HeaderName| {
        listed.is_empty() || listed.iter().any(|listed| **listed == *name.as_str())
    };
    let mut shown: HashMap<String, String> = HashMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| is_shown(name)) {
        let value = String::from_utf8_lossy(value.as_bytes());
        match shown.get_mut(name.as_str()) {
            Some(before) => {
                before.push(',');
                before.push_str(&value);
            }
            None => drop(shown.insert(name.as_str().to_owned(), value.into_owned())),
        }
    }
    shown
}

/// An answer without a status is none.
pub(super) fn verdict(answer: CheckResponse) -> Verdict {
    match answer.status {
        Some(status) if status.code == 0 => {
            let changes = answer.ok_response.unwrap_or_default();
            let remove = changes.headers_to_remove.iter();
            Verdict::Permitted(Changes {
                set: all(changes.headers),
                remove: remove.filter_map(|name| settable(name)).collect(),
                answer: all(changes.response_headers_to_add),
            })
        }
        Some(_) => {
            let denied = answer.denied_response.unwrap_or_default();
            let status = denied
                .status
                .and_then(|status| u16::try_from(status.code).ok());
            let status = status.and_then(|status| StatusCode::from_u16(status).ok());
            // No answer of HTTP may have one of these, and then end.
            let status = status.filter(|status| !status.is_informational());
            Verdict::Denied(Denied {
                status: status.unwrap_or(StatusCode::FORBIDDEN),
                headers: all(denied.headers),
                body: denied.body,
            })
        }
        None => Verdict::Unavailable,
    }
}

fn settable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    (!OWN.contains(&name.as_str())).then_some(name)
}

/// The changes that can be made.
fn all(options: Vec<HeaderValueOption>) -> Vec<Change> {
    options.into_iter().filter_map(change).collect()
}

fn change(option: HeaderValueOption) -> Option<Change> {
    let header = option.header?;
    let value = if header.raw_value.is_empty() {
        header.value.into_bytes()
    } else {
        header.raw_value
    };
    let how = match (option.append_action, option.append) {
        (1, _) => How::AddIfAbsent,
        (2, _) => How::Overwrite,
        (3, _) => How::OverwriteIfPresent,
        (_, Some(true)) => How::Append,
        // As Envoy does where neither of the two is given.
        (_, Some(false) | None) => How::Overwrite,
    };
    Some(Change {
        name: settable(&header.key)?,
        value: HeaderValue::try_from(value).ok()?,
        how,
    })
}

impl Changes {
    /// Changes the request.
    pub(in crate::proxy::http) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            let _before = headers.remove(name);
        }
        apply(&self.set, headers);
    }

    /// Changes the answer to it.
    pub(in crate::proxy::http) fn apply_to_answer(&self, headers: &mut HeaderMap) {
        apply(&self.answer, headers);
    }
}

impl Denied {
    /// The headers of the answer.
    pub(in crate::proxy::http) fn apply(&self, headers: &mut HeaderMap) {
        apply(&self.headers, headers);
    }
}

fn apply(changes: &[Change], headers: &mut HeaderMap) {
    for change in changes {
        let (name, value) = (change.name.clone(), change.value.clone());
        let present = headers.contains_key(&name);
        match (change.how, present) {
            (How::Append, _) => drop(headers.append(name, value)),
            (How::Overwrite, _) | (How::AddIfAbsent, false) | (How::OverwriteIfPresent, true) => {
                drop(headers.insert(name, value));
            }
            (How::AddIfAbsent, true) | (How::OverwriteIfPresent, false) => {}
        }
    }
}
