//! Bytes that are no requests, or two at once.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::http1::in_force;
use super::{ask, everywhere, service};
use crate::proxy::tests::noise::Noise;
use crate::proxy::tests::paths::allow;
use crate::proxy::tests::world::{TestPod, World, soon, until};
use crate::state::{Object, StringMatch, To};

/// All that a client hears of what it says, to the end of its connection.
async fn heard(client: &TestPod, to: SocketAddr, said: &[u8]) -> String {
    let mut stream = client.dial(to).await;
    // It may be cut off while it speaks.
    let _said = soon(stream.write_all(said)).await;
    let mut text = Vec::new();
    let _end = soon(stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_, address) = servers[0];
    let post = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let chunked = post("Transfer-Encoding: chunked\r\n");
    for said in [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "0\r\n\r\n",
        post("Content-Length: 5\r\nContent-Length: 5\r\n") + "hello",
        post("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello!",
        post("Content-Length: 5, 5\r\n") + "hello",
        post("Content-Length: -1\r\n"),
        post("Transfer-Encoding: chunked, identity\r\n") + "0\r\n\r\n",
        post("Transfer-Encoding: xchunked\r\n") + "0\r\n\r\n",
        post("Transfer-Encoding : chunked\r\n") + "0\r\n\r\n",
        post("X: 1\r\n folded: 2\r\n"),
        post("X y: 1\r\n"),
        post("X: 1\n"),
        "GET / HTTP/1.1\nHost: a\n\n".to_owned(),
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".to_owned(),
        chunked.clone() + "5\nhello\n0\n\n",
        chunked.clone() + "zz\r\nhello\r\n0\r\n\r\n",
        chunked.clone() + "3\r\nhello\r\n0\r\n\r\n",
        chunked + "ffffffffffffffff1\r\nhello\r\n0\r\n\r\n",
    ] {
        let said_twice = format!("{said}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let heard = heard(&client, address, said_twice.as_bytes()).await;
        assert!(!heard.contains("smuggled"), "{said:?}: {heard}");
        assert!(!heard.contains(" 200 "), "{said:?}: {heard}");
        let refused = heard.is_empty()
            || heard.starts_with("HTTP/1.1 400")
            || heard.starts_with("HTTP/1.0 400");
        assert!(refused, "{said:?}: {heard}");
        assert_eq!(
            heard.matches("HTTP/1.").count(),
            heard.len().min(1),
            "{said:?}: {heard}"
        );
    }
}

#[tokio::test]
async fn a_request_whose_host_is_in_doubt_is_refused() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        for said in [
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            let heard = ask(&mut stream, said).await;
            assert_eq!(heard.status(), 400, "{said:?}: {heard:?}");
            assert!(
                heard
                    .header("fairlead-reason")
                    .unwrap()
                    .starts_with("bad_request")
            );
        }
        // What they say is understood well enough to go on.
        let heard = ask(&mut stream, "GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(heard.text().starts_with("GET /x HTTP/1.1\n"), "{heard:?}");
    }
}

#[tokio::test]
async fn requests_that_come_together_are_answered_one_by_one() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (_, address) in &servers {
        let one = "POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
        let two = "GET /two HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let heard = heard(&client, *address, format!("{one}{two}").as_bytes()).await;
        let (first, second) = heard.split_once("\n\nhello").unwrap();
        assert!(first.contains("POST /one "), "{heard}");
        assert!(second.contains("GET /two "), "{heard}");
    }
}

#[tokio::test]
async fn heads_have_a_limit() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_, address) = servers[1];
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
        "x".repeat(100 << 10)
    );
    assert!(
        heard(&client, address, long.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "X: 1\r\n".repeat(200)
    );
    assert!(
        heard(&client, address, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 431")
    );
    let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(80 << 10));
    let heard = heard(&client, address, target.as_bytes()).await;
    assert!(heard.starts_with("HTTP/1.1 4"), "{heard}");
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let mut world = World::with(|config| {
        config.http.head_timeout = Duration::from_millis(500);
        config.http.body_idle = Duration::from_millis(500);
        config.http.client_idle = Duration::from_secs(1);
    });
    let (client, servers) = everywhere(&mut world);
    let (_, address) = servers[1];
    let get = "GET / HTTP/1.1\r\nHost: a\r\n";
    let whole = format!("{get}\r\n");
    let part_of_body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\npart".to_owned();
    for said in [get, &part_of_body] {
        let mut stream = client.dial(address).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let _end = soon(stream.read_to_end(&mut text)).await;
        assert!(
            !text.starts_with(b"HTTP/1.1 200"),
            "{}",
            text.escape_ascii()
        );
    }
    // One byte at a time is too slow too.
    let mut stream = client.dial(address).await;
    stream.write_all(get.as_bytes()).await.unwrap();
    let ended = soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if stream.write_all(b"X").await.is_err() {
                break;
            }
        }
    });
    ended.await;
    // Between requests a client has longer, and is let go in order.
    let mut stream = client.dial(address).await;
    assert_eq!(ask(&mut stream, &whole).await.status(), 200);
    assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap(), 0);
}

#[tokio::test]
async fn who_says_nothing_is_let_go() {
    let mut world = World::with(|config| {
        config.http.head_timeout = Duration::from_millis(100);
        config.http.client_idle = Duration::from_millis(400);
    });
    let (client, servers) = everywhere(&mut world);
    let declared = service(&mut world, "near", "http", servers[0].1);
    // Longer than a head may take, and no answer to no request.
    assert_eq!(heard(&client, declared, b"").await, "");
    let begun = heard(&client, declared, b"GE").await;
    assert!(begun.starts_with("HTTP/1.1 400 "), "{begun}");
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let _frames = heard(&client, declared, settings).await;
    // Here nothing is dialled before it is known who asks for what.
    for (server, address) in &servers {
        let mut policy = allow(&server.pod.name.name, "client");
        if let Object::AuthorizationPolicy(policy) = &mut policy {
            policy.rules[0].to = vec![To {
                methods: vec![StringMatch::Exact("GET".to_owned())],
                ..To::default()
            }];
        }
        world.apply(policy);
        in_force(&world, usize::from(*address == servers[1].1), server).await;
        assert_eq!(heard(&client, *address, b"").await, "");
    }
}

#[tokio::test]
async fn noise_harms_no_other_client() {
    let mut world = World::with(|config| config.http.head_timeout = Duration::from_millis(300));
    let (client, servers) = everywhere(&mut world);
    let proxies = [world.nodes[0].proxy.clone(), world.nodes[1].proxy.clone()];
    let mut noise = Noise::new(11);
    let requests = [
        &b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"[..],
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: 1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x12\x01\x05\0\0\0\x01\x82\x86\x84\x41\x0bexample.com",
    ];
    for _ in 0..60 {
        for (_, address) in &servers {
            let mut said = noise.one_of(&requests).to_vec();
            noise.spoil(&mut said);
            let mut stream = client.dial(*address).await;
            let _said = stream.write_all(&said).await;
            let _shut = stream.shutdown().await;
            let _end = soon(stream.read_to_end(&mut Vec::new())).await;
        }
    }
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 200);
    }
    for proxy in proxies {
        proxy.remove_all(Duration::ZERO);
        until("all of it is over", || proxy.stats().tasks == 0).await;
    }
}
