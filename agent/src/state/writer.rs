//! The one place that changes a [`Snapshot`].

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::change::{Change, Object, ObjectKey, ObjectKind, Origin};
use super::claims::Claimant;
use super::intern::Interner;
use super::objects::{EndpointSlice, Namespace, Pod, Problem, Service};
use super::problems::{Owner, Problems};
use super::{MESH_LABEL, Snapshot};
use crate::model::NamespacedName;

/// Applies changes and publishes snapshots. A change costs O(log n) and what it
/// touches: the pods of the pod's node, the endpoints of the pod's or slice's Service;
/// and, for a Service without slices of its own, the pods of its namespace.
#[derive(Debug, Default)]
pub struct Writer {
    pub(super) snapshot: Snapshot,
    pub(super) changed: bool,
    /// Where objects were read that were read from a file.
    pub(super) origins: HashMap<ObjectKey, Origin>,
    /// Who claims an address, where it is not just the pod or the Service that the
    /// snapshot has as its owner: nearly every address has one of those.
    pub(super) claims: HashMap<IpAddr, Vec<Claimant>>,
    /// By Service, and then by name: hardly any has more than one.
    pub(super) slices: HashMap<NamespacedName, Vec<EndpointSlice>>,
    pub(super) service_of_slice: HashMap<NamespacedName, NamespacedName>,
    /// The Services whose endpoints follow from the labels of pods.
    pub(super) derived: BTreeSet<NamespacedName>,
    pub(super) interner: Interner,
    pub(super) problems: Problems,
    /// The policies that have each of these Services asked.
    pub(super) asking: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
    /// The blocks of which external addresses of Services may be.
    pub(super) external_ips: Vec<IpNet>,
}

impl Writer {
    /// A writer of an empty state, in which external addresses of Services mean nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One in which Services have those of their external addresses that are in these blocks.
    pub fn with_external_ips(allowed: Vec<IpNet>) -> Self {
        Self {
            external_ips: allowed,
            ..Self::default()
        }
    }

    /// Applies one change; nobody sees it before [`Self::publish`].
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Upsert(object, origin) => {
                if origin == Origin::default() {
                    self.origins.remove(&object.key());
                } else {
                    self.origins.insert(object.key(), origin);
                }
                self.upsert(object);
            }
            Change::Remove(key) => {
                self.remove(&key);
                self.origins.remove(&key);
            }
            Change::Problems { owner, problems } => self.report(Owner::Source(owner), problems),
        }
    }

    /// The state as it is now, as the next revision; `None` where nothing changed
    /// since the last one. The first is never `None`: it tells that the source has
    /// been read, even if there was nothing in it.
    pub fn publish(&mut self) -> Option<Snapshot> {
        if !self.changed && self.snapshot.revision > 0 {
            return None;
        }
        self.changed = false;
        self.snapshot.revision += 1;
        Some(self.snapshot.clone())
    }

    fn upsert(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => self.put_namespace(namespace),
            Object::Pod(mut pod) => {
                self.interner.pod(&mut pod);
                let name = pod.name.clone();
                self.put_pod(&name, Some(pod));
            }
            Object::Service(mut service) => {
                self.interner.service(&mut service);
                let name = service.name.clone();
                self.put_service(&name, Some(service));
            }
            Object::EndpointSlice(mut slice) => {
                self.interner.slice(&mut slice);
                let name = slice.name.clone();
                self.put_slice(&name, Some(slice));
            }
            Object::ReferenceGrant(grant) => {
                let name = grant.name.clone();
                self.put_grant(&name, Some(grant));
            }
            Object::Route(route) => {
                let key = route.key();
                self.put_route(&key, Some(route));
            }
            Object::AuthorizationPolicy(policy) => {
                let name = policy.name.clone();
                let scope = policy.scope.clone();
                let asked = policy.provider.as_ref();
                self.note_provider(&name, asked.map(|it| it.service.clone()));
                let policies = &mut self.snapshot.authorization_policies;
                if policies.get(&name).is_none_or(|old| **old != policy) {
                    policies.insert(name.clone(), Arc::new(policy));
                    self.changed = true;
                }
                self.check_targets(ObjectKind::AuthorizationPolicy, name, Some(&scope));
            }
            Object::MeshPolicy(policy) => {
                let name = policy.name.clone();
                let scope = policy.scope.clone();
                let policies = &mut self.snapshot.mesh_policies;
                if policies.get(&name).is_none_or(|old| **old != policy) {
                    policies.insert(name.clone(), Arc::new(policy));
                    self.changed = true;
                }
                self.check_targets(ObjectKind::MeshPolicy, name, Some(&scope));
            }
            Object::TrafficPolicy(policy) => self.put_traffic_policy(policy),
        }
    }

    fn remove(&mut self, key: &ObjectKey) {
        let name = &key.name;
        match key.kind {
            ObjectKind::Namespace => {
                if self.snapshot.namespaces.remove(&name.name).is_some() {
                    self.changed = true;
                    self.enrol_namespace(&Arc::clone(&name.name));
                }
            }
            ObjectKind::Pod => self.put_pod(name, None),
            ObjectKind::Service => self.put_service(name, None),
            ObjectKind::EndpointSlice => self.put_slice(name, None),
            ObjectKind::ReferenceGrant => self.put_grant(name, None),
            ObjectKind::GrpcRoute
            | ObjectKind::HttpRoute
            | ObjectKind::TlsRoute
            | ObjectKind::TcpRoute => self.put_route(key, None),
            ObjectKind::AuthorizationPolicy => {
                self.note_provider(name, None);
                self.changed |= self.snapshot.authorization_policies.remove(name).is_some();
                self.check_targets(key.kind, name.clone(), None);
            }
            ObjectKind::MeshPolicy => {
                self.changed |= self.snapshot.mesh_policies.remove(name).is_some();
                self.check_targets(key.kind, name.clone(), None);
            }
            ObjectKind::TrafficPolicy => self.remove_traffic_policy(name),
        }
    }

    fn put_namespace(&mut self, namespace: Namespace) {
        let name = Arc::clone(&namespace.name);
        let old = self.snapshot.namespaces.get(&name);
        if old.is_some_and(|old| **old == namespace) {
            return;
        }
        self.changed = true;
        self.snapshot
            .namespaces
            .insert(Arc::clone(&name), Arc::new(namespace));
        self.enrol_namespace(&name);
    }

    /// Decides again for each pod of a namespace whose labels changed.
    fn enrol_namespace(&mut self, namespace: &str) {
        let pods: Vec<Arc<Pod>> = Snapshot::in_namespace(&self.snapshot.pods, namespace)
            .filter(|(_, pod)| {
                let reported = pod.has_own_kernel() || !pod.has_identity();
                reported || pod.enrolled != self.enrolled(pod)
            })
            .map(|(_, pod)| Arc::clone(pod))
            .collect();
        for pod in pods {
            self.put_pod(&pod.name, Some(Pod::clone(&pod)));
        }
    }

    /// Whether the mesh is to carry the pod's traffic.
    fn enrolled(&self, pod: &Pod) -> bool {
        self.snapshot.wants(pod) && !pod.ips.is_empty()
    }

    fn put_pod(&mut self, name: &NamespacedName, new: Option<Pod>) {
        let new = new.map(|mut pod| {
            pod.enrolled = self.enrolled(&pod);
            Arc::new(pod)
        });
        self.report_unmeshable(name, new.as_deref());
        let old = self.snapshot.pods.get(name).cloned();
        if old == new {
            return;
        }
        self.changed = true;
        let versions: Vec<Arc<Pod>> = old.iter().chain(&new).map(Arc::clone).collect();
        self.index_by_node(name, old.as_deref(), new.as_ref());
        match new {
            Some(pod) => self.snapshot.pods.insert(pod.name.clone(), pod),
            None => self.snapshot.pods.remove(name),
        };
        let ips = versions.iter().flat_map(|pod| pod.ips.clone()).collect();
        let mut services = self.selecting(&versions);
        services.extend(self.services_of_claimants(&ips));
        if let Some(old) = &old {
            self.claim(old, false);
        }
        if let Some(pod) = self.snapshot.pods.get(name).cloned() {
            self.claim(&pod, true);
        }
        services.extend(self.services_of_claimants(&ips));
        self.settle(&ips);
        self.refresh(&services, &ips);
    }

    /// Puts the new version of a pod in its place among those of its node.
    fn index_by_node(&mut self, name: &NamespacedName, old: Option<&Pod>, new: Option<&Arc<Pod>>) {
        let node = |pod: &Pod| pod.node.clone();
        let nodes: BTreeSet<_> = [old.and_then(node), new.and_then(|pod| node(pod))].into();
        for node in nodes.into_iter().flatten() {
            let pods = self.snapshot.pods_of_node(&node);
            let at = pods.partition_point(|pod| pod.name < *name);
            let after = at + usize::from(pods.get(at).is_some_and(|pod| pod.name == *name));
            let here = new.filter(|pod| pod.node.as_ref() == Some(&node));
            let changed = pods[..at].iter().chain(here).chain(&pods[after..]);
            let changed: Arc<[Arc<Pod>]> = changed.map(Arc::clone).collect();
            if changed.is_empty() {
                self.snapshot.pods_by_node.remove(&node);
            } else {
                self.snapshot.pods_by_node.insert(node, changed);
            }
        }
    }

    /// Says of a pod that is meant to be meshed why it can't be.
    fn report_unmeshable(&mut self, name: &NamespacedName, pod: Option<&Pod>) {
        let wanted = pod.filter(|pod| self.snapshot.is_labelled(pod));
        let key = ObjectKey {
            kind: ObjectKind::Pod,
            name: name.clone(),
        };
        let mut problems = Vec::new();
        if let Some(pod) = wanted.filter(|pod| pod.has_own_kernel()) {
            let class = pod.runtime_class.as_deref().unwrap_or_default();
            let message = format!(
                "pods of \"{class}\" have a kernel of their own, whose connections no node sees: \
                 it is not meshed; run it under another class, or label it {MESH_LABEL}: disabled"
            );
            problems.push(self.problem(&key, "spec.runtimeClassName", message));
        }
        if wanted.is_some_and(|pod| !pod.has_identity() && !pod.host_network) {
            let message = format!(
                "a pod without a service account, as static pods are, has no identity: it is not \
                 meshed; create it through the API server, or label it {MESH_LABEL}: disabled"
            );
            problems.push(self.problem(&key, "spec.serviceAccountName", message));
        }
        self.report(Owner::Pod(name.clone()), problems);
    }

    fn put_service(&mut self, name: &NamespacedName, new: Option<Service>) {
        let new = new.map(Arc::new);
        let old = self.snapshot.services.get(name).cloned();
        if old == new {
            return;
        }
        self.changed = true;
        let versions = || old.iter().chain(&new);
        let ips: BTreeSet<IpAddr> = versions()
            .flat_map(|service| service.cluster_ips.clone())
            .collect();
        for ip in &ips {
            let claims = new.as_ref().is_some_and(|new| new.cluster_ips.contains(ip));
            self.claim_one(*ip, Claimant::Service(name.clone()), claims);
        }
        if let Some(old) = &old {
            self.expose(old, false);
        }
        if let Some(new) = &new {
            self.expose(new, true);
        }
        for port in versions().flat_map(|service| &service.ports) {
            self.snapshot.endpoints.remove(&(name.clone(), port.port));
        }
        let exists = new.is_some();
        let came_or_went = exists != old.is_some();
        match new {
            Some(service) => self.snapshot.services.insert(name.clone(), service),
            None => self.snapshot.services.remove(name),
        };
        self.note_derived(name);
        self.settle(&ips);
        self.rebuild(name);
        let services = self.services_of_claimants(&ips);
        self.refresh(&services, &ips);
        if came_or_went {
            self.check_targets_of_namespace(&name.namespace);
        }
        self.check_routes_of_service(name);
        self.check_traffic_targets_of(name);
        self.check_asking(name);
    }

    fn put_slice(&mut self, name: &NamespacedName, new: Option<EndpointSlice>) {
        let mut services = BTreeSet::new();
        if let Some(service) = self.service_of_slice.remove(name) {
            if let Some(slices) = self.slices.get_mut(&service) {
                slices.retain(|slice| slice.name != *name);
                if slices.is_empty() {
                    self.slices.remove(&service);
                }
            }
            services.insert(service);
        }
        if let Some(slice) = new {
            self.note_zones(&slice);
            let service =
                NamespacedName::new(Arc::clone(&name.namespace), Arc::clone(&slice.service));
            self.service_of_slice.insert(name.clone(), service.clone());
            let slices = self.slices.entry(service.clone()).or_default();
            let at = slices.partition_point(|other| other.name < *name);
            slices.reserve_exact(1);
            slices.insert(at, slice);
            services.insert(service);
        }
        for service in services {
            self.note_derived(&service);
            self.rebuild(&service);
        }
    }

    /// Nodes don't change their zones while they live, and are never so many that those that
    /// have gone would count.
    fn note_zones(&mut self, slice: &EndpointSlice) {
        for address in &slice.addresses {
            let Some((node, zone)) = address.node.as_ref().zip(address.zone.as_ref()) else {
                continue;
            };
            if self.snapshot.zones.get(node) != Some(zone) {
                self.snapshot.zones.insert(node.clone(), Arc::clone(zone));
                self.changed = true;
            }
        }
    }

    pub(super) fn problem(&self, key: &ObjectKey, field: &str, message: String) -> Problem {
        let origin = self.origins.get(key).cloned().unwrap_or_default();
        Problem {
            file: origin.file.to_string(),
            line: origin.line,
            kind: key.kind.as_str().to_owned(),
            object: key.object(),
            field: field.to_owned(),
            message,
        }
    }

    pub(super) fn report(&mut self, owner: Owner, problems: Vec<Problem>) {
        let shown = &mut self.snapshot.problems;
        self.changed |= self.problems.replace(owner, problems, shown);
    }
}
