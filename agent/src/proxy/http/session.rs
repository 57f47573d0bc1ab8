//! What requests in both directions have in common: how they end.

use http::{StatusCode, Version};

use super::body::{Body, BodyError};
use super::headers;
use super::reason::{Extra, Reason, ReasonKind};
use super::record::Exchange;
use super::reply::reply;
use super::server::{Answer, Upgrade};
use super::upstream::{Sent, Why};
use crate::proxy::outcome::Outcome;

/// Passes an answer on to a client that speaks `version`. The exchange ends with it.
pub(super) fn finish(sent: Sent, mut exchange: Box<Exchange>, version: Version) -> Answer {
    let (mut parts, body) = sent.response.into_parts();
    headers::answer(&mut parts, version, sent.upgrade.is_some());
    exchange.answered(&parts);
    match sent.upgrade {
        None => Answer {
            response: http::Response::from_parts(parts, body.ending(exchange)),
            upgrade: None,
        },
        Some((io, read)) => Answer {
            response: http::Response::from_parts(parts, body),
            upgrade: Some(Box::new(Upgrade { io, read, exchange })),
        },
    }
}

/// Answers in the server's place.
pub(super) fn refuse(reason: &Reason, mut exchange: Box<Exchange>, is_head: bool) -> Answer {
    exchange.refused(reason);
    let response = reply(reason.kind.status(), reason, exchange.is_grpc());
    let (parts, mut body) = response.into_parts();
    exchange.answered(&parts);
    if is_head {
        body = Body::empty();
    }
    Answer {
        response: http::Response::from_parts(parts, body.ending(exchange)),
        upgrade: None,
    }
}

/// Why the client gets no answer of the server's.
pub(super) fn unanswered(why: &Why) -> Reason {
    match why {
        Why::Connect(Outcome::Denied { .. } | Outcome::DeniedByPeer(_)) => {
            Reason::new(ReasonKind::PolicyDenied, "by the destination")
        }
        Why::Connect(Outcome::CircuitOpen(circuit)) => {
            Reason::new(ReasonKind::CircuitOpen, circuit.as_str())
        }
        Why::Connect(outcome) => Reason::new(
            ReasonKind::ConnectFailed,
            outcome.close_reason().into_owned(),
        ),
        Why::Reset(BodyError::Http1(_)) => {
            Reason::new(ReasonKind::UpstreamReset, "the answer is not HTTP/1.1")
        }
        Why::Reset(BodyError::Http2(error)) => match error.reason() {
            Some(reason) => Reason::new(ReasonKind::UpstreamReset, reason.to_string()),
            None => Reason::new(ReasonKind::UpstreamReset, "before an answer"),
        },
        Why::Closed { .. } | Why::Reset(_) => {
            Reason::new(ReasonKind::UpstreamReset, "before an answer")
        }
        Why::Unsupported => Reason::new(ReasonKind::UpstreamReset, "the server takes no WebSocket"),
        Why::Client => Reason::new(ReasonKind::BadRequest, "the body broke off"),
        Why::Slow => {
            let extra = Extra::status(StatusCode::REQUEST_TIMEOUT);
            let what = "the body did not come in time";
            Reason::new(ReasonKind::BadRequest, what).with(extra)
        }
    }
}
