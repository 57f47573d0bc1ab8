//! What pods take of the proxy by their requests, and how many they may have.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{ask, everywhere, hear, request_flow};
use crate::flow::Verdict;
use crate::proxy::PodUsage;
use crate::proxy::tests::world::{TestPod, World, soon, until};

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn usage(world: &World, node: usize, pod: &TestPod) -> PodUsage {
    let mut all = world.nodes[node].proxy.usage().into_iter();
    let found = all.find(|(name, _)| *name == pod.pod.name);
    found.expect("the pod is served").1
}

/// A request that is at its server, and not answered yet.
async fn begin(
    client: &TestPod,
    (listener, address): &(TcpListener, SocketAddr),
) -> (TcpStream, TcpStream) {
    let mut asking = client.dial(*address).await;
    asking.write_all(REQUEST.as_bytes()).await.unwrap();
    let (mut asked, _) = soon(listener.accept()).await.unwrap();
    let mut head = [0; 64];
    assert!(soon(asked.read(&mut head)).await.unwrap() > 0);
    (asking, asked)
}

#[tokio::test]
async fn a_pod_has_only_so_many_requests_in_flight_at_either_end() {
    let mut world = World::with(|config| config.requests_per_pod = 1);
    let (client, other) = (world.pod("client", 0), world.pod("other", 0));
    for (node, name) in [(0, "near"), (1, "far")] {
        let server = world.pod(name, node);
        let app = server.listen();
        let (mut asking, mut asked) = begin(&client, &app).await;
        assert_eq!(usage(&world, node, &server).requests_in_flight, 1);
        // The client's own limit, then that of the server.
        for (pod, at) in [(&client, 0), (&other, node)] {
            let mut one_more = pod.dial(app.1).await;
            let heard = ask(&mut one_more, REQUEST).await;
            assert_eq!(heard.status(), 503);
            let reason = heard.header("fairlead-reason");
            assert_eq!(reason, Some("too_many_requests_in_flight"));
            let flow = request_flow(&mut world, at).await;
            assert_eq!(flow.verdict, Verdict::Failed);
            assert_eq!(flow.reason, "too_many_requests_in_flight");
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        asked.write_all(answer).await.unwrap();
        assert_eq!(hear(&mut asking).await.status(), 200);
        until("it is over", || {
            usage(&world, 0, &client).requests_in_flight == 0
        })
        .await;
        let refused = usage(&world, node, &server).requests_refused;
        assert_eq!(refused, 1, "{name}");
        while world.nodes[0].flows.try_recv().is_some() {}
        while world.nodes[1].flows.try_recv().is_some() {}
    }
    assert_eq!(usage(&world, 0, &client).requests_refused, 2);
}

#[tokio::test]
async fn accounts_grow_while_connections_are_open() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (server, address) in &servers {
        let node = usize::from(server.pod.node.as_ref() == Some(&world.nodes[1].name));
        let (before, idle) = (usage(&world, 0, &client), usage(&world, node, server));
        let mut stream = client.dial(*address).await;
        for _ in 0..3 {
            assert_eq!(ask(&mut stream, REQUEST).await.status(), 200);
        }
        let (client, server) = (usage(&world, 0, &client), usage(&world, node, server));
        assert_eq!((client.requests - before.requests, server.requests), (3, 3));
        let sent = client.sent_bytes - before.sent_bytes;
        assert!(sent >= 3 * REQUEST.len() as u64, "{sent}");
        assert!(client.received_bytes - before.received_bytes > 3 * 17);
        assert!(server.sent_bytes > 0 && server.received_bytes > 0);
        assert!(client.busy > before.busy);
        // What is between two pods of a node is the client's work.
        assert!(node == 0 || server.busy > idle.busy);
        assert!(client.memory_bytes > 0);
    }
}
