//! Connections that turn into something else.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::policy::{apply, exact, policy};
use super::{ask, request_flow};
use crate::flow::Verdict;
use crate::proxy::tests::world::{World, soon};
use crate::proxy::tests::{expect_fin, expect_reset, round_trip};
use crate::state::{Action, From, Rule};

/// An application that switches, and says the same back.
fn switching(listener: TcpListener, head: &'static [u8]) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"\r\n\r\n") {
                    let _count = stream.read_buf(&mut bytes).await.unwrap();
                }
                stream.write_all(head).await.unwrap();
                let (mut read, mut write) = stream.split();
                let _copied = tokio::io::copy(&mut read, &mut write).await;
                let _shut = write.shutdown().await;
            });
        }
    });
}

#[tokio::test]
async fn a_connection_that_both_ends_switch_is_relayed() {
    let socket = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                  Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                   upgrade: websocket\r\n\r\nfirst";
    let connect = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n";
    let connected = b"HTTP/1.1 200 OK\r\n\r\nfirst";
    let mut world = World::new();
    let client = world.pod("client", 0);
    let servers = [world.pod("near", 0), world.pod("far", 1)];
    for server in &servers {
        for (request, answer, status) in
            [(socket, &agreed[..], 101), (connect, &connected[..], 200)]
        {
            let (listener, address) = server.listen();
            switching(listener, answer);
            let mut stream = client.dial(address).await;
            soon(stream.write_all(request.as_bytes())).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"first") {
                let count = soon(stream.read_buf(&mut head)).await.unwrap();
                assert!(count > 0, "{}", head.escape_ascii());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
            assert_eq!(head.contains("upgrade: websocket"), status == 101, "{head}");
            // Any bytes, also those that look like another request.
            let like_another = b"\x81\x05\0\nGET / HTTP/1.1\n\n";
            round_trip(&mut stream, like_another).await;
            round_trip(&mut stream, &vec![7; 100_000]).await;
            stream.shutdown().await.unwrap();
            expect_fin(&mut stream).await;
            let flow = request_flow(&mut world, 0).await;
            assert_eq!(flow.http.unwrap().status, status);
            assert_eq!(&*flow.reason, "closed");
            let sent = 100_000 + like_another.len() as u64;
            assert_eq!((flow.bytes_sent, flow.bytes_received), (sent, sent + 5));
        }
    }
}

/// An application that switches, and neither says any more nor ends.
fn hanging(listener: TcpListener) {
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                let _count = stream.read_buf(&mut bytes).await.unwrap();
            }
            let head = b"HTTP/1.1 200 OK\r\n\r\nfirst";
            stream.write_all(head).await.unwrap();
            kept.push(stream);
        }
    });
}

#[tokio::test]
async fn what_was_switched_has_the_limits_of_any_connection() {
    // A busy machine may need long to hear the first bytes.
    let limit = Duration::from_secs(1);
    let idle = World::with(|config| config.idle_timeout = Some(limit));
    let half_open = World::with(|config| config.half_open_timeout = limit);
    for (mut world, expected) in [(idle, "idle_timeout"), (half_open, "half_open_timeout")] {
        let client = world.pod("client", 0);
        for (index, server) in [world.pod("near", 0), world.pod("far", 1)]
            .iter()
            .enumerate()
        {
            let (listener, address) = server.listen();
            hanging(listener);
            let mut stream = client.dial(address).await;
            let request = b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n";
            soon(stream.write_all(request)).await.unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"first") {
                assert!(soon(stream.read_buf(&mut heard)).await.unwrap() > 0);
            }
            if expected == "half_open_timeout" {
                stream.shutdown().await.unwrap();
            }
            expect_reset(&mut stream).await;
            // Both nodes look; the other one then hears of a reset.
            let mut reasons = Vec::new();
            for node in 0..=index {
                reasons.push(request_flow(&mut world, node).await.reason);
            }
            let either = reasons.iter().any(|reason| reason == expected);
            assert!(either, "{reasons:?}");
        }
    }
}

#[tokio::test]
async fn a_server_that_does_not_switch_answers_as_ever() {
    let mut world = World::new();
    let (client, servers) = super::everywhere(&mut world);
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        for _ in 0..2 {
            let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\
                           Upgrade: websocket\r\n\r\n";
            assert_eq!(ask(&mut stream, request).await.status(), 200);
        }
    }
}

#[tokio::test]
async fn what_goes_on_for_long_on_one_node_ends_once_it_may_no_longer_be() {
    let socket = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
                  Upgrade: websocket\r\n\r\n";
    let agreed = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                   upgrade: websocket\r\n\r\nfirst";
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let long = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nfirst";
    for (request, answer) in [(socket, &agreed[..]), (plain, &long[..]), (plain, b"")] {
        let mut world = World::new();
        let client = world.pod("client", 0);
        let server = world.pod("server", 0);
        let (listener, address) = server.listen();
        switching(listener, answer);
        let web = world.service("web", &[address]);
        let mut stream = client.dial(SocketAddr::new(web.ip, 80)).await;
        soon(stream.write_all(request.as_bytes())).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"first") && !answer.is_empty() {
            let count = soon(stream.read_buf(&mut heard)).await.unwrap();
            assert!(count > 0, "{}", heard.escape_ascii());
        }
        let somebody = From {
            principals: vec![exact("spiffe://cluster.local/ns/shop/sa/somebody")],
            ..From::default()
        };
        let rule = Rule {
            from: vec![somebody],
            ..Rule::default()
        };
        apply(&mut world, policy("others", Action::Allow, rule));
        let end = soon(stream.read_buf(&mut heard)).await;
        if answer.is_empty() {
            assert!(heard.starts_with(b"HTTP/1.1 403 "), "{end:?}");
        } else {
            assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        }
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(flow.verdict, Verdict::Denied, "{}", flow.reason);
        assert_eq!(flow.policy.as_deref(), Some("shop/others"));
    }
}

#[tokio::test]
async fn bytes_ahead_of_an_upgrade_arrive_as_they_are_or_not_at_all() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let server = world.pod("server", 0);
    let (listener, address) = server.listen();
    switching(listener, b"HTTP/1.1 200 OK\r\n\r\nfirst");
    for early in [&b"\x16\x03\x01hello"[..], b"\x16\x03\n\nhello"] {
        let mut stream = client.dial(address).await;
        let request = [b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", early].concat();
        soon(stream.write_all(&request)).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(early) {
            match soon(stream.read_buf(&mut heard)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => assert!(!heard.contains(&0), "{}", heard.escape_ascii()),
            }
        }
        assert_eq!(heard.ends_with(early), !early.contains(&b'\n'));
    }
}
