//! The objects of a [`super::Snapshot`]: what the mesh needs of each, and no more.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::access_log::AccessLog;
use super::dict::Dict;
use super::external::ExternalProvider;
use super::jwt::JwtProvider;
use super::rules::{Condition, PathPattern};
use crate::model::{NamespacedName, NodeName, SpiffeId};

/// A namespace and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Annotation `fairlead.dev/opaque-ports`: of its Services and pods.
    pub opaque_ports: Box<[u16]>,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodPhase {
    /// Scheduled or running: may have traffic. A phase that is not given counts as this.
    Running,
    /// `Succeeded` or `Failed`: its addresses may belong to another pod by now.
    Finished,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, as the manifest states it"
)]
pub struct Pod {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.uid`, empty where the source gives none.
    pub uid: Arc<str>,
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// `status.podIPs`; never empty for a pod that is [`PodPhase::Running`] and enrolled.
    pub ips: Vec<IpAddr>,
    /// Who it is to its peers. Without a service account it is nobody, see
    /// [`Self::has_identity`].
    pub identity: SpiffeId,
    /// `metadata.labels`.
    pub labels: Dict<Arc<str>>,
    /// The owning workload's name, such as the Deployment's, else the pod's own.
    pub workload: Arc<str>,
    /// Life-cycle phase.
    pub phase: PodPhase,
    /// All its containers are ready and it is not being deleted.
    pub ready: bool,
    /// It is being deleted: its address may be given to another pod before it is gone.
    pub terminating: bool,
    /// It runs in the node's own network namespace, and so is never meshed.
    pub host_network: bool,
    /// The mesh is to carry its traffic (labels of namespace and pod, not `host_network`,
    /// running, with an address).
    pub enrolled: bool,
    /// Named TCP ports of its containers, for a Service's `targetPort` by name.
    pub container_ports: Dict<u16>,
    /// Annotation `fairlead.dev/netns`.
    pub netns: Option<PathBuf>,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<Arc<str>>,
    /// What the kubelet calls a static pod, whose object in the API has another UID:
    /// annotation `kubernetes.io/config.hash`.
    pub static_uid: Option<Arc<str>>,
    /// Annotation `fairlead.dev/exclude-outbound-ports`.
    pub exclude_outbound_ports: Box<[u16]>,
    /// Annotation `fairlead.dev/exclude-outbound-cidrs`.
    pub exclude_outbound_cidrs: Box<[IpNet]>,
    /// Annotation `fairlead.dev/exclude-inbound-ports`.
    pub exclude_inbound_ports: Box<[u16]>,
    /// Annotation `fairlead.dev/opaque-ports`: its ports in which nobody looks.
    pub opaque_ports: Box<[u16]>,
    /// Annotation or label `fairlead.dev/close-existing: "true"`: connections from
    /// before the enrolment are closed.
    pub close_existing: bool,
}

impl Pod {
    /// It has a service account. A mirror pod has none: its node alone says that it is
    /// there, so that an identity of its namespace would be the node's to take.
    pub fn has_identity(&self) -> bool {
        !self.identity.service_account.is_empty()
    }

    /// Its processes run on a kernel of their own (Kata, gVisor), whose sockets this
    /// node's kernel never sees. Known by the usual names of such runtime classes.
    pub fn has_own_kernel(&self) -> bool {
        let name = self.runtime_class.as_deref().unwrap_or_default();
        name.starts_with("kata") || name.starts_with("gvisor") || name.starts_with("runsc")
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `spec.clusterIPs`; empty for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, which are whatever its author wrote.
    pub external_ips: Vec<IpAddr>,
    /// The addresses of `status.loadBalancer`, which authors of Services can't write.
    pub balancer_ips: Vec<IpAddr>,
    /// `spec.ports`, TCP only.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty where its EndpointSlices are written by hand.
    pub selector: Dict<Arc<str>>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Annotation `fairlead.dev/opaque-ports`: its ports in which nobody looks.
    pub opaque_ports: Box<[u16]>,
}

/// A port of a [`Service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// `name`, empty where the Service has one unnamed port.
    pub name: Arc<str>,
    /// `port`.
    pub port: u16,
    /// `nodePort`, where every node has one for it.
    pub node_port: Option<u16>,
    /// `targetPort`.
    pub target: TargetPort,
    /// `appProtocol`.
    pub app_protocol: Option<Arc<str>>,
}

/// Where a [`ServicePort`] leads to in the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// The same port of every pod.
    Number(u16),
    /// Whatever port a container of the pod has given this name.
    Name(Arc<str>),
}

/// An EndpointSlice that someone else keeps for a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Label `kubernetes.io/service-name`.
    pub service: Arc<str>,
    /// `ports`: name and number, TCP only.
    pub ports: Vec<(Arc<str>, u16)>,
    /// `endpoints`: the first address of each.
    pub addresses: Vec<SliceAddress>,
}

/// One of the `endpoints` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceAddress {
    /// Its first address.
    pub ip: IpAddr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `nodeName`.
    pub node: Option<NodeName>,
}

impl SliceAddress {
    /// One of which nobody knows where it is.
    pub fn at(ip: IpAddr, ready: bool) -> Self {
        Self {
            ip,
            ready,
            zone: None,
            node: None,
        }
    }
}

/// One address that serves one port of a Service, from an EndpointSlice or derived
/// from the Service's selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// The back end's address.
    pub ip: IpAddr,
    /// The back end's port (`targetPort`, resolved).
    pub port: u16,
    /// May be sent new connections.
    pub ready: bool,
    /// Where it is, as its EndpointSlice says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<Arc<str>>,
}

/// How a policy matches a string: `abc` exactly, `abc*` prefix, `*abc` suffix, `*` presence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StringMatch {
    /// The whole string.
    Exact(String),
    /// Its beginning.
    Prefix(String),
    /// Its end.
    Suffix(String),
    /// Anything that is not empty.
    Present,
}

impl StringMatch {
    /// The text is one of those that are meant.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_str()),
            Self::Present => !text.is_empty(),
        }
    }

    /// The same, whatever the case of ASCII letters.
    pub fn matches_any_case(&self, text: &str) -> bool {
        let (text, same) = (text.as_bytes(), <[u8]>::eq_ignore_ascii_case);
        match self {
            Self::Exact(exact) => same(text, exact.as_bytes()),
            Self::Prefix(prefix) => text
                .get(..prefix.len())
                .is_some_and(|start| same(start, prefix.as_bytes())),
            Self::Suffix(suffix) => text
                .len()
                .checked_sub(suffix.len())
                .is_some_and(|at| same(&text[at..], suffix.as_bytes())),
            Self::Present => !text.is_empty(),
        }
    }
}

/// What an AuthorizationPolicy does where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Permits; and makes what it selects default-deny.
    Allow,
    /// Refuses, before any ALLOW is looked at.
    Deny,
    /// Only leaves a mark in the flow.
    Audit,
    /// Asks a Service, once the others have permitted it.
    Custom,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        })
    }
}

/// Labels that a pod must carry; empty selects every pod of the scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Selector(pub BTreeMap<String, String>);

impl Selector {
    /// The labels contain all of the selector's.
    pub fn matches(&self, labels: &Dict<Arc<str>>) -> bool {
        self.0
            .iter()
            .all(|(key, value)| labels.get(key).is_some_and(|label| **label == **value))
    }
}

/// What a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyScope {
    /// Every workload of the mesh: an object in the root namespace with no selector.
    Mesh,
    /// Pods of the object's own namespace that the selector matches.
    Pods(Selector),
    /// Pods behind these Services of the object's own namespace (`targetRefs`).
    Services(Vec<Arc<str>>),
}

impl fmt::Display for PolicyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("the mesh"),
            Self::Pods(selector) if selector.0.is_empty() => f.write_str("the namespace"),
            Self::Pods(selector) => {
                let labels = selector.0.iter();
                let labels: Vec<String> = labels
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                write!(f, "pods {}", labels.join(","))
            }
            Self::Services(names) => write!(f, "services {}", names.join(",")),
        }
    }
}

/// Sources: each field that is given must match; within a field any of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct From {
    /// SPIFFE ids without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// None of these.
    pub not_principals: Vec<StringMatch>,
    /// Namespaces of the client's identity.
    pub namespaces: Vec<StringMatch>,
    /// None of these.
    pub not_namespaces: Vec<StringMatch>,
    /// Service accounts of the client's identity, as the ends of SPIFFE ids.
    pub service_accounts: Vec<StringMatch>,
    /// None of these.
    pub not_service_accounts: Vec<StringMatch>,
    /// Client addresses.
    pub ip_blocks: Vec<IpNet>,
    /// None of these.
    pub not_ip_blocks: Vec<IpNet>,
    /// Whom a verified token of an end user is of: `issuer/subject`.
    pub request_principals: Vec<StringMatch>,
    /// None of these.
    pub not_request_principals: Vec<StringMatch>,
}

/// Destinations: each field that is given must match; within a field any of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct To {
    /// The port that the application listens on.
    pub ports: Vec<u16>,
    /// None of these.
    pub not_ports: Vec<u16>,
    /// Methods of requests.
    pub methods: Vec<StringMatch>,
    /// None of these.
    pub not_methods: Vec<StringMatch>,
    /// Paths of requests, of gRPC `/package.Service/Method`.
    pub paths: Vec<PathPattern>,
    /// None of these.
    pub not_paths: Vec<PathPattern>,
    /// Hosts that requests are for, whatever the case.
    pub hosts: Vec<StringMatch>,
    /// None of these.
    pub not_hosts: Vec<StringMatch>,
}

/// One rule: any of `from` (or none given), any of `to` (or none given) and all of `when`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Sources.
    pub from: Vec<From>,
    /// Destinations.
    pub to: Vec<To>,
    /// Further conditions.
    pub when: Vec<Condition>,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Which workloads.
    pub scope: PolicyScope,
    /// What it does.
    pub action: Action,
    /// It is only counted and reported, never enforced.
    pub dry_run: bool,
    /// Its rules. None: an ALLOW that permits nothing, a DENY that never matches.
    pub rules: Vec<Rule>,
    /// Whom a CUSTOM asks.
    pub provider: Option<Arc<ExternalProvider>>,
    /// `metadata.generation`: counts the changes of its spec; 0 where the source gives none.
    pub generation: i64,
    /// What of it was not understood. Such a policy denies everything that it
    /// selects, whatever its action says.
    pub invalid: Option<String>,
}

/// Whether a workload takes plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Plaintext and mTLS.
    #[default]
    Permissive,
    /// mTLS only.
    Strict,
}

impl fmt::Display for MtlsMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "PERMISSIVE",
            Self::Strict => "STRICT",
        })
    }
}

/// A MeshPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// Which workloads.
    pub scope: PolicyScope,
    /// `spec.mtls.mode`; `None` inherits from the wider scope.
    pub mtls: Option<MtlsMode>,
    /// `spec.mtls.ports`: per application port, before `mtls`.
    pub port_mtls: BTreeMap<u16, MtlsMode>,
    /// `spec.jwt.providers`: those of all policies that select a workload count.
    pub jwt: Vec<Arc<JwtProvider>>,
    /// `spec.jwt` was not understood, or something that may have been meant to be it: such
    /// a policy denies everything that it selects.
    pub jwt_invalid: bool,
    /// `spec.accessLog`; `None` inherits from the wider scope.
    pub access_log: Option<AccessLog>,
    /// `metadata.generation`: counts the changes of its spec; 0 where the source gives none.
    pub generation: i64,
    /// What of it was not understood. Such a policy is STRICT for what it selects.
    pub invalid: Option<String>,
}

/// Something wrong with one object, for `status` and `lint`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where it was read, such as `shop.yaml`; empty for an API server.
    pub file: String,
    /// The line in that file, from 1; 0 where unknown.
    pub line: usize,
    /// The kind, such as `Pod`; empty where it could not be read.
    pub kind: String,
    /// `namespace/name`; empty where it could not be read.
    pub object: String,
    /// The field's path, such as `spec.rules[0].from`; empty for the whole object.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}
