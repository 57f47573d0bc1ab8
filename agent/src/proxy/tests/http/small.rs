//! Many small frames that nobody takes yet.

use bytes::Bytes;
use h2::RecvStream;
use http::Response;

use super::http2::{chunk, grpc, places, trailers};
use crate::proxy::tests::world::{World, soon};

/// Messages and their bytes: less together than the window of one stream.
const MESSAGES: usize = 15_000;
const BYTES: usize = 60;

#[tokio::test]
async fn messages_that_wait_for_a_slow_client_are_nobody_elses_trouble() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        // The client itself may have as many waiting, and room for others.
        let mut builder = h2::client::Builder::new();
        let builder = builder.data_frame_budget(1 << 30);
        let builder = builder.initial_connection_window_size(1 << 20);
        let stream = client.dial(address).await;
        let (sender, connection) = soon(builder.handshake::<_, Bytes>(stream)).await.unwrap();
        tokio::spawn(async move {
            let _ended = connection.await;
        });
        let mut sender = soon(sender.ready()).await.unwrap();

        let (answer, _send) = sender.send_request(grpc("/a.B/Many"), true).unwrap();
        let (_request, mut respond) = soon(calls.recv()).await.unwrap();
        let mut reply = respond.send_response(Response::new(()), false).unwrap();
        for number in 0..MESSAGES {
            let message = vec![u8::try_from(number % 251).unwrap(); BYTES];
            reply.send_data(message.into(), false).unwrap();
        }
        reply.send_trailers(trailers("0")).unwrap();
        let slow = soon(answer).await.unwrap().into_body();

        let (answer, _send) = sender.send_request(grpc("/a.B/Other"), true).unwrap();
        let (_request, mut respond) = soon(calls.recv()).await.unwrap();
        let mut reply = respond.send_response(Response::new(()), false).unwrap();
        reply.send_data(Bytes::from_static(b"other"), true).unwrap();
        let mut body = soon(answer).await.unwrap().into_body();
        assert_eq!(chunk(&mut body).await, "other");

        assert_eq!(whole(slow).await, MESSAGES * BYTES);
    }
}

/// The bytes of a body that has trailers.
async fn whole(mut body: RecvStream) -> usize {
    let mut count = 0;
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        count += data.len();
    }
    let end = soon(body.trailers()).await.unwrap();
    assert_eq!(end.expect("trailers")["grpc-status"], "0");
    count
}
