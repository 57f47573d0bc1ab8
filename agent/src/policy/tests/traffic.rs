//! The settings of Services' ports.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::policy::traffic::{Limiter, TrafficSettings};
use crate::state::ObjectKind;
use crate::state::fixtures::service;
use crate::state::traffic::{
    Algorithm, BackoffSpec, LimitKey, LimitKind, LoadBalancingSpec, LocalLimit, RateLimit,
    RequestsSpec, RetriesSpec, TargetedPort, TimeoutsSpec, TrafficMatch, TrafficPolicy,
    TrafficSpec, TrafficTarget,
};

fn requests(max: u32) -> TrafficSpec {
    TrafficSpec {
        requests: Some(RequestsSpec {
            max: Some(max),
            ..RequestsSpec::default()
        }),
        ..TrafficSpec::default()
    }
}

/// Of the Service `web`.
fn policy(text: &str, port: Option<TargetedPort>, created: i64, spec: TrafficSpec) -> Object {
    let target = TrafficTarget {
        service: "web".into(),
        port,
    };
    Object::TrafficPolicy(TrafficPolicy {
        name: name(text),
        targets: vec![target],
        spec,
        created,
        generation: 1,
        invalid: None,
        held: false,
    })
}

fn world(policies: impl IntoIterator<Item = Object>) -> World {
    let mut world = World::new([
        namespace("shop", "enabled"),
        Object::Service(service("shop/web", "10.96.0.1")),
    ]);
    for policy in policies {
        world.put(policy);
    }
    world
}

fn settings(world: &mut World, port: u16) -> Arc<TrafficSettings> {
    Table::compile(None, world.now()).traffic(&name("shop/web"), port)
}

#[test]
fn defaults_are_safe() {
    let settings = settings(&mut world([]), 80);
    assert_eq!(*settings, TrafficSettings::defaults());
    assert_eq!(settings.load_balancing.algorithm, Algorithm::PeakEwma);
    assert_eq!(settings.outlier_detection, None);
    assert_eq!(settings.timeouts.request, None);
    assert_eq!(settings.adaptive_concurrency, None);
    // What no endpoint has seen may always be sent again.
    assert_eq!(settings.retries.attempts, 2);
    assert!(settings.retries.codes.is_empty());
    assert!(!settings.retries.methods.contains(&http::Method::POST));
}

#[test]
fn a_port_goes_before_its_service_and_the_oldest_before_the_others() {
    let all = [
        policy("shop/a", None, 20, requests(1)),
        policy("shop/z", None, 10, requests(2)),
        policy("shop/p", Some(TargetedPort::Number(80)), 30, requests(3)),
        policy(
            "shop/n",
            Some(TargetedPort::Name("admin".into())),
            40,
            requests(4),
        ),
        policy("other/web", None, 1, requests(5)),
    ];
    let mut world = world(all);
    let table = Table::compile(None, world.now());
    let max = |port| table.traffic(&name("shop/web"), port).requests.max;
    assert_eq!((max(80), max(90), max(91)), (3, 4, 2));
    let missing = table.traffic(&name("other/web"), 80);
    assert_eq!(*missing, TrafficSettings::defaults());
    let names = &table.traffic(&name("shop/web"), 80).policies;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/p", "shop/z", "shop/a"]);
}

#[test]
fn each_section_is_of_the_first_policy_that_has_it() {
    let timeouts = TrafficSpec {
        timeouts: Some(TimeoutsSpec {
            request: Some(Duration::from_secs(3)),
            idle: Some(Duration::ZERO),
            ..TimeoutsSpec::default()
        }),
        ..requests(7)
    };
    let mut world = world([
        policy("shop/a", None, 1, requests(1)),
        policy("shop/b", None, 2, timeouts),
    ]);
    let settings = settings(&mut world, 80);
    assert_eq!(settings.requests.max, 1);
    assert_eq!(settings.timeouts.request, Some(Duration::from_secs(3)));
    assert_eq!(settings.timeouts.idle, None);
}

#[test]
fn limits_of_rates_add_up() {
    let limit = |requests| TrafficSpec {
        rate_limits: vec![RateLimit {
            name: "".into(),
            matches: TrafficMatch::default(),
            limit: LimitKind::Local(LocalLimit {
                requests,
                per: Duration::from_secs(1),
                burst: None,
                by: LimitKey::Service,
            }),
        }],
        ..TrafficSpec::default()
    };
    let mut world = world([
        policy("shop/a", None, 1, limit(1)),
        policy("shop/b", Some(TargetedPort::Number(80)), 2, limit(2)),
    ]);
    let settings = settings(&mut world, 80);
    let bursts = settings.rate_limits.iter().map(|it| match it.limiter {
        Limiter::Local { burst, .. } => burst,
        Limiter::Global { .. } => 0,
    });
    assert_eq!(bursts.collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn a_hash_is_the_algorithm_where_none_is_named() {
    let spec = |algorithm| TrafficSpec {
        load_balancing: Some(LoadBalancingSpec {
            algorithm,
            consistent_hash: Some(crate::state::traffic::ConsistentHash {
                table: None,
                key: crate::state::traffic::HashKey::Source,
                bounded_load: None,
            }),
            ..LoadBalancingSpec::default()
        }),
        ..TrafficSpec::default()
    };
    let mut world = world([policy("shop/a", None, 1, spec(None))]);
    let settings = settings(&mut world, 80);
    assert_eq!(settings.load_balancing.algorithm, Algorithm::ConsistentHash);
    assert!(settings.load_balancing.hash.is_some());
}

#[test]
fn a_longest_backoff_follows_from_its_base() {
    let spec = TrafficSpec {
        retries: Some(RetriesSpec {
            backoff: Some(BackoffSpec {
                base: Some(Duration::from_millis(100)),
                max: None,
            }),
            ..RetriesSpec::default()
        }),
        ..TrafficSpec::default()
    };
    let settings = settings(&mut world([policy("shop/a", None, 1, spec)]), 80);
    assert_eq!(settings.retries.backoff.max, Duration::from_secs(1));
}

#[test]
fn what_does_not_change_stays_the_same_settings() {
    let mut world = world([policy("shop/a", None, 1, requests(1))]);
    let web = name("shop/web");
    let before = Table::compile(None, world.now());
    world.put(Object::Pod(pod("shop/b", &["10.0.0.7"])));
    world.put(Object::Service(service("shop/other", "10.96.0.7")));
    let after = Table::compile(Some(&before), world.now());
    let [old, new] = [&before, &after].map(|table| table.traffic(&web, 80));
    assert!(Arc::ptr_eq(&old, &new));
    let defaults = [&before, &after].map(|table| table.traffic(&name("shop/other"), 80));
    assert!(Arc::ptr_eq(&defaults[0], &defaults[1]));
    // A policy of one port leaves those of the others as they are.
    world.put(policy(
        "shop/p",
        Some(TargetedPort::Number(90)),
        2,
        requests(2),
    ));
    let later = Table::compile(Some(&after), world.now());
    assert!(Arc::ptr_eq(&new, &later.traffic(&web, 80)));
    assert_eq!(later.traffic(&web, 90).requests.max, 2);
    world.remove(ObjectKind::TrafficPolicy, "shop/a");
    world.remove(ObjectKind::TrafficPolicy, "shop/p");
    let last = Table::compile(Some(&later), world.now());
    assert_eq!(*last.traffic(&web, 90), TrafficSettings::defaults());
}

#[test]
fn a_service_that_comes_later_has_the_policy() {
    let mut world = World::new([policy("shop/a", None, 1, requests(1))]);
    let before = Table::compile(None, world.now());
    world.put(Object::Service(service("shop/web", "10.96.0.1")));
    let after = Table::compile(Some(&before), world.now());
    assert_eq!(after.traffic(&name("shop/web"), 80).requests.max, 1);
}

#[test]
fn a_policy_that_is_not_understood_any_more_stays_as_it_was() {
    let invalid = |generation, spec| match policy("shop/a", None, 1, spec) {
        Object::TrafficPolicy(policy) => Object::TrafficPolicy(TrafficPolicy {
            invalid: Some("spec.request: is not known here".to_owned()),
            generation,
            ..policy
        }),
        other => other,
    };
    let mut world = world([policy("shop/a", None, 1, requests(1))]);
    world.put(invalid(2, TrafficSpec::default()));
    assert_eq!(settings(&mut world, 80).requests.max, 1);
    world.put(invalid(3, requests(5)));
    assert_eq!(settings(&mut world, 80).requests.max, 1);
    world.put(policy("shop/a", None, 1, requests(2)));
    assert_eq!(settings(&mut world, 80).requests.max, 2);
    // One that never was understood is what it says by now, as far as it is.
    world.remove(ObjectKind::TrafficPolicy, "shop/a");
    world.put(invalid(5, requests(6)));
    assert_eq!(settings(&mut world, 80).requests.max, 6);
    world.put(invalid(6, requests(7)));
    assert_eq!(settings(&mut world, 80).requests.max, 7);
}

#[test]
fn targets_that_do_not_exist_are_reported() {
    let mut world = world([policy(
        "shop/a",
        Some(TargetedPort::Number(81)),
        1,
        requests(1),
    )]);
    let problems = |world: &mut World| -> Vec<String> {
        let snapshot = world.now();
        let problems = snapshot.problems.iter();
        problems
            .map(|it| format!("{} {} {}", it.object, it.field, it.message))
            .collect()
    };
    assert_eq!(
        problems(&mut world),
        [
            "shop/a spec.targetRefs[0].port the Service shop/web has no TCP port 81: nothing is \
          selected by it"
        ]
    );
    world.remove(ObjectKind::Service, "shop/web");
    assert_eq!(
        problems(&mut world),
        ["shop/a spec.targetRefs[0].name there is no Service shop/web: nothing is selected by it"]
    );
    world.remove(ObjectKind::TrafficPolicy, "shop/a");
    assert!(problems(&mut world).is_empty());
}
