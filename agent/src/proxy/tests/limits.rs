//! What one pod can't take from the others, and ways in that are none.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};

use super::world::{World, app, fresh_ip};
use super::{check_flow, echo, expect_reset, round_trip};
use crate::flow::Verdict;

fn two_per_pod() -> World {
    World::with(|config| config.connections_per_pod = 2)
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let mut world = two_per_pod();
    let (client, other) = (world.pod("client", 0), world.pod("other", 0));
    let (listener, address) = app(SocketAddr::new(fresh_ip(), 0));
    echo(listener);
    let mut held = [client.dial(address).await, client.dial(address).await];
    for stream in &mut held {
        round_trip(stream, b"one of two").await;
    }
    client.dial_refused(address).await;
    let flow = world.flow(0).await;
    check_flow(&flow, Verdict::Failed, "too_many_connections");
    assert_eq!(flow.destination.port, address.port());
    let proxy = world.nodes[0].proxy.clone();
    assert_eq!(proxy.refused_connections(&client.pod.name), 1);
    // It is no matter of another pod.
    let mut stream = other.dial(address).await;
    round_trip(&mut stream, b"another's").await;
    assert_eq!(proxy.refused_connections(&other.pod.name), 0);
    // One that has ended makes room.
    drop(held);
    for _ in 0..2 {
        check_flow(&world.flow(0).await, Verdict::Forwarded, "");
    }
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"again").await;
}

#[tokio::test]
async fn a_server_has_only_so_many_connections_but_kubelet_is_heard() {
    let mut world = two_per_pod();
    let (near, far) = (world.pod("near", 1), world.pod("far", 0));
    let server = world.pod("server", 1);
    let kubelet = fresh_ip();
    server.network.kubelet.lock().unwrap().push(kubelet);
    let (listener, address) = server.listen();
    echo(listener);
    let mut held = [near.dial(address).await, far.dial(address).await];
    for stream in &mut held {
        round_trip(stream, b"one of two").await;
    }
    far.dial_refused(address).await;
    check_flow(
        &world.flow(1).await,
        Verdict::Failed,
        "too_many_connections",
    );
    let flow = world.flow(0).await;
    assert!(flow.reason.contains("too_many_connections"), "{flow:?}");
    near.dial_refused(address).await;
    check_flow(
        &world.flow(1).await,
        Verdict::Failed,
        "too_many_connections",
    );
    let plain = fresh_ip();
    let (mut stream, _) = world.plaintext(1, &server, plain, async |_| {}).await;
    expect_reset(&mut stream).await;
    check_flow(
        &world.flow(1).await,
        Verdict::Failed,
        "too_many_connections",
    );
    let refused = world.nodes[1].proxy.refused_connections(&server.pod.name);
    assert_eq!(refused, 3);
    let serve = async |address| echo(app(address).0);
    let (mut stream, _) = world.plaintext(1, &server, kubelet, serve).await;
    round_trip(&mut stream, b"alive?").await;
}

/// As where a namespace takes packets for its loopback from outside.
#[tokio::test]
async fn listeners_serve_the_pods_own_address_only() {
    let mut world = World::new();
    let server = world.pod("server", 1);
    let (listener, elsewhere) = app(SocketAddr::new(fresh_ip(), 0));
    let shared = Arc::clone(&world.nodes[1].proxy.shared);
    let local = shared.pod(&server.pod.name).unwrap();
    for is_tunnel in [false, true] {
        let socket = TcpSocket::new_v4().unwrap();
        let (client, accepted) = tokio::join!(socket.connect(elsewhere), listener.accept());
        let (stream, peer): (TcpStream, _) = accepted.unwrap();
        let (shared, local) = (Arc::clone(&shared), Arc::clone(&local));
        let tasks = shared.tasks.clone();
        if is_tunnel {
            tasks.spawn(crate::proxy::tunnel::serve(shared, local, stream, peer));
        } else {
            tasks.spawn(crate::proxy::inbound::serve(shared, local, stream, peer));
        }
        expect_reset(&mut client.unwrap()).await;
        check_flow(&world.flow(1).await, Verdict::Failed, "wrong_address");
    }
}
