//! How the parts of a record look in tables.

use std::net::{IpAddr, SocketAddr};

use super::output::Paint;
use super::table::Cell;
use crate::flow::{Destination, FlowEvent, HttpFlow, Source, TlsState, Verdict};

pub(super) fn tls(event: &FlowEvent) -> Cell {
    match (event.tls, event.verdict) {
        (TlsState::Mtls, _) => Cell::painted(Paint::Good, "mtls"),
        (TlsState::None, Verdict::Forwarded) => Cell::painted(Paint::Warn, "none"),
        (TlsState::None, Verdict::Denied | Verdict::Failed) => Cell::painted(Paint::Dim, "none"),
        (TlsState::Passthrough, _) => Cell::from("passthrough"),
    }
}

pub(super) fn verdict(verdict: Verdict) -> Cell {
    let paint = match verdict {
        Verdict::Forwarded => Paint::Good,
        Verdict::Denied => Paint::Bad,
        Verdict::Failed => Paint::Warn,
    };
    Cell::painted(paint, verdict.as_str())
}

pub(super) fn source(source: &Source) -> String {
    match (&source.namespace, &source.pod, source.ip) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(ip)) => ip.to_string(),
        (_, _, None) => "unknown".to_owned(),
    }
}

pub(super) fn destination(to: &Destination) -> String {
    let port = to.port;
    let pod = match (&to.namespace, &to.pod) {
        (Some(namespace), Some(pod)) => Some(format!("{namespace}/{pod}")),
        _ => None,
    };
    let address = to
        .ip
        .map(|ip: IpAddr| SocketAddr::new(ip, port).to_string());
    match (pod, &to.service, address) {
        (Some(pod), Some(service), _) => format!("{pod}:{port} ({service})"),
        (Some(pod), None, _) => format!("{pod}:{port}"),
        (None, Some(service), Some(address)) => format!("{address} ({service})"),
        (None, None, Some(address)) => address,
        (None, Some(service), None) => format!("{service}:{port}"),
        (None, None, None) => format!("unknown:{port}"),
    }
}

/// The answer's status, with gRPC's where there is one.
pub(super) fn status(http: &HttpFlow) -> Cell {
    let paint = match http.status {
        0 | 500.. => Paint::Bad,
        400..500 => Paint::Warn,
        _ if http.grpc_status.is_some_and(|it| it > 0) => Paint::Warn,
        _ => Paint::Good,
    };
    let status = match http.status {
        0 => "none".to_owned(),
        status => status.to_string(),
    };
    let text = match http.grpc_status {
        Some(grpc) => format!("{status}/{grpc}"),
        None => status,
    };
    Cell::painted(paint, &text)
}

/// Method, host and path.
pub(super) fn request(http: &HttpFlow) -> String {
    format!("{} {}{}", http.method, http.host, http.path)
}

pub(super) fn reason(event: &FlowEvent) -> String {
    let mut reason = event.reason.clone();
    if let Some(policy) = &event.policy {
        reason = format!("{reason} by {policy}");
    }
    if let Some(http) = &event.http {
        if let Some(route) = &http.route {
            reason = format!("{reason}, {route}");
        }
        if http.retries > 0 {
            reason = format!("{reason}, retried {}x", http.retries);
        }
    }
    if !event.audit.is_empty() {
        reason = format!("{reason} (audit: {})", event.audit.join(", "));
    }
    reason
}
