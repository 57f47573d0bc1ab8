//! HTTP end to end: raw clients and servers at both ends of two nodes.

mod accounts;
mod conformance;
mod docs;
mod early;
mod external;
mod grpc;
mod http1;
mod http2;
mod policy;
mod raw;
mod routes;
mod services;
mod small;
mod traffic;
mod tries;
mod upgrade;
mod websocket;

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::world::{TestPod, World, fresh_ip, soon};
use crate::flow::FlowEvent;
use crate::state::{Object, TargetPort, fixtures};

/// What a raw client has read of an answer.
#[derive(Debug)]
struct Heard {
    head: String,
    body: Vec<u8>,
}

impl Heard {
    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The value of a header, whatever the case of its name.
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// Says a request and hears its answer.
async fn ask(stream: &mut TcpStream, request: &str) -> Heard {
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    hear(stream).await
}

/// Reads one answer whose length is said, or that ends with the connection.
async fn hear(stream: &mut TcpStream) -> Heard {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let count = soon(stream.read_buf(&mut bytes)).await.unwrap();
        assert!(count > 0, "no head: {:?}", bytes.escape_ascii().to_string());
    };
    let body = bytes.split_off(end);
    let mut heard = Heard {
        head: String::from_utf8(bytes).unwrap(),
        body,
    };
    let length: Option<usize> = heard.header("content-length").map(|it| it.parse().unwrap());
    let chunked = heard.header("transfer-encoding").is_some();
    while length.is_none_or(|length| heard.body.len() < length) {
        if length.is_none() && (heard.status() < 200 || heard.status() == 204) {
            break;
        }
        if chunked && heard.body.ends_with(b"0\r\n\r\n") {
            break;
        }
        if soon(stream.read_buf(&mut heard.body)).await.unwrap() == 0 {
            break;
        }
    }
    heard
}

/// An application that says what it was asked: one line for the request, its headers, its
/// body.
fn mirror(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(reflect);
                let serving = Builder::new()
                    .preserve_header_case(true)
                    .serve_connection(TokioIo::new(stream), service);
                let _ended = serving.await;
            });
        }
    });
}

async fn reflect(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        for part in [name.as_str(), ": ", value.to_str().unwrap(), "\n"] {
            text.push_str(part);
        }
    }
    text.push('\n');
    let body = body.collect().await?.to_bytes();
    text.push_str(&String::from_utf8_lossy(&body));
    Ok(Response::new(Full::from(text)))
}

/// The next record of a request; records of connections may come before it.
async fn request_flow(world: &mut World, node: usize) -> FlowEvent {
    loop {
        let flow = world.flow(node).await;
        if flow.http.is_some() {
            return flow;
        }
    }
}

/// A client on the first node, and an application that reflects at each place.
fn everywhere(world: &mut World) -> (TestPod, [(TestPod, SocketAddr); 2]) {
    let client = world.pod("client", 0);
    let servers = [world.pod("near", 0), world.pod("far", 1)].map(|server| {
        let (listener, address) = server.listen();
        mirror(listener);
        (server, address)
    });
    (client, servers)
}

/// A Service with one port of a declared protocol that leads to an application.
fn service(world: &mut World, server: &str, protocol: &str, to: SocketAddr) -> SocketAddr {
    let mut service = fixtures::service(&format!("shop/{server}"), &fresh_ip().to_string());
    let mut port = fixtures::port("main", 80, TargetPort::Number(to.port()));
    port.app_protocol = Some(protocol.into());
    service.ports = vec![port];
    service.selector = fixtures::labels(&[("app", server)]);
    let address = SocketAddr::new(service.cluster_ips[0], 80);
    world.apply(Object::Service(service));
    address
}
