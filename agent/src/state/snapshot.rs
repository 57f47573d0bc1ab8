//! One immutable view of the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};

use super::objects::{AuthorizationPolicy, Endpoint, MeshPolicy, Namespace, Pod, Problem, Service};
use crate::model::NamespacedName;

/// The cluster at one moment. A clone is O(1).
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// By name.
    pub namespaces: OrdMap<Arc<str>, Arc<Namespace>>,
    /// By name.
    pub pods: OrdMap<NamespacedName, Arc<Pod>>,
    /// Index: the running pod that owns an address. An address that two running
    /// pods claim belongs to none of them and is reported.
    pub pods_by_ip: HashMap<IpAddr, Arc<Pod>>,
    /// By name.
    pub services: OrdMap<NamespacedName, Arc<Service>>,
    /// Index: the Service that owns a cluster address.
    pub services_by_ip: HashMap<IpAddr, Arc<Service>>,
    /// Endpoints of each Service by the Service's port, sorted.
    pub endpoints: HashMap<(NamespacedName, u16), Arc<[Endpoint]>>,
    /// By name.
    pub authorization_policies: OrdMap<NamespacedName, Arc<AuthorizationPolicy>>,
    /// By name.
    pub mesh_policies: OrdMap<NamespacedName, Arc<MeshPolicy>>,
    /// What is wrong with which object.
    pub problems: OrdSet<Problem>,
    /// Counts the snapshots, from 1; 0 is the empty one before the first sync.
    pub revision: u64,
}

/// What a source says of one object.
#[derive(Clone, Debug)]
pub enum Change {}
