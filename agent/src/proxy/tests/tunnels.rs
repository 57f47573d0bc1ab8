//! The tunnel itself: who is believed, what is shared, what is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Barrier;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::world::{PATIENCE, TestPod, World, app, fresh_ip, id, soon, until};
use super::{check_flow, echo, expect_reset, round_trip};
use crate::flow::Verdict;
use crate::identity::server_name;
use crate::model::NamespacedName;
use crate::state::{Object, Pod};

/// TLS to the pod's tunnel port, as `from`.
pub(super) async fn tls(world: &World, from: &TestPod, to: &TestPod) -> TlsStream<TcpStream> {
    let credentials = world.identities.credentials(&from.pod.identity);
    let credentials = soon(credentials).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.ip, 0)).unwrap();
    let stream = socket.connect(SocketAddr::new(to.ip, 15008)).await.unwrap();
    let connector = TlsConnector::from(credentials.client_config(&to.pod.identity));
    soon(connector.connect(server_name(), stream))
        .await
        .unwrap()
}

/// A tunnel as another implementation makes it.
async fn peer(world: &World, from: &TestPod, to: &TestPod) -> SendRequest<Bytes> {
    let (sender, connection) = h2::client::handshake(tls(world, from, to).await)
        .await
        .unwrap();
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    sender
}

async fn ask(sender: &SendRequest<Bytes>, authority: &str) -> StatusCode {
    let request = Request::connect(authority).body(()).unwrap();
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, _send) = sender.send_request(request, false).unwrap();
    soon(answer).await.unwrap().status()
}

#[tokio::test]
async fn connections_share_one_tunnel_and_more_need_more() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = client.dial(address).await;
        round_trip(&mut stream, b"hello").await;
        streams.push(stream);
    }
    let stats = |world: &World| world.nodes[0].proxy.stats().tunnels;
    assert_eq!(stats(&world), 1);
    let mut one_more = client.dial(address).await;
    round_trip(&mut one_more, b"hello").await;
    assert_eq!(stats(&world), 2);
    // The first has room again once its connections end.
    drop(streams);
    for _ in 0..100 {
        check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
    }
    let mut streams = Vec::new();
    for _ in 0..150 {
        let mut stream = client.dial(address).await;
        round_trip(&mut stream, b"hello").await;
        streams.push(stream);
    }
    assert_eq!(stats(&world), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_at_once() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let client = Arc::new(client);
    let all_open = Arc::new(Barrier::new(1000));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..1000_u32 {
        let (client, all_open) = (Arc::clone(&client), Arc::clone(&all_open));
        tasks.spawn(async move {
            let mut stream = client.dial(address).await;
            round_trip(&mut stream, &number.to_be_bytes()).await;
            let _last = soon(all_open.wait()).await;
            round_trip(&mut stream, &number.to_le_bytes()).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for _ in 0..1000 {
        let flow = world.flow(0).await;
        check_flow(&flow, Verdict::Forwarded, "closed");
        assert_eq!((flow.bytes_sent, flow.bytes_received), (8, 8));
    }
    let tunnels = world.nodes[0].proxy.stats().tunnels;
    assert!((10..=14).contains(&tunnels), "{tunnels} tunnels");
}

#[tokio::test]
async fn an_idle_tunnel_is_released() {
    let mut world = World::with(|config| {
        config.tunnel.idle_release = Duration::from_millis(100);
    });
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    round_trip(&mut stream, b"still there").await;
    drop(stream);
    let proxy = world.nodes[0].proxy.clone();
    until("the tunnel ends", || proxy.stats().tunnels == 0).await;
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello again").await;
}

#[tokio::test]
async fn only_connects_to_the_pods_own_address_are_served() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let sender = peer(&world, &client, &server).await;
    assert_eq!(ask(&sender, &address.to_string()).await, StatusCode::OK);
    let _closed = world.flow(1).await;
    let foreign = app(SocketAddr::new(fresh_ip(), 0)).1;
    for authority in [
        foreign.to_string(),
        "server.shop:80".to_owned(),
        format!("{}:15008", server.ip),
        format!("{}:0", server.ip),
    ] {
        assert_eq!(
            ask(&sender, &authority).await,
            StatusCode::BAD_REQUEST,
            "{authority}"
        );
        check_flow(&world.flow(1).await, Verdict::Failed, "bad_request");
    }
    let get = Request::get("http://server/").body(()).unwrap();
    let mut ready = sender.clone().ready().await.unwrap();
    let (answer, _send) = ready.send_request(get, true).unwrap();
    assert_eq!(
        soon(answer).await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
    check_flow(&world.flow(1).await, Verdict::Failed, "bad_request");
    let closed = format!("{}:1", server.ip);
    assert_eq!(ask(&sender, &closed).await, StatusCode::SERVICE_UNAVAILABLE);
    check_flow(&world.flow(1).await, Verdict::Failed, "connect_refused");
    world.no_more_flows();
}

#[tokio::test]
async fn a_certificate_that_is_not_the_addresss_is_refused() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let mut other = world.pod("other", 0);
    let (listener, address) = server.listen();
    echo(listener);
    // The identity of one pod from the address of another.
    other.ip = client.ip;
    let sender = peer(&world, &other, &server).await;
    assert_eq!(
        ask(&sender, &address.to_string()).await,
        StatusCode::FORBIDDEN
    );
    check_flow(&world.flow(1).await, Verdict::Denied, "identity_mismatch");
    // So is its own, from an address that another pod claims too.
    let rival = Pod {
        name: NamespacedName::new("shop", "rival"),
        ips: vec![client.ip],
        ..(*client.pod).clone()
    };
    world.apply(Object::Pod(rival));
    let sender = peer(&world, &client, &server).await;
    assert_eq!(
        ask(&sender, &address.to_string()).await,
        StatusCode::FORBIDDEN
    );
    check_flow(&world.flow(1).await, Verdict::Denied, "identity_mismatch");
}

#[tokio::test]
async fn a_certificate_from_an_unknown_address_is_believed_of_gateways_alone() {
    let gateway = fresh_ip();
    let mut world = World::with(|config| {
        config.gateways = vec![gateway.into()];
        config.tunnel.unknown_peer_patience = Duration::from_millis(100);
        config.tunnel.unknown_peers_waiting = 1;
    });
    let (mut client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let authority = address.to_string();
    client.ip = fresh_ip();
    let sender = peer(&world, &client, &server).await;
    assert_eq!(ask(&sender, &authority).await, StatusCode::FORBIDDEN);
    let flow = world.flow(1).await;
    check_flow(&flow, Verdict::Denied, "unknown_peer");
    assert_eq!(flow.source.identity, Some(id("client")));
    assert_eq!(world.nodes[1].proxy.stats().unknown_peers, 1);
    client.ip = gateway;
    let sender = peer(&world, &client, &server).await;
    assert_eq!(ask(&sender, &authority).await, StatusCode::OK);
}

#[tokio::test]
async fn a_pod_may_connect_before_the_state_tells_of_it() {
    let mut world = World::with(|config| config.tunnel.unknown_peers_waiting = 1);
    let (mut client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let authority = address.to_string();
    client.ip = fresh_ip();
    let sender = peer(&world, &client, &server).await;
    let early = tokio::spawn({
        let (sender, authority) = (sender.clone(), authority.clone());
        async move { ask(&sender, &authority).await }
    });
    let target = world.nodes[1].proxy.shared.pod(&server.pod.name).unwrap();
    let waits = || target.unknown_peers.available_permits() == 0;
    until("the first one waits", waits).await;
    // Others are not kept waiting beside it.
    assert_eq!(ask(&sender, &authority).await, StatusCode::FORBIDDEN);
    check_flow(&world.flow(1).await, Verdict::Denied, "unknown_peer");
    let new = Pod {
        name: NamespacedName::new("shop", "client-2"),
        ips: vec![client.ip],
        ..(*client.pod).clone()
    };
    world.apply(Object::Pod(new));
    assert_eq!(early.await.unwrap(), StatusCode::OK);
    check_flow(&world.flow(1).await, Verdict::Forwarded, "");
}

#[tokio::test]
async fn whoever_answers_must_be_the_expected_pod() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    // The state says "server"; the agent there has the certificate of "impostor".
    let mut impostor = (*world.declare("server", 1, true)).clone();
    impostor.identity = id("impostor");
    let server = world.serve(Arc::new(impostor), 1);
    let (listener, address) = server.listen();
    let mut stream = client.dial(address).await;
    stream.write_all(b"secret").await.unwrap();
    expect_reset(&mut stream).await;
    let flow = world.flow(0).await;
    let why =
        "tunnel_failed: TLS: the peer is spiffe://cluster.local/ns/shop/sa/impostor, expected";
    check_flow(&flow, Verdict::Failed, why);
    let dialled = tokio::time::timeout(Duration::from_millis(50), listener.accept());
    assert!(dialled.await.is_err());
}

#[tokio::test]
async fn of_peers_that_prove_nothing_one_too_many_is_shed() {
    let mut world = World::with(|config| {
        config.tunnel.handshake_timeout = PATIENCE;
        config.tunnel.handshakes_per_pod = 1;
        config.tunnel.handshakes_waiting = 1;
    });
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let to = SocketAddr::new(server.ip, 15008);
    // Silent, one that waits for its place, and one too many.
    let silent = TcpStream::connect(to).await.unwrap();
    let mut second = TcpStream::connect(to).await.unwrap();
    let proxy = world.nodes[1].proxy.clone();
    let mut shed = TcpStream::connect(to).await.unwrap();
    expect_reset(&mut shed).await;
    assert_eq!(proxy.stats().handshakes_shed, 1);
    drop(silent);
    second.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let _alert = soon(second.read_to_end(&mut Vec::new())).await;
    for _ in 0..2 {
        check_flow(&world.flow(1).await, Verdict::Failed, "handshake_failed");
    }
    // All places are free again.
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello").await;
}

#[tokio::test]
async fn a_peer_that_proves_nothing_is_dropped_in_time() {
    // Long enough for those who do prove who they are.
    let mut world = World::with(|config| config.tunnel.handshake_timeout = Duration::from_secs(3));
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let proxy = world.nodes[1].proxy.clone();
    let idle = proxy.stats().tasks;
    let to = SocketAddr::new(server.ip, 15008);
    let mut silent = TcpStream::connect(to).await.unwrap();
    // Proven, and then silent.
    let mut mute = tls(&world, &client, &server).await;
    // Headers that never end: 9 bytes of a HEADERS frame, then nothing.
    let mut slow = tls(&world, &client, &server).await;
    slow.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    slow.write_all(b"\0\0\x40\x01\0\0\0\0\x01\x82")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _closed = soon(silent.read_to_end(&mut rest)).await;
    let _closed = soon(mute.read_to_end(&mut rest)).await;
    for _ in 0..2 {
        check_flow(&world.flow(1).await, Verdict::Failed, "handshake_failed");
    }
    let _closed = soon(slow.read_to_end(&mut rest)).await;
    until("all of them are gone", || proxy.stats().tasks <= idle).await;
}

#[tokio::test]
async fn a_flood_of_connects_stays_within_the_limit() {
    let mut world = World::with(|config| config.tunnel.max_concurrent_streams = 20);
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    let sender = peer(&world, &client, &server).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let mut sender = sender.clone();
        tasks.spawn(async move {
            let request = Request::connect(address.to_string()).body(()).unwrap();
            std::future::poll_fn(|cx| sender.poll_ready(cx)).await?;
            let (answer, send) = sender.send_request(request, false)?;
            // Open until the test ends.
            let _open = (send, answer.await?);
            std::future::pending::<Result<(), h2::Error>>().await
        });
    }
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(soon(listener.accept()).await.unwrap());
    }
    let more = tokio::time::timeout(Duration::from_secs(1), listener.accept()).await;
    assert!(more.is_err(), "more than 20 at once");
    tasks.abort_all();
}

#[tokio::test]
async fn a_tunnel_that_broke_is_replaced_without_the_application_knowing() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello").await;
    drop(stream);
    check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
    // The destination's agent restarts: its old tunnels end, new ones are taken.
    let proxy = world.nodes[1].proxy.clone();
    proxy.remove_pod(&server.key(), Duration::ZERO);
    until("its tasks end", || proxy.stats().tasks == 0).await;
    let again = world.serve(Arc::clone(&server.pod), 1);
    assert_eq!(again.ip, server.ip);
    let mut stream = client.dial(address).await;
    round_trip(&mut stream, b"hello again").await;
}

#[tokio::test]
async fn a_renewed_certificate_gets_new_tunnels_and_old_streams_live_on() {
    let mut world = World::with_ttl(Duration::from_secs(4), |_config| {});
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let mut old = client.dial(address).await;
    round_trip(&mut old, b"before").await;
    let by_hand = peer(&world, &client, &server).await;
    let authority = address.to_string();
    assert_eq!(ask(&by_hand, &authority).await, StatusCode::OK);
    let first = world.identities.in_force(&client.pod.identity).unwrap();
    until("renewed", || {
        let now = world.identities.in_force(&client.pod.identity);
        now.is_some_and(|now| now.generation() != first.generation())
    })
    .await;
    let mut new = client.dial(address).await;
    round_trip(&mut new, b"after").await;
    round_trip(&mut old, b"still").await;
    let proxy = world.nodes[0].proxy.clone();
    // The old one is nobody's to take, but still there.
    assert_eq!(proxy.stats().tunnels, 2);
    drop(old);
    until("the old tunnel ends", || proxy.stats().tunnels == 1).await;
    // A certificate that has expired opens nothing, however old the tunnel.
    let expired = || first.not_after() <= std::time::SystemTime::now();
    until("expired", expired).await;
    assert_eq!(ask(&by_hand, &authority).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_peer_that_stops_to_answer_is_gone() {
    let mut world = World::with(|config| {
        config.tunnel.ping_interval = Duration::from_millis(200);
        config.tunnel.ping_timeout = Duration::from_secs(1);
    });
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    let tls = tls(&world, &client, &server).await;
    let (sender, mut connection) = h2::client::handshake(tls).await.unwrap();
    let request = Request::connect(address.to_string()).body(()).unwrap();
    let mut sender = sender;
    let (answer, _send) = sender.send_request(request, false).unwrap();
    let answer = tokio::select! {
        answer = answer => answer.unwrap(),
        _ended = &mut connection => panic!("the tunnel ended"),
    };
    assert_eq!(answer.status(), StatusCode::OK);
    let (mut accepted, _) = listener.accept().await.unwrap();
    // From here on nobody drives the peer's end.
    expect_reset(&mut accepted).await;
    check_flow(&world.flow(1).await, Verdict::Forwarded, "client_reset");
}

#[tokio::test]
async fn an_attempt_ends_with_its_pod() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    // A node whose agent takes connections and says nothing.
    let server = world.declare("server", 1, true);
    let (mute, _) = app(SocketAddr::new(server.ips[0], 15008));
    let mut stream = client.dial(SocketAddr::new(server.ips[0], 80)).await;
    let _taken = soon(mute.accept()).await.unwrap();
    let proxy = world.nodes[0].proxy.clone();
    proxy.remove_pod(&client.key(), Duration::ZERO);
    let end = tokio::time::timeout(Duration::from_secs(3), expect_reset(&mut stream));
    end.await.expect("at once");
    check_flow(&world.flow(0).await, Verdict::Failed, "pod_removed");
}

#[tokio::test]
async fn the_future_of_a_connection_stays_small() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let shared = Arc::clone(&world.nodes[0].proxy.shared);
    let local = shared.pod(&client.pod.name).unwrap();
    let (listener, address) = client.listen();
    let (near, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (stream, peer) = accepted.unwrap();
    let outbound =
        crate::proxy::outbound::serve(Arc::clone(&shared), Arc::clone(&local), near.unwrap(), peer);
    let (again, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let tunnel = crate::proxy::tunnel::serve(
        Arc::clone(&shared),
        Arc::clone(&local),
        again.unwrap(),
        accepted.unwrap().1,
    );
    assert!(size_of_val(&tunnel) <= 1024, "{}", size_of_val(&tunnel));
    let inbound = crate::proxy::inbound::serve(shared, local, stream, peer);
    let sizes = (size_of_val(&outbound), size_of_val(&inbound));
    assert!(sizes.0 <= 2048 && sizes.1 <= 2048, "{sizes:?}");
}
