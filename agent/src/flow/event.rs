//! The record of one connection or request, as `fairlead flows -o json` prints it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::SpiffeId;

/// Which side of the node's proxy a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// A pod of this node dialled. Also where both pods are on this node: such a
    /// connection has this one record.
    Outbound,
    /// A pod of this node was dialled from elsewhere.
    Inbound,
}

impl Direction {
    /// Every value, for the command line.
    pub const ALL: &[Self] = &[Self::Outbound, Self::Inbound];

    /// As the JSON form spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// What the connection carried, as far as the proxy looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowProtocol {
    /// Opaque bytes.
    Tcp,
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// TLS of the application's own.
    Tls,
}

impl FlowProtocol {
    /// Every value, for the command line.
    pub const ALL: &[Self] = &[Self::Tcp, Self::Http, Self::Http2, Self::Grpc, Self::Tls];

    /// As the JSON form spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tls => "tls",
        }
    }
}

/// How the bytes crossed the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsState {
    /// Plaintext, or no network crossed.
    None,
    /// Mutual TLS between the two workloads' certificates.
    Mtls,
    /// The application's own TLS, untouched.
    Passthrough,
}

impl TlsState {
    /// Every value, for the command line.
    pub const ALL: &[Self] = &[Self::None, Self::Mtls, Self::Passthrough];

    /// As the JSON form spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mtls => "mtls",
            Self::Passthrough => "passthrough",
        }
    }
}

/// How it ended for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Bytes could flow.
    Forwarded,
    /// A policy refused it, at once or later.
    Denied,
    /// It could not be carried.
    Failed,
}

impl Verdict {
    /// Every value, for the command line.
    pub const ALL: &[Self] = &[Self::Forwarded, Self::Denied, Self::Failed];

    /// As the JSON form spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// The client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// The workload that owns the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Its port, 0 where unknown.
    #[serde(default)]
    pub port: u16,
    /// Proven identity; absent where nothing was proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
}

/// The server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The pod's namespace, else the Service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// The pod that was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// The workload that owns the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// The Service that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// The address that the application dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The port that the application dialled.
    pub port: u16,
    /// Expected and, with mTLS, proven identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
}

/// What the kernel counted on the connection's network hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStats {
    /// Smoothed round-trip time in microseconds.
    pub srtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
}

/// A request and its answer, without what may be secret: no query, no header, no body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpFlow {
    /// As the client sent it.
    pub method: Arc<str>,
    /// As the client sent it, up to the query, and not more than 512 bytes of it.
    pub path: Arc<str>,
    /// The host that the client asked, without its port.
    pub host: Arc<str>,
    /// Of the answer that the client got; 0 where it got none.
    pub status: u16,
    /// Of a gRPC answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
    /// How often it was sent again.
    #[serde(default)]
    pub retries: u32,
    /// The rule that matched: its name, or that of its route with its index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// The endpoint that gave the answer, or was asked last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<SocketAddr>,
}

/// One connection, or one request where it has [`FlowEvent::http`], recorded when it has
/// ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEvent {
    /// When it ended.
    pub time: Timestamp,
    /// The node that reports.
    pub node: Arc<str>,
    /// Which side.
    pub direction: Direction,
    /// The client.
    pub source: Source,
    /// The server.
    pub destination: Destination,
    /// What it carried.
    pub protocol: FlowProtocol,
    /// How it crossed the network.
    pub tls: TlsState,
    /// How it ended.
    pub verdict: Verdict,
    /// Why, in a fixed word such as `closed`, `policy_denied`, `mtls_required`,
    /// `connect_refused`; a longer text may follow after `: `.
    pub reason: String,
    /// `namespace/name` of the policy that decided, with its rule: `shop/allow-web#0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Arc<str>>,
    /// Dry-run and AUDIT policies that matched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audit: Vec<Arc<str>>,
    /// Application bytes from client to server; of a request those of its body.
    pub bytes_sent: u64,
    /// Application bytes from server to client; of a request those of the answer's body.
    pub bytes_received: u64,
    /// From accept to end; of a request from its head to the end of the answer.
    pub duration_ms: u64,
    /// Unique on this node since the agent's start; the same on both nodes of one
    /// connection where the peer is a Fairlead agent. Requests have that of the
    /// connection that they came on.
    pub connection_id: String,
    /// From `TCP_INFO` of the agent's socket on the network hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelStats>,
    /// The request; absent where this is the record of a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpFlow>,
}
