//! Connections that routes send elsewhere.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::Deserialize as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{TestPod, World, soon};
use super::{check_flow, echo, expect_fin, expect_reset, round_trip};
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::flow::Verdict;
use crate::model::{NamespacedName, TrustDomain};
use crate::state::{EndpointSlice, Object, SliceAddress};

const FRONT: &str = "10.96.0.1:80";

/// Objects of manifests.
fn apply(world: &mut World, text: &str) {
    let trust_domain = TrustDomain("cluster.local".into());
    let mut converter = Converter::new(trust_domain, NetnsFrom::Annotation);
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document).unwrap();
        let read = converter.value(&value);
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        world.apply(read.object.unwrap());
    }
}

/// A client, Service `front` without back ends, and Services `one` on the client's node and
/// `two` on another, which echo.
fn with_services(world: &mut World) -> (TestPod, [TestPod; 2]) {
    let client = world.pod("client", 0);
    let servers = [world.pod("one", 0), world.pod("two", 1)];
    let mut text = "{apiVersion: v1, kind: Service, metadata: {name: front, namespace: shop}, \
                    spec: {clusterIP: 10.96.0.1, selector: {app: none}, ports: [{port: 80}]}}\n"
        .to_owned();
    for (index, server) in servers.iter().enumerate() {
        let (listener, address) = server.listen();
        echo(listener);
        let (name, port) = (&server.pod.name.name, address.port());
        writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
             spec: {{clusterIP: 10.96.0.{}, selector: {{app: {name}}}, ports: [{{port: 80, \
             targetPort: {port}}}]}}}}",
            index + 2
        )
        .unwrap();
    }
    apply(world, &text);
    (client, servers)
}

fn route(world: &mut World, kind: &str, name: &str, spec: &str) {
    let text = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{name: {name}, \
         namespace: shop}}, spec: {{parentRefs: [{{group: '', kind: Service, name: front}}], \
         {spec}}}}}"
    );
    apply(world, &text);
}

fn front() -> SocketAddr {
    FRONT.parse().unwrap()
}

#[tokio::test]
async fn a_tcp_route_sends_connections_to_its_back_ends() {
    let mut world = World::new();
    let (client, _servers) = with_services(&mut world);
    for (to, weights) in [("two", (0, 1)), ("one", (1, 0))] {
        let spec = format!(
            "rules: [{{backendRefs: [{{name: one, port: 80, weight: {}}}, {{name: two, port: 80, \
             weight: {}}}]}}]",
            weights.0, weights.1
        );
        route(&mut world, "TCPRoute", "r", &spec);
        let mut stream = client.dial(front()).await;
        round_trip(&mut stream, b"hello").await;
        stream.shutdown().await.unwrap();
        expect_fin(&mut stream).await;
        let flow = world.flow(0).await;
        check_flow(&flow, Verdict::Forwarded, "closed");
        assert_eq!(flow.destination.pod.as_deref(), Some(to));
        assert!(flow.http.is_none());
    }
}

/// Service `both`, to which a TCPRoute leads, with these endpoints, and what a TrafficPolicy
/// says of it.
fn to_both(world: &mut World, endpoints: &[SocketAddr], spec: &str) {
    for (index, endpoint) in endpoints.iter().enumerate() {
        world.apply(Object::EndpointSlice(EndpointSlice {
            name: NamespacedName::new("shop", format!("both-{index}")),
            service: "both".into(),
            ports: vec![("".into(), endpoint.port())],
            addresses: vec![SliceAddress::at(endpoint.ip(), true)],
        }));
    }
    apply(
        world,
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: both, namespace: shop}}, spec: \
             {{clusterIP: 10.96.0.9, ports: [{{port: 80}}]}}}}\n---\n{{apiVersion: \
             fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: both, namespace: shop}}, \
             spec: {{targetRefs: [{{kind: Service, name: both}}], {spec}}}}}"
        ),
    );
    let spec = "rules: [{backendRefs: [{name: both, port: 80}]}]";
    route(world, "TCPRoute", "r", spec);
}

#[tokio::test]
async fn the_connections_of_a_route_stay_near_where_a_policy_says_so() {
    let mut world = World::new();
    let (client, servers) = with_services(&mut world);
    let endpoints = servers.each_ref().map(|server| {
        let (listener, address) = server.listen();
        echo(listener);
        address
    });
    let near = "loadBalancing: {locality: {node: true}}";
    to_both(&mut world, &endpoints, near);
    for _ in 0..12 {
        let mut stream = client.dial(front()).await;
        round_trip(&mut stream, b"hello").await;
        stream.shutdown().await.unwrap();
        expect_fin(&mut stream).await;
        let flow = world.flow(0).await;
        assert_eq!(flow.destination.pod.as_deref(), Some("one"));
    }
}

#[tokio::test]
async fn an_endpoint_of_a_route_that_refuses_connections_gets_no_more() {
    let mut world = World::new();
    let (client, servers) = with_services(&mut world);
    let (listener, good) = servers[1].listen();
    echo(listener);
    let (nobody, bad) = servers[0].listen();
    drop(nobody);
    let ejected = "outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 50, \
                   panicThreshold: 0}, loadBalancing: {algorithm: ROUND_ROBIN}";
    to_both(&mut world, &[bad, good], ejected);
    let mut failed = 0;
    for _ in 0..30 {
        let mut stream = client.dial(front()).await;
        let _sent = stream.write_all(b"hello").await;
        let mut heard = [0; 5];
        failed += usize::from(soon(stream.read_exact(&mut heard)).await.is_err());
    }
    assert_eq!(failed, 2);
}

#[tokio::test]
async fn a_tcp_route_that_leads_nowhere_refuses() {
    let mut world = World::new();
    let (client, _servers) = with_services(&mut world);
    route(
        &mut world,
        "TCPRoute",
        "r",
        "rules: [{backendRefs: [{name: gone, port: 80}]}]",
    );
    client.dial_refused(front()).await;
    check_flow(&world.flow(0).await, Verdict::Failed, "backend_invalid");
}

/// What a client of TLS says first that asks for this name.
fn hello(name: &str) -> Vec<u8> {
    let block = |bytes: Vec<u8>| {
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        [length.to_vec(), bytes].concat()
    };
    let host = [vec![0], block(name.as_bytes().to_vec())].concat();
    let extension = [vec![0, 0], block(block(host))].concat();
    let body = [
        vec![3, 3],
        vec![7; 32],
        vec![0],
        block(vec![0x13, 0x01]),
        vec![1, 0],
        block(extension),
    ];
    let message = [vec![1, 0], block(body.concat())].concat();
    [vec![22, 3, 1], block(message)].concat()
}

#[tokio::test]
async fn a_tls_route_goes_by_the_name_that_is_asked_for() {
    let mut world = World::new();
    let (client, _servers) = with_services(&mut world);
    for (route, host, to) in [
        ("a", "a.example.com", "one"),
        ("b", "'*.b.example.com'", "two"),
    ] {
        let spec =
            format!("hostnames: [{host}], rules: [{{backendRefs: [{{name: {to}, port: 80}}]}}]");
        self::route(&mut world, "TLSRoute", route, &spec);
    }
    for (name, to) in [("a.example.com", "one"), ("x.b.example.com", "two")] {
        let mut stream = client.dial(front()).await;
        let hello = hello(name);
        // However it is cut.
        let (first, rest) = hello.split_at(20);
        soon(stream.write_all(first)).await.unwrap();
        soon(stream.write_all(rest)).await.unwrap();
        let mut heard = vec![0; hello.len()];
        soon(stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, hello);
        stream.shutdown().await.unwrap();
        expect_fin(&mut stream).await;
        let flow = world.flow(0).await;
        check_flow(&flow, Verdict::Forwarded, "closed");
        assert_eq!(flow.destination.pod.as_deref(), Some(to));
    }
    for first in [hello("c.example.com"), b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut stream = client.dial(front()).await;
        soon(stream.write_all(&first)).await.unwrap();
        expect_reset(&mut stream).await;
        check_flow(&world.flow(0).await, Verdict::Failed, "no_route");
    }
}
