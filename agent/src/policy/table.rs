//! The compiled view of a snapshot.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::access_log::AccessLog;
use super::authorization::Compiled;
use super::http::{ConnectionRoutes, OfPort, RouteTable, Routes};
use super::inbound::InboundPolicy;
use super::protocol::PodProtocols;
use super::traffic::Traffic;
use crate::model::{NamespacedName, NodeName};
use crate::state::{MeshPolicy, Pod, PolicyScope, ROOT_NAMESPACE, Service, Snapshot};

/// What a snapshot means. A clone is O(1).
#[derive(Clone, Debug)]
pub struct Table {
    snapshot: Snapshot,
    policies: OrdMap<NamespacedName, Arc<Compiled>>,
    /// Whose connections are decided on; `None`: all pods'.
    node: Option<NodeName>,
    /// Of every enrolled pod of the node.
    inbound: OrdMap<NamespacedName, Arc<InboundPolicy>>,
    unknown: Arc<InboundPolicy>,
    pub(super) traffic: Traffic,
    routes: RouteTable,
    /// Of the pods of `node`.
    protocols: PodProtocols,
}

/// The pods whose inbound policies must be worked out again.
#[derive(Debug, Default)]
struct Affected {
    mesh: bool,
    namespaces: BTreeSet<Arc<str>>,
    pods: BTreeSet<NamespacedName>,
}

impl Table {
    /// The table of the empty state, for the pods of one node: what is compiled from it
    /// keeps no policies of pods that run elsewhere.
    pub fn of_node(node: NodeName) -> Self {
        Self {
            node: Some(node),
            ..Self::compile(None, Snapshot::default())
        }
    }

    /// The table of a snapshot. What didn't change since `previous` is taken over, so
    /// that the cost is that of the change, and an unchanged [`InboundPolicy`] stays
    /// the same `Arc`. Objects that make no sense deny; they never stop this.
    pub fn compile(previous: Option<&Self>, snapshot: Snapshot) -> Self {
        let mut table = previous.cloned().unwrap_or_else(|| Self {
            snapshot: Snapshot::default(),
            policies: OrdMap::new(),
            node: None,
            inbound: OrdMap::new(),
            unknown: Arc::new(InboundPolicy::unknown()),
            traffic: Traffic::new(),
            routes: RouteTable::default(),
            protocols: PodProtocols::default(),
        });
        let affected = Affected::between(&table.snapshot, &snapshot);
        let old = std::mem::replace(&mut table.snapshot, snapshot);
        table.compile_policies(&old);
        table.traffic.update(&old, &table.snapshot);
        table.compile_pods(affected);
        table.routes.update(&old, &table.snapshot);
        if let Some(node) = &table.node {
            table.protocols.update(node, &old, &table.snapshot);
        }
        table
    }

    /// What it was compiled from.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The pod that owns an address; `None` also where several claim it.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&Arc<Pod>> {
        self.snapshot.pods_by_ip.get(&ip.to_canonical())
    }

    /// The inbound policy of an enrolled pod; that of a pod on another node is made for
    /// whoever asks. Of any other pod: one that denies everything, since nobody should
    /// be asking.
    pub fn inbound(&self, pod: &NamespacedName) -> Arc<InboundPolicy> {
        if let Some(policy) = self.inbound.get(pod) {
            return Arc::clone(policy);
        }
        let elsewhere = self.snapshot.pods.get(pod).filter(|pod| pod.enrolled);
        match elsewhere {
            Some(pod) => Arc::new(self.compile_pod(pod)),
            None => Arc::clone(&self.unknown),
        }
    }

    /// What is written of the requests and connections of a pod of this table's node; `None`
    /// of any other.
    pub fn access_log(&self, pod: &NamespacedName) -> Option<&AccessLog> {
        self.inbound.get(pod).map(|policy| policy.access_log())
    }

    /// Some policy says that something is written of something.
    pub fn has_access_log(&self) -> bool {
        let mut policies = self.snapshot.mesh_policies.values();
        policies.any(|policy| policy.access_log.is_some_and(|log| log.is_on()))
    }

    /// The routes of requests to a Service's port, as clients of a namespace see them.
    /// `None`: requests go straight to the Service.
    pub fn routes(
        &self,
        client_namespace: &str,
        service: &NamespacedName,
        port: u16,
    ) -> Option<Arc<Routes>> {
        match self.routes.of_port(client_namespace, service, port)? {
            OfPort::Requests(routes) => Some(Arc::clone(routes)),
            OfPort::Connections(_) => None,
        }
    }

    /// The routes of connections to a Service's port, as [`Self::routes`].
    pub fn connection_routes(
        &self,
        client_namespace: &str,
        service: &NamespacedName,
        port: u16,
    ) -> Option<Arc<ConnectionRoutes>> {
        match self.routes.of_port(client_namespace, service, port)? {
            OfPort::Connections(routes) => Some(Arc::clone(routes)),
            OfPort::Requests(_) => None,
        }
    }

    /// The pod's connections are decided on with this table.
    fn serves(&self, pod: &Pod) -> bool {
        pod.enrolled && (self.node.is_none() || self.node == pod.node)
    }

    /// It is a pod of the table's node.
    pub(super) fn decides_for(&self, pod: &Pod) -> bool {
        self.node.is_some() && self.node == pod.node
    }

    pub(super) fn protocols(&self) -> &PodProtocols {
        &self.protocols
    }

    /// The scope covers the pod.
    pub(super) fn selects(&self, namespace: &str, scope: &PolicyScope, pod: &Pod) -> bool {
        let same_namespace = &*pod.name.namespace == namespace;
        match scope {
            PolicyScope::Mesh => true,
            PolicyScope::Pods(selector) => same_namespace && selector.matches(&pod.labels),
            PolicyScope::Services(services) => {
                let behind = |service| self.is_behind(pod, service);
                same_namespace && services.iter().any(behind)
            }
        }
    }

    /// The pod is one of the Service's back ends, ready or not.
    fn is_behind(&self, pod: &Pod, service: &Arc<str>) -> bool {
        let name = NamespacedName::new(Arc::clone(&pod.name.namespace), Arc::clone(service));
        let Some(service) = self.snapshot.services.get(&name) else {
            return false;
        };
        if !service.selector.is_empty() {
            return pod.labels.contains(&service.selector);
        }
        let ports = service.ports.iter();
        ports
            .flat_map(|port| self.endpoints(service, port))
            .any(|endpoint| pod.ips.contains(&endpoint.ip))
    }

    fn compile_policies(&mut self, old: &Snapshot) {
        let now = self.snapshot.authorization_policies.clone();
        for change in old.authorization_policies.diff(&now) {
            match change {
                DiffItem::Add(name, policy)
                | DiffItem::Update {
                    new: (name, policy),
                    ..
                } => {
                    let compiled = Compiled::new(Arc::clone(policy));
                    self.policies.insert(name.clone(), Arc::new(compiled));
                }
                DiffItem::Remove(name, _) => {
                    self.policies.remove(name);
                }
            }
        }
    }

    fn compile_pods(&mut self, affected: Affected) {
        let mut names = affected.pods;
        let all = &self.snapshot.pods;
        match &self.node {
            Some(node) => {
                let concerned = |pod: &&Arc<Pod>| {
                    affected.mesh || affected.namespaces.contains(&pod.name.namespace)
                };
                let local = self.snapshot.pods_of_node(node).iter();
                names.extend(local.filter(concerned).map(|pod| pod.name.clone()));
            }
            None if affected.mesh => names.extend(all.keys().cloned()),
            None => {
                let of = |namespace| Snapshot::in_namespace(all, namespace);
                let pods = affected
                    .namespaces
                    .iter()
                    .flat_map(|namespace| of(namespace));
                names.extend(pods.map(|(name, _)| name.clone()));
            }
        }
        for name in names {
            match self.snapshot.pods.get(&name).filter(|pod| self.serves(pod)) {
                Some(pod) => {
                    let new = self.compile_pod(pod);
                    if self.inbound.get(&name).is_none_or(|old| **old != new) {
                        let new = self.shared(&name, new);
                        self.inbound.insert(name, new);
                    }
                }
                None => {
                    self.inbound.remove(&name);
                }
            }
        }
    }

    /// The policy of the pod before or after it, where that is the same: mostly all
    /// pods of a namespace have one, and would otherwise be most of a table.
    fn shared(&self, pod: &NamespacedName, new: InboundPolicy) -> Arc<InboundPolicy> {
        let before = self.inbound.get_prev(pod);
        let after = self.inbound.get_next(pod);
        let mut neighbours = before.into_iter().chain(after).map(|(_, policy)| policy);
        let same = neighbours.find(|policy| ***policy == new);
        same.map_or_else(|| Arc::new(new), Arc::clone)
    }

    fn compile_pod(&self, pod: &Pod) -> InboundPolicy {
        let policies = in_reach(&self.policies, &pod.name.namespace)
            .filter(|policy| {
                let source = &policy.source;
                self.selects(&source.name.namespace, &source.scope, pod)
            })
            .cloned();
        let mesh: Vec<Arc<MeshPolicy>> =
            in_reach(&self.snapshot.mesh_policies, &pod.name.namespace)
                .filter(|policy| self.selects(&policy.name.namespace, &policy.scope, pod))
                .cloned()
                .collect();
        InboundPolicy::new(policies.collect(), &mesh)
    }

    /// AuthorizationPolicies that could select pods of a namespace.
    pub(super) fn policies_in_reach<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Compiled>> {
        in_reach(&self.policies, namespace)
    }
}

/// Policies of the pod's own namespace and of the root namespace.
fn in_reach<'a, V: Clone>(
    policies: &'a OrdMap<NamespacedName, V>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a V> {
    let own = Snapshot::in_namespace(policies, namespace);
    let root = (namespace != ROOT_NAMESPACE).then_some(ROOT_NAMESPACE);
    let root = root
        .into_iter()
        .flat_map(|root| Snapshot::in_namespace(policies, root));
    own.chain(root).map(|(_, policy)| policy)
}

impl Affected {
    fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let mut affected = Self::default();
        for change in old.pods.diff(&new.pods) {
            affected.pod(&change);
        }
        for change in old.authorization_policies.diff(&new.authorization_policies) {
            for policy in both(&change) {
                affected.scope(&policy.name, &policy.scope);
            }
        }
        for change in old.mesh_policies.diff(&new.mesh_policies) {
            for policy in both(&change) {
                affected.scope(&policy.name, &policy.scope);
            }
        }
        let mut services: BTreeSet<&NamespacedName> = BTreeSet::new();
        for change in old.services.diff(&new.services) {
            services.extend(
                both(&change)
                    .into_iter()
                    .map(|service: &Arc<Service>| &service.name),
            );
        }
        for change in old.endpoints.diff(&new.endpoints) {
            let (DiffItem::Add((name, _), _)
            | DiffItem::Update {
                new: ((name, _), _),
                ..
            }
            | DiffItem::Remove((name, _), _)) = change;
            // With a selector, who is behind a Service does not depend on its endpoints.
            let service = new.services.get(name);
            if service.is_none_or(|service| service.selector.is_empty()) {
                services.insert(name);
            }
        }
        for service in services {
            affected.service(new, service);
        }
        affected
    }

    fn pod(&mut self, change: &DiffItem<'_, '_, NamespacedName, Arc<Pod>>) {
        if let DiffItem::Update {
            old: (_, old),
            new: (_, new),
        } = change
        {
            let same =
                old.enrolled == new.enrolled && old.node == new.node && old.labels == new.labels;
            if same && old.ips == new.ips {
                return;
            }
        }
        let pods = both(change);
        self.pods
            .extend(pods.into_iter().map(|pod| pod.name.clone()));
    }

    fn scope(&mut self, name: &NamespacedName, scope: &PolicyScope) {
        match scope {
            PolicyScope::Mesh => self.mesh = true,
            PolicyScope::Pods(_) | PolicyScope::Services(_) => {
                self.namespaces.insert(Arc::clone(&name.namespace));
            }
        }
    }

    /// A Service changed, and a policy has it as its target.
    fn service(&mut self, snapshot: &Snapshot, service: &NamespacedName) {
        let namespace = &service.namespace;
        if self.namespaces.contains(namespace) {
            return;
        }
        let targets = |scope: &PolicyScope| match scope {
            PolicyScope::Services(services) => services.contains(&service.name),
            PolicyScope::Mesh | PolicyScope::Pods(_) => false,
        };
        let targeted = Snapshot::in_namespace(&snapshot.authorization_policies, namespace)
            .any(|(_, policy)| targets(&policy.scope))
            || Snapshot::in_namespace(&snapshot.mesh_policies, namespace)
                .any(|(_, policy)| targets(&policy.scope));
        if targeted {
            self.namespaces.insert(Arc::clone(namespace));
        }
    }
}

/// The values that a difference speaks of.
pub(super) fn both<'a, K, V>(change: &DiffItem<'a, 'a, K, V>) -> Vec<&'a V> {
    match *change {
        DiffItem::Add(_, value) | DiffItem::Remove(_, value) => vec![value],
        DiffItem::Update {
            old: (_, old),
            new: (_, new),
        } => vec![old, new],
    }
}
