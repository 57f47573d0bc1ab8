//! The answer to "what becomes of this connection, and why".

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::authorization::Decision;
use crate::model::{NamespacedName, SpiffeId};
use crate::state::{Action, MtlsMode, Pod};

/// What would become of a connection, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The client.
    pub source: PodSummary,
    /// The destination, as it was asked for.
    pub destination: String,
    /// The Service that it is an address or name of.
    pub service: Option<NamespacedName>,
    /// How the destination was found, in sentences.
    pub resolution: Vec<String>,
    /// Every back end that was considered.
    pub candidates: Vec<Candidate>,
    /// What each back end that could be chosen makes of the connection.
    pub servers: Vec<Server>,
    /// The end of it.
    pub outcome: Outcome,
}

/// A pod, in brief.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSummary {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its node.
    pub node: Option<Arc<str>>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Who it is to its peers, if it is enrolled; `None` without a service account.
    pub identity: Option<SpiffeId>,
    /// The mesh carries its traffic.
    pub enrolled: bool,
}

/// A back end that was considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its address and port.
    pub address: SocketAddr,
    /// It may be sent new connections.
    pub ready: bool,
    /// The pod that owns the address.
    pub pod: Option<NamespacedName>,
    /// Why it is not chosen; empty where it can be.
    pub skipped: String,
}

/// What one back end makes of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// The pod.
    pub pod: PodSummary,
    /// The application's port.
    pub port: u16,
    /// `mtls`, `same node` or `plaintext`.
    pub transport: Cow<'static, str>,
    /// Why it is plaintext; `None` where it is not.
    pub plaintext_because: Option<Cow<'static, str>>,
    /// Whether the pod takes plaintext there.
    pub mtls: MtlsStep,
    /// Every AuthorizationPolicy in reach of the pod.
    pub policies: Vec<PolicyStep>,
    /// The verdict; `None` where the mesh enforces nothing.
    pub decision: Option<Decision>,
    /// Why nothing is enforced; empty where something is.
    pub unenforced: String,
}

/// Whether a port takes plaintext, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsStep {
    /// The mode.
    pub mode: MtlsMode,
    /// The MeshPolicy; `None` for the default.
    pub policy: Option<Arc<str>>,
}

/// One AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStep {
    /// `namespace/name`.
    pub policy: Arc<str>,
    /// What it does.
    pub action: Action,
    /// It is not enforced.
    pub dry_run: bool,
    /// It selects the pod.
    pub selects: bool,
    /// Why it selects the pod, or why not.
    pub scope: String,
    /// What of it was not understood.
    pub invalid: Option<String>,
    /// Its rules; empty where it does not select the pod.
    pub rules: Vec<RuleStep>,
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStep {
    /// From 0.
    pub index: usize,
    /// It matches the connection.
    pub matches: bool,
    /// By which clauses, or why not.
    pub why: String,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In a word.
    pub verdict: Verdict,
    /// In a fixed word, the same as in flows.
    pub reason: Option<String>,
    /// The policy and rule that decided.
    pub policy: Option<Arc<str>>,
}

/// How it ends, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Permitted.
    Permitted,
    /// A policy refuses it.
    Denied,
    /// Some back ends take it and others don't.
    Depends,
    /// There is nobody to take it.
    Unavailable,
    /// It leaves the mesh in plaintext.
    Passthrough,
}

impl PodSummary {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            name: pod.name.clone(),
            node: pod.node.as_ref().map(|node| Arc::clone(&node.0)),
            ips: pod.ips.clone(),
            identity: pod.has_identity().then(|| pod.identity.clone()),
            enrolled: pod.enrolled,
        }
    }
}
