//! Answers of HTTP/2 that end before their requests, and bodies that end before their end.

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use h2::client::SendRequest;
use http::Response;
use tokio::net::TcpListener;

use super::http2::{chunk, grpc, places, talking, trailers};
use crate::proxy::tests::world::{World, soon};

/// Calls of each client at once, and how often.
const CALLS: usize = 25;
const ROUNDS: usize = 12;

/// Answers all calls at once and whole, without a look at what they send: each stream ends
/// with `RST_STREAM(NO_ERROR)` right behind the trailers.
fn hasty(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let head = Response::builder().header("content-type", "application/grpc");
                    let head = head.body(()).unwrap();
                    let mut send = respond.send_response(head, false).unwrap();
                    send.send_data(Bytes::from_static(b"answer"), false)
                        .unwrap();
                    send.send_trailers(trailers("0")).unwrap();
                    drop(request);
                }
            });
        }
    });
}

/// One call that never ends by itself, and is answered whole.
async fn call(mut sender: SendRequest<Bytes>) {
    let (answer, mut send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
    let _sent = send.send_data(Bytes::from(vec![0; 3000]), false);
    let mut body = soon(answer).await.unwrap().into_body();
    // As a client that has yet to hear that it is of no use.
    let _sent = send.send_data(Bytes::from(vec![0; 3000]), false);
    let mut whole = Vec::new();
    while let Some(data) = soon(body.data()).await {
        whole.extend_from_slice(&data.unwrap());
    }
    assert_eq!(whole, b"answer");
    let end = soon(body.trailers()).await.unwrap();
    assert_eq!(end.expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn an_answer_ahead_of_its_request_keeps_its_trailers() {
    for mut world in World::each() {
        let client = world.pod("client", 0);
        let servers = [world.pod("near", 0), world.pod("far", 1)];
        for server in &servers {
            let (listener, address) = server.listen();
            hasty(listener);
            let sender = talking(client.dial(address).await).await;
            for _ in 0..ROUNDS {
                let _all = join_all((0..CALLS).map(|_| call(sender.clone()))).await;
            }
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_reset_without_an_error_has_not_ended() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let (answer, _send) = sender.send_request(grpc("/a.B/C"), true).unwrap();
        let (_request, mut respond) = soon(calls.recv()).await.unwrap();
        let mut reply = respond.send_response(Response::new(()), false).unwrap();
        reply.send_data(Bytes::from_static(b"some"), false).unwrap();
        let mut body = soon(answer).await.unwrap().into_body();
        assert_eq!(chunk(&mut body).await, "some");
        reply.send_reset(Reason::NO_ERROR);
        let error = soon(body.data()).await.expect("no end").unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    }
}

#[tokio::test]
async fn a_request_that_is_reset_without_an_error_has_not_ended() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        for begun in [false, true] {
            let mut sender = talking(client.dial(address).await).await;
            let (answer, mut send) = sender.send_request(grpc("/a.B/C"), false).unwrap();
            send.send_data(Bytes::from_static(b"some"), false).unwrap();
            let (request, mut respond) = soon(calls.recv()).await.unwrap();
            let mut body = request.into_body();
            assert_eq!(chunk(&mut body).await, "some");
            let mut kept = None;
            if begun {
                let reply = respond.send_response(Response::new(()), false).unwrap();
                kept = Some((reply, soon(answer).await.unwrap()));
            }
            send.send_reset(Reason::NO_ERROR);
            let ended = soon(body.data()).await.expect("no end");
            let reason = ended.unwrap_err().reason();
            assert_eq!(reason, Some(Reason::CANCEL), "begun: {begun}");
            drop(kept);
        }
    }
}
