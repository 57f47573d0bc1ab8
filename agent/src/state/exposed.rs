//! Where Services are reached beside their cluster addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::objects::{Problem, Service, ServicePort};
use super::problems::Owner;
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

/// An address of a Service that is not its alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exposed {
    /// A port of an external or a load balancer's address.
    External(SocketAddr),
    /// A port of every node.
    NodePort(u16),
}

impl Exposed {
    /// All of a Service.
    fn of(service: &Service) -> impl Iterator<Item = Self> + '_ {
        let external = service.external_ips.iter().flat_map(|ip| {
            let ports = service.ports.iter();
            ports.map(|port| Self::External(SocketAddr::new(*ip, port.port)))
        });
        let ports = service.ports.iter().filter_map(|port| port.node_port);
        external.chain(ports.map(Self::NodePort))
    }

    /// The port of the Service that it leads to.
    pub fn port(self, service: &Service) -> Option<&ServicePort> {
        service.ports.iter().find(|port| match self {
            Self::External(address) => port.port == address.port(),
            Self::NodePort(number) => port.node_port == Some(number),
        })
    }
}

impl Snapshot {
    /// Where an address leads that is neither a pod's nor a Service's own, and the Services
    /// that claim it: none, one, or several, and then it is nobody's.
    pub fn exposed_at(&self, address: SocketAddr) -> Option<(Exposed, &[NamespacedName])> {
        let external = Exposed::External(address);
        let node_port = Exposed::NodePort(address.port());
        let is_node = || self.node_addresses.contains(&address.ip());
        let at = |exposed| Some((exposed, &**self.exposed.get(&exposed)?));
        at(external).or_else(|| is_node().then(|| at(node_port)).flatten())
    }
}

impl Writer {
    /// Adds or takes back where a Service is reached.
    pub(super) fn expose(&mut self, service: &Service, add: bool) {
        for exposed in Exposed::of(service) {
            let known = self.snapshot.exposed.get(&exposed);
            let mut names: Vec<_> = known
                .iter()
                .flat_map(|names| names.iter())
                .cloned()
                .collect();
            match (names.binary_search(&service.name), add) {
                (Err(at), true) => names.insert(at, service.name.clone()),
                (Ok(at), false) => drop(names.remove(at)),
                (Ok(_), true) | (Err(_), false) => {}
            }
            self.report_exposed(exposed, &names);
            if names.is_empty() {
                self.snapshot.exposed.remove(&exposed);
            } else {
                self.snapshot.exposed.insert(exposed, Arc::from(names));
            }
        }
    }

    /// Whether pods of the node's own network, and nobody else, are at the address.
    pub(super) fn note_node_address(&mut self, ip: IpAddr, is_node: bool) {
        if is_node {
            self.snapshot.node_addresses.insert(ip);
        } else {
            self.snapshot.node_addresses.remove(&ip);
        }
    }

    fn report_exposed(&mut self, exposed: Exposed, names: &[NamespacedName]) {
        let key = |name: &NamespacedName| ObjectKey {
            kind: ObjectKind::Service,
            name: name.clone(),
        };
        let (field, what) = match exposed {
            Exposed::External(address) => ("spec.externalIPs", address.to_string()),
            Exposed::NodePort(port) => ("spec.ports", format!("node port {port}")),
        };
        let problem = |name: &NamespacedName| -> Problem {
            let others: Vec<String> = names
                .iter()
                .filter(|other| *other != name)
                .map(|other| key(other).to_string())
                .collect();
            let message = format!(
                "{what} is claimed by {} too: nothing is sent there until one of them lets go",
                others.join(", ")
            );
            self.problem(&key(name), field, message)
        };
        let problems = if names.len() > 1 {
            names.iter().map(problem).collect()
        } else {
            Vec::new()
        };
        self.report(Owner::Exposed(exposed), problems);
    }
}
