//! Which way a connection goes, and what is said of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use super::world::{World, app, fresh_ip, id, until};
use super::{check_flow, echo, expect_fin, expect_reset, round_trip};
use crate::flow::{Direction, TlsState, Verdict};
use crate::model::{ClientAddr, NamespacedName};
use crate::proxy::PodNetwork as _;
use crate::state::{
    Action, AuthorizationPolicy, From, MeshPolicy, MtlsMode, Object, PolicyScope, Rule, Selector,
    StringMatch,
};

/// So short that a test waits for its end, so long that the test is done with what goes on
/// meanwhile.
const DRAIN: Duration = Duration::from_secs(4);

fn selecting(app: &str) -> PolicyScope {
    let labels = [("app".to_owned(), app.to_owned())];
    PolicyScope::Pods(Selector(labels.into()))
}

/// Only `client` may dial `server`.
pub(super) fn allow(server: &str, client: &str) -> Object {
    let principal = format!("cluster.local/ns/shop/sa/{client}");
    Object::AuthorizationPolicy(AuthorizationPolicy {
        name: NamespacedName::new("shop", "only"),
        scope: selecting(server),
        action: Action::Allow,
        dry_run: false,
        rules: vec![Rule {
            from: vec![From {
                principals: vec![StringMatch::Exact(principal)],
                ..From::default()
            }],
            ..Rule::default()
        }],
        provider: None,
        generation: 0,
        invalid: None,
    })
}

pub(super) fn strict(server: &str) -> Object {
    Object::MeshPolicy(MeshPolicy {
        name: NamespacedName::new("shop", "strict"),
        scope: selecting(server),
        mtls: Some(MtlsMode::Strict),
        port_mtls: std::collections::BTreeMap::new(),
        jwt: Vec::new(),
        jwt_invalid: false,
        access_log: None,
        generation: 0,
        invalid: None,
    })
}

#[tokio::test]
async fn another_node_is_reached_through_a_tunnel() {
    for world in World::each() {
        another_node_is_reached(world).await;
    }
}

async fn another_node_is_reached(mut world: World) {
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    let local = stream.local_addr().unwrap();
    round_trip(&mut stream, b"hello").await;
    stream.shutdown().await.unwrap();
    expect_fin(&mut stream).await;

    let (out, inbound) = (world.flow(0).await, world.flow(1).await);
    check_flow(&out, Verdict::Forwarded, "closed");
    check_flow(&inbound, Verdict::Forwarded, "closed");
    assert_eq!(out.direction, Direction::Outbound);
    assert_eq!(inbound.direction, Direction::Inbound);
    assert_eq!(out.connection_id, inbound.connection_id);
    for flow in [&out, &inbound] {
        assert_eq!(flow.tls, TlsState::Mtls);
        assert_eq!((flow.bytes_sent, flow.bytes_received), (5, 5));
        assert_eq!(flow.source.identity, Some(id("client")));
        assert_eq!(flow.destination.identity, Some(id("server")));
        assert_eq!(flow.destination.port, address.port());
        assert_eq!(flow.source.port, local.port());
    }
    let presented = server.network.presented.lock().unwrap().clone();
    assert_eq!(presented, [ClientAddr(local)]);
    world.no_more_flows();
}

#[tokio::test]
async fn a_pod_of_the_same_node_is_reached_directly() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 0));
    let (listener, address) = server.listen();
    echo(listener);
    world.apply(strict("server"));
    world.apply(allow("server", "client"));
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello").await;
    let local = stream.local_addr().unwrap();
    drop(stream);
    let flow = world.flow(0).await;
    check_flow(&flow, Verdict::Forwarded, "closed");
    assert_eq!(flow.policy.as_deref(), Some("shop/only#0"));
    assert_eq!(world.nodes[0].proxy.stats().tunnels, 0);
    assert_eq!(
        *server.network.presented.lock().unwrap(),
        [ClientAddr(local)]
    );
    world.no_more_flows();
}

#[tokio::test]
async fn a_pod_reaches_itself_and_is_subject_to_its_own_policy() {
    let mut world = World::new();
    let pod = world.pod("self", 0);
    let (listener, address) = pod.listen();
    echo(listener);
    let mut stream = pod.dial(address).await;
    round_trip(&mut stream, b"me").await;
    drop(stream);
    check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
    world.apply(allow("self", "somebody-else"));
    until("policy", || {
        let policy = world.table().inbound(&pod.pod.name);
        let shared = &world.nodes[0].proxy.shared;
        let local = shared.pod(&pod.pod.name).unwrap();
        let now = Arc::clone(&local.state.borrow().policy);
        now == policy
    })
    .await;
    pod.dial_refused(address).await;
    let flow = world.flow(0).await;
    check_flow(&flow, Verdict::Denied, "policy_denied: no_rule_allows");
}

#[tokio::test]
async fn what_the_mesh_does_not_know_is_passed_through() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let (listener, address) = app(SocketAddr::new(fresh_ip(), 0));
    let mut stream = client.dial(address).await;
    let (mut accepted, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), client.ip, "the pod's own address on the wire");
    accepted.write_all(b"first").await.unwrap();
    drop(accepted);
    let mut text = Vec::new();
    let _count = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut text).await;
    assert_eq!(text, b"first");
    drop(stream);
    let flow = world.flow(0).await;
    check_flow(&flow, Verdict::Forwarded, "closed");
    assert_eq!(flow.tls, TlsState::None);
    assert_eq!((flow.bytes_sent, flow.bytes_received), (0, 5));
}

#[tokio::test]
async fn an_enrolled_pod_of_another_node_is_never_dialled_in_plaintext() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    // In the state, but its node's agent is away.
    let server = world.declare("server", 1, true);
    let (listener, address) = app(SocketAddr::new(server.ips[0], 0));
    client.dial_refused(address).await;
    check_flow(&world.flow(0).await, Verdict::Failed, "tunnel_failed");
    // Neither on this node, where it is not served yet.
    let server = world.declare("later", 0, true);
    let (other, address) = app(SocketAddr::new(server.ips[0], 0));
    client.dial_refused(address).await;
    check_flow(
        &world.flow(0).await,
        Verdict::Failed,
        "destination_not_served",
    );
    for listener in [listener, other] {
        let dialled = tokio::time::timeout(Duration::from_millis(50), listener.accept());
        assert!(dialled.await.is_err());
    }
}

#[tokio::test]
async fn a_refused_dial_is_a_reset() {
    for world in World::each() {
        a_refused_dial(world).await;
    }
}

async fn a_refused_dial(mut world: World) {
    let (client, near, far) = (
        world.pod("client", 0),
        world.pod("near", 0),
        world.pod("far", 1),
    );
    for server in [&near, &far] {
        let (listener, address) = server.listen();
        drop(listener);
        client.dial_refused(address).await;
        let flow = world.flow(0).await;
        check_flow(&flow, Verdict::Failed, "connect_refused");
        assert_eq!(*server.network.forgotten.lock().unwrap(), [address.port()]);
    }
    check_flow(&world.flow(1).await, Verdict::Failed, "connect_refused");
    let (listener, address) = app(SocketAddr::new(fresh_ip(), 0));
    drop(listener);
    client.dial_refused(address).await;
    check_flow(&world.flow(0).await, Verdict::Failed, "connect_refused");
}

#[tokio::test]
async fn the_meshs_own_ports_are_refused() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    for ip in [client.ip, server.ip, fresh_ip()] {
        client.dial_refused(SocketAddr::new(ip, 15008)).await;
        check_flow(&world.flow(0).await, Verdict::Denied, "reserved_port");
    }
    let own = client.dial(SocketAddr::new(client.ip, 1)).await;
    let own = own.peer_addr().unwrap().port();
    let _refused = world.flow(0).await;
    client.dial_refused(SocketAddr::new(client.ip, own)).await;
    check_flow(&world.flow(0).await, Verdict::Denied, "reserved_port");
}

#[tokio::test]
async fn a_connection_that_was_not_redirected_is_dropped() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let first = client.dial("192.0.2.1:15008".parse().unwrap()).await;
    let listener = first.peer_addr().unwrap();
    check_flow(&world.flow(0).await, Verdict::Denied, "reserved_port");
    let mut stream = tokio::net::TcpStream::connect(listener).await.unwrap();
    expect_reset(&mut stream).await;
    check_flow(&world.flow(0).await, Verdict::Failed, "not_redirected");
    assert!(
        client
            .network
            .tcp_info(std::os::fd::AsFd::as_fd(&stream))
            .is_none()
    );
}

#[tokio::test]
async fn plaintext_is_taken_until_it_is_forbidden() {
    let mut world = World::new();
    let server = world.pod("server", 1);
    let from = fresh_ip();
    let serve = async |address| echo(app(address).0);
    let (mut stream, address) = world.plaintext(1, &server, from, serve).await;
    round_trip(&mut stream, b"plain").await;
    let presented = server.network.presented.lock().unwrap().clone();
    assert_eq!(presented, [ClientAddr(stream.local_addr().unwrap())]);

    // An open one is closed by the change, a new one at once.
    world.apply(strict("server"));
    expect_reset(&mut stream).await;
    let flow = world.flow(1).await;
    check_flow(&flow, Verdict::Denied, "mtls_required");
    assert_eq!(flow.direction, Direction::Inbound);
    assert_eq!(flow.source.identity, None);
    assert_eq!(flow.destination.port, address.port());
    assert_eq!((flow.bytes_sent, flow.bytes_received), (5, 5));
    let (mut stream, _) = world.plaintext(1, &server, from, async |_| {}).await;
    expect_reset(&mut stream).await;
    check_flow(&world.flow(1).await, Verdict::Denied, "mtls_required");
}

#[tokio::test]
async fn a_policy_closes_what_it_no_longer_permits() {
    for world in World::each() {
        a_policy_closes(world).await;
    }
}

async fn a_policy_closes(mut world: World) {
    let (client, near, far) = (
        world.pod("client", 0),
        world.pod("near", 0),
        world.pod("far", 1),
    );
    for (server, node) in [(&near, 0), (&far, 1)] {
        let name = &*server.pod.name.name;
        world.apply(allow(name, "client"));
        let (listener, address) = server.listen();
        echo(listener);
        let mut stream = client.dial(address).await;
        round_trip(&mut stream, b"hello").await;
        world.apply(allow(name, "somebody-else"));
        expect_reset(&mut stream).await;
        let flow = world.flow(node).await;
        check_flow(&flow, Verdict::Denied, "policy_denied: no_rule_allows");
        assert_eq!(flow.policy.as_deref(), Some("shop/only"));
        if node == 1 {
            check_flow(&world.flow(0).await, Verdict::Forwarded, "server_reset");
        }
        // And at once from now on.
        client.dial_refused(address).await;
        check_flow(&world.flow(node).await, Verdict::Denied, "policy_denied");
        if node == 1 {
            let flow = world.flow(0).await;
            check_flow(&flow, Verdict::Denied, "policy_denied: by the destination");
            assert!(flow.reason.ends_with("no_rule_allows"), "{flow:?}");
        }
    }
    world.no_more_flows();
}

#[tokio::test]
async fn a_pod_that_leaves_is_drained() {
    for world in World::each() {
        a_pod_leaves(world).await;
    }
}

async fn a_pod_leaves(mut world: World) {
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"before").await;
    let proxy = world.nodes[1].proxy.clone();
    proxy.remove_pod(&server.key(), DRAIN);
    round_trip(&mut stream, b"meanwhile").await;
    client.dial_refused(address).await;
    check_flow(&world.flow(0).await, Verdict::Failed, "tunnel_failed");
    expect_reset(&mut stream).await;
    check_flow(&world.flow(1).await, Verdict::Forwarded, "pod_removed");
    check_flow(&world.flow(0).await, Verdict::Forwarded, "server_reset");
    let proxy = world.nodes[0].proxy.clone();
    proxy.remove_all(Duration::ZERO);
    until("all tasks end", || proxy.stats().tasks == 0).await;
}

#[tokio::test]
async fn a_pod_that_leaves_the_mesh_is_drained_too() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"before").await;
    let mut left = (*server.pod).clone();
    left.labels = [("fairlead.dev/mesh", "disabled")].into_iter().collect();
    world.apply(Object::Pod(left));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let proxy = world.nodes[1].proxy.clone();
    proxy.remove_pod(&server.key(), DRAIN);
    round_trip(&mut stream, b"meanwhile").await;
    expect_reset(&mut stream).await;
    check_flow(&world.flow(1).await, Verdict::Forwarded, "pod_removed");
}

#[tokio::test]
async fn a_policy_closes_what_a_pod_that_leaves_still_has() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"before").await;
    let proxy = world.nodes[1].proxy.clone();
    proxy.remove_pod(&server.key(), Duration::from_mins(1));
    round_trip(&mut stream, b"meanwhile").await;
    world.apply(allow("server", "somebody-else"));
    expect_reset(&mut stream).await;
    let flow = world.flow(1).await;
    check_flow(&flow, Verdict::Denied, "policy_denied: no_rule_allows");
}

#[tokio::test]
async fn a_stopped_agent_is_not_taken_for_an_end() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 0));
    let (listener, address) = server.listen();
    let mut stream = client.dial(address).await;
    let (mut accepted, _) = listener.accept().await.unwrap();
    accepted.write_all(b"half an ans").await.unwrap();
    let mut text = [0; 11];
    let _count = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut text).await;
    world.nodes[0].stop();
    expect_reset(&mut stream).await;
    expect_reset(&mut accepted).await;
    check_flow(&world.flow(0).await, Verdict::Forwarded, "agent_stopped");
}
