//! RFC 9113 and RFC 7541 at both ends of the proxy, case by case as h2spec lists them.
//!
//! As lenient as h2spec is: a connection may be closed where it is to be told why, or where
//! only a stream is to end.

mod definitions;
mod framing;
mod generic;
mod messages;
mod servers;
mod wire;

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::{RecvStream, server::SendResponse};
use http::{Method, Request, Response};
use tokio::net::TcpListener;

use self::wire::Case;
use super::service;
use crate::proxy::tests::world::World;

const BODY: &[u8] = b"conformance";

/// An application that reads each request to its end, and then answers.
fn serving(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let is_head = request.method() == Method::HEAD;
    let mut body = request.into_body();
    while let Some(bytes) = body.data().await {
        let Ok(bytes) = bytes else {
            return;
        };
        let _freed = body.flow_control().release_capacity(bytes.len());
    }
    if body.trailers().await.is_err() {
        return;
    }
    // Its client may be gone.
    if let Ok(mut reply) = respond.send_response(Response::new(()), is_head)
        && !is_head
    {
        let _sent = reply.send_data(Bytes::from_static(BODY), true);
    }
}

fn cases() -> Vec<Case> {
    let parts = [
        generic::cases(),
        framing::cases(),
        definitions::cases(),
        messages::cases(),
    ];
    parts.into_iter().flatten().collect()
}

#[tokio::test]
async fn clients_of_http2_are_served_by_the_book() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let server = world.pod("server", 1);
    let (listener, address) = server.listen();
    serving(listener);
    let address = service(&mut world, "server", "kubernetes.io/h2c", address);
    let cases = cases();
    assert_eq!(cases.len(), 147);
    let played = cases.into_iter().map(async |case| {
        let mut stream = client.dial(address).await;
        let played = case.script.play(&mut stream).await;
        played.map_err(|got| format!("{}: {got}", case.name))
    });
    let failed: Vec<_> = join_all(played)
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn what_the_library_does_otherwise_is_in_the_documents() {
    let document = include_str!("../../../../../../docs/l7.md");
    let (clients, servers) = (cases(), servers::cases());
    let all = || clients.iter().chain(&servers);
    let otherwise: BTreeSet<_> = all().filter(|it| it.otherwise).map(Case::number).collect();
    for number in all().map(Case::number) {
        let listed = format!("`{}`", number.replace("http2/", ""));
        let listed = document.contains(&listed);
        assert_eq!(listed, otherwise.contains(number), "{number}");
    }
}
