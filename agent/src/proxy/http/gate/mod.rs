//! Whether a request may be, at the node of its destination.
//!
//! ```text
//! request ─► token ─► path in one form ─► rules ─► whom a CUSTOM asks ─► application
//!              └─ 401      └─ 400           └─ 403       └─ 403, 503
//! ```
//! Invariant: what was decided on is what the application gets. Headers that claims
//! become are the proxy's alone to set.

mod outside;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use super::authn::{self, EndUser, Via};
use super::body::Body;
use super::external::Changes;
use super::headers;
use super::reason::{Extra, Reason, ReasonKind};
use super::record::Exchange;
use crate::model::normal_path;
use crate::policy::{
    Admission, Decision, DenyReason, HttpRequest, InboundPolicy, JwtError, PathUse, Permission,
};
use crate::proxy::caller::Caller;
use crate::proxy::permit::Subject;
use crate::proxy::pod::LocalPod;
use crate::proxy::shared::Shared;

/// The way to a pod's application, and who takes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door<'a> {
    pub(super) shared: &'a Arc<Shared>,
    /// Whose application it is.
    pub(super) server: &'a Arc<LocalPod>,
    /// Who asks.
    pub(super) subject: &'a Subject,
    /// As the application is to see it.
    pub(super) client: SocketAddr,
    /// The application's address.
    pub(super) address: SocketAddr,
}

/// What becomes of the answer to a request that was let in.
#[derive(Debug, Default)]
pub(super) struct Admitted(Vec<Changes>);

impl Admitted {
    /// Changes the headers of the answer.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for changes in &self.0 {
            changes.apply_to_answer(headers);
        }
    }
}

impl Door<'_> {
    /// Asks everyone who has a say, by the policies that are in force now, and makes the
    /// request what the application gets.
    pub(super) async fn admit(
        &self,
        parts: &mut Parts,
        body: &mut Body,
        exchange: &mut Exchange,
    ) -> Result<Admitted, Reason> {
        let policy = Arc::clone(&self.server.state.borrow().policy);
        match self.subject.ask_before(&policy) {
            Admission::Decided(decision) => {
                conclude(decision, exchange)?;
                Ok(Admitted::default())
            }
            Admission::PerRequest => {
                Box::pin(self.admit_request(&policy, parts, body, exchange)).await
            }
        }
    }

    async fn admit_request(
        &self,
        policy: &InboundPolicy,
        parts: &mut Parts,
        body: &mut Body,
        exchange: &mut Exchange,
    ) -> Result<Admitted, Reason> {
        let user = self.authenticate(policy, parts).await?;
        authn::rewrite(parts, policy.jwt(), user.as_ref());
        let path = one_path(policy.paths(), parts)?;
        let http = HttpRequest {
            method: &parts.method,
            path: path.as_deref(),
            host: one_host(parts)?,
            headers: &parts.headers,
            claims: user.as_ref().map(|user| &user.claims),
        };
        let decision = self.subject.ask_request(policy, &http);
        if matches!(decision.verdict, Permission::Denied(_))
            && self.subject.lacks_token(policy, &http)
        {
            return Err(challenge(decision, exchange));
        }
        conclude(decision, exchange)?;
        let external = self.subject.ask_whom(policy, &http);
        let path = path.map(Cow::into_owned);
        if policy.paths() == PathUse::Decides
            && let Some(path) = path.filter(|path| *path != parts.uri.path())
        {
            let query = parts.uri.query().map(str::to_owned);
            if !authn::set_path(parts, &path, query.as_deref()) {
                let what = "the path has no form in which it can be compared";
                return Err(Reason::new(ReasonKind::BadRequest, what));
            }
        }
        let mut admitted = Admitted::default();
        for (provider, rule) in external {
            let asked = self.ask(&provider, &rule, parts, body).await;
            if asked.is_err() {
                exchange.policy = Some(rule);
            }
            admitted.0.extend(asked?);
        }
        for changes in &admitted.0 {
            changes.apply(&mut parts.headers);
        }
        Ok(admitted)
    }

    async fn authenticate(
        &self,
        policy: &InboundPolicy,
        parts: &Parts,
    ) -> Result<Option<EndUser>, Reason> {
        if policy.jwt().is_empty() {
            return Ok(None);
        }
        let via = Via::Pod(Caller::new(self.shared, self.server));
        let keys = &self.shared.keys;
        let user = authn::authenticate(parts, policy.jwt(), keys, &via).await;
        user.map_err(bad_token)
    }
}

/// Records the verdict; the error is what the client gets.
fn conclude(decision: Decision, exchange: &mut Exchange) -> Result<(), Reason> {
    exchange.audit = decision.audit;
    exchange.policy.clone_from(&decision.policy);
    let Permission::Denied(reason) = decision.verdict else {
        return Ok(());
    };
    let by = decision.policy.as_ref();
    let by = by.filter(|_| reason != DenyReason::MtlsRequired);
    let detail = by.map_or_else(|| reason.as_str().to_owned(), |by| format!("by {by}"));
    Err(Reason::new(ReasonKind::PolicyDenied, detail))
}

/// The request would be permitted with a token: its client is told so (RFC 6750, section 3).
fn challenge(decision: Decision, exchange: &mut Exchange) -> Reason {
    match conclude(decision, exchange) {
        Err(denied) => {
            let reason = Reason::new(ReasonKind::JwtMissing, denied.detail);
            reason.with(authenticate_by(HeaderValue::from_static("Bearer")))
        }
        Ok(()) => Reason::from(ReasonKind::JwtMissing),
    }
}

/// The token of a request is not valid (RFC 6750, section 3.1).
fn bad_token(error: JwtError) -> Reason {
    let text = format!(r#"Bearer error="invalid_token", error_description="{error}""#);
    let reason = Reason::new(ReasonKind::JwtInvalid, error.to_string());
    match HeaderValue::try_from(text) {
        Ok(value) => reason.with(authenticate_by(value)),
        Err(_invalid) => reason,
    }
}

fn authenticate_by(value: HeaderValue) -> Extra {
    Extra {
        headers: HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]),
        ..Extra::default()
    }
}

/// The path in the form in which rules are written; CONNECT has none. Where rules decide
/// by paths, one without that form is refused; where they only leave marks, it matches
/// what it may match.
fn one_path(paths: PathUse, parts: &Parts) -> Result<Option<Cow<'_, str>>, Reason> {
    if parts.method == Method::CONNECT && parts.uri.path_and_query().is_none() {
        return Ok(None);
    }
    let path = parts.uri.path();
    match (normal_path(path), paths) {
        (Ok(path), _) => Ok(Some(path)),
        (Err(error), PathUse::Decides) => {
            Err(Reason::new(ReasonKind::BadRequest, error.to_string()))
        }
        (Err(_), PathUse::Marks | PathUse::Ignored) => Ok(None),
    }
}

/// The host that rules compare: nobody's name stands before it.
fn one_host(parts: &Parts) -> Result<&str, Reason> {
    let host = headers::host(parts);
    if host.contains('@') {
        let what = "the host has user information";
        return Err(Reason::new(ReasonKind::BadRequest, what));
    }
    Ok(host)
}
