//! The endpoints of Services, kept up to date.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::endpoints;
use super::objects::{Endpoint, Pod};
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

impl Writer {
    /// The Services with derived endpoints that select one of the pods.
    pub(super) fn selecting(&self, pods: &[Arc<Pod>]) -> BTreeSet<NamespacedName> {
        let mut found = BTreeSet::new();
        for pod in pods {
            let services = Snapshot::in_namespace(&self.snapshot.services, &pod.name.namespace);
            let selecting = services.filter(|(name, service)| {
                !self.slices.contains_key(*name) && endpoints::selects(service, pod)
            });
            found.extend(selecting.map(|(name, _)| name.clone()));
        }
        found
    }

    /// The Services that select a pod whose claim to one of the addresses may come
    /// into force, or be out of force, by what happens to another's claim.
    pub(super) fn services_of_claimants(&self, ips: &BTreeSet<IpAddr>) -> BTreeSet<NamespacedName> {
        let contested = ips
            .iter()
            .filter_map(|ip| self.claims.get(ip))
            .filter(|claims| !claims.is_empty());
        let names = contested.flat_map(|claims| claims.pods.iter().chain(&claims.host_pods));
        let pods: Vec<Arc<Pod>> = names
            .filter_map(|name| self.snapshot.pods.get(name).cloned())
            .collect();
        self.selecting(&pods)
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
        let claims = self.claims.get(&ip);
        let names = claims
            .into_iter()
            .flat_map(|claims| claims.sole_pod().into_iter().chain(&claims.host_pods));
        names.filter_map(|name| self.snapshot.pods.get(name))
    }
}
