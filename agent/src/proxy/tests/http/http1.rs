//! HTTP/1.1.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{Heard, ask, everywhere, hear, mirror, request_flow, service};
use crate::flow::{Direction, FlowProtocol, TlsState, Verdict};
use crate::proxy::tests::paths::allow;
use crate::proxy::tests::world::{TestPod, World, app, fresh_ip, id, soon, until};
use crate::proxy::tests::{expect_fin, expect_reset};
use crate::state::{Object, Pod, StringMatch, To, fixtures};

#[tokio::test]
#[expect(clippy::excessive_nesting, reason = "both ends of each case")]
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

/// Reads a head.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let count = soon(stream.read_buf(&mut bytes)).await.unwrap();
        assert!(count > 0, "{}", bytes.escape_ascii());
    }
    String::from_utf8(bytes).unwrap()
}

/// What is heard, and what the application has read, of one request at each place.
async fn at_each(request: &str, answer: &str) -> Vec<(Heard, String)> {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let mut all = Vec::new();
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let serve = async {
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let head = read_head(&mut app).await;
            app.write_all(answer.as_bytes()).await.unwrap();
            app.shutdown().await.unwrap();
            head
        };
        all.push(tokio::join!(ask(&mut stream, request), serve));
    }
    all
}

#[tokio::test]
async fn answers_without_a_body_keep_their_heads() {
    for (method, answer) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nDate: x\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 204 No Content\r\nX-Odd: 1\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: 1\r\n\r\n"),
    ] {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut world = World::new();
        let client = world.pod("client", 0);
        for server in [world.pod("near", 0), world.pod("far", 1)] {
            let (listener, address) = server.listen();
            let mut stream = client.dial(address).await;
            let serve = async {
                let (mut app, _) = soon(listener.accept()).await.unwrap();
                let _head = read_head(&mut app).await;
                app.write_all(answer.as_bytes()).await.unwrap();
                app
            };
            let hear = async {
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut text = Vec::new();
                let _count = soon(stream.read_to_end(&mut text)).await.unwrap();
                String::from_utf8(text).unwrap()
            };
            let (text, _app) = tokio::join!(hear, serve);
            let (first, rest) = text.split_once("\r\n").unwrap();
            assert_eq!(first, answer.split("\r\n").next().unwrap());
            let header = answer.split("\r\n").nth(1).unwrap();
            assert!(rest.contains(header), "{text}");
            assert!(rest.ends_with("\r\n\r\n"), "{text}");
            assert!(rest.contains("date") == answer.contains("date"), "{text}");
        }
    }
}

#[tokio::test]
async fn the_case_of_headers_is_kept_and_nothing_is_added() {
    let request = "GET /a%2Fb?c HTTP/1.1\r\nHost: a\r\nX-CamelCase: 1\r\n\r\n";
    let answer = "HTTP/1.1 200 Fine\r\nX-Answer: 2\r\nContent-Length: 2\r\n\r\nok";
    for (heard, head) in at_each(request, answer).await {
        assert_eq!(head, request);
        let lines = "HTTP/1.1 200 Fine\r\nX-Answer: 2\r\nContent-Length: 2\r\n";
        assert_eq!(heard.head.trim_end(), lines.trim_end());
        assert_eq!(heard.text(), "ok");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_whole() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (heard, _) in at_each(request, "HTTP/1.1 200 OK\r\n\r\nto the end").await {
        assert_eq!(heard.header("transfer-encoding"), Some("chunked"));
        assert_eq!(heard.text(), "A\r\nto the end\r\n0\r\n\r\n");
    }
}

#[tokio::test]
async fn a_client_that_waits_for_an_answer_is_not_idle() {
    let mut world = World::with(|config| config.http.client_idle = Duration::from_millis(300));
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let serve = async {
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let _head = read_head(&mut app).await;
            for part in [
                "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n",
                "one,",
                "two.",
            ] {
                tokio::time::sleep(Duration::from_millis(400)).await;
                app.write_all(part.as_bytes()).await.unwrap();
            }
            app
        };
        let hear = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        let (heard, _app) = tokio::join!(hear, serve);
        assert_eq!(heard.text(), "one,two.");
        // Now it is.
        expect_fin(&mut stream).await;
    }
}

/// An application whose answers have no end.
fn endless(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut app, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _head = read_head(&mut app).await;
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                let mut said = app.write_all(head).await;
                while said.is_ok() {
                    said = app.write_all(&[0; 16_384]).await;
                }
            });
        }
    });
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_cut_off() {
    let idle = World::with(|config| config.http.body_idle = Duration::from_millis(300));
    for (mut world, expected) in [(idle, "idle for 300ms"), (World::new(), "after 1s")] {
        world.manifest(
            "apiVersion: fairlead.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  timeouts: {stream: 1s}
",
        );
        let client = world.pod("client", 0);
        for server in [world.pod("near", 0), world.pod("far", 1)] {
            let (listener, mut address) = server.listen();
            endless(listener);
            let web = world.service("web", &[address]);
            if expected == "after 1s" {
                address = SocketAddr::new(web.ip, 80);
            }
            let mut stream = client.dial(address).await;
            let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let flow = request_flow(&mut world, 0).await;
            assert_eq!(&*flow.reason, format!("timed_out: {expected}"));
            let end = soon(stream.read_to_end(&mut Vec::new())).await;
            assert!(end.is_err(), "{end:?}");
        }
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_is_served_and_let_go() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = Vec::new();
        let _count = soon(stream.read_to_end(&mut text)).await.unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200 OK\r\n"), "{text}");
        assert!(text.contains("GET / HTTP/1.1\n"), "{text}");
        assert!(!text.contains("chunked"), "{text}");
    }
}

#[tokio::test]
async fn chunks_and_trailers_go_both_ways() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let message = "transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                       5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n";
        let serve = async {
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"x-sum: 7\r\n\r\n") {
                let count = soon(app.read_buf(&mut text)).await.unwrap();
                assert!(count > 0, "{}", text.escape_ascii());
            }
            let answer = format!("HTTP/1.1 200 OK\r\n{message}");
            app.write_all(answer.as_bytes()).await.unwrap();
            app
        };
        let hear = async {
            let request = format!("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n{message}");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"x-sum: 7\r\n\r\n") {
                let count = soon(stream.read_buf(&mut text)).await.unwrap();
                assert!(count > 0, "{}", text.escape_ascii());
            }
        };
        let ((), _app) = tokio::join!(hear, serve);
    }
}

#[tokio::test]
#[expect(clippy::excessive_nesting, reason = "both ends of each case")]
async fn a_body_waits_for_word_of_the_server() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        for refuse in [false, true] {
            let (listener, address) = server.listen();
            let mut stream = client.dial(address).await;
            let serving = async {
                let (mut app, _) = soon(listener.accept()).await.unwrap();
                let asked = read_head(&mut app).await;
                assert!(asked.contains("100-continue"), "{asked}");
                if refuse {
                    let answer = b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n";
                    app.write_all(answer).await.unwrap();
                } else {
                    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
                    app.write_all(go_on).await.unwrap();
                    let mut five = [0; 5];
                    let _count = soon(app.read_exact(&mut five)).await.unwrap();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    app.write_all(answer).await.unwrap();
                }
                app
            };
            let hearing = async {
                let head = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
                            content-length: 5\r\n\r\n";
                let first = ask(&mut stream, head).await;
                if refuse {
                    assert_eq!(first.status(), 413);
                } else {
                    assert_eq!(first.status(), 100);
                    let last = ask(&mut stream, "hello").await;
                    assert_eq!(last.status(), 200);
                }
            };
            let ((), _app) = tokio::join!(hearing, serving);
        }
    }
}

#[tokio::test]
async fn a_body_does_not_wait_for_ever_for_word_of_the_server() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let serving = async {
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let _head = read_head(&mut app).await;
            // It knows nothing of such words.
            let mut five = [0; 5];
            let _count = soon(app.read_exact(&mut five)).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            app.write_all(answer).await.unwrap();
            app
        };
        let whole = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n\
                     content-length: 5\r\n\r\nhello";
        let hearing = async {
            assert_eq!(ask(&mut stream, whole).await.status(), 100);
            assert_eq!(hear(&mut stream).await.status(), 200);
        };
        let ((), _app) = tokio::join!(hearing, serving);
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_no_request() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let serve = async {
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let _head = read_head(&mut app).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            app.write_all(answer).await.unwrap();
            // It takes the next request, and is gone without an answer.
            let _head = read_head(&mut app).await;
            drop(app);
            let (mut app, _) = soon(listener.accept()).await.unwrap();
            let _head = read_head(&mut app).await;
            app.write_all(answer).await.unwrap();
            app
        };
        let hear = async {
            for _ in 0..2 {
                let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
                assert_eq!(ask(&mut stream, request).await.status(), 200);
            }
        };
        let ((), _app) = tokio::join!(hear, serve);
    }
}

#[tokio::test]
#[expect(clippy::excessive_nesting, reason = "both ends of each case")]
async fn what_was_opened_before_a_pod_was_enrolled_is_not_used_afterwards() {
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for node in [0, 1] {
        let mut world = World::new();
        let client = world.pod("client", 0);
        let server = world.declare("server", node, false);
        let (listener, address) = app(SocketAddr::new(server.ips[0], 0));
        let (opened, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut app, _)) = listener.accept().await {
                opened.send(()).unwrap();
                tokio::spawn(async move {
                    while matches!(app.read(&mut [0; 1024]).await, Ok(count) if count > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        app.write_all(answer).await.unwrap();
                    }
                });
            }
        });
        let mut kept = client.dial(address).await;
        assert_eq!(ask(&mut kept, request).await.status(), 200);
        soon(accepted.recv()).await.unwrap();
        // Nothing is said on this one, but the server is dialled for it.
        let mut begun = client.dial(address).await;
        soon(accepted.recv()).await.unwrap();
        world.apply(allow("server", "nobody"));
        let labels = [("app", "server"), ("fairlead.dev/mesh", "enabled")];
        world.apply(Object::Pod(Pod {
            labels: fixtures::labels(&labels),
            ..(*server).clone()
        }));
        let name = &server.name;
        let server = Arc::clone(world.table().snapshot().pods.get(name).unwrap());
        let server = world.serve(server, node);
        in_force(&world, node, &server).await;
        for stream in [&mut kept, &mut begun] {
            assert_eq!(ask(stream, request).await.status(), 403, "node {node}");
        }
    }
}

#[tokio::test]
async fn a_request_that_may_not_be_done_twice_is_not() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("near", 0));
    let (listener, address) = server.listen();
    let mut stream = client.dial(address).await;
    let serve = async {
        let (mut app, _) = soon(listener.accept()).await.unwrap();
        let _head = read_head(&mut app).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        app.write_all(answer).await.unwrap();
        let _head = read_head(&mut app).await;
        drop(app);
        let again = tokio::time::timeout(Duration::from_millis(300), listener.accept());
        assert!(again.await.is_err());
    };
    let hear = async {
        let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(ask(&mut stream, request).await.status(), 200);
        let heard = ask(&mut stream, request).await;
        assert_eq!(heard.status(), 502);
        assert_eq!(
            heard.header("fairlead-reason"),
            Some("upstream_reset; before an answer")
        );
    };
    tokio::join!(hear, serve);
}

#[tokio::test]
async fn a_client_that_goes_ends_its_request_at_the_server() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let (mut app, _) = soon(listener.accept()).await.unwrap();
        let _head = read_head(&mut app).await;
        drop(stream);
        let end = soon(app.read(&mut [0; 16])).await;
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(
            (flow.http.unwrap().status, &*flow.reason),
            (0, "client_reset")
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_for_the_client() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        let mut stream = client.dial(address).await;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let (mut app, _) = soon(listener.accept()).await.unwrap();
        let _head = read_head(&mut app).await;
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf";
        app.write_all(answer).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"half") {
            let count = soon(stream.read_buf(&mut text)).await.unwrap();
            assert!(count > 0, "{}", text.escape_ascii());
        }
        drop(app);
        expect_reset(&mut stream).await;
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(flow.verdict, Verdict::Failed);
        assert_eq!(&*flow.reason, "upstream_reset");
        assert_eq!(flow.http.unwrap().status, 200);
    }
}

#[tokio::test]
async fn what_cannot_be_reached_is_answered_with_why() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for server in [world.pod("near", 0), world.pod("far", 1)] {
        let (listener, address) = server.listen();
        drop(listener);
        let to = service(&mut world, &server.pod.name.name, "http", address);
        let mut stream = client.dial(to).await;
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 503);
        let reason = heard.header("fairlead-reason").unwrap();
        assert!(
            reason.starts_with("connect_failed; connect_refused"),
            "{reason}"
        );
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(flow.verdict, Verdict::Failed);
        assert_eq!(
            flow.destination.service.as_deref(),
            Some(&*server.pod.name.name)
        );
    }
}

#[tokio::test]
async fn what_is_not_http_is_refused_where_http_is_declared() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (server, address) in &servers {
        let to = service(&mut world, &server.pod.name.name, "http", *address);
        let mut stream = client.dial(to).await;
        let heard = ask(&mut stream, "EHLO mail\r\n").await;
        assert_eq!(heard.status(), 400);
        assert_eq!(heard.header("fairlead-reason"), Some("not_http"));
        let mut stream = client.dial(to).await;
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 200);
    }
}

#[tokio::test]
async fn nobody_looks_into_what_is_declared_opaque() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (server, address) in &servers {
        let to = service(&mut world, &server.pod.name.name, "tcp", *address);
        let mut stream = client.dial(to).await;
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 200);
        drop(stream);
        let flow = world.flow(0).await;
        assert_eq!(
            (flow.protocol, flow.http.is_none()),
            (FlowProtocol::Tcp, true)
        );
    }
}

#[tokio::test]
async fn a_connection_without_requests_is_let_go_when_its_pod_leaves() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let mut streams = Vec::new();
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 200);
        streams.push(stream);
    }
    let proxy = world.nodes[0].proxy.clone();
    proxy.remove_pod(&client.key(), Duration::from_mins(1));
    for mut stream in streams {
        expect_fin(&mut stream).await;
    }
}

#[tokio::test]
async fn a_first_request_that_comes_as_its_pod_leaves_is_served() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let proxy = world.nodes[0].proxy.clone();
    let idle = proxy.stats().tasks;
    let mut streams = Vec::new();
    for (_, address) in &servers {
        streams.push(client.dial(*address).await);
    }
    until("both are accepted", || proxy.stats().tasks >= idle + 2).await;
    proxy.remove_pod(&client.key(), Duration::from_mins(1));
    for mut stream in streams {
        let heard = ask(&mut stream, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(heard.status(), 200);
        expect_fin(&mut stream).await;
    }
}

#[tokio::test]
async fn a_policy_is_asked_for_each_request_of_an_open_connection() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    for (server, address) in &servers {
        let node = usize::from(server.pod.node.as_ref() == Some(&world.nodes[1].name));
        let mut stream = client.dial(*address).await;
        let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        assert_eq!(ask(&mut stream, request).await.status(), 200);
        let mut policy = allow(&server.pod.name.name, "client");
        if let Object::AuthorizationPolicy(policy) = &mut policy {
            policy.rules[0].to = vec![To {
                methods: vec![StringMatch::Exact("POST".to_owned())],
                ..To::default()
            }];
        }
        world.apply(policy);
        in_force(&world, node, server).await;
        let heard = ask(&mut stream, request).await;
        assert_eq!(heard.status(), 403, "{heard:?}");
        let reason = heard.header("fairlead-reason").unwrap();
        assert_eq!(reason, "policy_denied; by shop/only");
        let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(ask(&mut stream, post).await.status(), 200);
    }
}

/// The policies of the table are those that are asked.
pub(super) async fn in_force(world: &World, node: usize, server: &TestPod) {
    until("policy", || {
        let policy = world.table().inbound(&server.pod.name);
        let local = world.nodes[node].proxy.shared.pod(&server.pod.name);
        let now = Arc::clone(&local.unwrap().state.borrow().policy);
        now == policy
    })
    .await;
}
