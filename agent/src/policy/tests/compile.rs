//! What a table takes over from the one before.

use std::sync::Arc;

use super::*;
use crate::policy::InboundPolicy;
use crate::state::fixtures::{labels, service};
use crate::state::{Dict, EndpointSlice, ObjectKind, Pod, ROOT_NAMESPACE, Service, SliceAddress};

const PODS: [&str; 3] = ["shop/a", "shop/b", "other/c"];

/// A world of three enrolled pods and its table after each change.
struct Timeline {
    world: World,
    table: Table,
}

impl Timeline {
    fn new() -> Self {
        let mut world = World::new([namespace("shop", "enabled"), namespace("other", "enabled")]);
        for (index, name) in PODS.into_iter().enumerate() {
            let mut pod = pod(name, &[&format!("10.0.0.{}", index + 1)]);
            pod.labels = labels(&[("app", name.split_once('/').unwrap().1)]);
            world.put(Object::Pod(pod));
        }
        let table = Table::compile(None, world.now());
        Self { world, table }
    }

    fn inbound(&self) -> Vec<Arc<InboundPolicy>> {
        PODS.iter()
            .map(|pod| self.table.inbound(&name(pod)))
            .collect()
    }

    /// Applies a change; exactly these pods' policies are replaced, and all are what a
    /// table from nothing would have.
    #[track_caller]
    fn check(&mut self, change: impl FnOnce(&mut World), expected: &[&str]) {
        let before = self.inbound();
        change(&mut self.world);
        let snapshot = self.world.now();
        self.table = Table::compile(Some(&self.table), snapshot.clone());
        let after = self.inbound();
        let pairs = PODS.iter().zip(before.iter().zip(&after));
        let replaced = pairs.filter(|(_, (before, after))| !Arc::ptr_eq(before, after));
        let replaced: Vec<&str> = replaced.map(|(name, _)| *name).collect();
        assert_eq!(replaced, expected);
        let fresh = Table::compile(None, snapshot);
        for (pod, policy) in PODS.iter().zip(&after) {
            assert_eq!(**policy, *fresh.inbound(&name(pod)), "{pod}");
        }
    }
}

fn authorization(text: &str, scope: PolicyScope) -> Object {
    Object::AuthorizationPolicy(AuthorizationPolicy {
        scope,
        ..policy(text, Action::Allow, vec![])
    })
}

#[test]
fn a_policy_replaces_those_that_it_selects() {
    let mut timeline = Timeline::new();
    let pods = |label| PolicyScope::Pods(Selector(labels(&[("app", label)])));
    timeline.check(|w| w.put(authorization("shop/p", pods("a"))), &["shop/a"]);
    timeline.check(
        |w| w.put(authorization("shop/p", pods("b"))),
        &["shop/a", "shop/b"],
    );
    let namespace = PolicyScope::Pods(Selector::default());
    timeline.check(
        |w| w.put(authorization("shop/p", namespace)),
        &["shop/a", "shop/b"],
    );
    let root = format!("{ROOT_NAMESPACE}/p");
    timeline.check(|w| w.put(authorization(&root, PolicyScope::Mesh)), &PODS);
    timeline.check(
        |w| w.remove(ObjectKind::AuthorizationPolicy, "shop/p"),
        &["shop/a", "shop/b"],
    );
    timeline.check(|w| w.remove(ObjectKind::AuthorizationPolicy, &root), &PODS);
    let strict = mesh("other/m", Some(MtlsMode::Strict), &[]);
    timeline.check(|w| w.put(Object::MeshPolicy(strict)), &["other/c"]);
    timeline.check(
        |w| w.remove(ObjectKind::MeshPolicy, "other/m"),
        &["other/c"],
    );
}

#[test]
fn a_policy_of_the_root_namespace_with_a_selector_stays_there() {
    let mut timeline = Timeline::new();
    let policy = authorization(
        &format!("{ROOT_NAMESPACE}/p"),
        PolicyScope::Pods(Selector::default()),
    );
    timeline.check(|w| w.put(policy), &[]);
}

#[test]
fn a_pod_replaces_only_its_own_and_only_where_it_matters() {
    let mut timeline = Timeline::new();
    let scope = PolicyScope::Pods(Selector(labels(&[("app", "a")])));
    timeline.check(|w| w.put(authorization("shop/p", scope)), &["shop/a"]);
    let unready = |label: &str| {
        Object::Pod(Pod {
            ready: false,
            labels: labels(&[("app", label)]),
            ..pod("shop/a", &["10.0.0.1"])
        })
    };
    timeline.check(|w| w.put(unready("a")), &[]);
    timeline.check(|w| w.put(unready("x")), &["shop/a"]);
    timeline.check(|w| w.remove(ObjectKind::Pod, "shop/a"), &["shop/a"]);
}

#[test]
fn a_pod_that_leaves_the_mesh_has_no_policy() {
    let mut timeline = Timeline::new();
    timeline.check(
        |w| w.put(namespace("shop", "disabled")),
        &["shop/a", "shop/b"],
    );
    let decision = Client::cart().decide(&timeline.table, &name("shop/a"));
    assert_eq!(words(&decision), "no_rule_allows");
    timeline.check(
        |w| w.put(namespace("shop", "enabled")),
        &["shop/a", "shop/b"],
    );
}

#[test]
fn services_matter_where_they_are_targets() {
    let mut timeline = Timeline::new();
    let target = |label: &str| {
        Object::Service(Service {
            selector: labels(&[("app", label)]),
            ..service("shop/web", "10.96.0.1")
        })
    };
    timeline.check(|w| w.put(target("a")), &[]);
    let scope = PolicyScope::Services(vec!["web".into()]);
    timeline.check(|w| w.put(authorization("shop/p", scope)), &["shop/a"]);
    timeline.check(|w| w.put(target("b")), &["shop/a", "shop/b"]);
    timeline.check(|w| w.remove(ObjectKind::Service, "shop/web"), &["shop/b"]);
    let manual = Service {
        selector: Dict::default(),
        ..service("shop/web", "10.96.0.1")
    };
    timeline.check(|w| w.put(Object::Service(manual)), &[]);
    let slice = |address| {
        Object::EndpointSlice(EndpointSlice {
            name: name("shop/web-1"),
            service: "web".into(),
            ports: vec![("http".into(), 80)],
            addresses: vec![SliceAddress::at(ip(address), true)],
        })
    };
    timeline.check(|w| w.put(slice("10.0.0.1")), &["shop/a"]);
    timeline.check(|w| w.put(slice("10.0.0.2")), &["shop/a", "shop/b"]);
}

#[test]
fn one_change_in_a_large_cluster_touches_little() {
    let mut world = World::new([namespace("shop", "enabled"), namespace("other", "enabled")]);
    for index in 0..5000 {
        let (high, low) = (index / 250, index % 250);
        let namespace = ["shop", "other"][usize::from(index > 10)];
        let name = format!("{namespace}/p{index}");
        world.put(Object::Pod(pod(&name, &[&format!("10.0.{high}.{low}")])));
    }
    let started = std::time::Instant::now();
    let table = Table::compile(None, world.now());
    let from_nothing = started.elapsed();
    let started = std::time::Instant::now();
    let mut latest = table.clone();
    for index in 0..1000_u32 {
        let flapping = Pod {
            ready: index % 2 == 0,
            ..pod("shop/p1", &["10.0.0.1"])
        };
        world.put(Object::Pod(flapping));
        if let Some(snapshot) = world.0.publish() {
            latest = Table::compile(Some(&latest), snapshot);
        }
    }
    // A thousand passes over the cluster would take a thousand times as long.
    assert!(started.elapsed() < from_nothing * 200);
    let old = table.inbound(&name("other/p4000"));
    assert!(Arc::ptr_eq(&old, &latest.inbound(&name("other/p4000"))));
}
