//! Which protocol a port has.

use super::*;
use crate::policy::AppProtocol::{self, Detect, Grpc, Http1, Http2, Opaque, Tls};
use crate::state::fixtures::{node, port, service};
use crate::state::{Pod, Service, ServicePort, TargetPort};

fn declared(name: &str, app_protocol: Option<&str>) -> ServicePort {
    ServicePort {
        app_protocol: app_protocol.map(Into::into),
        ..port(name, 80, TargetPort::Number(8080))
    }
}

#[track_caller]
fn check(name: &str, app_protocol: Option<&str>, expected: AppProtocol) {
    let service = Service {
        ports: vec![declared(name, app_protocol)],
        ..service("shop/web", "10.96.0.1")
    };
    let mut world = World::new([Object::Service(service)]);
    let table = Table::compile(None, world.now());
    let web = crate::state::fixtures::name("shop/web");
    assert_eq!(table.service_protocol(&web, 80), expected);
}

#[test]
fn the_declared_protocol_comes_before_the_name() {
    check("http", Some("grpc"), Grpc);
    check("grpc", Some("kubernetes.io/h2c"), Http2);
    check("x", Some("kubernetes.io/ws"), Http1);
    check("http", Some("https"), Tls);
    check("http", Some("tcp"), Opaque);
}

#[test]
fn a_protocol_that_is_not_known_is_detected() {
    check("http", Some("example.com/carrots"), Detect);
    check("carrots", None, Detect);
    check("", None, Detect);
}

#[test]
fn the_name_says_it_before_a_dash() {
    check("http", None, Http1);
    check("http-web", None, Http1);
    check("httpweb", None, Detect);
    check("grpc-web", None, Http1);
    check("grpc-web-ui", None, Http1);
    check("grpc-webs", None, Grpc);
    check("http2", None, Http2);
    check("mysql-main", None, Opaque);
    check("https", None, Tls);
}

/// `shop/web` on node `n` at 8080, behind Service `shop/web` with an HTTP port.
fn world(change: impl FnOnce(&mut Service, &mut Pod)) -> World {
    let mut web = Service {
        ports: vec![declared("http", None)],
        ..service("shop/web", "10.96.0.1")
    };
    let mut back_end = Pod {
        node: Some(node("n")),
        ..pod("shop/web", &["10.0.0.1"])
    };
    change(&mut web, &mut back_end);
    World::new([
        namespace("shop", "enabled"),
        Object::Pod(back_end),
        Object::Service(web),
    ])
}

/// Of the pod `shop/web`, as its own node and any other has it.
#[track_caller]
fn of_pod(table: &Table, port: u16, expected: AppProtocol) {
    let snapshot = table.snapshot().clone();
    let back_end = std::sync::Arc::clone(&snapshot.pods[&name("shop/web")]);
    assert_eq!(table.pod_protocol(&back_end, port), expected);
    let elsewhere = Table::compile(Some(&Table::of_node(node("m"))), snapshot);
    assert_eq!(elsewhere.pod_protocol(&back_end, port), expected);
}

#[test]
fn a_pods_port_has_the_protocol_of_the_services_that_lead_there() {
    let mut world = world(|_, _| {});
    let table = Table::compile(Some(&Table::of_node(node("n"))), world.now());
    of_pod(&table, 8080, Http1);
    of_pod(&table, 80, Detect);

    let other = Service {
        ports: vec![declared("tcp", None)],
        ..service("shop/other", "10.96.0.2")
    };
    world.put(Object::Service(other));
    let table = Table::compile(Some(&table), world.now());
    of_pod(&table, 8080, Detect);

    world.remove(crate::state::ObjectKind::Service, "shop/web");
    let table = Table::compile(Some(&table), world.now());
    of_pod(&table, 8080, Opaque);
}

#[test]
fn annotations_make_a_port_opaque() {
    let mut of_service = world(|service, _| service.opaque_ports = [80].into());
    let table = Table::compile(Some(&Table::of_node(node("n"))), of_service.now());
    of_pod(&table, 8080, Opaque);
    assert_eq!(table.service_protocol(&name("shop/web"), 80), Opaque);

    let mut of_pod_alone = world(|_, pod| pod.opaque_ports = [8080].into());
    let table = Table::compile(Some(&Table::of_node(node("n"))), of_pod_alone.now());
    of_pod(&table, 8080, Opaque);
    assert_eq!(table.service_protocol(&name("shop/web"), 80), Http1);

    let mut of_namespace = world(|_, _| {});
    of_namespace.put(Object::Namespace(crate::state::Namespace {
        name: "shop".into(),
        labels: crate::state::fixtures::labels(&[("fairlead.dev/mesh", "enabled")]),
        opaque_ports: [80].into(),
    }));
    let table = Table::compile(None, of_namespace.now());
    assert_eq!(table.service_protocol(&name("shop/web"), 80), Opaque);
}
