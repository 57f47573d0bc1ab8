//! One immutable view of the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdMap, OrdSet};

use super::MESH_LABEL;
use super::change::ObjectKey;
use super::exposed::Exposed;
use super::objects::{
    AuthorizationPolicy, Endpoint, MeshPolicy, Namespace, Pod, PodPhase, Problem, Service,
};
use super::route::{ReferenceGrant, Route};
use super::traffic::TrafficPolicy;
use crate::model::{NamespacedName, NodeName};

/// The cluster at one moment. A clone is O(1).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name.
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// By name.
    pub pods: OrdMap<NamespacedName, Arc<Pod>>,
    /// Index: the pods that are bound to a node, by name. The same `Arc` for as long as
    /// nothing of the node's pods changes.
    pub pods_by_node: OrdMap<NodeName, Arc<[Arc<Pod>]>>,
    /// Index: the running pod that owns an address. An address that two running
    /// pods claim belongs to none of them and is reported; unless one of them is being
    /// deleted.
    pub pods_by_ip: OrdMap<IpAddr, Arc<Pod>>,
    /// By name.
    pub services: OrdMap<NamespacedName, Arc<Service>>,
    /// Index: the Service that owns a cluster address.
    pub services_by_ip: OrdMap<IpAddr, Arc<Service>>,
    /// Index: the Services that are reached at an address that is not theirs alone.
    pub exposed: HashMap<Exposed, Arc<[NamespacedName]>>,
    /// Index: addresses at which pods of a node's own network are, and nothing else: the
    /// nodes' own. The node agents of a cluster are such pods, so that every node has one.
    pub node_addresses: HashSet<IpAddr>,
    /// Index: addresses that more than one object claims, and which. Nobody owns
    /// them, and nothing may be sent there.
    pub contested: OrdMap<IpAddr, Arc<[NamespacedName]>>,
    /// Endpoints of each Service by the Service's port: ready ones first, then by
    /// address. A Service's port with no endpoint has an empty entry.
    pub endpoints: OrdMap<(NamespacedName, u16), Arc<[Endpoint]>>,
    /// The zones of nodes, as EndpointSlices tell them.
    pub zones: OrdMap<NodeName, Arc<str>>,
    /// By name.
    pub authorization_policies: OrdMap<NamespacedName, Arc<AuthorizationPolicy>>,
    /// By name.
    pub mesh_policies: OrdMap<NamespacedName, Arc<MeshPolicy>>,
    /// By kind and name.
    pub routes: OrdMap<ObjectKey, Arc<Route>>,
    /// Index: the routes that name a Service, as a parent or as a back end.
    pub routes_by_service: OrdMap<NamespacedName, OrdSet<ObjectKey>>,
    /// By name.
    pub grants: OrdMap<NamespacedName, Arc<ReferenceGrant>>,
    /// By name.
    pub traffic_policies: OrdMap<NamespacedName, Arc<TrafficPolicy>>,
    /// What is wrong with which object.
    pub problems: OrdSet<Problem>,
    /// Counts the snapshots, from 1; 0 is the empty one before the first sync.
    pub revision: u64,
}

impl Snapshot {
    /// The pods that are bound to a node, by name.
    pub fn pods_of_node(&self, node: &NodeName) -> &[Arc<Pod>] {
        self.pods_by_node.get(node).map_or(&[], |pods| pods)
    }

    /// The mesh is to carry the pod's traffic as soon as it has an address: by the
    /// labels of the pod, else of its namespace, and by what a node can do.
    pub fn wants(&self, pod: &Pod) -> bool {
        self.meshes(pod) && pod.phase == PodPhase::Running
    }

    /// As [`Snapshot::wants`], also of a pod that has finished.
    pub fn meshes(&self, pod: &Pod) -> bool {
        self.is_labelled(pod) && !pod.host_network && !pod.has_own_kernel() && pod.has_identity()
    }

    /// The labels ask for it.
    pub(super) fn is_labelled(&self, pod: &Pod) -> bool {
        match pod.labels.get(MESH_LABEL).map(|label| &**label) {
            Some("enabled") => true,
            Some("disabled") => false,
            Some(_) | None => self.is_meshed(&pod.name.namespace),
        }
    }

    /// The namespace's own label asks for it.
    pub fn is_meshed(&self, namespace: &str) -> bool {
        let found = self.namespaces.get(namespace);
        let label = found.and_then(|namespace| namespace.labels.get(MESH_LABEL));
        label.is_some_and(|label| &**label == "enabled")
    }

    /// Nothing differs from `earlier` that a node's pods follow from: neither the pods nor
    /// any namespace. O(1), whatever else has changed.
    pub fn same_for_node(&self, earlier: &Self, node: &NodeName) -> bool {
        let pods = |of: &Self| of.pods_by_node.get(node).map(Arc::as_ptr);
        pods(self) == pods(earlier) && self.namespaces.ptr_eq(&earlier.namespaces)
    }

    /// The entries of one namespace, of a map that is keyed by name. O(log n) and
    /// what it yields.
    pub fn in_namespace<'a, V: Clone>(
        map: &'a OrdMap<NamespacedName, V>,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a NamespacedName, &'a V)> {
        map.range(NamespacedName::new(namespace, "")..)
            .take_while(move |(name, _)| &*name.namespace == namespace)
    }
}
