//! The proof that a connection may be, and the watch that withdraws it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::account::Slot;
use super::outcome::Outcome;
use super::pod::LocalPod;
use crate::model::SpiffeId;
use crate::policy::{Admission, Decision, HttpRequest, InboundPolicy, Permission, Request};
use crate::state::ExternalProvider;

/// What the connections of one local pod need to know, published whenever it changes.
#[derive(Clone, Debug)]
pub(super) struct PodState {
    /// Its policy in force.
    pub(super) policy: Arc<InboundPolicy>,
    /// It is gone, and so must be its connections.
    pub(super) closing: bool,
}

/// Who asks, as far as it is proven.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// Proven identity.
    pub(super) peer: Option<SpiffeId>,
    /// The client's address.
    pub(super) client_ip: IpAddr,
    /// The application's port.
    pub(super) port: u16,
    /// Through mTLS, or never off this node.
    pub(super) encrypted: bool,
    /// It is kubelet of this node that asks: the application is asked for its health,
    /// whatever the policies say.
    pub(super) probe: bool,
}

/// What stands for a policy in the records of kubelet's probes.
const PROBE: &str = "kubelet_probe";

impl Subject {
    /// On a connection whose bytes nobody looks at.
    fn ask(&self, policy: &InboundPolicy) -> Decision {
        self.as_probe(policy)
            .unwrap_or_else(|| policy.authorize(&self.request()))
    }

    /// On a connection of which it is not known yet what it carries.
    pub(super) fn ask_before(&self, policy: &InboundPolicy) -> Admission {
        match self.as_probe(policy) {
            Some(decision) => Admission::Decided(decision),
            None => policy.authorize_connection(&self.request()),
        }
    }

    /// On one request.
    pub(super) fn ask_request(&self, policy: &InboundPolicy, http: &HttpRequest<'_>) -> Decision {
        self.as_probe(policy)
            .unwrap_or_else(|| policy.authorize_request(&self.request(), http))
    }

    /// One request that is denied would be permitted with a token.
    pub(super) fn lacks_token(&self, policy: &InboundPolicy, http: &HttpRequest<'_>) -> bool {
        policy.lacks_token(&self.request(), http)
    }

    /// Whom else to ask about one request that is permitted, and the rule that says so.
    pub(super) fn ask_whom(
        &self,
        policy: &InboundPolicy,
        http: &HttpRequest<'_>,
    ) -> Vec<(Arc<ExternalProvider>, Arc<str>)> {
        policy.external(&self.request(), http)
    }

    /// Of a pod that is not in the table nothing is known, and nothing is permitted.
    fn as_probe(&self, policy: &InboundPolicy) -> Option<Decision> {
        (self.probe && policy.is_known()).then(|| Decision {
            verdict: Permission::Permitted,
            policy: Some(PROBE.into()),
            audit: Vec::new(),
        })
    }

    fn request(&self) -> Request<'_> {
        Request {
            peer: self.peer.as_ref(),
            client_ip: self.client_ip,
            port: self.port,
            encrypted: self.encrypted,
        }
    }
}

/// A connection may be, as far as can be said before it is known what it carries. Only a
/// check makes one.
#[derive(Debug)]
pub(super) struct Admitted {
    client: Option<watch::Receiver<PodState>>,
    server: Option<(watch::Receiver<PodState>, Subject)>,
}

/// A connection whose bytes nobody looks at may be. The relay asks for one.
#[derive(Debug)]
pub(super) struct Permit(Admitted);

/// A connection that carries HTTP may be. Each of its requests is still to be asked for.
#[derive(Debug)]
pub(super) struct HttpPermit(Admitted);

/// The policy of a pod of this node, over one request to it.
#[derive(Debug)]
pub(super) struct Watch {
    pod: watch::Receiver<PodState>,
    subject: Subject,
}

/// A permit with what the check left to be recorded.
#[derive(Debug)]
pub(super) struct Checked {
    /// The proof.
    pub(super) admitted: Admitted,
    /// Its place among the connections of the server's pod, where it needs one.
    pub(super) slot: Option<Slot>,
    /// The policy that permitted it, where one did.
    pub(super) policy: Option<Arc<str>>,
    /// Dry-run and AUDIT hits.
    pub(super) audit: Vec<Arc<str>>,
}

/// A connection that may be relayed, with what that decision left to be recorded.
#[derive(Debug)]
pub(super) struct Opaque {
    /// The proof.
    pub(super) permit: Permit,
    /// The policy that permitted it, where one did.
    pub(super) policy: Option<Arc<str>>,
    /// Dry-run and AUDIT hits.
    pub(super) audit: Vec<Arc<str>>,
}

impl Admitted {
    /// A connection that leaves this node: the destination's node checks it. It ends with
    /// its pod.
    pub(super) fn leaving(client: watch::Receiver<PodState>) -> Self {
        Self {
            client: Some(client),
            server: None,
        }
    }

    /// A connection to a pod of this node. Subscribes before it checks, so that no change
    /// can fall between check and watch.
    pub(super) fn check(
        pod: &LocalPod,
        subject: Subject,
    ) -> Result<Checked, (Outcome, Vec<Arc<str>>)> {
        let mut server = pod.state.subscribe();
        let state = server.borrow_and_update().clone();
        if state.closing {
            return Err((Outcome::PodRemoved, Vec::new()));
        }
        let (policy, audit) = match subject.ask_before(&state.policy) {
            Admission::PerRequest => (None, Vec::new()),
            Admission::Decided(decision) => match decision.verdict {
                Permission::Permitted => (decision.policy, decision.audit),
                Permission::Denied(reason) => {
                    let policy = decision.policy;
                    return Err((Outcome::Denied { reason, policy }, decision.audit));
                }
            },
        };
        // A pod that has too many connections still has to say how it is.
        let slot = (!subject.probe)
            .then(|| pod.account.connection())
            .transpose();
        let slot = match slot {
            Ok(slot) => slot,
            Err(full) => return Err((full, audit)),
        };
        Ok(Checked {
            admitted: Self {
                client: None,
                server: Some((server, subject)),
            },
            slot,
            policy,
            audit,
        })
    }

    /// Also ends with the client's pod.
    pub(super) fn with_client(self, client: watch::Receiver<PodState>) -> Self {
        Self {
            client: Some(client),
            ..self
        }
    }

    /// It could be relayed as it is now, without a look at its bytes.
    pub(super) fn may_be_opaque(&self) -> bool {
        self.decide()
            .is_none_or(|decision| decision.verdict == Permission::Permitted)
    }

    /// Its bytes are nobody's to look at: decides on it as a whole.
    pub(super) fn opaque(self) -> Result<Opaque, (Outcome, Vec<Arc<str>>)> {
        let Some(decision) = self.decide() else {
            let (policy, audit) = (None, Vec::new());
            return Ok(Opaque {
                permit: Permit(self),
                policy,
                audit,
            });
        };
        match decision.verdict {
            Permission::Permitted => Ok(Opaque {
                permit: Permit(self),
                policy: decision.policy,
                audit: decision.audit,
            }),
            Permission::Denied(reason) => {
                let policy = decision.policy;
                Err((Outcome::Denied { reason, policy }, decision.audit))
            }
        }
    }

    /// It carries HTTP.
    pub(super) fn http(self) -> HttpPermit {
        HttpPermit(self)
    }

    /// Under the policy in force, which may not be the one that it was checked with.
    fn decide(&self) -> Option<Decision> {
        let (server, subject) = self.server.as_ref()?;
        Some(subject.ask(&server.borrow().policy))
    }

    /// Waits until the connection may no longer be, and says why. Cancel safe.
    pub(super) async fn revoked(&mut self) -> Outcome {
        self.watch(denies_all).await
    }

    async fn watch(
        &mut self,
        refuses: impl Fn(&Subject, &InboundPolicy) -> Option<Outcome>,
    ) -> Outcome {
        match (&self.client, &mut self.server) {
            (None, None) => std::future::pending().await,
            (Some(client), None) => closed(client.clone()).await,
            (None, Some((server, subject))) => refused(server, subject, refuses).await,
            (Some(client), Some((server, subject))) => tokio::select! {
                biased;
                outcome = refused(server, subject, refuses) => outcome,
                outcome = closed(client.clone()) => outcome,
            },
        }
    }
}

impl Permit {
    /// Waits until the connection may no longer be, and says why.
    pub(super) async fn revoked(mut self) -> Outcome {
        let refuses = |subject: &Subject, policy: &InboundPolicy| denied(subject.ask(policy));
        self.0.watch(refuses).await
    }
}

impl HttpPermit {
    /// Waits until no request can be permitted any more, and says why.
    pub(super) async fn revoked(mut self) -> Outcome {
        self.0.revoked().await
    }
}

impl Watch {
    /// From now on. To be made before the request is checked, so that no change can fall
    /// between check and watch.
    pub(super) fn over(pod: &LocalPod, subject: Subject) -> Self {
        let pod = pod.state.subscribe();
        Self { pod, subject }
    }

    /// Something has changed that was not looked at.
    pub(super) fn has_news(&self) -> bool {
        self.pod.has_changed().unwrap_or(true)
    }

    /// Waits until no such request can be permitted any more, and says why. Cancel safe.
    pub(super) async fn revoked(&mut self) -> Outcome {
        refused(&mut self.pod, &self.subject, denies_all).await
    }
}

/// Whatever is asked for on the connection.
fn denies_all(subject: &Subject, policy: &InboundPolicy) -> Option<Outcome> {
    match subject.ask_before(policy) {
        Admission::Decided(decision) => denied(decision),
        Admission::PerRequest => None,
    }
}

fn denied(decision: Decision) -> Option<Outcome> {
    match decision.verdict {
        Permission::Permitted => None,
        Permission::Denied(reason) => {
            let policy = decision.policy;
            Some(Outcome::Denied { reason, policy })
        }
    }
}

/// Waits until the pod is gone.
pub(super) async fn closed(mut pod: watch::Receiver<PodState>) -> Outcome {
    // An error says that the sender is gone, and so the pod.
    let _gone = pod.wait_for(|state| state.closing).await.is_err();
    Outcome::PodRemoved
}

async fn refused(
    pod: &mut watch::Receiver<PodState>,
    subject: &Subject,
    refuses: impl Fn(&Subject, &InboundPolicy) -> Option<Outcome>,
) -> Outcome {
    loop {
        if pod.changed().await.is_err() {
            return Outcome::PodRemoved;
        }
        let state = pod.borrow_and_update().clone();
        if state.closing {
            return Outcome::PodRemoved;
        }
        if let Some(outcome) = refuses(subject, &state.policy) {
            return outcome;
        }
    }
}
