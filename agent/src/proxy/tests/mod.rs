//! Tests over the loopback device, with real TLS.

mod bytes;
mod http;
mod limits;
pub(crate) mod noise;
mod paths;
mod probes;
mod routes;
mod tunnels;
mod world;

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use self::world::soon;
use crate::flow::FlowEvent;

/// Says and hears the same.
#[track_caller]
fn check_flow(flow: &FlowEvent, verdict: crate::flow::Verdict, reason: &str) {
    assert_eq!(flow.verdict, verdict, "{flow:?}");
    assert!(flow.reason.starts_with(reason), "{flow:?}");
}

/// Serves every connection with an echo, until dropped with its task.
fn echo(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _copied = tokio::io::copy(&mut read, &mut write).await;
                let _shut = write.shutdown().await;
            });
        }
    });
}

/// One round trip, then the end.
async fn round_trip(stream: &mut TcpStream, text: &[u8]) {
    soon(stream.write_all(text)).await.unwrap();
    let mut answer = vec![0; text.len()];
    let _count = soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, text);
}

/// The peer's FIN, with nothing before it.
async fn expect_fin(stream: &mut TcpStream) {
    let read = soon(stream.read(&mut [0; 16])).await;
    assert_eq!(read.unwrap(), 0, "a FIN");
}

/// The peer's RST.
async fn expect_reset(stream: &mut TcpStream) {
    let read = soon(stream.read(&mut [0; 16])).await;
    let kind = read.map_err(|error| error.kind());
    assert_eq!(kind, Err(io::ErrorKind::ConnectionReset));
}
