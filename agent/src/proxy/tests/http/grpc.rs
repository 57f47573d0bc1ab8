//! Calls of gRPC and of gRPC-Web, over sockets of both nodes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::request_flow;
use super::services::{Served, request};
use crate::flow::FlowProtocol;
use crate::model::NamespacedName;
use crate::proxy::tests::world::{TestPod, World, soon};
use crate::state::Object;
use crate::state::traffic::{RetriesSpec, RetryOn, TrafficPolicy, TrafficSpec, TrafficTarget};

/// One message with the byte `x`.
const MESSAGE: &[u8] = b"\0\0\0\0\x01x";

/// Service `web`, whose application is on the other node and tells the headers that it gets.
struct Shop {
    world: World,
    client: TestPod,
    _far: TestPod,
    web: Served,
    asked: mpsc::UnboundedReceiver<HeaderMap>,
}

fn shop() -> Shop {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let far = world.pod("far", 1);
    let (listener, address) = far.listen();
    let asked = serve(listener);
    let web = world.grpc_service("web", &[address]);
    Shop {
        world,
        client,
        _far: far,
        web,
        asked,
    }
}

/// `/pkg.S/Slow`: a message, and no end. `/pkg.S/Flaky`: UNAVAILABLE to the first call. Else a
/// message and `grpc-status: 0`.
fn serve(listener: TcpListener) -> mpsc::UnboundedReceiver<HeaderMap> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let calls = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (sender, calls) = (sender.clone(), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let _told = sender.send(request.headers().clone());
                    let number = calls.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(answer(request, respond, number));
                }
            });
        }
    });
    receiver
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>, number: usize) {
    let (parts, mut body) = request.into_parts();
    let head = |status: Option<&'static str>| {
        let mut head = Response::builder().header("content-type", "application/grpc");
        if let Some(status) = status {
            head = head.header("grpc-status", status);
        }
        head.body(()).unwrap()
    };
    while let Some(Ok(bytes)) = body.data().await {
        body.flow_control().release_capacity(bytes.len()).unwrap();
    }
    if parts.uri.path() == "/pkg.S/Flaky" && number == 0 {
        let _sent = respond.send_response(head(Some("14")), true);
        return;
    }
    let Ok(mut send) = respond.send_response(head(None), false) else {
        return;
    };
    let _sent = send.send_data(Bytes::from_static(MESSAGE), false);
    if parts.uri.path() == "/pkg.S/Slow" {
        return std::future::pending().await;
    }
    let mut trailers = HeaderMap::new();
    let _before = trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let _sent = send.send_trailers(trailers);
}

/// What a client of gRPC gets.
struct Got {
    head: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Shop {
    async fn call(&self, path: &str, headers: &[(&'static str, &str)]) -> Got {
        let stream = self.client.dial(SocketAddr::new(self.web.ip, 80)).await;
        let (client, connection) = soon(h2::client::handshake(stream)).await.unwrap();
        let driving = tokio::spawn(connection);
        let mut request = Request::post(format!("http://web{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut client = soon(client.ready()).await.unwrap();
        let (response, mut send) = client
            .send_request(request.body(()).unwrap(), false)
            .unwrap();
        send.send_data(Bytes::from_static(MESSAGE), true).unwrap();
        let (parts, mut body) = soon(response).await.unwrap().into_parts();
        assert_eq!(parts.status, 200);
        let mut bytes = Vec::new();
        while let Some(data) = soon(body.data()).await {
            bytes.extend_from_slice(&data.unwrap());
        }
        let trailers = soon(body.trailers()).await.unwrap();
        driving.abort();
        Got {
            head: parts.headers,
            body: bytes,
            trailers,
        }
    }

    fn policy(&mut self, spec: TrafficSpec) {
        self.world.apply(Object::TrafficPolicy(TrafficPolicy {
            name: NamespacedName::new("shop", "web"),
            targets: vec![TrafficTarget {
                service: "web".into(),
                port: None,
            }],
            spec,
            created: 0,
            generation: 0,
            invalid: None,
            held: false,
        }));
    }
}

#[tokio::test]
async fn a_call_goes_through_with_its_trailers() {
    let mut shop = shop();
    let got = shop.call("/pkg.S/Do", &[]).await;
    assert_eq!(got.body, MESSAGE);
    assert_eq!(got.trailers.unwrap()["grpc-status"], "0");
    let flow = request_flow(&mut shop.world, 0).await;
    assert_eq!(flow.protocol, FlowProtocol::Grpc);
    assert_eq!(flow.http.unwrap().grpc_status, Some(0));
}

#[tokio::test]
async fn a_deadline_is_passed_on_shortened_and_ends_the_call_in_time() {
    let mut shop = shop();
    let got = shop.call("/pkg.S/Slow", &[("grpc-timeout", "2000m")]).await;
    assert_eq!(got.body, MESSAGE);
    let trailers = got.trailers.unwrap();
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["grpc-message"], "timed_out; after 2s");
    let asked = soon(shop.asked.recv()).await.unwrap();
    let passed_on = asked["grpc-timeout"].to_str().unwrap();
    let (digits, unit) = passed_on.split_at(passed_on.len() - 1);
    let left = match unit {
        "n" => Duration::from_nanos(digits.parse().unwrap()),
        "u" => Duration::from_micros(digits.parse().unwrap()),
        other => panic!("{other}"),
    };
    assert!(
        left > Duration::ZERO && left <= Duration::from_secs(2),
        "{left:?}"
    );
}

#[tokio::test]
async fn a_status_that_the_policy_names_is_tried_again() {
    let mut shop = shop();
    shop.policy(TrafficSpec {
        retries: Some(RetriesSpec {
            on: Some(vec![RetryOn::Unavailable]),
            ..RetriesSpec::default()
        }),
        ..TrafficSpec::default()
    });
    let got = shop.call("/pkg.S/Flaky", &[]).await;
    assert_eq!(got.head["fairlead-retries"], "1");
    assert_eq!(got.body, MESSAGE);
    assert_eq!(got.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn refusals_are_statuses_with_details() {
    let mut shop = shop();
    shop.web = shop.world.grpc_service("none", &[]);
    let got = shop.call("/pkg.S/Do", &[]).await;
    assert!(got.trailers.is_none() && got.body.is_empty());
    assert_eq!(got.head["grpc-status"], "14");
    assert_eq!(got.head["fairlead-reason"], "no_endpoints");
    assert!(got.head.contains_key("grpc-status-details-bin"));
}

#[tokio::test]
async fn browsers_call_by_grpc_web() {
    let mut shop = shop();
    let web = |kind: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /pkg.S/Do HTTP/1.1\r\nHost: web\r\nContent-Type: application/{kind}+proto\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let binary = std::str::from_utf8(MESSAGE).unwrap();
    let heard = request(&shop.client, &shop.web, &web("grpc-web", binary)).await;
    assert_eq!(heard.status(), 200);
    assert_eq!(heard.header("content-type"), Some("application/grpc-web"));
    let last = b"\x80\0\0\0\x10grpc-status: 0\r\n";
    let body = String::from_utf8_lossy(&heard.body).into_owned();
    assert!(
        body.contains(binary) && body.contains("grpc-status: 0\r\n"),
        "{body:?}"
    );
    assert!(
        heard.body.windows(last.len()).any(|part| part == last),
        "{body:?}"
    );
    let asked = soon(shop.asked.recv()).await.unwrap();
    assert_eq!(asked["content-type"], "application/grpc+proto");
    assert_eq!(asked["te"], "trailers");

    let heard = request(&shop.client, &shop.web, &web("grpc-web-text", "AAAAAAF4")).await;
    assert_eq!(
        heard.header("content-type"),
        Some("application/grpc-web-text")
    );
    assert!(heard.text().contains("AAAAAAF4"), "{heard:?}");
}
