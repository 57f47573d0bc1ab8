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
    /// What becomes of the request; absent where only the connection was asked about. Then
    /// the candidates and servers are those of all of its back ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestSteps>,
    /// What the client's node writes of it in its access log; empty: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_log: Vec<AccessLogStep>,
    /// The end of it.
    pub outcome: Outcome,
}

/// A request to ask about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestQuestion {
    /// Its method; GET where absent.
    pub method: Option<String>,
    /// Its path, with a query where it has one; `/` where absent.
    pub path: Option<String>,
    /// The host that it names; that of the destination where absent.
    pub host: Option<String>,
    /// Its headers.
    pub headers: Vec<(String, String)>,
}

/// What becomes of a request on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSteps {
    /// Its method.
    pub method: String,
    /// Its path, with its query.
    pub path: String,
    /// The host that it names.
    pub host: String,
    /// What is spoken on the port, in a sentence.
    pub protocol: String,
    /// Requests are looked at; where not, only the connection counts.
    pub looked_at: bool,
    /// Whose routes hold, in a sentence.
    pub routes: String,
    /// Matches of routes; the one that is taken is the first.
    pub rules: Vec<RuleCandidate>,
    /// Matches that are not told of.
    pub more_rules: usize,
    /// What the rule does to the request and its answer, in sentences.
    pub filters: Vec<String>,
    /// Where it may go.
    pub backends: Vec<BackendStep>,
}

/// A match of a rule of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCandidate {
    /// `HTTPRoute shop/web#0`, or its name in place of its number.
    pub rule: String,
    /// What it matches, in words.
    pub wants: String,
    /// It matches the request.
    pub matches: bool,
    /// It is the one that is taken.
    pub chosen: bool,
    /// Why, or why not.
    pub why: String,
}

/// A back end of the rule, or the Service itself where there is no route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendStep {
    /// The Service.
    pub service: Option<NamespacedName>,
    /// Its port.
    pub port: u16,
    /// Its share of the rule's requests, in percent, rounded.
    pub percent: u32,
    /// Why its share gets 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// What it alone does to the request and its answer.
    pub filters: Vec<String>,
    /// What holds for the traffic to it; absent where that is not decided here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficStep>,
    /// Its endpoints.
    pub candidates: Vec<Candidate>,
}

/// What holds for the traffic to a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStep {
    /// The `TrafficPolicies` in force, the one that comes first first.
    pub policies: Vec<NamespacedName>,
    /// What they and the defaults come to, in sentences.
    pub settings: Vec<String>,
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
    /// Every `AuthorizationPolicy` in reach of the pod.
    pub policies: Vec<PolicyStep>,
    /// What else is asked of the request before it may go on, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
    /// The verdict; `None` where the mesh enforces nothing.
    pub decision: Option<Decision>,
    /// Why nothing is enforced; empty where something is.
    pub unenforced: String,
    /// What the pod's node writes of it in its access log; empty: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_log: Vec<AccessLogStep>,
}

/// What is written in an access log, and who says so. Something is where any of several does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLogStep {
    /// The `MeshPolicy`, `namespace/name`.
    pub policy: Arc<str>,
    /// What, and which part of it, in words.
    pub writes: String,
}

/// Whether a port takes plaintext, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MtlsStep {
    /// The mode.
    pub mode: MtlsMode,
    /// The `MeshPolicy`; `None` for the default.
    pub policy: Option<Arc<str>>,
}

/// One `AuthorizationPolicy`.
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
    /// The status of the answer, where the mesh gives it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
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
    /// The mesh itself answers the request: no route, a redirect, a back end that is not
    /// there.
    Answered,
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
