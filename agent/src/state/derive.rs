//! The endpoints of Services, kept up to date.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::claims;
use super::endpoints;
use super::objects::{Endpoint, Pod};
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

impl Writer {
    /// The Services with derived endpoints that select one of the pods.
    pub(super) fn selecting(&self, pods: &[Arc<Pod>]) -> BTreeSet<NamespacedName> {
        let mut found = BTreeSet::new();
        for pod in pods {
            let namespace = &pod.name.namespace;
            let derived = self
                .derived
                .range(NamespacedName::new(Arc::clone(namespace), "")..)
                .take_while(|name| name.namespace == *namespace);
            let selecting = derived.filter(|name| {
                let service = self.snapshot.services.get(*name);
                service.is_some_and(|service| endpoints::selects(service, pod))
            });
            found.extend(selecting.cloned());
        }
        found
    }

    /// The Services that select a pod whose claim to one of the addresses may come
    /// into force, or be out of force, by what happens to another's claim.
    pub(super) fn services_of_claimants(&self, ips: &BTreeSet<IpAddr>) -> BTreeSet<NamespacedName> {
        let claimants = ips.iter().flat_map(|ip| self.claimants(*ip).into_owned());
        let pods: Vec<Arc<Pod>> = claimants
            .filter_map(|claimant| self.snapshot.pods.get(claimant.pod()?).cloned())
            .collect();
        self.selecting(&pods)
    }

    /// Writes down whether a Service's endpoints follow from the labels of pods.
    pub(super) fn note_derived(&mut self, name: &NamespacedName) {
        let service = self.snapshot.services.get(name);
        let selects = service.is_some_and(|service| !service.selector.is_empty());
        if selects && !self.slices.contains_key(name) {
            self.derived.insert(name.clone());
        } else {
            self.derived.remove(name);
        }
    }

    /// The endpoints at `ips`, of these Services with derived endpoints, anew.
    pub(super) fn refresh(&mut self, services: &BTreeSet<NamespacedName>, ips: &BTreeSet<IpAddr>) {
        for name in services {
            let Some(service) = self.snapshot.services.get(name).cloned() else {
                continue;
            };
            for port in &service.ports {
                let key = (name.clone(), port.port);
                let added = ips
                    .iter()
                    .flat_map(|ip| self.owners(*ip).map(move |pod| (ip, pod)))
                    .filter(|(_, pod)| endpoints::selects(&service, pod))
                    .filter_map(|(ip, pod)| endpoints::of_pod(&service, port, pod, *ip))
                    .collect();
                let old = self.snapshot.endpoints.get(&key).cloned();
                let new = endpoints::replaced(old.as_deref().unwrap_or_default(), ips, added);
                self.put_endpoints(key, new);
            }
        }
    }

    /// Every endpoint of one Service anew.
    pub(super) fn rebuild(&mut self, name: &NamespacedName) {
        let Some(service) = self.snapshot.services.get(name).cloned() else {
            return;
        };
        for port in &service.ports {
            let endpoints = if let Some(slices) = self.slices.get(name) {
                endpoints::of_slices(port, slices)
            } else {
                let pods = Snapshot::in_namespace(&self.snapshot.pods, &name.namespace);
                let selected = pods
                    .map(|(_, pod)| pod)
                    .filter(|pod| endpoints::selects(&service, pod));
                let derived = selected.flat_map(|pod| {
                    let ips = pod.ips.iter().filter(|ip| self.owns(pod, **ip));
                    ips.filter_map(|ip| endpoints::of_pod(&service, port, pod, *ip))
                });
                endpoints::sorted(derived.collect())
            };
            self.put_endpoints((name.clone(), port.port), endpoints);
        }
    }

    fn put_endpoints(&mut self, key: (NamespacedName, u16), new: Arc<[Endpoint]>) {
        if self.snapshot.endpoints.get(&key) != Some(&new) {
            self.snapshot.endpoints.insert(key, new);
            self.changed = true;
        }
    }

    pub(super) fn owns(&self, pod: &Pod, ip: IpAddr) -> bool {
        self.owners(ip).any(|owner| owner.name == pod.name)
    }

    /// The pods that answer at an address: its owner, or the node's own pods.
    pub(super) fn owners(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Pod>> {
        let owners = claims::owners(&self.claimants(ip), &self.snapshot);
        owners
            .into_iter()
            .filter_map(move |name| self.snapshot.pods.get(&name))
    }
}
