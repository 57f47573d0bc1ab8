//! How the agent is, as `fairlead status -o json` prints it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The agent and its parts at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The node that it serves.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The mesh that it belongs to.
    pub trust_domain: String,
    /// When the agent started.
    pub started: Timestamp,
    /// When this was said.
    pub now: Timestamp,
    /// Why it is not ready to serve; empty when it is.
    pub not_ready: Vec<String>,
    /// Where objects come from.
    pub source: SourceStatus,
    /// The kernel side.
    pub kernel: KernelStatus,
    /// The pods of this node that are to be meshed.
    pub pods: Vec<PodStatus>,
    /// The certificates of this node.
    pub certificates: Vec<CertificateRow>,
    /// What carries connections.
    #[serde(default)]
    pub proxy: ProxyStatus,
    /// The records of connections.
    pub flows: FlowStatus,
    /// What needs somebody's attention.
    pub problems: Vec<StatusProblem>,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// As it was given: `dir:/etc/fairlead`.
    pub name: String,
    /// It has been read in full at least once.
    pub synced: bool,
    /// It can be read now.
    pub healthy: bool,
    /// What it said last, where it is not healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Until when everything in it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Timestamp>,
    /// Since when the API server can't be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<Timestamp>,
    /// Objects in force, by kind.
    #[serde(default)]
    pub objects: BTreeMap<String, usize>,
    /// The watches of an API server.
    #[serde(default)]
    pub watches: Vec<WatchStatus>,
    /// Counts the changes that were taken.
    pub revision: u64,
    /// How many pods it knows.
    pub pods: usize,
    /// How many Services it knows.
    pub services: usize,
    /// How many policies it knows.
    pub policies: usize,
}

/// The watch of one kind of an API server's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchStatus {
    /// The kind.
    pub kind: String,
    /// The API server has it.
    pub installed: bool,
    /// Since when what is known of it is old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind_since: Option<Timestamp>,
    /// How often it was made again.
    pub restarts: u64,
    /// How often everything was read once more, by reason.
    pub relists: BTreeMap<String, u64>,
}

/// The kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// `uname -r`.
    pub release: String,
    /// What was looked for and whether it is there.
    pub features: Vec<KernelFeature>,
    /// What the programs counted.
    pub counters: BTreeMap<String, u64>,
    /// Events that the kernel could not hand over.
    pub events_dropped: u64,
}

/// Something that the agent needs of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFeature {
    /// Its name.
    pub name: String,
    /// It is there.
    pub available: bool,
    /// What was seen.
    pub detail: String,
    /// What to do where it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How far a pod's enrolment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Its connections are carried.
    Enrolled,
    /// It is about to be.
    Pending,
    /// It could not be; tried again.
    Failed,
    /// It left, and its last connections end.
    Leaving,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its identity.
    pub identity: String,
    /// How far it is.
    pub state: PodState,
    /// Since when.
    pub since: Timestamp,
    /// How many of its connections the agent carries.
    pub open_connections: u64,
    /// How many were refused because it had too many.
    #[serde(default)]
    pub refused_connections: u64,
    /// Connections from before the enrolment, which are not carried.
    pub bypassing: Vec<String>,
    /// Processes in its network namespace whose connections no hook sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<u32>,
    /// Why it could not be enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A certificate of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// Whose it is.
    pub identity: String,
    /// `valid`, `stale` (valid, but renewing it failed), `fetching` or `missing`.
    pub state: String,
    /// Its serial number in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Who signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// From when it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Until when it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// What the authority said last, where it refused or was away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What carries connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyStatus {
    /// Pooled connections to other nodes.
    pub tunnels: usize,
    /// Times that the kernel had no descriptor or memory to accept a connection.
    pub accept_exhausted: u64,
    /// Tunnels that were reset because too many were being set up at once.
    pub handshakes_shed: u64,
    /// Requests refused because no pod is known at the peer's address.
    #[serde(default)]
    pub unknown_peers: u64,
}

/// The records of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Connections that are open now.
    pub open: u64,
    /// Records that were lost because too many came at once.
    pub dropped: u64,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Something works otherwise than it was meant.
    Warning,
}

/// Something that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StatusProblem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a file, an object, a pod.
    pub subject: String,
    /// What is wrong and what to do.
    pub message: String,
}
