//! Objects for tests, here and in the modules that use the state.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Change, MESH_LABEL, Namespace, Object, ObjectKey, ObjectKind, Origin, Pod, PodPhase, Service,
    ServicePort, Snapshot, TargetPort, Writer,
};
use crate::model::{NamespacedName, NodeName, SpiffeId, TrustDomain};

/// Labels of pairs.
pub(crate) fn labels<T: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> T {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

/// `namespace/name`.
pub(crate) fn name(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName::new(namespace, name)
}

/// A node of this name.
pub(crate) fn node(name: &str) -> NodeName {
    NodeName(name.into())
}

/// An address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A running and ready pod with label `app=web` and port `http` 8080.
pub(crate) fn pod(text: &str, ips: &[&str]) -> Pod {
    let name = name(text);
    Pod {
        uid: "".into(),
        node: None,
        ips: ips.iter().map(|text| ip(text)).collect(),
        identity: SpiffeId::new(
            TrustDomain("cluster.local".into()),
            Arc::clone(&name.namespace),
            "default",
        ),
        labels: labels(&[("app", "web")]),
        workload: Arc::clone(&name.name),
        phase: PodPhase::Running,
        ready: true,
        terminating: false,
        host_network: false,
        enrolled: false,
        container_ports: [("http", 8080_u16)].into_iter().collect(),
        netns: None,
        runtime_class: None,
        static_uid: None,
        exclude_outbound_ports: Box::default(),
        exclude_outbound_cidrs: Box::default(),
        exclude_inbound_ports: Box::default(),
        opaque_ports: Box::default(),
        close_existing: false,
        name,
    }
}

/// Selects `app=web`: port 80 to `http`, port 90 to 9090. Headless without an address.
pub(crate) fn service(text: &str, cluster_ip: &str) -> Service {
    Service {
        name: name(text),
        cluster_ips: if cluster_ip.is_empty() {
            Vec::new()
        } else {
            vec![ip(cluster_ip)]
        },
        external_ips: Vec::new(),
        balancer_ips: Vec::new(),
        ports: vec![
            port("http", 80, TargetPort::Name("http".into())),
            port("admin", 90, TargetPort::Number(9090)),
        ],
        selector: labels(&[("app", "web")]),
        publish_not_ready: false,
        opaque_ports: Box::default(),
    }
}

/// A port of a Service.
pub(crate) fn port(name: &str, port: u16, target: TargetPort) -> ServicePort {
    ServicePort {
        name: name.into(),
        port,
        node_port: None,
        target,
        app_protocol: None,
    }
}

/// A namespace with the mesh label.
pub(crate) fn namespace(name: &str, label: &str) -> Object {
    Object::Namespace(Namespace {
        name: name.into(),
        labels: labels(&[(MESH_LABEL, label)]),
        opaque_ports: Box::default(),
    })
}

/// A writer and what was put in it.
pub(crate) struct World(pub(crate) Writer);

impl World {
    pub(crate) fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut world = Self(Writer::new());
        for object in objects {
            world.put(object);
        }
        world
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.0.apply(Change::Upsert(object, Origin::default()));
    }

    pub(crate) fn remove(&mut self, kind: ObjectKind, text: &str) {
        let name = match kind {
            ObjectKind::Namespace => NamespacedName::new("", text),
            _ => name(text),
        };
        self.0.apply(Change::Remove(ObjectKey { kind, name }));
    }

    pub(crate) fn now(&mut self) -> Snapshot {
        self.0.publish().expect("something changed")
    }
}
