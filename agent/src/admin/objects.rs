//! Objects as the agent sees them, as `fairlead get -o json` prints them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::routing::{
    EndpointRow, RouteRow, TrafficPolicyRow, endpoints, routes, traffic_policies,
};
use super::status::CertificateRow;
use super::view::View;
use crate::state::{AuthorizationPolicy, Endpoint, MeshPolicy, Pod, PodPhase, Service, Snapshot};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pods.
    Workloads,
    /// Services and their endpoints.
    Services,
    /// Endpoints of Services, with their health and load as this node sees them.
    Endpoints,
    /// Routes, with their rules and back ends.
    Routes,
    /// Policies of authorization and of the mesh.
    Policies,
    /// `TrafficPolicies`.
    TrafficPolicies,
    /// Certificates of this node.
    Certificates,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Workloads,
        Self::Services,
        Self::Endpoints,
        Self::Routes,
        Self::Policies,
        Self::TrafficPolicies,
        Self::Certificates,
    ];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Workloads => "workloads",
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::Routes => "routes",
            Self::Policies => "policies",
            Self::TrafficPolicies => "traffic-policies",
            Self::Certificates => "certificates",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().find(|kind| kind.as_str() == text);
        known.copied().ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("\"{text}\" is none of {}", all.join(", "))
        })
    }
}

/// One listed object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Object {
    /// A pod.
    Workload(WorkloadRow),
    /// A Service.
    Service(ServiceRow),
    /// An endpoint of a Service.
    Endpoint(EndpointRow),
    /// A route.
    Route(RouteRow),
    /// A policy.
    Policy(PolicyRow),
    /// A `TrafficPolicy`.
    TrafficPolicy(TrafficPolicyRow),
    /// A certificate.
    Certificate(CertificateRow),
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadRow {
    /// Its namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The workload that owns it.
    pub workload: String,
    /// Where it runs.
    pub node: Option<String>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its identity.
    pub identity: String,
    /// It can be sent new connections.
    pub ready: bool,
    /// The mesh carries its traffic.
    pub meshed: bool,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses; none for a headless Service.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortRow>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortRow {
    /// Its name; empty where it has none.
    pub name: String,
    /// The port that clients dial.
    pub port: u16,
    /// Who serves it.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// Who serves a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// It can be sent new connections.
    pub ready: bool,
    /// The pod, as `namespace/name`, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// `AuthorizationPolicy` or `MeshPolicy`.
    pub policy: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it applies to, in words.
    pub applies_to: String,
    /// What it does, in words: `ALLOW`, `DENY (dry run)`, `mTLS STRICT`.
    pub action: String,
    /// What of it was not understood; it denies until that is mended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// The policy as the agent understood it.
    pub spec: serde_json::Value,
}

/// The objects of one kind, of one namespace or (empty) of all, in the order of their names.
pub(super) fn list(kind: Kind, namespace: &str, view: &dyn View) -> Vec<Object> {
    let table = view.table();
    let snapshot = table.snapshot();
    let wanted = |of: &str| namespace.is_empty() || namespace == of;
    let pods = || {
        let pods = snapshot.pods.values();
        pods.filter(|pod| wanted(&pod.name.namespace) && pod.phase == PodPhase::Running)
    };
    match kind {
        Kind::Workloads => pods().map(|pod| workload(pod)).collect(),
        Kind::Services => snapshot
            .services
            .values()
            .filter(|service| wanted(&service.name.namespace))
            .map(|it| service(it, snapshot))
            .collect(),
        Kind::Policies => {
            let authorization = snapshot.authorization_policies.values();
            let mesh = snapshot.mesh_policies.values();
            authorization
                .filter(|policy| wanted(&policy.name.namespace))
                .map(|policy| authorization_policy(policy))
                .chain(
                    mesh.filter(|policy| wanted(&policy.name.namespace))
                        .map(|policy| mesh_policy(policy)),
                )
                .collect()
        }
        Kind::Endpoints => endpoints(namespace, snapshot, view),
        Kind::Routes => routes(namespace, snapshot),
        Kind::TrafficPolicies => traffic_policies(namespace, snapshot),
        Kind::Certificates => view
            .status()
            .certificates
            .into_iter()
            .filter(|it| namespace.is_empty() || it.identity.contains(&format!("/ns/{namespace}/")))
            .map(Object::Certificate)
            .collect(),
    }
}

fn workload(pod: &Pod) -> Object {
    Object::Workload(WorkloadRow {
        namespace: pod.name.namespace.to_string(),
        pod: pod.name.name.to_string(),
        workload: pod.workload.to_string(),
        node: pod.node.as_ref().map(ToString::to_string),
        ips: pod.ips.clone(),
        identity: if pod.has_identity() {
            pod.identity.to_string()
        } else {
            String::new()
        },
        ready: pod.ready,
        meshed: pod.enrolled,
    })
}

fn service(service: &Service, snapshot: &Snapshot) -> Object {
    let endpoint = |it: &Endpoint| ServiceEndpoint {
        ip: it.ip,
        port: it.port,
        ready: it.ready,
        pod: snapshot
            .pods_by_ip
            .get(&it.ip)
            .map(|pod| pod.name.to_string()),
    };
    let ports = service.ports.iter().map(|port| {
        let key = (service.name.clone(), port.port);
        let endpoints = snapshot.endpoints.get(&key);
        ServicePortRow {
            name: port.name.to_string(),
            port: port.port,
            endpoints: endpoints.map_or_else(Vec::new, |all| all.iter().map(endpoint).collect()),
        }
    });
    Object::Service(ServiceRow {
        namespace: service.name.namespace.to_string(),
        name: service.name.name.to_string(),
        cluster_ips: service.cluster_ips.clone(),
        ports: ports.collect(),
    })
}

fn authorization_policy(policy: &AuthorizationPolicy) -> Object {
    let action = policy.action;
    let dry_run = if policy.dry_run { " (dry run)" } else { "" };
    Object::Policy(PolicyRow {
        policy: "AuthorizationPolicy".to_owned(),
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        applies_to: policy.scope.to_string(),
        action: format!("{action}{dry_run}"),
        invalid: policy.invalid.clone(),
        spec: serde_json::to_value(policy).unwrap_or_default(),
    })
}

fn mesh_policy(policy: &MeshPolicy) -> Object {
    let mut action = match policy.mtls {
        Some(mode) => format!("mTLS {mode}"),
        None => "mTLS inherited".to_owned(),
    };
    for (port, mode) in &policy.port_mtls {
        action = format!("{action}, {mode} on {port}");
    }
    if let Some(log) = policy.access_log {
        action = format!("{action}, access log {log}");
    }
    Object::Policy(PolicyRow {
        policy: "MeshPolicy".to_owned(),
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        applies_to: policy.scope.to_string(),
        action,
        invalid: policy.invalid.clone(),
        spec: serde_json::to_value(policy).unwrap_or_default(),
    })
}
