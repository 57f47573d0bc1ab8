//! What a change costs does not depend on how large the cluster is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::policy::Table;
use crate::state::fixtures::{World, name, namespace, node, pod, service};
use crate::state::{EndpointSlice, Object, Pod, SliceAddress};

/// Pods of one namespace, and of one Service.
const PODS: usize = 100;
const PODS_OF_SERVICE: usize = 10;

/// Namespaces full of pods, with a Service and its slice for each ten.
struct Cluster {
    world: World,
    table: Table,
    pods: usize,
}

impl Cluster {
    fn of(pods: usize) -> Self {
        let mut world = World::new([]);
        for number in 0..pods / PODS {
            world.put(namespace(&format!("ns{number}"), "enabled"));
        }
        for number in 0..pods {
            world.put(Object::Pod(numbered_pod(number)));
        }
        for number in 0..pods / PODS_OF_SERVICE {
            world.put(slice(number, 0));
            let name = format!("ns{}/s{number}", number * PODS_OF_SERVICE / PODS);
            world.put(Object::Service(service(&name, "")));
        }
        let table = Table::compile(None, world.now());
        Self { world, table, pods }
    }

    fn put(&mut self, object: Object) {
        self.world.put(object);
        // What says the same again is no change.
        if let Some(snapshot) = self.world.0.publish() {
            self.table = Table::compile(Some(&self.table), snapshot);
        }
    }

    /// Processor time for one endpoint and one pod that change, here and there; the least
    /// of several times, since whatever else runs can only make it more.
    fn cost(&mut self) -> Duration {
        let mut times = Vec::new();
        for round in 1..=8 {
            let start = processor_time();
            for step in 0..50 {
                let number = step * 7919 % self.pods;
                self.put(slice(number / PODS_OF_SERVICE, round));
                let changed = Pod {
                    ready: round % 2 == 0,
                    ..numbered_pod(number)
                };
                self.put(Object::Pod(changed));
            }
            times.push(processor_time().saturating_sub(start));
        }
        times.into_iter().min().unwrap()
    }
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

fn address(number: usize) -> IpAddr {
    let [_, high, middle, low] = u32::try_from(number).unwrap().to_be_bytes();
    IpAddr::from([10, high, middle, low])
}

fn numbered_pod(number: usize) -> Pod {
    let mut pod = pod(&format!("ns{}/p{number}", number / PODS), &[]);
    pod.ips = vec![address(number)];
    pod.node = Some(node(&format!("n{}", number / PODS)));
    pod
}

fn slice(number: usize, unready: usize) -> Object {
    let first = number * PODS_OF_SERVICE;
    let endpoint = |at| SliceAddress::at(address(first + at), at != unready % PODS_OF_SERVICE);
    Object::EndpointSlice(EndpointSlice {
        name: name(&format!("ns{}/s{number}-x", first / PODS)),
        service: format!("s{number}").into(),
        ports: vec![("http".into(), 8080)],
        addresses: (0..PODS_OF_SERVICE).map(endpoint).collect(),
    })
}

#[test]
fn a_change_costs_the_same_in_a_cluster_fifty_times_larger() {
    let (mut small, mut large) = (Cluster::of(400), Cluster::of(20_000));
    let (small, large) = (small.cost(), large.cost());
    // The depth of the trees grows by a half; a look at everything would be fifty times.
    assert!(
        large < 8 * small,
        "100 changes take {small:?} among 400 pods and {large:?} among 20,000"
    );
}

#[test]
fn a_table_of_a_node_keeps_the_policies_of_its_pods() {
    let mut cluster = Cluster::of(300);
    let snapshot = cluster.table.snapshot().clone();
    let mut table = Table::compile(Some(&Table::of_node(node("n1"))), snapshot);
    let (local, remote) = (numbered_pod(PODS).name, numbered_pod(0).name);
    let same = |name| Arc::ptr_eq(&table.inbound(name), &table.inbound(name));
    assert!(same(&local));
    assert!(!same(&remote), "made for whoever asks");
    assert_eq!(table.inbound(&remote), cluster.table.inbound(&remote));
    // What comes to the node is known from then on, and what leaves it is let go.
    for (number, to) in [(0, "n1"), (PODS, "n2")] {
        let moved = Pod {
            node: Some(node(to)),
            ..numbered_pod(number)
        };
        cluster.world.put(Object::Pod(moved));
    }
    table = Table::compile(Some(&table), cluster.world.now());
    let same = |name| Arc::ptr_eq(&table.inbound(name), &table.inbound(name));
    assert!(same(&remote) && !same(&local));
}

#[test]
fn pods_of_a_namespace_share_a_policy() {
    let cluster = Cluster::of(200);
    let policy = |number: usize| cluster.table.inbound(&numbered_pod(number).name);
    assert!(policy(0).is_known());
    assert!(Arc::ptr_eq(&policy(0), &policy(99)));
}
