//! The proof that a connection may be, and the watch that withdraws it.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::account::Slot;
use super::outcome::Outcome;
use super::pod::LocalPod;
use crate::model::SpiffeId;
use crate::policy::{Decision, InboundPolicy, Permission, Request};

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
    fn ask(&self, policy: &InboundPolicy) -> Decision {
        // Of a pod that is not in the table nothing is known, and nothing is permitted.
        if self.probe && policy.is_known() {
            return Decision {
                verdict: Permission::Permitted,
                policy: Some(PROBE.into()),
                audit: Vec::new(),
            };
        }
        policy.authorize(&self.request())
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

/// A connection may be. Only a check makes one, and the relay asks for one.
#[derive(Debug)]
pub(super) struct Permit {
    client: Option<watch::Receiver<PodState>>,
    server: Option<(watch::Receiver<PodState>, Subject)>,
}

/// A permit with what the check left to be recorded.
#[derive(Debug)]
pub(super) struct Checked {
    /// The proof.
    pub(super) permit: Permit,
    /// Its place among the connections of the server's pod, where it needs one.
    pub(super) slot: Option<Slot>,
    /// The policy that permitted it, where one did.
    pub(super) policy: Option<Arc<str>>,
    /// Dry-run and AUDIT hits.
    pub(super) audit: Vec<Arc<str>>,
}

impl Permit {
    /// For a connection that leaves this node: the destination's node checks it. It ends
    /// with its pod.
    pub(super) fn leaving(client: watch::Receiver<PodState>) -> Self {
        Self {
            client: Some(client),
            server: None,
        }
    }

    /// For a connection to a pod of this node. Subscribes before it checks, so that no
    /// change can fall between check and watch.
    pub(super) fn check(
        pod: &LocalPod,
        subject: Subject,
    ) -> Result<Checked, (Outcome, Vec<Arc<str>>)> {
        let mut server = pod.state.subscribe();
        let state = server.borrow_and_update().clone();
        if state.closing {
            return Err((Outcome::PodRemoved, Vec::new()));
        }
        let decision = subject.ask(&state.policy);
        match decision.verdict {
            Permission::Permitted => {
                // A pod that has too many connections still has to say how it is.
                let slot = (!subject.probe)
                    .then(|| pod.account.connection())
                    .transpose();
                let slot = match slot {
                    Ok(slot) => slot,
                    Err(full) => return Err((full, decision.audit)),
                };
                Ok(Checked {
                    permit: Self {
                        client: None,
                        server: Some((server, subject)),
                    },
                    slot,
                    policy: decision.policy,
                    audit: decision.audit,
                })
            }
            Permission::Denied(reason) => {
                let policy = decision.policy;
                Err((Outcome::Denied { reason, policy }, decision.audit))
            }
        }
    }

    /// Also ends with the client's pod.
    pub(super) fn with_client(self, client: watch::Receiver<PodState>) -> Self {
        Self {
            client: Some(client),
            ..self
        }
    }

    /// Waits until the connection may no longer be, and says why.
    pub(super) async fn revoked(self) -> Outcome {
        match (self.client, self.server) {
            (None, None) => std::future::pending().await,
            (Some(client), None) => closed(client).await,
            (None, Some((server, subject))) => refused(server, subject).await,
            (Some(client), Some((server, subject))) => tokio::select! {
                biased;
                outcome = refused(server, subject) => outcome,
                outcome = closed(client) => outcome,
            },
        }
    }
}

/// Waits until the pod is gone.
pub(super) async fn closed(mut pod: watch::Receiver<PodState>) -> Outcome {
    // An error says that the sender is gone, and so the pod.
    let _gone = pod.wait_for(|state| state.closing).await.is_err();
    Outcome::PodRemoved
}

async fn refused(mut pod: watch::Receiver<PodState>, subject: Subject) -> Outcome {
    loop {
        if pod.changed().await.is_err() {
            return Outcome::PodRemoved;
        }
        let state = pod.borrow_and_update().clone();
        if state.closing {
            return Outcome::PodRemoved;
        }
        let decision = subject.ask(&state.policy);
        if let Permission::Denied(reason) = decision.verdict {
            let policy = decision.policy;
            return Outcome::Denied { reason, policy };
        }
    }
}
