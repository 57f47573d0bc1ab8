//! HTTP/2 and gRPC.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::{request_flow, service};
use crate::flow::FlowProtocol;
use crate::proxy::tests::world::{TestPod, World, soon};

pub(super) type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// An application of HTTP/2, which hands its requests over.
fn serving(listener: TcpListener) -> tokio::sync::mpsc::UnboundedReceiver<Call> {
    let (give, take) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let give = give.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok(call)) = connection.accept().await {
                    let _handed = give.send(call);
                }
            });
        }
    });
    take
}

/// A client of HTTP/2.
pub(super) async fn talking(stream: TcpStream) -> SendRequest<Bytes> {
    let (sender, connection) = soon(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    soon(sender.ready()).await.unwrap()
}

pub(super) fn grpc(path: &str) -> Request<()> {
    Request::post(format!("http://shop{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

pub(super) fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(
        "grpc-status".parse().unwrap(),
        HeaderValue::from_static(status),
    )])
}

pub(super) async fn chunk(body: &mut RecvStream) -> Bytes {
    let bytes = soon(body.data()).await.expect("more of it").unwrap();
    body.flow_control().release_capacity(bytes.len()).unwrap();
    bytes
}

/// Sends as much as there is room for, in order.
pub(super) async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = soon(poll_fn(|cx| send.poll_capacity(cx))).await;
        let room = room.unwrap().unwrap();
        let piece = bytes.split_to(room.min(bytes.len()));
        let last = end && bytes.is_empty();
        send.send_data(piece, last).unwrap();
    }
}

/// A client and an application at each place.
pub(super) fn places(
    world: &mut World,
) -> (
    TestPod,
    Vec<(SocketAddr, tokio::sync::mpsc::UnboundedReceiver<Call>)>,
) {
    let client = world.pod("client", 0);
    let servers = [world.pod("near", 0), world.pod("far", 1)];
    let servers = servers.map(|server| {
        let (listener, address) = server.listen();
        (address, serving(listener))
    });
    (client, servers.into())
}

#[tokio::test]
async fn a_unary_call_has_its_trailers_and_its_record() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (answer, mut send) = sender.send_request(grpc("/shop.Cart/Add"), false).unwrap();
        send.send_data(Bytes::from_static(b"request"), true)
            .unwrap();
        let (request, mut respond) = soon(calls.recv()).await.unwrap();
        assert_eq!(request.uri(), "http://shop/shop.Cart/Add");
        assert_eq!(request.headers()["te"], "trailers");
        let mut body = request.into_body();
        assert_eq!(chunk(&mut body).await, "request");
        assert!(soon(body.data()).await.is_none());
        let mut reply = respond.send_response(Response::new(()), false).unwrap();
        reply
            .send_data(Bytes::from_static(b"answer"), false)
            .unwrap();
        reply.send_trailers(trailers("5")).unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        assert_eq!(chunk(&mut body).await, "answer");
        assert!(soon(body.data()).await.is_none());
        let end = soon(body.trailers()).await.unwrap().unwrap();
        assert_eq!(end["grpc-status"], "5");
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(flow.protocol, FlowProtocol::Grpc);
        assert_eq!((flow.bytes_sent, flow.bytes_received), (7, 6));
        let http = flow.http.unwrap();
        assert_eq!((&*http.path, http.grpc_status), ("/shop.Cart/Add", Some(5)));
    }
}

#[tokio::test]
async fn both_directions_stream_independently_and_end_one_by_one() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (answer, mut send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
        let (request, mut respond) = soon(calls.recv()).await.unwrap();
        let mut body = request.into_body();
        // The answer begins before anything of the request has come.
        let mut reply = respond.send_response(Response::new(()), false).unwrap();
        let mut heard = soon(answer).await.unwrap().into_body();
        for text in ["one", "two", "three"] {
            send.send_data(Bytes::from_static(text.as_bytes()), false)
                .unwrap();
            assert_eq!(chunk(&mut body).await, text);
            reply
                .send_data(Bytes::from_static(text.as_bytes()), false)
                .unwrap();
            assert_eq!(chunk(&mut heard).await, text);
        }
        send.send_data(Bytes::new(), true).unwrap();
        assert!(
            soon(body.data())
                .await
                .is_none_or(|it| it.unwrap().is_empty())
        );
        reply
            .send_data(Bytes::from_static(b"after"), false)
            .unwrap();
        assert_eq!(chunk(&mut heard).await, "after");
        reply.send_trailers(trailers("0")).unwrap();
        assert!(soon(heard.data()).await.is_none());
        assert!(soon(heard.trailers()).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_body_that_stops_ends_its_stream_and_a_silent_call_goes_on() {
    let mut world = World::with(|config| config.http.body_idle = Duration::from_millis(300));
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (_call, mut said) = sender.send_request(grpc("/a.B/Watch"), false).unwrap();
        let (mut watch, _respond) = soon(calls.recv()).await.unwrap();
        let post = Request::post("http://shop/").body(()).unwrap();
        let (answer, mut send) = sender.send_request(post, false).unwrap();
        send.send_data(Bytes::from_static(b"part"), false).unwrap();
        let _begun = soon(calls.recv()).await.unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 408);
        let reason = &answer.headers()["fairlead-reason"];
        assert_eq!(reason, "bad_request; the body did not come in time");
        said.send_data(Bytes::from_static(b"later"), true).unwrap();
        assert_eq!(chunk(watch.body_mut()).await, "later");
    }
}

#[tokio::test]
async fn a_reset_of_either_end_reaches_the_other() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        for begun in [false, true] {
            let (answer, mut send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
            let (request, mut respond) = soon(calls.recv()).await.unwrap();
            let mut kept = None;
            if begun {
                kept = Some(respond.send_response(Response::new(()), false).unwrap());
                drop(soon(answer).await.unwrap());
            }
            send.send_reset(Reason::CANCEL);
            let mut body = request.into_body();
            let end = soon(body.data()).await.unwrap().unwrap_err();
            assert_eq!(end.reason(), Some(Reason::CANCEL), "begun: {begun}");
            drop(kept);
            let (answer, send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
            let (_request, mut respond) = soon(calls.recv()).await.unwrap();
            let error = if begun {
                let mut reply = respond.send_response(Response::new(()), false).unwrap();
                let mut heard = soon(answer).await.unwrap().into_body();
                reply.send_reset(Reason::ENHANCE_YOUR_CALM);
                let error = soon(heard.data()).await.unwrap().unwrap_err();
                assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
                continue;
            } else {
                respond.send_reset(Reason::ENHANCE_YOUR_CALM);
                soon(answer).await.unwrap()
            };
            // Before its head a client of gRPC is told in its own terms.
            assert_eq!(error.headers()["grpc-status"], "14");
            let reason = error.headers()["fairlead-reason"].to_str().unwrap();
            assert!(reason.starts_with("upstream_reset"), "{reason}");
            drop(send);
        }
    }
}

#[tokio::test]
async fn who_does_not_read_stops_the_other_end() {
    let mut world = World::with(|config| {
        config.http.stream_window = 64 << 10;
        config.http.connection_window = 128 << 10;
    });
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (_answer, mut send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
        let (request, _respond) = soon(calls.recv()).await.unwrap();
        let mut given = 0;
        loop {
            send.reserve_capacity(16 << 10);
            let room = poll_fn(|cx| send.poll_capacity(cx));
            let Ok(room) = tokio::time::timeout(Duration::from_millis(300), room).await else {
                break;
            };
            let room = room.unwrap().unwrap();
            send.send_data(vec![0; room].into(), false).unwrap();
            given += room;
            assert!(given < 4 << 20, "nothing stops it");
        }
        // What waits on the way goes on when it is read.
        let mut body = request.into_body();
        let mut taken = 0;
        while taken < given {
            taken += chunk(&mut body).await.len();
        }
    }
}

#[tokio::test]
async fn large_bodies_are_whole_in_both_directions() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut calling = talking(client.dial(address).await).await;
        let (answer, mut send) = calling.send_request(grpc("/a.B/C"), false).unwrap();
        let whole: Bytes = (0..251_u8).cycle().take(3_000_001).collect();
        let echoing = async {
            let (request, mut respond) = soon(calls.recv()).await.unwrap();
            let mut reply = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            while let Some(bytes) = soon(body.data()).await {
                let bytes = bytes.unwrap();
                body.flow_control().release_capacity(bytes.len()).unwrap();
                send_all(&mut reply, bytes, false).await;
            }
            reply.send_trailers(trailers("0")).unwrap();
        };
        let receiving = async {
            let mut body = soon(answer).await.unwrap().into_body();
            let mut heard = Vec::new();
            while let Some(bytes) = soon(body.data()).await {
                let bytes = bytes.unwrap();
                body.flow_control().release_capacity(bytes.len()).unwrap();
                heard.extend_from_slice(&bytes);
            }
            assert!(heard == whole);
        };
        let sending = send_all(&mut send, whole.clone(), true);
        tokio::join!(echoing, receiving, sending);
    }
}

#[tokio::test]
async fn a_client_is_told_to_go_and_may_finish() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    let proxy = world.nodes[0].proxy.clone();
    let mut open = Vec::new();
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (answer, _send) = sender.send_request(grpc("/a.B/C"), true).unwrap();
        let (_request, respond) = soon(calls.recv()).await.unwrap();
        open.push((sender, answer, respond));
    }
    proxy.remove_pod(&client.key(), Duration::from_mins(1));
    for (sender, answer, mut respond) in open {
        let end = soon(async {
            let mut sender = sender;
            loop {
                match sender.ready().await {
                    Ok(ready) => sender = ready,
                    Err(error) => return error,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let _going = end.await;
        let _sent = respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(soon(answer).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_port_that_is_declared_h2c_is_spoken_with_so() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for ((address, mut calls), name) in servers.into_iter().zip(["near", "far"]) {
        let to = service(&mut world, name, "kubernetes.io/h2c", address);
        let mut sender = talking(client.dial(to).await).await;
        let (answer, _send) = sender.send_request(grpc("/a.B/C"), true).unwrap();
        let (_request, mut respond) = soon(calls.recv()).await.unwrap();
        let _sent = respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(soon(answer).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn connections_to_a_server_are_shared_by_streams_and_not_by_pods() {
    let mut world = World::new();
    let (client, other, server) = (
        world.pod("client", 0),
        world.pod("other", 0),
        world.pod("server", 1),
    );
    let (listener, address) = server.listen();
    let to = service(&mut world, "server", "grpc", address);
    let mut calls = serving(listener);
    for pod in [&client, &other] {
        for _ in 0..2 {
            let mut sender = talking(pod.dial(to).await).await;
            for _ in 0..3 {
                let (answer, _send) = sender.send_request(grpc("/a.B/C"), true).unwrap();
                let (_request, mut respond) = soon(calls.recv()).await.unwrap();
                let _sent = respond.send_response(Response::new(()), true).unwrap();
                assert_eq!(soon(answer).await.unwrap().status(), 200);
                sender = soon(sender.ready()).await.unwrap();
            }
        }
    }
    let presented = server.network.presented.lock().unwrap().clone();
    let ips: Vec<_> = presented.iter().map(|client| client.0.ip()).collect();
    assert_eq!(ips, [client.ip, other.ip]);
}

#[tokio::test]
async fn who_only_opens_and_resets_is_cut_off_and_others_are_not() {
    let mut world = World::with(|config| config.http.max_resets = 50);
    let (client, mut servers) = places(&mut world);
    let (address, mut calls) = servers.remove(0);
    let mut sender = talking(client.dial(address).await).await;
    let mut opened = 0;
    let end = loop {
        assert!(opened < 1000, "nothing stops it");
        sender = match soon(sender.ready()).await {
            Ok(ready) => ready,
            Err(error) => break error,
        };
        let Ok((answer, mut send)) = sender.send_request(grpc("/a.B/C"), false) else {
            continue;
        };
        opened += 1;
        // As fast as the other end sees it at all.
        if opened % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        send.send_reset(Reason::CANCEL);
        drop(answer);
    };
    assert!(opened >= 20, "{opened}: {end}");
    let mut sender = talking(client.dial(address).await).await;
    let (answer, _send) = sender.send_request(grpc("/kept"), true).unwrap();
    let mut respond = loop {
        let (request, respond) = soon(calls.recv()).await.unwrap();
        if request.uri().path() == "/kept" {
            break respond;
        }
    };
    let _sent = respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(answer).await.unwrap().status(), 200);
}
