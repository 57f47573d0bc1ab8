//! How a connection ended: every way there is, and what is said of each.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use super::tunnel::TunnelError;
use crate::flow::Verdict;
use crate::identity::IdentityError;
use crate::policy::balance::Circuit;
use crate::policy::{DenyReason, UnavailableReason};

/// How a connection ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Both directions ended with a FIN.
    Closed,
    /// The client reset it, or vanished.
    ClientReset,
    /// The server reset it, or vanished.
    ServerReset,
    /// Silent for longer than is configured.
    IdleTimeout,
    /// One direction ended, the other was silent for longer than is configured.
    HalfOpenTimeout,
    /// The pod left the mesh or the node.
    PodRemoved,
    /// The agent stopped, or dropped the connection's task.
    AgentStopped,
    /// The policy of this node's pod refused it, at once or later.
    Denied {
        /// Why.
        reason: DenyReason,
        /// By which rule.
        policy: Option<Arc<str>>,
    },
    /// The other node refused it.
    DeniedByPeer(Option<Arc<str>>),
    /// The certificate is not that of the pod which owns the address.
    IdentityMismatch,
    /// No pod is known at the address of whoever has the certificate.
    UnknownPeer,
    /// The certificate has expired since the tunnel was set up.
    CertificateExpired,
    /// No endpoint takes connections.
    Unavailable(UnavailableReason),
    /// The application asked for a port of the mesh's own.
    ReservedPort,
    /// It did not come through redirection.
    NotRedirected,
    /// It came for an address that is not the pod's.
    WrongAddress,
    /// The destination is an enrolled pod of this node that is not served yet.
    DestinationNotServed,
    /// One of its pods has as many as it may have.
    TooManyConnections,
    /// Its Service has as many as it may have.
    CircuitOpen(Circuit),
    /// What the peer asked for is not a CONNECT that can be served.
    BadRequest(&'static str),
    /// No certificate for the pod.
    Certificate(Arc<IdentityError>),
    /// The peer did not prove who it is.
    Handshake(Arc<str>),
    /// The tunnel to the other node failed.
    Tunnel(Arc<TunnelError>),
    /// The dial failed.
    Connect(ConnectError),
    /// The kernel refused something that should work.
    System(Arc<io::Error>),
}

/// Why a dial failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// Taken and reset at once.
    #[error("connection reset")]
    Reset,
    /// No answer within the limit.
    #[error("no answer in time")]
    TimedOut,
    /// The network does not know a way.
    #[error("no route")]
    Unreachable,
    /// Any other reason.
    #[error("{0}")]
    Io(Arc<io::Error>),
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset => Self::Reset,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl ConnectError {
    fn word(&self) -> Cow<'static, str> {
        match self {
            Self::Refused => "connect_refused".into(),
            Self::Reset => "server_reset".into(),
            Self::TimedOut => "connect_timeout".into(),
            Self::Unreachable => "unreachable".into(),
            Self::Io(error) => format!("connect_failed: {error}").into(),
        }
    }
}

impl From<ConnectError> for Outcome {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        Self::System(Arc::new(error))
    }
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The client, or both applications in agreement.
    Client,
    /// This agent.
    Agent,
    /// The server, or the network on the way to it.
    Upstream,
}

impl Outcome {
    /// A dial has failed for what is at its other end, or on the way there.
    pub(super) fn is_of_endpoint(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::Tunnel(_)
                | Self::Handshake(_)
                | Self::IdentityMismatch
                | Self::ServerReset
        )
    }

    /// Who ended it.
    pub(super) fn origin(&self) -> Origin {
        match self {
            Self::Closed
            | Self::ClientReset
            | Self::ReservedPort
            | Self::NotRedirected
            | Self::WrongAddress
            | Self::BadRequest(_)
            | Self::Handshake(_)
            | Self::CertificateExpired
            | Self::IdentityMismatch
            | Self::UnknownPeer => Origin::Client,
            Self::IdleTimeout
            | Self::HalfOpenTimeout
            | Self::PodRemoved
            | Self::AgentStopped
            | Self::Denied { .. }
            | Self::DestinationNotServed
            | Self::TooManyConnections
            | Self::CircuitOpen(_)
            | Self::Certificate(_)
            | Self::System(_) => Origin::Agent,
            Self::ServerReset
            | Self::DeniedByPeer(_)
            | Self::Unavailable(_)
            | Self::Tunnel(_)
            | Self::Connect(_) => Origin::Upstream,
        }
    }

    /// What it was to the application. `connected`: bytes could flow before.
    pub(super) fn verdict(&self, connected: bool) -> Verdict {
        match self {
            Self::Denied { .. }
            | Self::DeniedByPeer(_)
            | Self::IdentityMismatch
            | Self::UnknownPeer
            | Self::CertificateExpired
            | Self::ReservedPort => Verdict::Denied,
            Self::Closed
            | Self::ClientReset
            | Self::ServerReset
            | Self::IdleTimeout
            | Self::HalfOpenTimeout
            | Self::PodRemoved
            | Self::AgentStopped
                if connected =>
            {
                Verdict::Forwarded
            }
            Self::Closed
            | Self::ClientReset
            | Self::ServerReset
            | Self::IdleTimeout
            | Self::HalfOpenTimeout
            | Self::PodRemoved
            | Self::AgentStopped
            | Self::Unavailable(_)
            | Self::NotRedirected
            | Self::WrongAddress
            | Self::DestinationNotServed
            | Self::TooManyConnections
            | Self::CircuitOpen(_)
            | Self::BadRequest(_)
            | Self::Certificate(_)
            | Self::Handshake(_)
            | Self::Tunnel(_)
            | Self::Connect(_)
            | Self::System(_) => Verdict::Failed,
        }
    }

    /// The fixed word of the flow record, with a longer text after `: ` where there is one.
    pub(super) fn close_reason(&self) -> Cow<'static, str> {
        match self {
            Self::Closed => "closed".into(),
            Self::ClientReset => "client_reset".into(),
            Self::ServerReset => "server_reset".into(),
            Self::IdleTimeout => "idle_timeout".into(),
            Self::HalfOpenTimeout => "half_open_timeout".into(),
            Self::PodRemoved => "pod_removed".into(),
            Self::AgentStopped => "agent_stopped".into(),
            Self::Denied { reason, .. } => denied(*reason),
            Self::DeniedByPeer(None) => "policy_denied: by the destination's node".into(),
            Self::DeniedByPeer(Some(why)) => {
                // Its own reason begins with the same word.
                let why = why.strip_prefix("policy_denied: ").unwrap_or(why);
                format!("policy_denied: by the destination's node: {why}").into()
            }
            Self::IdentityMismatch => "identity_mismatch".into(),
            Self::UnknownPeer => "unknown_peer".into(),
            Self::CertificateExpired => "certificate_expired".into(),
            Self::Unavailable(reason) => reason.as_str().into(),
            Self::ReservedPort => "reserved_port".into(),
            Self::NotRedirected => "not_redirected".into(),
            Self::WrongAddress => "wrong_address".into(),
            Self::DestinationNotServed => "destination_not_served".into(),
            Self::TooManyConnections => "too_many_connections".into(),
            Self::CircuitOpen(circuit) => format!("circuit_open: {}", circuit.as_str()).into(),
            Self::BadRequest(what) => format!("bad_request: {what}").into(),
            Self::Certificate(error) => format!("no_certificate: {error}").into(),
            Self::Handshake(what) => format!("handshake_failed: {what}").into(),
            Self::Tunnel(error) => error.close_reason(),
            Self::Connect(error) => error.word(),
            Self::System(error) => format!("system_error: {error}").into(),
        }
    }

    /// The policy that decided.
    pub(super) fn policy(&self) -> Option<Arc<str>> {
        match self {
            Self::Denied { policy, .. } => policy.clone(),
            Self::Closed
            | Self::ClientReset
            | Self::ServerReset
            | Self::IdleTimeout
            | Self::HalfOpenTimeout
            | Self::PodRemoved
            | Self::AgentStopped
            | Self::DeniedByPeer(_)
            | Self::IdentityMismatch
            | Self::UnknownPeer
            | Self::CertificateExpired
            | Self::Unavailable(_)
            | Self::ReservedPort
            | Self::NotRedirected
            | Self::WrongAddress
            | Self::DestinationNotServed
            | Self::TooManyConnections
            | Self::CircuitOpen(_)
            | Self::BadRequest(_)
            | Self::Certificate(_)
            | Self::Handshake(_)
            | Self::Tunnel(_)
            | Self::Connect(_)
            | Self::System(_) => None,
        }
    }
}

/// `mtls_required` stands for itself: it is what an operator looks for.
fn denied(reason: DenyReason) -> Cow<'static, str> {
    match reason {
        DenyReason::MtlsRequired => "mtls_required".into(),
        DenyReason::DenyRule
        | DenyReason::NoAllowRule
        | DenyReason::InvalidPolicy
        | DenyReason::NeedsHttp => format!("policy_denied: {}", reason.as_str()).into(),
    }
}
