//! Where connections go.

use std::collections::BTreeSet;

use super::*;
use crate::model::OrigDst;
use crate::policy::{Route, UnavailableReason};
use crate::state::fixtures::service;
use crate::state::{Dict, EndpointSlice, Pod, Service, SliceAddress, Snapshot};

fn world() -> World {
    let unready = Pod {
        ready: false,
        ..pod("shop/c", &["10.0.0.3"])
    };
    let dual = Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ..service("shop/web", "")
    };
    World::new([
        namespace("shop", "enabled"),
        Object::Pod(pod("shop/a", &["10.0.0.1", "fd00::1"])),
        Object::Pod(pod("shop/b", &["10.0.0.2"])),
        Object::Pod(unready),
        Object::Service(dual),
    ])
}

fn route(snapshot: Snapshot, dst: &str, random: u64) -> Route {
    let table = Table::compile(None, snapshot);
    let dst = OrigDst(dst.parse().unwrap());
    table.route(&pod("shop/client", &["10.0.0.9"]), dst, random)
}

#[track_caller]
fn check(snapshot: Snapshot, dst: &str, random: u64, expected: &str) {
    let text = match route(snapshot, dst, random) {
        Route::Pod {
            pod,
            address,
            service,
        } => {
            let via = service.map_or(String::new(), |service| format!(" via {service}"));
            format!("pod {} {address}{via}", pod.name)
        }
        Route::Passthrough { address, service } => {
            let via = service.map_or(String::new(), |service| format!(" via {service}"));
            format!("passthrough {address}{via}")
        }
        Route::Unavailable { reason, service } => {
            let via = service.map_or(String::new(), |service| format!(" via {service}"));
            format!("{}{via}", reason.as_str())
        }
    };
    assert_eq!(text, expected);
}

#[test]
fn a_service_leads_to_each_ready_endpoint() {
    let snapshot = world().now();
    check(
        snapshot.clone(),
        "10.96.0.1:80",
        0,
        "pod shop/a 10.0.0.1:8080 via shop/web",
    );
    check(
        snapshot.clone(),
        "10.96.0.1:80",
        u64::MAX,
        "pod shop/b 10.0.0.2:8080 via shop/web",
    );
    check(
        snapshot.clone(),
        "10.96.0.1:90",
        0,
        "pod shop/a 10.0.0.1:9090 via shop/web",
    );
    check(
        snapshot.clone(),
        "[::ffff:10.96.0.1]:80",
        0,
        "pod shop/a 10.0.0.1:8080 via shop/web",
    );
    let step = u64::MAX / 100;
    let reached =
        (0..100).map(|i| format!("{:?}", route(snapshot.clone(), "10.96.0.1:80", i * step)));
    assert_eq!(reached.collect::<BTreeSet<_>>().len(), 2);
}

/// With a Service that is reached at 203.0.113.7 and at port 30080 of the node 192.0.2.1.
fn exposed() -> World {
    let mut world = world();
    let mut exposed = service("shop/web", "10.96.0.1");
    exposed.balancer_ips = vec![ip("203.0.113.7"), ip("10.0.0.2")];
    exposed.ports[0].node_port = Some(30_080);
    world.put(Object::Service(exposed));
    world.put(Object::Pod(Pod {
        host_network: true,
        ..pod("kube-system/agent", &["192.0.2.1"])
    }));
    world
}

#[test]
fn a_service_is_the_same_from_outside() {
    let snapshot = exposed().now();
    for dialled in ["203.0.113.7:80", "192.0.2.1:30080"] {
        let expected = "pod shop/a 10.0.0.1:8080 via shop/web";
        check(snapshot.clone(), dialled, 0, expected);
    }
    // Other ports there, and other nodes, are none of its business.
    for dialled in ["203.0.113.7:8080", "192.0.2.1:80", "192.0.2.9:30080"] {
        let expected = format!("passthrough {dialled}");
        check(snapshot.clone(), dialled, 0, &expected);
    }
    // What is a pod's own is not a Service's, whatever that says.
    check(snapshot, "10.0.0.2:80", 0, "pod shop/b 10.0.0.2:80");
}

#[test]
fn what_two_services_claim_outside_leads_nowhere() {
    let mut world = exposed();
    let mut other = service("other/web", "");
    other.balancer_ips = vec![ip("203.0.113.7")];
    world.put(Object::Service(other));
    check(world.now(), "203.0.113.7:80", 0, "address_contested");
}

#[test]
fn endpoints_are_of_the_family_that_was_dialled() {
    let snapshot = world().now();
    check(
        snapshot.clone(),
        "[fd00:96::1]:80",
        0,
        "pod shop/a [fd00::1]:8080 via shop/web",
    );
    check(
        snapshot,
        "[fd00:96::1]:80",
        u64::MAX,
        "pod shop/a [fd00::1]:8080 via shop/web",
    );
}

#[test]
fn a_port_that_the_service_has_not_leads_nowhere() {
    check(
        world().now(),
        "10.96.0.1:81",
        0,
        "unknown_port via shop/web",
    );
}

#[test]
fn a_service_without_ready_endpoints_leads_nowhere() {
    let mut world = World::new([Object::Service(service("shop/web", "10.96.0.1"))]);
    check(world.now(), "10.96.0.1:80", 5, "no_endpoints via shop/web");
    world.put(Object::Pod(Pod {
        ready: false,
        ..pod("shop/a", &["10.0.0.1"])
    }));
    check(world.now(), "10.96.0.1:80", 5, "no_endpoints via shop/web");
}

#[test]
fn pods_are_dialled_by_address_too_ready_or_not() {
    check(
        world().now(),
        "10.0.0.3:1234",
        0,
        "pod shop/c 10.0.0.3:1234",
    );
    check(
        world().now(),
        "[fd00::1]:1234",
        0,
        "pod shop/a [fd00::1]:1234",
    );
}

#[test]
fn pods_that_are_not_enrolled_are_still_pods() {
    let mut world = world();
    world.put(Object::Pod(pod("other/d", &["10.0.0.4"])));
    let Route::Pod { pod, .. } = route(world.now(), "10.0.0.4:80", 0) else {
        panic!("not a pod");
    };
    assert!(!pod.enrolled);
}

#[test]
fn what_nobody_knows_passes() {
    check(world().now(), "1.1.1.1:443", 0, "passthrough 1.1.1.1:443");
}

#[test]
fn an_endpoint_that_is_no_pod_passes() {
    let mut world = world();
    world.put(Object::EndpointSlice(EndpointSlice {
        name: name("shop/external"),
        service: "db".into(),
        ports: vec![("http".into(), 5432)],
        addresses: vec![SliceAddress::at(ip("192.0.2.7"), true)],
    }));
    world.put(Object::Service(Service {
        selector: Dict::default(),
        ..service("shop/db", "10.96.0.2")
    }));
    let expected = "passthrough 192.0.2.7:5432 via shop/db";
    check(world.now(), "10.96.0.2:80", 9, expected);
}

#[test]
fn a_contested_address_is_nobodys_and_never_passes() {
    let mut world = world();
    world.put(Object::Pod(pod("evil/a", &["10.0.0.1"])));
    let snapshot = world.now();
    check(snapshot.clone(), "10.0.0.1:8080", 0, "address_contested");
    check(
        snapshot,
        "10.96.0.1:80",
        0,
        "pod shop/b 10.0.0.2:8080 via shop/web",
    );
    assert_eq!(
        UnavailableReason::AddressContested.as_str(),
        "address_contested"
    );
}

/// Services of one pod each: `shop/web` (front), `shop/one` and `shop/two`.
const ROUTED: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {fairlead.dev/mesh: enabled}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
 spec: {clusterIP: 10.96.0.1, ports: [{port: 80}], selector: {app: web}}}
---
{apiVersion: v1, kind: Service, metadata: {name: one, namespace: shop},
 spec: {clusterIP: 10.96.0.2, ports: [{port: 81}], selector: {app: one}}}
---
{apiVersion: v1, kind: Service, metadata: {name: two, namespace: shop},
 spec: {clusterIP: 10.96.0.3, ports: [{port: 82}], selector: {app: two}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}},
 status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: one, namespace: shop, labels: {app: one}},
 status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: two, namespace: shop, labels: {app: two}},
 status: {podIP: 10.0.0.3}}
";

/// Where connections of `shop/client` to the front go that ask for a name.
#[track_caller]
fn check_routed(routes: &str, name: Option<&str>, random: u64, expected: &str) {
    let mut world = World::new([]);
    for object in crate::policy::http::tests::objects(&format!("{ROUTED}{routes}")).0 {
        world.put(object);
    }
    let table = Table::compile(None, world.now());
    let dst = OrigDst("10.96.0.1:80".parse().unwrap());
    let client = pod("shop/client", &["10.0.0.9"]);
    let found = match table.route_named(&client, dst, name, random) {
        Route::Pod { pod, address, .. } => format!("{} {}", pod.name.name, address.port()),
        Route::Passthrough { address, .. } => address.to_string(),
        Route::Unavailable { reason, .. } => reason.as_str().to_owned(),
    };
    assert_eq!(found, expected);
}

fn connection_route(kind: &str, hostnames: &str, backends: &str) -> String {
    format!(
        "---\n{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: r, \
         namespace: shop}}, spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], \
         {hostnames} rules: [{{backendRefs: [{backends}]}}]}}}}\n"
    )
}

#[test]
fn a_tcp_route_shares_connections_by_weight() {
    let half = u64::MAX / 2;
    let both = "{name: one, port: 81}, {name: two, port: 82}";
    let routes = connection_route("TCPRoute", "", both);
    check_routed("", None, 0, "web 80");
    check_routed(&routes, None, 0, "one 81");
    check_routed(&routes, None, half, "one 81");
    check_routed(&routes, None, half + 2, "two 82");
    check_routed(&routes, None, u64::MAX, "two 82");
    let gone = connection_route("TCPRoute", "", "{name: gone, port: 1}");
    check_routed(&gone, None, 0, "backend_invalid");
    let none = connection_route("TCPRoute", "", "{name: one, port: 81, weight: 0}");
    check_routed(&none, None, 0, "backend_invalid");
    let unknown = connection_route("TCPRoute", "", "{name: one, port: 81, magic: 1}");
    check_routed(&unknown, None, 0, "backend_invalid");
}

#[test]
fn a_tls_route_is_of_the_names_that_it_has() {
    let names = "hostnames: [a.example.com],";
    let routes = connection_route("TLSRoute", names, "{name: one, port: 81}");
    check_routed(&routes, Some("a.example.com"), 0, "one 81");
    check_routed(&routes, Some("b.example.com"), 0, "no_route");
    check_routed(&routes, None, 0, "no_route");
}
