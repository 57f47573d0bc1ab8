//! One record for each request, whatever happens to it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Uri, Version, response};
use http_body::Frame;
use tokio::time::Instant;

use super::body::BodyError;
use super::deadline::{Deadline, grpc_timeout};
use super::guard::Guard;
use super::load::Load;
use super::reason::{Reason, ReasonKind};
use super::reply;
use super::upload::Upload;
use crate::flow::{EndedRequest, FlowProtocol, FlowSender, RequestFlow, Tapped, Verdict};
use crate::proxy::account::{Account, InFlight};
use crate::proxy::outcome::Outcome;

/// One request and its answer, from its head to its last byte. Its drop records it.
#[derive(Debug)]
pub(in crate::proxy) struct Exchange {
    /// Takes the record; another once the server is chosen.
    pub(super) ends: Arc<RequestFlow>,
    started: Instant,
    protocol: FlowProtocol,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    upload: Option<Arc<Upload>>,
    /// For those who look on, if anybody does.
    tap: Option<Box<Tapped>>,
    /// Among the requests of its pod.
    place: Option<InFlight>,
    server_place: Option<InFlight>,
    status: u16,
    grpc_status: Option<u16>,
    /// How often it was sent again.
    pub(super) retries: u32,
    /// The label of the rule that matched.
    pub(super) route: Option<Arc<str>>,
    /// Says when it may no longer be.
    pub(super) guard: Guard,
    /// What it is to the endpoint that answers.
    pub(super) load: Option<Load>,
    /// The endpoint that was asked last.
    pub(super) upstream: Option<SocketAddr>,
    /// The policy that decided.
    pub(super) policy: Option<Arc<str>>,
    /// Dry-run and AUDIT policies that matched.
    pub(super) audit: Vec<Arc<str>>,
    /// Of the connection that it has led to.
    sent: u64,
    received: u64,
    verdict: Verdict,
    reason: Cow<'static, str>,
}

impl Exchange {
    /// Begins with the head as the client has sent it.
    pub(super) fn begin(
        ends: Arc<RequestFlow>,
        flows: &FlowSender,
        parts: &Parts,
        upload: Option<Arc<Upload>>,
    ) -> Box<Self> {
        let protocol = if reply::is_grpc(&parts.headers) {
            FlowProtocol::Grpc
        } else if parts.version >= Version::HTTP_2 {
            FlowProtocol::Http2
        } else {
            FlowProtocol::Http
        };
        let exchange = Box::new(Self {
            ends,
            started: Instant::now(),
            protocol,
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: parts.headers.get(HOST).cloned(),
            upload,
            tap: flows.tap(&parts.uri, &parts.headers),
            place: None,
            server_place: None,
            status: 0,
            grpc_status: None,
            retries: 0,
            guard: Guard::Silent,
            load: None,
            route: None,
            upstream: None,
            policy: None,
            audit: Vec::new(),
            sent: 0,
            received: 0,
            verdict: Verdict::Forwarded,
            // Unless something else is said first.
            reason: "client_reset".into(),
        });
        if let Some(tap) = &exchange.tap {
            let asked = (exchange.host(), exchange.uri.path());
            exchange.ends.begun(protocol, &exchange.method, asked, tap);
        }
        exchange
    }

    /// Takes a place among the requests of a pod, until it has ended.
    pub(super) fn occupy(&mut self, account: &Arc<Account>) -> Result<(), Reason> {
        self.place = account.request();
        match self.place {
            Some(_) => Ok(()),
            None => Err(ReasonKind::TooManyRequestsInFlight.into()),
        }
    }

    /// Takes a place among those of the server's pod, where that is of the client's node.
    pub(super) fn occupy_server(&mut self, account: &Arc<Account>) -> Result<(), Reason> {
        // One that is sent again has its place already.
        self.server_place = None;
        self.server_place = account.request();
        match self.server_place {
            Some(_) => Ok(()),
            None => Err(ReasonKind::TooManyRequestsInFlight.into()),
        }
    }

    /// When its head was read.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// When its client wants it to be over, by what it says in the terms of gRPC.
    pub(super) fn deadline(&self, headers: &HeaderMap) -> Option<Deadline> {
        let after = self.is_grpc().then(|| grpc_timeout(headers)).flatten()?;
        Deadline::after(after, self.started)
    }

    /// It is of gRPC.
    pub(super) fn is_grpc(&self) -> bool {
        self.protocol == FlowProtocol::Grpc
    }

    /// The head of the answer is on its way to the client.
    pub(super) fn answered(&mut self, head: &response::Parts) {
        self.status = head.status.as_u16();
        self.note_grpc(&head.headers);
        if let Some(tap) = &mut self.tap {
            tap.answered(&head.headers);
        }
    }

    /// The proxy has answered by itself, or could not.
    pub(super) fn refused(&mut self, reason: &Reason) {
        // What the proxy says by itself is no server's.
        self.guard = Guard::Silent;
        self.verdict = match reason.kind {
            ReasonKind::PolicyDenied
            | ReasonKind::JwtInvalid
            | ReasonKind::JwtMissing
            | ReasonKind::ExtAuthzDenied => Verdict::Denied,
            _ => Verdict::Failed,
        };
        self.reason = reason.in_flows();
    }

    /// A frame of the answer's body.
    pub(super) fn received(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.received += data.len() as u64;
        } else if let Some(trailers) = frame.trailers_ref() {
            self.note_grpc(trailers);
        }
    }

    /// The answer's body broke off.
    pub(super) fn broken(&mut self, error: &BodyError) {
        if let BodyError::Revoked(outcome) = error {
            return self.revoked(outcome);
        }
        if let Some(load) = &mut self.load {
            load.broken();
        }
        if self.verdict == Verdict::Forwarded {
            self.verdict = Verdict::Failed;
            self.reason = match error {
                BodyError::Late(late) => late.reason().in_flows(),
                _ => ReasonKind::UpstreamReset.word().into(),
            };
        }
    }

    /// It may no longer be, which is no fault of the endpoint's.
    pub(super) fn revoked(&mut self, outcome: &Outcome) {
        self.cut_short(outcome, false);
    }

    fn cut_short(&mut self, outcome: &Outcome, switched: bool) {
        self.load = None;
        if self.verdict == Verdict::Forwarded {
            self.verdict = outcome.verdict(switched);
            self.reason = outcome.close_reason();
            self.decided_anew(outcome);
        }
    }

    /// Names the policy that has changed what was decided before.
    pub(super) fn decided_anew(&mut self, outcome: &Outcome) {
        self.policy = outcome.policy().or_else(|| self.policy.take());
    }

    /// The answer has ended as it should; what went wrong before stays said.
    pub(super) fn end(mut self: Box<Self>) {
        if let Some(load) = &mut self.load {
            load.ended(self.grpc_status);
        }
        if self.verdict == Verdict::Forwarded {
            self.reason = "closed".into();
        }
    }

    /// The connection that it has led to has ended, after so many bytes of the client's and
    /// of the server's.
    pub(super) fn switched(mut self: Box<Self>, outcome: &Outcome, moved: (u64, u64)) {
        (self.sent, self.received) = moved;
        if matches!(outcome, Outcome::Closed) {
            return self.end();
        }
        self.cut_short(outcome, true);
    }

    fn note_grpc(&mut self, headers: &HeaderMap) {
        if self.protocol != FlowProtocol::Grpc {
            return;
        }
        let status = headers.get("grpc-status");
        let status = status.and_then(|status| status.to_str().ok()?.parse().ok());
        self.grpc_status = status.or(self.grpc_status);
    }

    fn host(&self) -> &str {
        let named = self.host.as_ref().and_then(|host| host.to_str().ok());
        let named = named.or_else(|| self.uri.authority().map(Authority::as_str));
        let named = named.unwrap_or_default();
        match named.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => named,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (route, policy) = (self.route.take(), self.policy.take());
        let tap = self.tap.take();
        let (reason, audit) = (
            std::mem::take(&mut self.reason),
            std::mem::take(&mut self.audit),
        );
        self.ends.record(EndedRequest {
            protocol: self.protocol,
            method: &self.method,
            path: self.uri.path(),
            host: self.host(),
            status: self.status,
            grpc_status: self.grpc_status,
            retries: self.retries,
            route,
            upstream: self.upstream,
            verdict: self.verdict,
            reason,
            policy,
            audit,
            bytes_sent: self.sent + self.upload.as_ref().map_or(0, |upload| upload.bytes()),
            bytes_received: self.received,
            duration: self.started.elapsed(),
            tap,
        });
    }
}
