//! Which protocol is spoken on a port, as far as anybody has said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::table::Table;
use crate::model::{NamespacedName, NodeName};
use crate::state::{Pod, Service, ServicePort, Snapshot, TargetPort};

/// The protocol of a port, as declared. Between the kinds of HTTP the client's first bytes
/// decide in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// Nobody has said: the first bytes tell, if the client is the first to speak.
    #[default]
    Detect,
    /// Bytes, in which nobody looks.
    Opaque,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// TLS of the application's own.
    Tls,
}

impl AppProtocol {
    /// A kind of HTTP is declared.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2 | Self::Grpc)
    }

    /// Of a Service's port: the annotation, else `appProtocol`, else the port's name.
    fn of(service: &Service, port: &ServicePort) -> Self {
        if service.opaque_ports.contains(&port.port) {
            return Self::Opaque;
        }
        match &port.app_protocol {
            // A protocol that is not known may be anything.
            Some(declared) => Self::named(declared).unwrap_or_default(),
            None => Self::of_port_name(&port.name),
        }
    }

    fn named(protocol: &str) -> Option<Self> {
        let protocol = protocol.to_ascii_lowercase();
        let protocol = protocol.strip_prefix("kubernetes.io/").unwrap_or(&protocol);
        Some(match protocol {
            "http" | "ws" | "grpc-web" => Self::Http1,
            "http2" | "h2c" => Self::Http2,
            "grpc" => Self::Grpc,
            "tls" | "https" | "wss" => Self::Tls,
            // Servers of these speak first, or not in a way that is read here.
            "tcp" | "mongo" | "mysql" | "redis" | "postgres" => Self::Opaque,
            _ => return None,
        })
    }

    /// `http`, `http-web`: the protocol, and whatever else after a dash.
    fn of_port_name(name: &str) -> Self {
        if name == "grpc-web" || name.starts_with("grpc-web-") {
            return Self::Http1;
        }
        let (protocol, _) = name.split_once('-').unwrap_or((name, ""));
        Self::named(protocol).unwrap_or_default()
    }
}

/// What Services say of the ports of pods: for each pod of the node, by port.
#[derive(Clone, Debug, Default)]
pub(super) struct PodProtocols(OrdMap<NamespacedName, Arc<BTreeMap<u16, AppProtocol>>>);

impl PodProtocols {
    /// Follows from one snapshot to the next. A change of a Service costs what the node's
    /// pods behind it cost.
    pub(super) fn update(&mut self, node: &NodeName, old: &Snapshot, new: &Snapshot) {
        let mut changed: BTreeSet<NamespacedName> = BTreeSet::new();
        if !new.same_for_node(old, node) {
            let before = old.pods_of_node(node);
            for pod in new.pods_of_node(node) {
                let at = before.binary_search_by(|other| other.name.cmp(&pod.name));
                if !at.is_ok_and(|at| Arc::ptr_eq(&before[at], pod)) {
                    changed.insert(pod.name.clone());
                }
            }
            changed.extend(before.iter().map(|pod| pod.name.clone()).filter(|name| {
                let pod = new.pods.get(name);
                pod.is_none_or(|pod| pod.node.as_ref() != Some(node))
            }));
        }
        for change in old.services.diff(&new.services) {
            let versions = match change {
                DiffItem::Add(_, service) | DiffItem::Remove(_, service) => vec![service],
                DiffItem::Update {
                    old: (_, old),
                    new: (_, new),
                } => vec![old, new],
            };
            for service in versions {
                let behind = new.pods_of_node(node).iter();
                let behind = behind.filter(|pod| is_behind(pod, service));
                changed.extend(behind.map(|pod| pod.name.clone()));
            }
        }
        for name in changed {
            let local = new.pods.get(&name);
            let local = local.filter(|pod| pod.node.as_ref() == Some(node));
            let protocols = local.map(|pod| of_pod(new, pod)).unwrap_or_default();
            if protocols.is_empty() {
                self.0.remove(&name);
            } else {
                self.0.insert(name, Arc::new(protocols));
            }
        }
    }
}

/// What the Services say that lead to a pod. Where they differ, nothing is said.
fn of_pod(snapshot: &Snapshot, pod: &Pod) -> BTreeMap<u16, AppProtocol> {
    let services = Snapshot::in_namespace(&snapshot.services, &pod.name.namespace);
    let mut said: BTreeMap<u16, AppProtocol> = BTreeMap::new();
    for (_, service) in services.filter(|(_, service)| is_behind(pod, service)) {
        for port in &service.ports {
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.container_ports.get(name).copied(),
            };
            let Some(number) = number else { continue };
            let protocol = AppProtocol::of(service, port);
            let one = said.entry(number).or_insert(protocol);
            if *one != protocol {
                *one = AppProtocol::Detect;
            }
        }
    }
    said.retain(|_, protocol| *protocol != AppProtocol::Detect);
    said
}

fn is_behind(pod: &Pod, service: &Service) -> bool {
    service.name.namespace == pod.name.namespace
        && !service.selector.is_empty()
        && pod.labels.contains(&service.selector)
}

impl Table {
    /// What is spoken on a port of a Service.
    pub fn service_protocol(&self, service: &NamespacedName, port: u16) -> AppProtocol {
        let found = self.snapshot().services.get(service);
        let of_port = found.and_then(|found| {
            let port = found.ports.iter().find(|it| it.port == port)?;
            Some(AppProtocol::of(found, port))
        });
        if self.is_opaque(&service.namespace, port) {
            return AppProtocol::Opaque;
        }
        of_port.unwrap_or_default()
    }

    /// What is spoken on a port of a pod, by the Services that lead there.
    pub fn pod_protocol(&self, pod: &Pod, port: u16) -> AppProtocol {
        let namespace = &pod.name.namespace;
        if pod.opaque_ports.contains(&port) || self.is_opaque(namespace, port) {
            return AppProtocol::Opaque;
        }
        let said = if self.decides_for(pod) {
            let PodProtocols(known) = self.protocols();
            let of_pod = known.get(&pod.name);
            of_pod.and_then(|ports| ports.get(&port).copied())
        } else {
            of_pod(self.snapshot(), pod).get(&port).copied()
        };
        said.unwrap_or_default()
    }

    /// The annotation of the namespace says so.
    fn is_opaque(&self, namespace: &str, port: u16) -> bool {
        let found = self.snapshot().namespaces.get(namespace);
        found.is_some_and(|namespace| namespace.opaque_ports.contains(&port))
    }
}
