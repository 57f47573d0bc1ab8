//! WebSocket in HTTP/2 (RFC 8441), and what comes before an answer.

use std::future::poll_fn;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::http2::{chunk, places, send_all, talking};
use super::policy::{apply, policy};
use super::{ask, request_flow, service};
use crate::proxy::tests::world::{TestPod, World, soon, until};
use crate::state::{Action, PathPattern, Rule, StringMatch, To};

/// What a server of HTTP/1.1 says that switches; its key is still to come.
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\nsec-websocket-accept: ";

/// An application of HTTP/1.1 that gives this answer to whatever it is asked, and then says
/// the same back. What it was asked it hands over.
fn chat(
    listener: TcpListener,
    answer: impl Fn(&str) -> String + Clone + Send + 'static,
) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    let (give, take) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (give, answer) = (give.clone(), answer.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let _count = stream.read_buf(&mut head).await.unwrap();
                }
                let head = String::from_utf8(head).unwrap();
                let _sent = stream.write_all(answer(&head).as_bytes()).await;
                let _handed = give.send(head);
                let (mut read, mut write) = stream.split();
                let _copied = tokio::io::copy(&mut read, &mut write).await;
                let _shut = write.shutdown().await;
            });
        }
    });
    take
}

/// The head with which a server agrees, and its first word.
fn agreed(head: &str) -> String {
    let mut lines = head.lines();
    let key = lines.find_map(|line| line.strip_prefix("sec-websocket-key: "));
    let hashed = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap());
    let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, hashed.as_bytes()));
    format!("{SWITCH}{accept}\r\n\r\nfirst")
}

pub(super) fn connect(path: &str, protocol: &'static str) -> Request<()> {
    let request = Request::connect(format!("http://chat{path}"));
    let request = request.header("sec-websocket-version", "13");
    let protocol = Protocol::from_static(protocol);
    request.extension(protocol).body(()).unwrap()
}

/// A client that knows that it may.
pub(super) async fn client_of(client: &TestPod, to: std::net::SocketAddr) -> SendRequest<Bytes> {
    let sender = talking(client.dial(to).await).await;
    until("the settings", || {
        sender.is_extended_connect_protocol_enabled()
    })
    .await;
    sender
}

/// The answer to a WebSocket of which nothing comes.
pub(super) async fn refusal(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
) -> (u16, HeaderMap) {
    let (answer, _send) = sender.send_request(request, false).unwrap();
    let (parts, _body) = soon(answer).await.unwrap().into_parts();
    (parts.status.as_u16(), parts.headers)
}

#[tokio::test]
async fn a_websocket_of_http2_becomes_one_of_http1_where_that_is_declared() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for (name, node) in [("near", 0), ("far", 1)] {
        let server = world.pod(name, node);
        let (listener, address) = server.listen();
        let mut asked = chat(listener, agreed);
        let to = service(&mut world, name, "kubernetes.io/ws", address);
        let mut sender = client_of(&client, to).await;
        let request = connect("/chat?room=1", "websocket");
        let (answer, mut send) = sender.send_request(request, false).unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        for own in ["sec-websocket-accept", "upgrade", "connection"] {
            assert!(!answer.headers().contains_key(own), "{own}");
        }
        let head = soon(asked.recv()).await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with("get /chat?room=1 http/1.1\r\n"), "{head}");
        for line in [
            "host: chat",
            "connection: upgrade",
            "upgrade: websocket",
            "sec-websocket-version: 13",
        ] {
            assert!(head.contains(&format!("\r\n{line}\r\n")), "{head}");
        }
        assert!(!head.contains("transfer-encoding"), "{head}");
        let mut body = answer.into_body();
        assert_eq!(chunk(&mut body).await, "first");
        send_all(&mut send, Bytes::from_static(b"\x81\x05hello"), false).await;
        assert_eq!(chunk(&mut body).await, &b"\x81\x05hello"[..]);
        let long = Bytes::from(vec![7; 200_000]);
        send_all(&mut send, long.clone(), true).await;
        let mut echoed = Vec::new();
        while let Some(bytes) = soon(body.data()).await {
            let bytes = bytes.unwrap();
            body.flow_control().release_capacity(bytes.len()).unwrap();
            echoed.extend_from_slice(&bytes);
        }
        assert_eq!(echoed, long);
        let flow = request_flow(&mut world, 0).await;
        assert_eq!(&*flow.reason, "closed");
        assert_eq!((flow.bytes_sent, flow.bytes_received), (200_007, 200_012));
        let http = flow.http.unwrap();
        assert_eq!(
            (&*http.method, &*http.path, http.status),
            ("CONNECT", "/chat", 200)
        );
    }
}

/// Agrees, and says the same back.
async fn say_back(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(bytes)) = body.data().await {
        let _room = body.flow_control().release_capacity(bytes.len());
        send.send_data(bytes, false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test]
async fn a_websocket_of_http2_goes_on_as_such_where_the_server_can() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for (name, node) in [("near", 0), ("far", 1)] {
        let server = world.pod(name, node);
        let (listener, address) = server.listen();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut builder = h2::server::Builder::new();
            let builder = builder.enable_connect_protocol();
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                assert_eq!(request.method(), Method::CONNECT);
                assert_eq!(request.uri(), "http://chat/chat");
                let protocol = request.extensions().get::<Protocol>().unwrap();
                assert_eq!(protocol.as_str(), "websocket");
                assert!(!request.headers().contains_key("upgrade"));
                tokio::spawn(say_back(request, respond));
            }
        });
        let mut sender = client_of(&client, address).await;
        let (answer, mut send) = sender
            .send_request(connect("/chat", "websocket"), false)
            .unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        let mut body = answer.into_body();
        for text in ["one", "two"] {
            send_all(&mut send, Bytes::from(text), false).await;
            assert_eq!(chunk(&mut body).await, text);
        }
        send.send_data(Bytes::new(), true).unwrap();
        while let Some(end) = soon(body.data()).await {
            assert_eq!(end.unwrap(), "");
        }
        assert_eq!(&*request_flow(&mut world, 0).await.reason, "closed");
    }
}

#[tokio::test]
async fn a_server_without_websockets_is_told_from_one_that_refuses() {
    let unsupported = "upstream_reset; the server takes no WebSocket";
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for ((address, _calls), name) in servers.into_iter().zip(["near", "far"]) {
        let to = service(&mut world, name, "kubernetes.io/h2c", address);
        let mut sender = client_of(&client, to).await;
        let (status, headers) = refusal(&mut sender, connect("/", "websocket")).await;
        assert_eq!(
            (status, headers["fairlead-reason"].as_bytes()),
            (502, unsupported.as_bytes())
        );
        let (status, _) = refusal(&mut sender, connect("/", "connect-udp")).await;
        assert_eq!(status, 501);
    }
    let answers = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
            502,
        ),
        (format!("{SWITCH}abc\r\n\r\n"), 502),
        (
            "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n".to_owned(),
            403,
        ),
    ];
    let server = world.pod("server", 1);
    for (answer, expected) in answers {
        let (listener, address) = server.listen();
        let _asked = chat(listener, move |_head| answer.clone());
        let to = service(&mut world, "server", "kubernetes.io/ws", address);
        let mut sender = client_of(&client, to).await;
        let (status, headers) = refusal(&mut sender, connect("/", "websocket")).await;
        assert_eq!(status, expected);
        let reason = headers
            .get("fairlead-reason")
            .map(|it| it.to_str().unwrap());
        assert_eq!(reason, (expected == 502).then_some(unsupported));
    }
}

#[tokio::test]
async fn a_server_of_which_nothing_is_declared_is_asked_in_http1_too() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    for (name, node) in [("near", 0), ("far", 1)] {
        let server = world.pod(name, node);
        let (listener, address) = server.listen();
        // Whoever speaks HTTP/2 to it hears that it does not.
        let mut asked = chat(listener, |head| {
            if head.starts_with("GET ") {
                return agreed(head).replace("upgrade: ", "content-length: 3\r\nupgrade: ");
            }
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_owned()
        });
        let mut sender = client_of(&client, address).await;
        let request = connect("/chat", "websocket");
        let (answer, mut send) = sender.send_request(request, false).unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("content-length"));
        let mut body = answer.into_body();
        assert_eq!(chunk(&mut body).await, "first");
        send_all(&mut send, Bytes::from_static(b"hello"), false).await;
        assert_eq!(chunk(&mut body).await, "hello");
        let mut head = String::new();
        while !head.starts_with("GET /chat HTTP/1.1\r\n") {
            head = soon(asked.recv()).await.unwrap();
        }
        let head = head.to_ascii_lowercase();
        assert!(head.contains("\r\nhost: chat\r\n"), "{head}");
    }
}

#[tokio::test]
async fn rules_see_a_get_where_a_client_of_http2_asks_for_a_websocket() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    let rule = Rule {
        to: vec![To {
            methods: vec![StringMatch::Exact("GET".to_owned())],
            paths: vec![PathPattern::Text(StringMatch::Prefix("/admin".to_owned()))],
            ..To::default()
        }],
        ..Rule::default()
    };
    apply(&mut world, policy("no-admin", Action::Deny, rule));
    for (address, _calls) in servers {
        let mut sender = client_of(&client, address).await;
        let (status, headers) = refusal(&mut sender, connect("/admin/x", "websocket")).await;
        assert_eq!(status, 403);
        assert_eq!(
            headers["fairlead-reason"],
            "policy_denied; by shop/no-admin#0"
        );
        let (status, _) = refusal(&mut sender, connect("/chat", "websocket")).await;
        assert_eq!(status, 502);
    }
}

#[tokio::test]
async fn hints_come_before_the_answer_and_are_never_taken_for_it() {
    let mut world = World::new();
    let (client, servers) = places(&mut world);
    for (address, mut calls) in servers {
        let mut sender = talking(client.dial(address).await).await;
        let request = Request::get("http://shop/").body(()).unwrap();
        let (mut answer, _send) = sender.send_request(request, true).unwrap();
        let (_request, mut respond) = soon(calls.recv()).await.unwrap();
        let hint = |status| {
            let hint = Response::builder()
                .status(status)
                .header("link", "</a.css>");
            hint.body(()).unwrap()
        };
        respond.send_informational(hint(103)).unwrap();
        let heard = soon(poll_fn(|cx| answer.poll_informational(cx))).await;
        let heard = heard.unwrap().unwrap();
        assert_eq!(
            (heard.status().as_u16(), &heard.headers()["link"]),
            (103, &"</a.css>".parse().unwrap())
        );
        // A flood is dropped, not kept.
        for _ in 0..50 {
            respond.send_informational(hint(103)).unwrap();
        }
        let _sent = respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(soon(answer).await.unwrap().status(), 200);
    }
    let server = world.pod("server", 1);
    let (listener, address) = server.listen();
    let _asked = chat(listener, |_head| {
        let hint = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
        format!("{hint}{hint}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    });
    let mut stream = client.dial(address).await;
    let heard = ask(&mut stream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((heard.status(), heard.text()), (200, "ok"));
}
