//! The one call of the service: authenticate, authorise, sign, record.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use prost_types::value::Kind;
use rustls::ServerConfig;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::authorize::may_have;
use super::connections::Caller;
use super::limit::{Limits, Sparse};
use super::tls::{ServerCertificates, TlsError};
use super::tokens::Tokens;
use crate::identity::generated::istio_certificate_service_server::IstioCertificateService;
use crate::identity::generated::{IstioCertificateRequest, IstioCertificateResponse};
use crate::identity::{Authority, AuthorityError, Issued, VerifiedRequest};
use crate::model::{NodeName, SpiffeId, TrustDomain};
use crate::state::Snapshot;

/// What stays the same while the service runs.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) trust_domain: TrustDomain,
    pub(super) default_ttl: Duration,
    pub(super) max_ttl: Duration,
    pub(super) snapshots: watch::Receiver<Snapshot>,
    pub(super) certificates: ServerCertificates,
}

/// What every call reads. Written by the task that follows the files alone.
#[derive(Debug)]
pub(super) struct Shared {
    settings: Settings,
    authority: ArcSwapOption<Authority>,
    tokens: ArcSwap<Tokens>,
    limits: Limits,
    strangers: Sparse,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            authority: ArcSwapOption::empty(),
            tokens: ArcSwap::default(),
            limits: Limits::default(),
            strangers: Sparse::default(),
        }
    }

    pub(super) fn replace_authority(&self, authority: Arc<Authority>) {
        self.authority.store(Some(authority));
    }

    pub(super) fn replace_tokens(&self, tokens: Arc<Tokens>) {
        self.tokens.store(tokens);
    }

    /// The TLS configuration for a connection to this local address.
    pub(super) fn tls_config(&self, local: IpAddr) -> Result<Arc<ServerConfig>, TlsError> {
        let authority = self.authority.load_full().ok_or(TlsError::Absent)?;
        self.settings.certificates.config(&authority, local)
    }

    /// The node that calls. Whatever is wrong, a caller learns no more than that it is.
    fn authenticate(&self, request: &Request<IstioCertificateRequest>) -> Option<NodeName> {
        let header = request.metadata().get("authorization")?.to_str().ok()?;
        let (scheme, token) = header.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.tokens.load().node(token.trim()).cloned()
    }

    /// The node has a pod with the identity, as far as the cluster's state is known here.
    fn authorize(&self, node: &NodeName, id: &SpiffeId) -> Result<(), Status> {
        let own = &self.settings.trust_domain;
        if id.trust_domain != *own {
            let message = format!("{id} is not of the trust domain {own} of this CA");
            return Err(Status::permission_denied(message));
        }
        let snapshot = self.settings.snapshots.borrow();
        if snapshot.revision == 0 {
            let message = "the CA has not read the state of the cluster yet";
            return Err(Status::unavailable(message));
        }
        if may_have(&snapshot, node, id) {
            return Ok(());
        }
        let account = format!("{}/{}", id.namespace, id.service_account);
        Err(Status::permission_denied(format!(
            "no pod on node {node} runs as service account {account}"
        )))
    }

    /// The life to sign for, from the seconds that were asked for.
    fn ttl(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(0) | Err(_) => self.settings.default_ttl,
            Ok(seconds) => Duration::from_secs(seconds).min(self.settings.max_ttl),
        }
    }

    fn sign(&self, id: &SpiffeId, request: &IstioCertificateRequest) -> Result<Issued, Status> {
        let csr = VerifiedRequest::from_pem(&request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let authority = self.authority.load();
        let authority = authority
            .as_ref()
            .ok_or_else(|| Status::unavailable("the CA is starting"))?;
        let ttl = self.ttl(request.validity_duration);
        authority.sign(id, &csr, ttl).map_err(|error| match error {
            AuthorityError::Request(error) => Status::invalid_argument(error.to_string()),
            AuthorityError::Expired { .. } => Status::unavailable(error.to_string()),
            AuthorityError::Io { .. }
            | AuthorityError::Incomplete { .. }
            | AuthorityError::Malformed { .. }
            | AuthorityError::Untrusted { .. }
            | AuthorityError::Sign(_) => {
                tracing::error!(%error, "signing failed");
                Status::internal("signing failed; the CA's log says why")
            }
        })
    }

    fn answer(
        &self,
        node: &NodeName,
        request: &IstioCertificateRequest,
    ) -> Result<(SpiffeId, Issued), Status> {
        if !self.limits.take(node) {
            let message = format!("node {node} asks too often");
            return Err(Status::resource_exhausted(message));
        }
        let id = impersonated(request)?;
        self.authorize(node, &id)?;
        let issued = self.sign(&id, request)?;
        Ok((id, issued))
    }
}

/// The identity that a node asks for on behalf of a pod.
fn impersonated(request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
    let fields = request.metadata.as_ref().map(|metadata| &metadata.fields);
    let value = fields.and_then(|fields| fields.get("ImpersonatedIdentity"));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(id)) => id.parse().map_err(|error| {
            let error: crate::model::SpiffeIdError = error;
            Status::invalid_argument(format!("ImpersonatedIdentity: {error}"))
        }),
        _ => Err(Status::invalid_argument(
            "metadata ImpersonatedIdentity is missing: a node has no identity of its own here",
        )),
    }
}

/// The service, as tonic wants it.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = request.extensions().get::<Caller>().map(|caller| caller.0);
        let Some(node) = self.0.authenticate(&request) else {
            if let Some(withheld) = self.0.strangers.pass() {
                tracing::warn!(?caller, withheld, "refused: no valid token");
            }
            return Err(Status::unauthenticated("unauthenticated"));
        };
        match self.0.answer(&node, request.get_ref()) {
            Ok((identity, issued)) => {
                let not_after = jiff::Timestamp::try_from(issued.not_after).ok();
                tracing::info!(
                    %node,
                    ?caller,
                    %identity,
                    serial = issued.serial,
                    ?not_after,
                    "certificate issued"
                );
                let cert_chain = issued.to_pem_list();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                let reason = status.message();
                tracing::warn!(%node, ?caller, code = ?status.code(), reason, "refused");
                Err(status)
            }
        }
    }
}
