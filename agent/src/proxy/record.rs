//! One flow record for each connection, whatever happens to it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::account::Slot;
use super::endpoint::Endpoint;
use super::outcome::Outcome;
use super::permit::{Admitted, Checked, Permit};
use crate::flow::{
    Destination, Direction, FlowEvent, FlowProtocol, FlowSender, KernelStats, OpenFlow, OpenLabels,
    RequestEnds, Source, TlsState,
};
use crate::model::{NamespacedName, SpiffeId};
use crate::state::Pod;

/// Names one connection on both nodes: the trace id of its `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId(pub(super) u128);

impl ConnectionId {
    /// A new one.
    pub(super) fn random() -> Self {
        // Zero is not a valid trace id.
        Self(rand::random::<u128>() | 1)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Which application the relay's near socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Near {
    /// The one that dialled.
    Client,
    /// The one that was dialled.
    Server,
}

/// Application bytes moved, as the relay sees them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moved {
    /// From the near socket to the far side.
    pub(super) outward: u64,
    /// From the far side to the near socket.
    pub(super) homeward: u64,
}

impl Moved {
    /// Both.
    pub(super) fn total(self) -> u64 {
        self.outward.wrapping_add(self.homeward)
    }
}

/// The record of one connection in the making. Its drop writes it, with
/// [`Outcome::AgentStopped`] if nothing else was said.
///
/// Boxed by its owner: it would otherwise be copied between the stages' futures.
#[derive(Debug)]
pub(super) struct Record {
    flows: FlowSender,
    open: Option<OpenFlow>,
    started: Instant,
    outcome: Option<Outcome>,
    near: Near,
    /// Its places among the connections of the pods of this node: the client's, the
    /// server's.
    slots: [Option<Slot>; 2],
    /// The endpoint of a Service that it is in flight at.
    pub(super) endpoint: Option<Endpoint>,
    /// Of the bytes, those that are in their accounts: client to server, server to client.
    accounted: (u64, u64),
    node: Arc<str>,
    direction: Direction,
    /// Who dialled.
    pub(super) source: Source,
    /// Who was dialled.
    pub(super) destination: Destination,
    /// What it carries, as far as that is known; told to the metrics once it is connected.
    pub(super) protocol: FlowProtocol,
    /// How the bytes cross the network.
    pub(super) tls: TlsState,
    /// The policy that permitted it.
    pub(super) policy: Option<Arc<str>>,
    /// Dry-run and AUDIT hits.
    pub(super) audit: Vec<Arc<str>>,
    /// Names it.
    pub(super) id: ConnectionId,
    /// Counted by the relay.
    pub(super) moved: Moved,
    /// Of the network hop.
    pub(super) kernel: Option<KernelStats>,
}

impl Record {
    /// Begins a record; what is known of the ends follows.
    pub(super) fn begin(
        flows: &FlowSender,
        node: &Arc<str>,
        direction: Direction,
        id: ConnectionId,
    ) -> Box<Self> {
        Box::new(Self {
            flows: flows.clone(),
            open: None,
            started: Instant::now(),
            outcome: None,
            near: Near::Client,
            slots: [None, None],
            endpoint: None,
            accounted: (0, 0),
            node: Arc::clone(node),
            direction,
            source: Source::default(),
            destination: Destination::default(),
            protocol: FlowProtocol::Tcp,
            tls: TlsState::None,
            policy: None,
            audit: Vec::new(),
            id,
            moved: Moved::default(),
            kernel: None,
        })
    }

    /// Who dialled: the pod where it is known, from which address, proven or not.
    pub(super) fn from(
        &mut self,
        pod: Option<&Pod>,
        address: SocketAddr,
        proven: Option<&SpiffeId>,
    ) {
        self.source = Source {
            namespace: pod.map(|pod| Arc::clone(&pod.name.namespace)),
            pod: pod.map(|pod| Arc::clone(&pod.name.name)),
            workload: pod.map(|pod| Arc::clone(&pod.workload)),
            ip: Some(address.ip()),
            port: address.port(),
            identity: proven.cloned(),
        };
    }

    /// The address that was dialled.
    pub(super) fn towards(&mut self, address: SocketAddr) {
        self.destination.ip = Some(address.ip());
        self.destination.port = address.port();
    }

    /// The pod that serves it.
    pub(super) fn served_by(&mut self, pod: &Pod) {
        self.destination.namespace = Some(Arc::clone(&pod.name.namespace));
        self.destination.pod = Some(Arc::clone(&pod.name.name));
        self.destination.workload = Some(Arc::clone(&pod.workload));
        self.destination.identity = pod.enrolled.then(|| pod.identity.clone());
    }

    /// The Service that was dialled.
    pub(super) fn through(&mut self, service: &NamespacedName) {
        self.destination.service = Some(Arc::clone(&service.name));
        if self.destination.namespace.is_none() {
            self.destination.namespace = Some(Arc::clone(&service.namespace));
        }
    }

    /// Holds the client's place until the connection has ended.
    pub(super) fn occupy(&mut self, slot: Slot) {
        self.slots[0] = Some(slot);
    }

    /// Takes over what the check of a policy says, whichever way it went.
    pub(super) fn note_check(
        &mut self,
        checked: Result<Checked, (Outcome, Vec<Arc<str>>)>,
    ) -> Result<Admitted, Outcome> {
        match checked {
            Ok(checked) => {
                self.policy = checked.policy;
                self.slots[1] = checked.slot;
                self.audit = checked.audit;
                Ok(checked.admitted)
            }
            Err((outcome, audit)) => {
                self.audit = audit;
                Err(outcome)
            }
        }
    }

    /// What the connection carries is nobody's to look at: decides on it as a whole.
    pub(super) fn note_opaque(&mut self, admitted: Admitted) -> Result<Permit, Outcome> {
        match admitted.opaque() {
            Ok(opaque) => {
                if opaque.policy.is_some() {
                    self.policy = opaque.policy;
                }
                if !opaque.audit.is_empty() {
                    self.audit = opaque.audit;
                }
                Ok(opaque.permit)
            }
            Err((outcome, audit)) => {
                self.audit = audit;
                Err(outcome)
            }
        }
    }

    /// Bytes can flow from here on, if they could not already.
    pub(super) fn connected(&mut self, near: Near) {
        self.near = near;
        if self.open.is_some() {
            return;
        }
        self.open = Some(self.flows.opened(&OpenLabels {
            direction: self.direction,
            source: &self.source,
            destination: &self.destination,
            protocol: self.protocol,
            tls: self.tls,
        }));
    }

    /// Puts what was moved into the accounts of its pods.
    pub(super) fn account(&mut self) {
        let bytes = self.bytes();
        if bytes == self.accounted {
            return;
        }
        let sent = bytes.0.saturating_sub(self.accounted.0);
        let received = bytes.1.saturating_sub(self.accounted.1);
        self.accounted = bytes;
        let [client, server] = &self.slots;
        if let Some(client) = client {
            client.moved(sent, received);
        }
        if let Some(server) = server {
            server.moved(received, sent);
        }
    }

    /// What it carries is known, before or after [`Self::connected`].
    pub(super) fn carries(&mut self, protocol: FlowProtocol) {
        self.protocol = protocol;
        let labels = OpenLabels {
            direction: self.direction,
            source: &self.source,
            destination: &self.destination,
            protocol,
            tls: self.tls,
        };
        if let Some(open) = &mut self.open {
            open.turn_into(&labels);
        }
    }

    /// What the requests of this connection have in common, to whatever server they go.
    pub(super) fn request_ends(&self) -> RequestEnds {
        RequestEnds {
            node: Arc::clone(&self.node),
            direction: self.direction,
            source: self.source.clone(),
            destination: self.destination.clone(),
            tls: self.tls,
            connection_id: self.id.to_string().into(),
        }
    }

    /// Lets the metrics of a long connection grow before it ends.
    pub(super) fn progress(&mut self) {
        let (sent, received) = self.bytes();
        if let Some(open) = &mut self.open {
            open.progress(sent, received);
        }
    }

    /// Ends the connection. The first outcome counts.
    pub(super) fn end(mut self: Box<Self>, outcome: Outcome) {
        tracing::debug!(
            id = %self.id,
            reason = %outcome.close_reason(),
            origin = ?outcome.origin(),
            "connection ended"
        );
        self.outcome = Some(outcome);
    }

    /// Client to server, server to client.
    pub(super) fn bytes(&self) -> (u64, u64) {
        match self.near {
            Near::Client => (self.moved.outward, self.moved.homeward),
            Near::Server => (self.moved.homeward, self.moved.outward),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.account();
        let outcome = self.outcome.take().unwrap_or(Outcome::AgentStopped);
        let (bytes_sent, bytes_received) = self.bytes();
        let elapsed = self.started.elapsed();
        let event = FlowEvent {
            time: Timestamp::now(),
            node: Arc::clone(&self.node),
            direction: self.direction,
            source: std::mem::take(&mut self.source),
            destination: std::mem::take(&mut self.destination),
            protocol: self.protocol,
            tls: self.tls,
            verdict: outcome.verdict(self.open.is_some()),
            reason: outcome.close_reason().into_owned(),
            policy: outcome.policy().or_else(|| self.policy.take()),
            audit: std::mem::take(&mut self.audit),
            bytes_sent,
            bytes_received,
            duration_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            connection_id: self.id.to_string(),
            kernel: self.kernel,
            http: None,
        };
        match self.open.take() {
            Some(open) => open.close(event),
            None => self.flows.record(event),
        }
    }
}
