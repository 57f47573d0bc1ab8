//! Who owns which address.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Writer;
use super::change::{ObjectKey, ObjectKind};
use super::objects::{Pod, PodPhase, Problem};
use super::problems::Owner;
use crate::model::NamespacedName;

/// Who says that an address is theirs.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) pods: BTreeSet<NamespacedName>,
    pub(super) services: BTreeSet<NamespacedName>,
    /// Pods in the node's own network, which share the node's address.
    pub(super) host_pods: BTreeSet<NamespacedName>,
}

impl Writer {
    /// Adds or takes back what a pod claims.
    pub(super) fn claim(&mut self, pod: &Pod, add: bool) {
        if pod.phase == PodPhase::Finished {
            return;
        }
        for ip in &pod.ips {
            let claims = self.claims.entry(*ip).or_default();
            let names = if pod.host_network {
                &mut claims.host_pods
            } else {
                &mut claims.pods
            };
            if add {
                names.insert(pod.name.clone());
            } else {
                names.remove(&pod.name);
            }
        }
    }

    /// Writes down who owns each address, if anyone.
    pub(super) fn settle(&mut self, ips: &BTreeSet<IpAddr>) {
        for ip in ips {
            self.settle_one(*ip);
        }
    }

    fn settle_one(&mut self, ip: IpAddr) {
        let Some(claims) = self.claims.get(&ip) else {
            return;
        };
        let pod = claims
            .sole_pod()
            .and_then(|name| self.snapshot.pods.get(name));
        match pod {
            Some(pod) => self.snapshot.pods_by_ip.insert(ip, Arc::clone(pod)),
            None => self.snapshot.pods_by_ip.remove(&ip),
        };
        let service = claims.sole_service();
        match service.and_then(|name| self.snapshot.services.get(name)) {
            Some(service) => self.snapshot.services_by_ip.insert(ip, Arc::clone(service)),
            None => self.snapshot.services_by_ip.remove(&ip),
        };
        let claimants = if claims.contested() {
            claims.all()
        } else {
            Vec::new()
        };
        if claims.is_empty() {
            self.claims.remove(&ip);
        }
        let problems = claimants
            .iter()
            .map(|key| self.contested_problem(ip, key, &claimants));
        let problems = problems.collect();
        if claimants.is_empty() {
            self.snapshot.contested.remove(&ip);
        } else {
            let names = claimants.into_iter().map(|key| key.name).collect();
            self.snapshot.contested.insert(ip, names);
        }
        self.report(Owner::Address(ip), problems);
    }

    fn contested_problem(&self, ip: IpAddr, key: &ObjectKey, all: &[ObjectKey]) -> Problem {
        let others: Vec<String> = all
            .iter()
            .filter(|other| *other != key)
            .map(ToString::to_string)
            .collect();
        let field = match key.kind {
            ObjectKind::Service => "spec.clusterIPs",
            _ => "status.podIPs",
        };
        let others = others.join(", ");
        let message = format!(
            "{ip} is claimed by {others} too: nothing is sent there until one of them lets go"
        );
        self.problem(key, field, message)
    }
}

impl Claims {
    pub(super) fn contested(&self) -> bool {
        self.pods.len() + self.services.len() > 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.services.is_empty() && self.host_pods.is_empty()
    }

    pub(super) fn sole_pod(&self) -> Option<&NamespacedName> {
        self.pods.first().filter(|_| !self.contested())
    }

    pub(super) fn sole_service(&self) -> Option<&NamespacedName> {
        self.services.first().filter(|_| !self.contested())
    }

    fn all(&self) -> Vec<ObjectKey> {
        let key = |kind, name: &NamespacedName| ObjectKey {
            kind,
            name: name.clone(),
        };
        let pods = self.pods.iter().map(|name| key(ObjectKind::Pod, name));
        let services = self
            .services
            .iter()
            .map(|name| key(ObjectKind::Service, name));
        pods.chain(services).collect()
    }
}
