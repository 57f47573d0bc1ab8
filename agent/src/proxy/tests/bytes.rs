//! Every byte, in every order of ends.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering::Relaxed;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{TestPod, World, reset, soon, until};
use super::{check_flow, expect_fin, expect_reset, round_trip};
use crate::flow::Verdict;
use crate::proxy::PodNetwork as _;

/// A connected pair through the mesh: the client's end, the server's end.
async fn pair(client: &TestPod, server: &TestPod) -> (TcpStream, TcpStream) {
    let (listener, address) = server.listen();
    let stream = client.dial(address).await;
    let (accepted, _) = soon(listener.accept()).await.unwrap();
    (stream, accepted)
}

/// A client on node 0 with a server on the same and on the other node.
fn both_ways(world: &mut World) -> (TestPod, [TestPod; 2]) {
    let client = world.pod("client", 0);
    let servers = [world.pod("near", 0), world.pod("far", 1)];
    (client, servers)
}

#[tokio::test]
async fn a_fin_of_the_client_leaves_the_answer_alone() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        near.write_all(b"request").await.unwrap();
        near.shutdown().await.unwrap();
        let mut text = String::new();
        let _count = soon(far.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "request");
        far.write_all(b"answer").await.unwrap();
        drop(far);
        text.clear();
        let _count = soon(near.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "answer");
        check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
    }
}

#[tokio::test]
async fn a_fin_of_the_server_leaves_the_request_alone() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        far.write_all(b"banner").await.unwrap();
        far.shutdown().await.unwrap();
        let mut text = String::new();
        let _count = soon(near.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "banner");
        near.write_all(b"request").await.unwrap();
        drop(near);
        text.clear();
        let _count = soon(far.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "request");
        drop(far);
        check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
    }
}

/// A byte each way: both ends know that they are connected.
async fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(b"1").await.unwrap();
    let _count = soon(far.read_exact(&mut [0])).await.unwrap();
    far.write_all(b"1").await.unwrap();
    let _count = soon(near.read_exact(&mut [0])).await.unwrap();
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_other_side() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        exchange(&mut near, &mut far).await;
        reset(near);
        expect_reset(&mut far).await;
        check_flow(&world.flow(0).await, Verdict::Forwarded, "client_reset");
        let (mut near, mut far) = pair(&client, server).await;
        exchange(&mut near, &mut far).await;
        reset(far);
        expect_reset(&mut near).await;
        check_flow(&world.flow(0).await, Verdict::Forwarded, "server_reset");
    }
}

#[tokio::test]
async fn a_reset_comes_after_the_bytes_before_it() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        client.network.look_at_queues.store(true, Relaxed);
        server.network.look_at_queues.store(true, Relaxed);
        // The server answers and closes with a request unread: a RST after the answer.
        near.write_all(b"unread").await.unwrap();
        let _there = soon(far.peek(&mut [0])).await.unwrap();
        far.write_all(&vec![7; 300_000]).await.unwrap();
        // A RST takes away what is not yet on its way.
        let queue = || server.network.tcp_info(far.as_fd());
        until("all of it is on its way", || {
            queue().is_some_and(|info| info.unacknowledged == 0)
        })
        .await;
        drop(far);
        let mut received = Vec::new();
        let mut chunk = vec![0; 65536];
        let end = loop {
            match soon(near.read(&mut chunk)).await {
                Ok(0) => break None,
                Ok(count) => received.extend_from_slice(&chunk[..count]),
                Err(error) => break Some(error.kind()),
            }
        };
        assert_eq!(received.len(), 300_000);
        assert_eq!(end, Some(std::io::ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn an_answer_arrives_though_the_server_refuses_the_rest() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        far.write_all(b"too large").await.unwrap();
        far.shutdown().await.unwrap();
        drop(far);
        // The client goes on to send to one who has gone.
        let _refused = soon(near.write_all(&vec![0; 16 << 20])).await;
        let mut text = Vec::new();
        let _end = soon(near.read_to_end(&mut text)).await;
        assert_eq!(text, b"too large");
        drop(near);
        let _flow = world.flow(0).await;
    }
}

/// Sends `total` bytes that depend on `seed`, and ends. Returns their hash.
async fn send(mut to: impl AsyncWriteExt + Unpin, total: usize, seed: u8) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut sent = 0;
    let mut size = 1;
    let block: Vec<u8> = (0..251)
        .cycle()
        .take(100_003)
        .map(|i: u8| i ^ seed)
        .collect();
    while sent < total {
        // All sizes of writes, small and large.
        size = (size * 7 + 13) % block.len() + 1;
        let chunk = &block[..size.min(total - sent)];
        soon(to.write_all(chunk)).await.unwrap();
        hash.update(chunk);
        sent += chunk.len();
    }
    soon(to.shutdown()).await.unwrap();
    hash.finalize().into()
}

/// Receives until the end. Returns count and hash.
async fn receive(mut from: impl AsyncReadExt + Unpin) -> (usize, [u8; 32]) {
    let mut hash = Sha256::new();
    let mut count = 0;
    let mut chunk = vec![0; 1 << 18];
    loop {
        match soon(from.read(&mut chunk)).await.unwrap() {
            0 => return (count, hash.finalize().into()),
            read => {
                hash.update(&chunk[..read]);
                count += read;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_mebibytes_each_way_at_once() {
    const TOTAL: usize = 100 << 20;
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (near, far) = pair(&client, server).await;
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let sending = tokio::spawn(send(near_write, TOTAL, 1));
        let answering = tokio::spawn(send(far_write, TOTAL, 2));
        let heard = tokio::spawn(receive(far_read));
        let answered = tokio::spawn(receive(near_read));
        assert_eq!(heard.await.unwrap(), (TOTAL, sending.await.unwrap()));
        assert_eq!(answered.await.unwrap(), (TOTAL, answering.await.unwrap()));
        let flow = world.flow(0).await;
        check_flow(&flow, Verdict::Forwarded, "closed");
        let total = TOTAL as u64;
        assert_eq!((flow.bytes_sent, flow.bytes_received), (total, total));
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer_and_nobody_else() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, far) = pair(&client, server).await;
        // What fits into the buffers on the way is bounded.
        let mut stuffed = 0;
        let chunk = vec![0; 1 << 20];
        while let Ok(written) =
            tokio::time::timeout(std::time::Duration::from_millis(500), near.write(&chunk)).await
        {
            stuffed += written.unwrap();
            assert!(stuffed < 64 << 20, "no back-pressure");
        }
        let (mut other, mut other_far) = pair(&client, server).await;
        other.write_all(b"through").await.unwrap();
        let mut text = [0; 7];
        let _count = soon(other_far.read_exact(&mut text)).await.unwrap();
        assert_eq!(&text, b"through");
        drop((near, far));
    }
}

#[tokio::test]
async fn an_end_behind_full_buffers_loses_no_byte() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (mut near, mut far) = pair(&client, &server).await;
    far.shutdown().await.unwrap();
    expect_fin(&mut near).await;
    // All buffers on the way are full when the client ends, and empty slowly.
    let mut sent = 0;
    let chunk = vec![1; 1 << 20];
    let patience = std::time::Duration::from_millis(500);
    while let Ok(count) = tokio::time::timeout(patience, near.write(&chunk)).await {
        sent += count.unwrap();
    }
    near.shutdown().await.unwrap();
    let mut received = 0;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match soon(far.read(&mut chunk)).await.unwrap() {
            0 => break,
            count => received += count,
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(received, sent);
    check_flow(&world.flow(1).await, Verdict::Forwarded, "closed");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        far.write_all(b"220 ready").await.unwrap();
        let mut banner = [0; 9];
        let _count = soon(near.read_exact(&mut banner)).await.unwrap();
        assert_eq!(&banner, b"220 ready");
        drop(far);
        expect_fin(&mut near).await;
    }
}

/// Both ends of a tunnel would find out by themselves: only one of them has limits, so
/// that it is certain which one ends the connection, and that the other hears of it.
#[tokio::test]
async fn half_open_and_idle_connections_end_in_time() {
    let limit = std::time::Duration::from_millis(500);
    for (node, name) in ["a", "b"].into_iter().enumerate() {
        let mut world = World::with(|config| {
            if &*config.node.0 == name {
                config.half_open_timeout = limit;
                config.idle_timeout = Some(limit * 2);
            }
        });
        let (client, servers) = both_ways(&mut world);
        // What stays on node a never comes to node b.
        for server in servers.iter().skip(node) {
            let (mut near, mut far) = pair(&client, server).await;
            near.shutdown().await.unwrap();
            expect_fin(&mut far).await;
            let flow = world.flow(node).await;
            check_flow(&flow, Verdict::Forwarded, "half_open_timeout");
            expect_reset(&mut near).await;
            until("the server hears of it", || far.try_write(b"1").is_err()).await;
            let (mut near, mut far) = pair(&client, server).await;
            near.write_all(b"one").await.unwrap();
            let mut text = [0; 3];
            let _count = soon(far.read_exact(&mut text)).await.unwrap();
            expect_reset(&mut near).await;
            expect_reset(&mut far).await;
            check_flow(&world.flow(node).await, Verdict::Forwarded, "idle_timeout");
        }
    }
}

/// A header, then a body of less than the 64 KiB that is a segment of the loopback device.
async fn say_in_two_steps(from: &mut TcpStream, to: &mut TcpStream) {
    for size in [243, 20_000] {
        from.write_all(&vec![1; size]).await.unwrap();
    }
    let _count = soon(to.read_exact(&mut vec![0; 20_243])).await.unwrap();
}

/// With Nagle's rule in force, the second step must not wait for a delayed acknowledgement of
/// the first, which takes 40 ms at least. The kernel delays none at the beginning of a
/// connection, and each one later: where the fastest are not delayed, on however busy a
/// machine, none is.
#[tokio::test]
async fn messages_in_two_steps_are_not_delayed() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (mut near, mut far) = pair(&client, server).await;
        let mut times = Vec::new();
        for _ in 0..60 {
            let begin = tokio::time::Instant::now();
            say_in_two_steps(&mut near, &mut far).await;
            say_in_two_steps(&mut far, &mut near).await;
            times.push(begin.elapsed());
        }
        let later = &mut times[30..];
        later.sort_unstable();
        let third = later[2];
        assert!(third.as_millis() < 40, "{later:?}");
    }
}

#[tokio::test]
async fn small_messages_both_ways() {
    let mut world = World::new();
    let (client, servers) = both_ways(&mut world);
    for server in &servers {
        let (listener, address) = server.listen();
        super::echo(listener);
        let mut stream = client.dial(address).await;
        for size in 1..200 {
            round_trip(&mut stream, &vec![1; size * 97]).await;
        }
    }
}
