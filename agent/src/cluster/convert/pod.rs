//! Pods.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::lean::{self, Labels, Metadata, PodSpec, PodStatus, label};
use super::{Converter, FieldPath, FieldProblem, NetnsFrom, Outcome, is_dns_name};
use super::{mesh_label, problem};
use crate::model::{NamespacedName, NodeName, SpiffeId};
use crate::state::{Dict, MESH_LABEL, Pod, PodPhase};

const NETNS: &str = "fairlead.dev/netns";
const EXCLUDE_OUTBOUND_PORTS: &str = "fairlead.dev/exclude-outbound-ports";
const EXCLUDE_OUTBOUND_CIDRS: &str = "fairlead.dev/exclude-outbound-cidrs";
const EXCLUDE_INBOUND_PORTS: &str = "fairlead.dev/exclude-inbound-ports";
const OPAQUE_PORTS: &str = "fairlead.dev/opaque-ports";
const CLOSE_EXISTING: &str = "fairlead.dev/close-existing";

pub(super) fn convert(
    object: lean::Pod<'_>,
    name: NamespacedName,
    converter: &Converter,
) -> Outcome<Pod> {
    let metadata = object.metadata.unwrap_or_default();
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();
    let account = account(&spec, converter.netns)?;
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
    let none = Labels::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    problems.extend(mesh_label(label(labels, MESH_LABEL)));
    let workload = workload(&metadata, labels, &name);
    let annotations = metadata.annotations.unwrap_or_default();
    let netns = match converter.netns {
        NetnsFrom::Annotation => annotations.netns.as_deref(),
        NetnsFrom::Node => None,
    };
    let mut read = Annotations(&mut problems);
    let pod = Pod {
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        node: spec
            .node_name
            .as_deref()
            .filter(|node| !node.is_empty())
            .map(|node| NodeName(node.into())),
        ips,
        identity: SpiffeId::new(
            converter.trust_domain.clone(),
            Arc::clone(&name.namespace),
            account,
        ),
        workload,
        phase,
        ready,
        terminating: metadata.deletion_timestamp.is_some(),
        host_network: spec.host_network.unwrap_or(false),
        enrolled: false,
        container_ports: container_ports(&spec),
        netns: read.path(NETNS, netns),
        runtime_class: spec.runtime_class_name.as_deref().map(Into::into),
        static_uid: annotations.static_uid().map(Into::into),
        exclude_outbound_ports: read.list(
            EXCLUDE_OUTBOUND_PORTS,
            annotations.exclude_outbound_ports.as_deref(),
            port,
        ),
        exclude_outbound_cidrs: read.list(
            EXCLUDE_OUTBOUND_CIDRS,
            annotations.exclude_outbound_cidrs.as_deref(),
            block,
        ),
        exclude_inbound_ports: read.list(
            EXCLUDE_INBOUND_PORTS,
            annotations.exclude_inbound_ports.as_deref(),
            port,
        ),
        opaque_ports: read.opaque_ports(&annotations),
        close_existing: read.says_true(CLOSE_EXISTING, annotations.close_existing.as_deref())
            || label(labels, CLOSE_EXISTING) == Some("true"),
        labels: labels
            .iter()
            .map(|(key, value)| (&**key, &**value))
            .collect(),
        name,
    };
    Ok((pod, problems))
}

/// The ports in which nobody looks, of a Service or a namespace.
pub(super) fn opaque_ports(
    metadata: Option<&Metadata<'_>>,
    problems: &mut Vec<FieldProblem>,
) -> Box<[u16]> {
    let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
    let annotations = annotations.map(|it| Annotations(problems).opaque_ports(it));
    annotations.unwrap_or_default()
}

/// The service account's name; empty where the pod is nobody's.
fn account<'s>(spec: &'s PodSpec<'_>, source: NetnsFrom) -> Result<&'s str, FieldProblem> {
    let given = spec.service_account_name.as_deref();
    match (given.filter(|account| !account.is_empty()), source) {
        (Some(account), _) if is_dns_name(account) => Ok(account),
        (Some(account), _) => {
            let message = format!("\"{account}\" can't be the name of a service account");
            Err(problem(&["spec", "serviceAccountName"], message))
        }
        (None, NetnsFrom::Annotation) => Ok("default"),
        // The API server fills in the account of every pod but those that a node says it
        // runs by itself, in whatever namespace it likes.
        (None, NetnsFrom::Node) => Ok(""),
    }
}

/// A manifest written by hand has no status but addresses: it means a pod that runs.
fn is_ready(metadata: &Metadata<'_>, status: &PodStatus<'_>) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = conditions
        .iter()
        .find(|condition| condition.kind.as_deref() == Some("Ready"));
    let ready = if let Some(condition) = condition {
        condition.status.as_deref() == Some("True")
    } else {
        let running = matches!(status.phase.as_deref(), None | Some("" | "Running"));
        conditions.is_empty() && running
    };
    ready && metadata.deletion_timestamp.is_none()
}

fn addresses(status: &PodStatus<'_>, problems: &mut Vec<FieldProblem>) -> Vec<IpAddr> {
    let list = status.ips.as_deref().unwrap_or_default();
    if list.is_empty() {
        let field = || FieldPath::of(&["status", "podIP"]);
        return distinct(status.ip.as_deref().map(|ip| (field, ip)), problems);
    }
    let listed = list.iter().enumerate().filter_map(|(index, ip)| {
        let field = move || FieldPath::of(&["status", "podIPs"]).index(index).key("ip");
        Some((field, ip.ip.as_deref()?))
    });
    distinct(listed, problems)
}

/// Each address once. What is none is reported of its field.
pub(super) fn distinct<'t>(
    texts: impl IntoIterator<Item = (impl Fn() -> FieldPath, &'t str)>,
    problems: &mut Vec<FieldProblem>,
) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        match address(text) {
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(message) => problems.push(FieldProblem {
                field: field(),
                message,
            }),
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

fn container_ports(spec: &PodSpec<'_>) -> Dict<u16> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().flatten().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let named = tcp.filter_map(|port| {
        let name = port.name.as_deref()?;
        let number = u16::try_from(port.number?).ok()?;
        Some((name, number))
    });
    named.collect()
}

/// The controller's name; of a `ReplicaSet`, that of the Deployment that made it.
fn workload(metadata: &Metadata<'_>, labels: &Labels<'_>, name: &NamespacedName) -> Arc<str> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = owners.iter().find(|owner| owner.controller == Some(true));
    let owner = controller.or(owners.first());
    let owner = owner.and_then(|owner| Some((owner.kind.as_deref(), owner.name.as_deref()?)));
    let Some((kind, owner)) = owner else {
        return Arc::clone(&name.name);
    };
    let deployment = label(labels, "pod-template-hash")
        .filter(|_| kind == Some("ReplicaSet"))
        .and_then(|hash| owner.strip_suffix(hash)?.strip_suffix('-'));
    deployment.unwrap_or(owner).into()
}

fn port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

fn block(text: &str) -> Option<IpNet> {
    super::reader::ip_block(text)
}

/// Reads annotations. What makes no sense is reported and left out, so that what it was
/// to exclude stays in the mesh.
struct Annotations<'p>(&'p mut Vec<FieldProblem>);

impl Annotations<'_> {
    fn list<T>(&mut self, key: &str, text: Option<&str>, parse: fn(&str) -> Option<T>) -> Box<[T]> {
        let items = text.into_iter().flat_map(|text| text.split(','));
        let mut list = Vec::new();
        for item in items.map(str::trim).filter(|item| !item.is_empty()) {
            match parse(item) {
                Some(item) => list.push(item),
                None => self.report(key, format!("\"{item}\" makes no sense and is left out")),
            }
        }
        list.into()
    }

    fn opaque_ports(&mut self, of: &lean::Annotations<'_>) -> Box<[u16]> {
        self.list(OPAQUE_PORTS, of.opaque_ports.as_deref(), port)
    }

    fn path(&mut self, key: &str, text: Option<&str>) -> Option<PathBuf> {
        let path = PathBuf::from(text?);
        if path.is_absolute() {
            return Some(path);
        }
        self.report(key, "must be an absolute path".to_owned());
        None
    }

    fn says_true(&mut self, key: &str, text: Option<&str>) -> bool {
        match text {
            Some("true") => true,
            None | Some("false") => false,
            Some(text) => {
                self.report(key, format!("\"{text}\" is neither \"true\" nor \"false\""));
                false
            }
        }
    }

    fn report(&mut self, key: &str, message: String) {
        self.0
            .push(problem(&["metadata", "annotations", key], message));
    }
}
