//! The balancers of the Services that this node's pods send requests to.
//!
//! In: the table of the moment, with each look-up. Out: the one [`Balancer`] of a Service's
//! port, with the endpoints and settings of that table or of a later one. A balancer is
//! made when a request first needs it and brought up to date when one next does, so that a
//! change of the cluster costs nothing for Services that nobody here uses.
//!
//! A look-up of what is up to date takes no lock and allocates nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use imbl::{HashMap, OrdMap};
use serde::Serialize;

use super::lock::lock;
use crate::model::{NamespacedName, NodeName};
use crate::policy::Table;
use crate::policy::balance::{Balancer, Candidate, EndpointFigures, Near};
use crate::policy::traffic::TrafficSettings;
use crate::state::{Endpoint, Pod};

/// Label of a pod that says where its node is; Kubernetes copies it from the node since 1.35.
/// EndpointSlices have said so for longer.
const ZONE: &str = "topology.kubernetes.io/zone";

/// All balancers of the node.
#[derive(Debug)]
pub(super) struct Clusters {
    node: NodeName,
    by_service: ArcSwap<HashMap<NamespacedName, Arc<[Cluster]>>>,
    changes: Mutex<()>,
}

/// The endpoints of one port of a Service, of one family of addresses.
#[derive(Clone, Debug)]
struct Cluster(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    port: u16,
    v6: bool,
    balancer: Balancer,
    /// The revision of the state that it is up to date with.
    revision: AtomicU64,
    made_of: Mutex<MadeOf>,
}

/// What a balancer was last given.
#[derive(Debug)]
struct MadeOf {
    settings: Arc<TrafficSettings>,
    endpoints: Option<Arc<[Endpoint]>>,
    /// Of this node.
    zone: Option<Arc<str>>,
    /// Of all nodes.
    zones: OrdMap<NodeName, Arc<str>>,
}

/// What is known of the endpoints of a Service's port, that this node's pods have sent
/// requests to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterFigures {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// The endpoints that are ready, of one family of addresses.
    pub endpoints: Vec<EndpointFigures>,
}

impl Clusters {
    /// Of a node whose pods have sent nothing yet.
    pub(super) fn new(node: NodeName) -> Self {
        Self {
            node,
            by_service: ArcSwap::default(),
            changes: Mutex::new(()),
        }
    }

    /// The balancer of a Service's port, for clients that dial its addresses of this family.
    pub(super) fn balancer(
        &self,
        table: &Table,
        (service, port): (&NamespacedName, u16),
        v6: bool,
        now: Instant,
    ) -> Balancer {
        let found = self.find(service, port, v6);
        let cluster = found.unwrap_or_else(|| self.make(table, (service, port), v6, now));
        let revision = table.snapshot().revision;
        if cluster.0.revision.load(Relaxed) < revision {
            self.refresh(&cluster.0, service, table, now);
        }
        cluster.0.balancer.clone()
    }

    /// All that is known of endpoints, by Service and port.
    pub(super) fn figures(&self, now: Instant) -> Vec<ClusterFigures> {
        let all = self.by_service.load();
        let clusters = all.iter().flat_map(|(service, clusters)| {
            clusters.iter().map(move |cluster| ClusterFigures {
                service: service.clone(),
                port: cluster.0.port,
                endpoints: cluster.0.balancer.figures(now),
            })
        });
        let mut figures: Vec<ClusterFigures> = clusters.collect();
        figures.sort_by(|one, other| (&one.service, one.port).cmp(&(&other.service, other.port)));
        figures
    }

    fn find(&self, service: &NamespacedName, port: u16, v6: bool) -> Option<Cluster> {
        let all = self.by_service.load();
        let mut clusters = all.get(service)?.iter();
        let found = clusters.find(|it| it.0.port == port && it.0.v6 == v6);
        found.cloned()
    }

    fn make(
        &self,
        table: &Table,
        (service, port): (&NamespacedName, u16),
        v6: bool,
        now: Instant,
    ) -> Cluster {
        let _alone = lock(&self.changes);
        if let Some(cluster) = self.find(service, port, v6) {
            return cluster;
        }
        let made_of = self.made_of(table, service, port);
        let candidates = self.candidates(table, &made_of, v6);
        let cluster = Cluster(Arc::new(Inner {
            port,
            v6,
            balancer: Balancer::new(Arc::clone(&made_of.settings), &candidates, now),
            revision: AtomicU64::new(table.snapshot().revision),
            made_of: Mutex::new(made_of),
        }));
        let mut all = HashMap::clone(&self.by_service.load());
        all.retain(|service, _| table.snapshot().services.contains_key(service));
        let others = all.get(service).into_iter().flat_map(|them| them.iter());
        let mut clusters: Vec<Cluster> = others.cloned().collect();
        clusters.push(cluster.clone());
        all.insert(service.clone(), clusters.into());
        self.by_service.store(Arc::new(all));
        cluster
    }

    /// Brings a balancer up to date, unless a later table has done so meanwhile.
    fn refresh(&self, cluster: &Inner, service: &NamespacedName, table: &Table, now: Instant) {
        let mut made_of = lock(&cluster.made_of);
        let revision = table.snapshot().revision;
        if cluster.revision.load(Relaxed) >= revision {
            return;
        }
        let new = self.made_of(table, service, cluster.port);
        if !new.is(&made_of) {
            let candidates = self.candidates(table, &new, cluster.v6);
            let balancer = &cluster.balancer;
            balancer.update(Arc::clone(&new.settings), &candidates, now);
            *made_of = new;
        }
        cluster.revision.store(revision, Relaxed);
    }

    fn made_of(&self, table: &Table, service: &NamespacedName, port: u16) -> MadeOf {
        let snapshot = table.snapshot();
        let of_pods = || {
            let mut here = snapshot.pods_of_node(&self.node).iter();
            here.find_map(|pod| pod.labels.get(ZONE))
        };
        let zone = snapshot.zones.get(&self.node);
        MadeOf {
            settings: table.traffic(service, port),
            endpoints: snapshot.endpoints.get(&(service.clone(), port)).cloned(),
            zone: zone.or_else(of_pods).cloned(),
            zones: snapshot.zones.clone(),
        }
    }

    fn candidates(&self, table: &Table, of: &MadeOf, v6: bool) -> Vec<Candidate> {
        let zone_of = |pod: &Pod| {
            let of_node = pod.node.as_ref().and_then(|node| of.zones.get(node));
            of_node.or_else(|| pod.labels.get(ZONE)).cloned()
        };
        let near = |endpoint: &Endpoint| {
            let pod = table.pod_by_ip(endpoint.ip);
            if pod.is_some_and(|pod| pod.node.as_ref() == Some(&self.node)) {
                return Near::Node;
            }
            let theirs = endpoint.zone.clone();
            let theirs = theirs.or_else(|| zone_of(pod?));
            if theirs.is_some() && theirs == of.zone {
                Near::Zone
            } else {
                Near::Far
            }
        };
        let endpoints = of.endpoints();
        let of_family = endpoints.iter().filter(|it| it.ip.is_ipv6() == v6);
        of_family
            .map(|endpoint| Candidate {
                address: SocketAddr::new(endpoint.ip, endpoint.port),
                ready: endpoint.ready,
                near: near(endpoint),
            })
            .collect()
    }
}

impl MadeOf {
    fn endpoints(&self) -> &[Endpoint] {
        self.endpoints.as_deref().unwrap_or_default()
    }

    /// Nothing differs: both are the same for as long as nothing of them changes.
    fn is(&self, other: &Self) -> bool {
        let pointer = |it: &Self| it.endpoints.as_ref().map(Arc::as_ptr);
        Arc::ptr_eq(&self.settings, &other.settings)
            && pointer(self) == pointer(other)
            && self.zone == other.zone
            && self.zones.ptr_eq(&other.zones)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::balance::{Ask, Refusal};
    use crate::state::fixtures::{World, ip, labels, name, namespace, node, pod, service};
    use crate::state::traffic::{
        Algorithm, LoadBalancingSpec, LocalitySpec, RequestsSpec, TargetedPort, TrafficPolicy,
        TrafficSpec, TrafficTarget,
    };
    use crate::state::{Object, ObjectKind};

    /// `shop/web` at this node, `shop/near` in its zone, `shop/far` elsewhere.
    fn world() -> World {
        let at = |text, ip: &[&str], on, zone| Pod {
            node: Some(node(on)),
            labels: labels(&[("app", "web"), (ZONE, zone)]),
            ..pod(text, ip)
        };
        World::new([
            namespace("shop", "enabled"),
            Object::Pod(at("shop/far", &["10.0.0.3"], "c", "west")),
            Object::Pod(at("shop/near", &["10.0.0.2"], "b", "east")),
            Object::Pod(at("shop/web", &["10.0.0.1", "fd00::1"], "a", "east")),
            Object::Service(service("shop/web", "10.96.0.1")),
        ])
    }

    fn policy(port: Option<u16>, spec: TrafficSpec) -> Object {
        Object::TrafficPolicy(TrafficPolicy {
            name: name("shop/web"),
            targets: vec![TrafficTarget {
                service: "web".into(),
                port: port.map(TargetedPort::Number),
            }],
            spec,
            created: 0,
            generation: 1,
            invalid: None,
            held: false,
        })
    }

    struct Node {
        clusters: Clusters,
        table: Table,
        now: Instant,
    }

    impl Node {
        fn new(world: &mut World) -> Self {
            Self {
                clusters: Clusters::new(node("a")),
                table: Table::compile(None, world.now()),
                now: Instant::now(),
            }
        }

        fn take(&mut self, world: &mut World) {
            self.table = Table::compile(Some(&self.table), world.now());
        }

        fn balancer(&self, port: u16, v6: bool) -> Balancer {
            let web = name("shop/web");
            self.clusters
                .balancer(&self.table, (&web, port), v6, self.now)
        }

        /// Where requests to port 80 go.
        fn reached(&self) -> Vec<String> {
            let mut reached = std::collections::BTreeSet::new();
            for random in 0..200_u64 {
                let picked = self.pick(80, random << 57 | random << 20);
                reached.extend(picked.map(|address| address.to_string()));
            }
            reached.into_iter().collect()
        }

        fn pick(&self, port: u16, random: u64) -> Result<SocketAddr, Refusal> {
            let ask = Ask {
                client: &name("shop/cart"),
                hash: None,
                prefer: None,
                open: None,
                exclude: &[],
                random,
            };
            let picked = self.balancer(port, false).pick(&ask, self.now)?;
            Ok(picked.address())
        }
    }

    #[test]
    fn a_balancer_follows_the_endpoints() {
        let mut world = world();
        let mut node = Node::new(&mut world);
        assert_eq!(node.reached().len(), 3);
        world.remove(ObjectKind::Pod, "shop/near");
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.1:8080", "10.0.0.3:8080"]);
        let draining = Pod {
            ready: false,
            ..pod("shop/far", &["10.0.0.3"])
        };
        world.put(Object::Pod(draining));
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.1:8080"]);
    }

    #[test]
    fn an_older_table_changes_nothing_back() {
        let mut world = world();
        let mut node = Node::new(&mut world);
        let old = node.table.clone();
        world.remove(ObjectKind::Pod, "shop/near");
        node.take(&mut world);
        assert_eq!(node.reached().len(), 2);
        node.table = old;
        assert_eq!(node.reached().len(), 2);
    }

    #[test]
    fn a_policy_holds_for_its_port_from_the_next_request_on() {
        let mut world = world();
        let mut node = Node::new(&mut world);
        assert!(node.pick(80, 1).is_ok());
        let spec = TrafficSpec {
            requests: Some(RequestsSpec {
                max: Some(0),
                ..RequestsSpec::default()
            }),
            ..TrafficSpec::default()
        };
        world.put(policy(Some(80), spec));
        node.take(&mut world);
        assert!(matches!(node.pick(80, 1), Err(Refusal::CircuitOpen(_))));
        assert!(node.pick(90, 1).is_ok());
        world.remove(ObjectKind::TrafficPolicy, "shop/web");
        node.take(&mut world);
        assert!(node.pick(80, 1).is_ok());
    }

    #[test]
    fn places_are_known_by_node_and_zone() {
        let mut world = world();
        let mut node = Node::new(&mut world);
        let locality = |node, zone| TrafficSpec {
            load_balancing: Some(LoadBalancingSpec {
                algorithm: Some(Algorithm::Random),
                locality: Some(LocalitySpec {
                    node: Some(node),
                    zone: Some(zone),
                    overprovisioning: None,
                }),
                ..LoadBalancingSpec::default()
            }),
            ..TrafficSpec::default()
        };
        world.put(policy(None, locality(true, true)));
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.1:8080"]);
        world.put(policy(None, locality(false, true)));
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    }

    #[test]
    fn zones_are_those_of_slices_also_where_pods_do_not_tell_them() {
        use crate::state::{EndpointSlice, SliceAddress};

        let at = |text, ip: &[&str], on| Pod {
            node: Some(node(on)),
            ..pod(text, ip)
        };
        let endpoint = |text, on: &str, zone: &str| SliceAddress {
            zone: Some(zone.into()),
            node: Some(node(on)),
            ..SliceAddress::at(ip(text), true)
        };
        let mut world = World::new([
            namespace("shop", "enabled"),
            Object::Pod(at("shop/far", &["10.0.0.3"], "c")),
            Object::Pod(at("shop/near", &["10.0.0.2"], "b")),
            Object::Pod(at("shop/client", &["10.0.0.9"], "a")),
            Object::Service(service("shop/web", "10.96.0.1")),
        ]);
        let slice = |addresses| {
            Object::EndpointSlice(EndpointSlice {
                name: name("shop/web-1"),
                service: "web".into(),
                ports: vec![("http".into(), 8080)],
                addresses,
            })
        };
        let zoned = |ours: &str| {
            vec![
                endpoint("10.0.0.2", "b", "east"),
                endpoint("10.0.0.3", "c", "west"),
                // Of no pod that is known.
                endpoint("192.0.2.1", "d", "east"),
                SliceAddress {
                    ready: false,
                    ..endpoint("10.0.0.8", "a", ours)
                },
            ]
        };
        let locality = TrafficSpec {
            load_balancing: Some(LoadBalancingSpec {
                locality: Some(LocalitySpec {
                    zone: Some(true),
                    overprovisioning: Some(1000),
                    ..LocalitySpec::default()
                }),
                ..LoadBalancingSpec::default()
            }),
            ..TrafficSpec::default()
        };
        world.put(policy(None, locality));
        world.put(slice(zoned("east")));
        let mut node = Node::new(&mut world);
        assert_eq!(node.reached(), ["10.0.0.2:8080", "192.0.2.1:8080"]);
        world.put(slice(zoned("west")));
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.3:8080"]);

        let unzoned = |text| SliceAddress::at(ip(text), true);
        world.put(slice(vec![unzoned("10.0.0.2"), unzoned("10.0.0.3")]));
        node.take(&mut world);
        assert_eq!(node.reached(), ["10.0.0.3:8080"]);
        world.put(Object::EndpointSlice(EndpointSlice {
            name: name("shop/other-1"),
            service: "other".into(),
            ports: Vec::new(),
            addresses: vec![endpoint("10.0.0.2", "b", "west")],
        }));
        node.take(&mut world);
        assert_eq!(node.reached().len(), 2, "a node's zone came later");
    }

    #[test]
    fn families_and_ports_are_balanced_apart() {
        let mut world = world();
        let node = Node::new(&mut world);
        let addresses = |balancer: Balancer| -> Vec<SocketAddr> {
            let figures = balancer.figures(node.now).into_iter();
            figures.map(|it| it.address).collect()
        };
        let v6 = addresses(node.balancer(80, true));
        assert_eq!(v6, [SocketAddr::new(ip("fd00::1"), 8080)]);
        assert_eq!(addresses(node.balancer(90, false)).len(), 3);
        assert!(addresses(node.balancer(91, false)).is_empty());
        assert_eq!(node.clusters.figures(node.now).len(), 3);
    }

    #[test]
    fn the_balancers_of_services_that_are_gone_are_dropped() {
        let mut world = world();
        world.put(Object::Service(service("shop/other", "10.96.0.2")));
        let mut node = Node::new(&mut world);
        assert!(node.pick(80, 1).is_ok());
        world.remove(ObjectKind::Service, "shop/web");
        node.take(&mut world);
        let other = name("shop/other");
        let balancer = node
            .clusters
            .balancer(&node.table, (&other, 80), false, node.now);
        drop(balancer);
        let figures = node.clusters.figures(node.now);
        assert_eq!(figures.len(), 1);
        assert_eq!(figures[0].service, other);
    }
}
