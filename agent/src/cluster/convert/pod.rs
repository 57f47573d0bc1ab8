//! Pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{FieldPath, FieldProblem, Outcome, is_dns_name, mesh_label, problem};
use crate::model::{NamespacedName, NodeName, SpiffeId, TrustDomain};
use crate::state::{Dict, MESH_LABEL, Pod, PodPhase};

const NETNS: &str = "fairlead.dev/netns";
const EXCLUDE_OUTBOUND_PORTS: &str = "fairlead.dev/exclude-outbound-ports";
const EXCLUDE_OUTBOUND_CIDRS: &str = "fairlead.dev/exclude-outbound-cidrs";
const EXCLUDE_INBOUND_PORTS: &str = "fairlead.dev/exclude-inbound-ports";
const CLOSE_EXISTING: &str = "fairlead.dev/close-existing";

pub(super) fn convert(
    object: core::Pod,
    name: NamespacedName,
    trust_domain: &TrustDomain,
) -> Outcome<Pod> {
    let metadata = object.metadata;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let account = spec
        .service_account_name
        .as_deref()
        .filter(|a| !a.is_empty());
    let account = account.unwrap_or("default");
    if !is_dns_name(account) {
        let message = format!("\"{account}\" can't be the name of a service account");
        return Err(problem(&["spec", "serviceAccountName"], message));
    }
    let mut problems: Vec<FieldProblem> = Vec::new();
    let phase = match status.phase.as_deref() {
        Some("Succeeded" | "Failed") => PodPhase::Finished,
        _ => PodPhase::Running,
    };
    let ready = is_ready(&metadata, &status);
    let ips = addresses(&status, &mut problems);
    if ips.is_empty() && phase == PodPhase::Running && ready {
        let message = "a running and ready pod must have an address: it is left out of the mesh";
        problems.push(problem(&["status", "podIPs"], message));
    }
    let labels = metadata.labels.clone().unwrap_or_default();
    problems.extend(mesh_label(labels.get(MESH_LABEL)));
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let mut annotations = Annotations {
        values: &annotations,
        problems: &mut problems,
    };
    let pod = Pod {
        uid: metadata.uid.clone().unwrap_or_default().into(),
        node: spec
            .node_name
            .as_deref()
            .filter(|node| !node.is_empty())
            .map(|node| NodeName(node.into())),
        ips,
        identity: SpiffeId::new(trust_domain.clone(), Arc::clone(&name.namespace), account),
        workload: workload(&metadata, &labels, &name),
        phase,
        ready,
        terminating: metadata.deletion_timestamp.is_some(),
        host_network: spec.host_network.unwrap_or(false),
        enrolled: false,
        container_ports: container_ports(&spec),
        netns: annotations.path(NETNS),
        exclude_outbound_ports: annotations.list(EXCLUDE_OUTBOUND_PORTS, port),
        exclude_outbound_cidrs: annotations.list(EXCLUDE_OUTBOUND_CIDRS, block),
        exclude_inbound_ports: annotations.list(EXCLUDE_INBOUND_PORTS, port),
        close_existing: annotations.says_true(CLOSE_EXISTING)
            || labels
                .get(CLOSE_EXISTING)
                .is_some_and(|value| value == "true"),
        labels: labels.into(),
        name,
    };
    Ok((pod, problems))
}

/// A manifest written by hand has no status but addresses: it means a pod that runs.
fn is_ready(metadata: &ObjectMeta, status: &core::PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let ready = if let Some(condition) = condition {
        condition.status == "True"
    } else {
        let running = matches!(status.phase.as_deref(), None | Some("" | "Running"));
        conditions.is_empty() && running
    };
    ready && metadata.deletion_timestamp.is_none()
}

fn addresses(status: &core::PodStatus, problems: &mut Vec<FieldProblem>) -> Vec<IpAddr> {
    let list = status.pod_ips.as_deref().unwrap_or_default();
    let listed = list.iter().enumerate().map(|(index, ip)| {
        let path = FieldPath::of(&["status", "podIPs"]).index(index).key("ip");
        (path, ip.ip.as_str())
    });
    let single = status.pod_ip.as_deref().filter(|_| list.is_empty());
    let single = single.map(|ip| (FieldPath::of(&["status", "podIP"]), ip));
    let mut ips = Vec::new();
    for (field, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
        match address(text) {
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(message) => problems.push(FieldProblem { field, message }),
        }
    }
    ips
}

/// An address that a pod or a Service can have.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    let ip = text.parse::<IpAddr>().map(|ip| ip.to_canonical());
    match ip {
        Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        Ok(ip) => Err(format!("{ip} can't be an address of its own")),
        Err(_) => Err(format!("\"{text}\" is not an IP address")),
    }
}

fn container_ports(spec: &core::PodSpec) -> Dict<u16> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let named = tcp.filter_map(|port| {
        let name = port.name.as_deref()?;
        let number = u16::try_from(port.container_port).ok()?;
        Some((name, number))
    });
    named.collect()
}

/// The controller's name; of a `ReplicaSet`, that of the Deployment that made it.
fn workload(
    metadata: &ObjectMeta,
    labels: &BTreeMap<String, String>,
    name: &NamespacedName,
) -> Arc<str> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    let Some(owner) = controller.or(owners.first()) else {
        return Arc::clone(&name.name);
    };
    let hash = labels
        .get("pod-template-hash")
        .map(|hash| format!("-{hash}"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(&hash));
    deployment.unwrap_or(&owner.name).into()
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn block(text: &str) -> Option<IpNet> {
    super::reader::ip_block(text)
}

/// The annotations that the mesh reads. An entry that makes no sense is reported and
/// left out, so that what it was to exclude stays in the mesh.
struct Annotations<'a> {
    values: &'a BTreeMap<String, String>,
    problems: &'a mut Vec<FieldProblem>,
}

impl Annotations<'_> {
    fn list<T>(&mut self, key: &str, parse: fn(&str) -> Option<T>) -> Vec<T> {
        let Some(text) = self.values.get(key) else {
            return Vec::new();
        };
        let mut list = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            match parse(item) {
                Some(item) => list.push(item),
                None => self.report(key, format!("\"{item}\" makes no sense and is left out")),
            }
        }
        list
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        let path = PathBuf::from_str(self.values.get(key)?).ok()?;
        if path.is_absolute() {
            return Some(path);
        }
        self.report(key, "must be an absolute path".to_owned());
        None
    }

    fn says_true(&mut self, key: &str) -> bool {
        match self.values.get(key).map(String::as_str) {
            Some("true") => true,
            None | Some("false") => false,
            Some(text) => {
                self.report(key, format!("\"{text}\" is neither \"true\" nor \"false\""));
                false
            }
        }
    }

    fn report(&mut self, key: &str, message: String) {
        self.problems
            .push(problem(&["metadata", "annotations", key], message));
    }
}
