//! The one call of the service: authenticate, authorise, sign, record.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prost_types::value::Kind;
use rustls::ServerConfig;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::authorize::may_have;
use super::callers::{Callers, Refusal};
use super::connections::Caller;
use super::figures::{Counts, Figures};
use super::limit::{Limits, Sparse};
use super::tls::{ServerCertificates, TlsError};
use super::tokens::Tokens;
use crate::identity::generated::istio_certificate_service_server::IstioCertificateService;
use crate::identity::generated::{IstioCertificateRequest, IstioCertificateResponse};
use crate::identity::{Authority, AuthorityError, Issued, VerifiedRequest};
use crate::model::{NodeName, SpiffeId, TrustDomain};
use crate::state::Snapshot;

const UNREAD: &str = "the CA has not read the state of the cluster yet";

/// What stays the same while the service runs.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) trust_domain: TrustDomain,
    pub(super) default_ttl: Duration,
    pub(super) max_ttl: Duration,
    pub(super) snapshots: watch::Receiver<Snapshot>,
    pub(super) certificates: ServerCertificates,
}

/// What every call reads. Written by the tasks that follow files and objects alone.
#[derive(Debug)]
pub(super) struct Shared {
    settings: Settings,
    authority: ArcSwapOption<Authority>,
    /// What is wrong with the authority's key and certificates, where something is.
    root_problem: ArcSwapOption<String>,
    callers: Callers,
    limits: Limits,
    strangers: Sparse,
    counts: Counts,
}

impl Shared {
    pub(super) fn new(settings: Settings, callers: Callers) -> Self {
        Self {
            settings,
            authority: ArcSwapOption::empty(),
            root_problem: ArcSwapOption::empty(),
            callers,
            limits: Limits::default(),
            strangers: Sparse::default(),
            counts: Counts::default(),
        }
    }

    /// What was done so far, and what with.
    pub(super) fn figures(&self) -> Figures {
        let authority = self.authority.load();
        let ends = authority.as_ref().map(|authority| authority.not_after());
        self.counts.figures(ends)
    }

    pub(super) fn replace_authority(&self, authority: &Arc<Authority>) {
        self.authority.store(Some(Arc::clone(authority)));
    }

    #[cfg(test)]
    pub(super) fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.load_full()
    }

    pub(super) fn set_root_problem(&self, problem: Option<String>) {
        self.root_problem.store(problem.map(Arc::new));
    }

    pub(super) fn replace_tokens(&self, tokens: Arc<Tokens>) {
        if let Callers::Files(current) = &self.callers {
            current.store(tokens);
        }
    }

    /// Says so where the authority ends soon.
    pub(super) fn warn_of_end(&self) {
        if let Some(authority) = &*self.authority.load() {
            authority.warn_of_end();
        }
    }

    /// Why no certificate could be issued now; empty where one could.
    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.authority.load().is_none() {
            let problem = self.root_problem.load();
            let problem = problem.as_deref().map_or("not read yet", String::as_str);
            reasons.push(format!("the CA has no key: {problem}"));
        }
        if self.settings.snapshots.borrow().revision == 0 {
            reasons.push(UNREAD.to_owned());
        }
        reasons
    }

    /// The TLS configuration for a connection to this local address.
    pub(super) fn tls_config(&self, local: IpAddr) -> Result<Arc<ServerConfig>, TlsError> {
        let authority = self.authority.load_full().ok_or(TlsError::Absent)?;
        self.settings.certificates.config(&authority, local)
    }

    /// The node that calls.
    async fn authenticate(
        &self,
        request: &Request<IstioCertificateRequest>,
        caller: Option<SocketAddr>,
    ) -> Result<NodeName, Refusal> {
        let stranger = || Refusal::Stranger("there is no bearer token".to_owned());
        let header = request.metadata().get("authorization");
        let header = header.and_then(|header| header.to_str().ok());
        let (scheme, token) = header
            .and_then(|header| header.split_once(' '))
            .ok_or_else(stranger)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(stranger());
        }
        let snapshots = &self.settings.snapshots;
        let source = caller.map(|caller| caller.ip().to_canonical());
        self.callers.node(token.trim(), source, snapshots).await
    }

    /// A caller that was not authenticated learns no more than that. The reasons, which
    /// may name what is none of its business, are for the log.
    fn turn_away(&self, caller: Option<SocketAddr>, refusal: Refusal) -> Status {
        match refusal {
            Refusal::Stranger(reason) => {
                if let Some(withheld) = self.strangers.pass() {
                    tracing::warn!(?caller, reason, withheld, "refused: not an agent's token");
                }
                Status::unauthenticated("unauthenticated")
            }
            Refusal::Unavailable(reason) => {
                if let Some(withheld) = self.strangers.pass() {
                    tracing::warn!(?caller, reason, withheld, "not served now");
                }
                Status::unavailable("tokens can't be reviewed now; try again")
            }
        }
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
            return Err(Status::unavailable(UNREAD));
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
pub(super) fn impersonated(request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
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
        let node = self.0.authenticate(&request, caller).await;
        let node = node.map_err(|refusal| {
            let status = self.0.turn_away(caller, refusal);
            self.0.counts.refused(status.code());
            status
        })?;
        match self.0.answer(&node, request.get_ref()) {
            Ok((identity, issued)) => {
                self.0.counts.issued();
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
                self.0.counts.refused(status.code());
                let reason = status.message();
                tracing::warn!(%node, ?caller, code = ?status.code(), reason, "refused");
                Err(status)
            }
        }
    }
}
