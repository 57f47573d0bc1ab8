//! HTTP/1.1.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt as _;

use super::{ask, everywhere, mirror, request_flow};
use crate::flow::{Direction, FlowProtocol, TlsState, Verdict};
use crate::proxy::tests::expect_fin;
use crate::proxy::tests::world::{World, app, fresh_ip, id};

#[tokio::test]
async fn requests_reach_both_nodes_and_are_recorded() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (server, address) in &servers {
        let mut stream = client.dial(*address).await;
        for path in ["/one?secret=1", "/two"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example:80\r\n\r\n");
            let heard = ask(&mut stream, &request).await;
            assert_eq!(heard.status(), 200);
            assert!(heard.text().starts_with(&format!("GET {path} HTTP/1.1\n")));
            assert!(heard.text().contains("\nhost: shop.example:80\n"));
        }
        stream.shutdown().await.unwrap();
        expect_fin(&mut stream).await;
        let is_far = server.pod.node.as_ref() == Some(&world.nodes[1].name);
        for (node, direction) in [(0, Direction::Outbound), (1, Direction::Inbound)] {
            if node == 1 && !is_far {
                continue;
            }
            for path in ["/one", "/two"] {
                let flow = world.flow(node).await;
                let http = flow.http.as_ref().unwrap();
                assert_eq!((&*http.method, &*http.path), ("GET", path));
                assert_eq!((&*http.host, http.status), ("shop.example", 200));
                assert_eq!(http.upstream, Some(*address));
                assert_eq!(flow.direction, direction);
                assert_eq!(flow.verdict, Verdict::Forwarded);
                assert_eq!(flow.reason, "closed");
                assert_eq!(flow.protocol, FlowProtocol::Http);
                assert_eq!(flow.source.identity, Some(id("client")));
                assert_eq!(
                    flow.destination.identity.as_ref(),
                    Some(&server.pod.identity)
                );
                let tls = if is_far {
                    TlsState::Mtls
                } else {
                    TlsState::None
                };
                assert_eq!(flow.tls, tls);
            }
        }
        let connection = world.flow(0).await;
        assert!(connection.http.is_none());
        assert_eq!(connection.protocol, FlowProtocol::Http);
        assert_eq!(connection.reason, "closed");
        assert!(connection.bytes_sent > 50 && connection.bytes_received > 50);
        if is_far {
            // The connection to the other node is kept for the next client.
            let mut again = client.dial(*address).await;
            let _heard = ask(&mut again, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            drop(again);
            let flow = request_flow(&mut world, 1).await;
            assert_eq!(flow.http.unwrap().path.as_ref(), "/");
        }
    }
}

#[tokio::test]
async fn requests_out_of_the_mesh_and_in_plaintext_are_served() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let (listener, address) = app(SocketAddr::new(fresh_ip(), 0));
    mirror(listener);
    let mut stream = client.dial(address).await;
    let request = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    let heard = ask(&mut stream, request).await;
    assert!(heard.text().ends_with("\n\nhello"), "{heard:?}");
    let flow = request_flow(&mut world, 0).await;
    assert_eq!(flow.bytes_sent, 5);
    assert!(flow.destination.pod.is_none());

    let server = world.pod("server", 1);
    let serve = async |address| mirror(app(address).0);
    let (mut stream, _) = world.plaintext(1, &server, fresh_ip(), serve).await;
    let heard = ask(&mut stream, request).await;
    assert!(heard.text().ends_with("\n\nhello"), "{heard:?}");
    let flow = request_flow(&mut world, 1).await;
    assert_eq!(flow.direction, Direction::Inbound);
    assert_eq!(flow.source.identity, None);
}
