//! Everything that decides on connections to one pod.

use std::sync::Arc;

use super::authorization::{
    Admission, Authorization, Compiled, Decision, DenyReason, Permission, Request,
};
use super::matching::Subject;
use super::mtls::{Mode, Mtls};
use super::request::HttpRequest;
use crate::state::{MeshPolicy, MtlsMode};

/// What a pod's inbound side needs: the policies that select it and its mTLS modes.
///
/// The [`super::Table`] hands out the same `Arc` for as long as nothing of it
/// changes, so that `Arc::ptr_eq` tells whether open connections must be looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct InboundPolicy {
    known: bool,
    mtls: Mtls,
    authorization: Authorization,
}

impl InboundPolicy {
    pub(super) fn new(policies: Vec<Arc<Compiled>>, mesh: &[Arc<MeshPolicy>]) -> Self {
        Self {
            known: true,
            mtls: Mtls::new(mesh),
            authorization: Authorization::new(policies),
        }
    }

    /// Of a pod that the table does not know: denies everything.
    pub(super) fn unknown() -> Self {
        Self {
            known: false,
            mtls: Mtls::strict(),
            authorization: Authorization::default(),
        }
    }

    /// It is of an enrolled pod of the table, rather than of one that nothing is known of.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether plaintext to this port is taken.
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.mtls.port(port).mode
    }

    /// The verdict on a connection before its first bytes. One that is permitted or
    /// denied here is so whatever it carries.
    pub fn authorize_connection(&self, request: &Request<'_>) -> Admission {
        let subject = Subject::new(request, None);
        if self.refuses(request).is_some() || self.authorization.is_settled(&subject) {
            Admission::Decided(self.authorize(request))
        } else {
            Admission::PerRequest
        }
    }

    /// The verdict on a connection that carries no HTTP. What an ALLOW asks of requests
    /// does not match it; what a DENY asks of them does.
    pub fn authorize(&self, request: &Request<'_>) -> Decision {
        self.decide(request, None)
    }

    /// The verdict on one request of HTTP.
    pub fn authorize_request(&self, request: &Request<'_>, http: &HttpRequest<'_>) -> Decision {
        self.decide(request, Some(http))
    }

    fn decide(&self, request: &Request<'_>, http: Option<&HttpRequest<'_>>) -> Decision {
        let subject = Subject::new(request, http);
        let mut decision = self.authorization.decide(&subject);
        match self.refuses(request) {
            Some(DenyReason::MtlsRequired) => {
                decision.verdict = Permission::Denied(DenyReason::MtlsRequired);
                decision
                    .policy
                    .clone_from(&self.mtls.port(request.port).policy);
            }
            Some(reason) => decision.verdict = Permission::Denied(reason),
            None => {}
        }
        decision
    }

    /// Why it takes nothing of the kind, whatever the rules say.
    fn refuses(&self, request: &Request<'_>) -> Option<DenyReason> {
        let strict = self.mtls.port(request.port).mode == MtlsMode::Strict;
        match self.known {
            false => Some(DenyReason::NoAllowRule),
            true => (strict && !request.encrypted).then_some(DenyReason::MtlsRequired),
        }
    }

    pub(super) fn mode(&self, port: u16) -> &Mode {
        self.mtls.port(port)
    }
}
