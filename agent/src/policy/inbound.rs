//! Everything that policies say of one pod: who may connect to it, and what is written of it.

use std::sync::Arc;

use super::access_log::AccessLog;
use super::authorization::{
    Admission, Authorization, Compiled, Decision, DenyReason, PathUse, Permission, Request,
};
use super::matching::Subject;
use super::mtls::{Mode, Mtls};
use super::request::HttpRequest;
use crate::state::{ExternalProvider, JwtProvider, MeshPolicy, MtlsMode};

/// What a pod's inbound side needs: the policies that select it and its mTLS modes.
///
/// The [`super::Table`] hands out the same `Arc` for as long as nothing of it
/// changes, so that `Arc::ptr_eq` tells whether open connections must be looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct InboundPolicy {
    known: bool,
    mtls: Mtls,
    authorization: Authorization,
    paths: PathUse,
    jwt: Vec<Arc<JwtProvider>>,
    /// A policy about tokens that could not be understood.
    jwt_invalid: Option<Arc<str>>,
    access_log: AccessLog,
}

impl InboundPolicy {
    pub(super) fn new(policies: Vec<Arc<Compiled>>, mesh: &[Arc<MeshPolicy>]) -> Self {
        let authorization = Authorization::new(policies);
        let invalid = mesh.iter().find(|policy| policy.jwt_invalid);
        Self {
            known: true,
            mtls: Mtls::new(mesh),
            paths: authorization.looks_at_paths(),
            authorization,
            jwt: mesh.iter().flat_map(|policy| policy.jwt.clone()).collect(),
            jwt_invalid: invalid.map(|policy| policy.name.to_string().into()),
            access_log: AccessLog::new(mesh),
        }
    }

    /// Of a pod that the table does not know: denies everything.
    pub(super) fn unknown() -> Self {
        Self {
            known: false,
            mtls: Mtls::strict(),
            authorization: Authorization::default(),
            paths: PathUse::default(),
            jwt: Vec::new(),
            jwt_invalid: None,
            access_log: AccessLog::default(),
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
        let decision = self.decide(request, None);
        let subject = Subject::new(request, None);
        let settled = self.refuses(request).is_some() || self.authorization.is_settled(&subject);
        // The token of a request may be a bad one.
        let permitted = decision.verdict == Permission::Permitted;
        if settled && (!permitted || self.jwt.is_empty()) {
            Admission::Decided(decision)
        } else {
            Admission::PerRequest
        }
    }

    /// The verdict on a connection that carries no HTTP. What an ALLOW asks of requests
    /// does not match it; what a DENY asks of them does.
    pub fn authorize(&self, request: &Request<'_>) -> Decision {
        let mut decision = self.decide(request, None);
        if decision.verdict == Permission::Permitted && self.sets_headers() {
            // What is no HTTP to the proxy may be to a lenient application.
            decision.verdict = Permission::Denied(DenyReason::NeedsHttp);
        }
        decision
    }

    /// The verdict on one request of HTTP.
    pub fn authorize_request(&self, request: &Request<'_>, http: &HttpRequest<'_>) -> Decision {
        self.decide(request, Some(http))
    }

    /// A request that [`Self::authorize_request`] denies has no token, and would be
    /// permitted with the right one.
    pub fn lacks_token(&self, request: &Request<'_>, http: &HttpRequest<'_>) -> bool {
        let subject = Subject::new(request, Some(http));
        let possible = http.claims.is_none() && !self.jwt.is_empty();
        possible && self.refuses(request).is_none() && self.authorization.lacks_token(&subject)
    }

    /// Whom else to ask about a request that [`Self::authorize_request`] permits, and the
    /// rule that says so.
    pub fn external(
        &self,
        request: &Request<'_>,
        http: &HttpRequest<'_>,
    ) -> Vec<(Arc<ExternalProvider>, Arc<str>)> {
        let subject = Subject::new(request, Some(http));
        let external = self.authorization.external(&subject);
        external
            .map(|(provider, rule)| (Arc::clone(provider), Arc::clone(rule)))
            .collect()
    }

    /// Whose tokens its requests may carry.
    pub fn jwt(&self) -> &[Arc<JwtProvider>] {
        &self.jwt
    }

    /// What is written of its requests and connections, in either direction.
    pub fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// What the paths of its requests are for.
    pub fn paths(&self) -> PathUse {
        self.paths
    }

    fn decide(&self, request: &Request<'_>, http: Option<&HttpRequest<'_>>) -> Decision {
        let subject = Subject::new(request, http);
        let mut decision = self.authorization.decide(&subject);
        if let Some((reason, policy)) = self.refuses(request) {
            decision.verdict = Permission::Denied(reason);
            if policy.is_some() {
                decision.policy = policy;
            }
        }
        decision
    }

    /// Claims of tokens become headers.
    fn sets_headers(&self) -> bool {
        let mut providers = self.jwt.iter();
        providers.any(|provider| !provider.output_claims.is_empty())
    }

    /// Why it takes nothing of the kind, whatever the rules say, and which policy says so.
    fn refuses(&self, request: &Request<'_>) -> Option<(DenyReason, Option<Arc<str>>)> {
        let mode = self.mtls.port(request.port);
        if !self.known {
            Some((DenyReason::NoAllowRule, None))
        } else if mode.mode == MtlsMode::Strict && !request.encrypted {
            Some((DenyReason::MtlsRequired, mode.policy.clone()))
        } else {
            let policy = self.jwt_invalid.clone()?;
            Some((DenyReason::InvalidPolicy, Some(policy)))
        }
    }

    pub(super) fn mode(&self, port: u16) -> &Mode {
        self.mtls.port(port)
    }
}
