//! Services with endpoints of their own, manifests that speak of them, and applications that
//! do what their requests' paths ask for.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize as _;
use tokio::net::TcpListener;

use super::{Heard, ask};
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::model::{NamespacedName, TrustDomain};
use crate::proxy::tests::world::{TestPod, World, fresh_ip};
use crate::state::{Dict, EndpointSlice, Object, Service, ServicePort, SliceAddress, TargetPort};

/// A Service on port 80.
pub(super) struct Served {
    pub(super) ip: IpAddr,
}

/// An application of one endpoint.
#[derive(Clone)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    /// Requests that it has seen the head of.
    pub(super) seen: Arc<AtomicUsize>,
    /// The last one: its head, and its body once that has ended.
    pub(super) last: Arc<std::sync::Mutex<String>>,
}

impl App {
    pub(super) fn count(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }

    pub(super) fn last(&self) -> String {
        self.last.lock().unwrap().clone()
    }
}

/// An application in the pod.
pub(super) fn app_of(pod: &TestPod, name: &'static str) -> App {
    let (listener, address) = pod.listen();
    let app = App {
        name,
        address,
        seen: Arc::default(),
        last: Arc::default(),
    };
    serve(listener, app.clone());
    app
}

fn serve(listener: TcpListener, app: App) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let app = app.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| answer(app.clone(), request));
                let serving = Builder::new().serve_connection(TokioIo::new(stream), service);
                let _ended = serving.await;
            });
        }
    });
}

/// `/status/N`: N. `/flaky/K`: 503 to the first K requests. `/later/N`: 503 to the first, which
/// may come again after N seconds. `/never`: nothing, ever. Else 200.
/// The body says what was asked; header `x-server` says who answered.
async fn answer(app: App, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let number = app.seen.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        for part in [name.as_str(), ": ", value.to_str().unwrap(), "\n"] {
            text.push_str(part);
        }
    }
    app.last.lock().unwrap().clone_from(&text);
    if let Ok(body) = body.collect().await {
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&body.to_bytes()));
        app.last.lock().unwrap().clone_from(&text);
    }
    let path = parts.uri.path().to_owned();
    let status = match path.trim_start_matches('/').split_once('/') {
        Some(("status", status)) => status.parse().unwrap(),
        Some(("flaky", count)) if number < count.parse().unwrap() => 503,
        Some(("later", _)) if number == 0 => 503,
        Some(("never", _)) => std::future::pending().await,
        _ => 200,
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some(after) = path.strip_prefix("/later/") {
        let after = HeaderValue::from_str(after).unwrap();
        let _before = response.headers_mut().insert("retry-after", after);
    }
    let name = HeaderValue::from_static(app.name);
    let _before = response.headers_mut().insert("x-server", name);
    Ok(response)
}

impl World {
    /// A Service of namespace `shop` with these endpoints.
    pub(super) fn service(&mut self, name: &str, endpoints: &[SocketAddr]) -> Served {
        let ip = fresh_ip();
        self.service_at(name, ip, endpoints);
        Served { ip }
    }

    /// Likewise, for gRPC.
    pub(super) fn grpc_service(&mut self, name: &str, endpoints: &[SocketAddr]) -> Served {
        let ip = fresh_ip();
        self.service_of(name, (ip, Some("grpc")), endpoints);
        Served { ip }
    }

    /// Likewise, of which nobody says what it speaks.
    pub(super) fn unknown_service(&mut self, name: &str, endpoints: &[SocketAddr]) -> Served {
        let ip = fresh_ip();
        self.service_of(name, (ip, Some("example.com/any")), endpoints);
        Served { ip }
    }

    /// Likewise, at an address that it may have already.
    pub(super) fn service_at(&mut self, name: &str, ip: IpAddr, endpoints: &[SocketAddr]) {
        self.service_of(name, (ip, None), endpoints);
    }

    fn service_of(
        &mut self,
        name: &str,
        (ip, protocol): (IpAddr, Option<&str>),
        endpoints: &[SocketAddr],
    ) {
        for (index, endpoint) in endpoints.iter().enumerate() {
            self.apply(Object::EndpointSlice(EndpointSlice {
                name: NamespacedName::new("shop", format!("{name}-{index}")),
                service: name.into(),
                ports: vec![("http".into(), endpoint.port())],
                addresses: vec![SliceAddress::at(endpoint.ip(), true)],
            }));
        }
        self.apply(Object::Service(Service {
            name: NamespacedName::new("shop", name),
            cluster_ips: vec![ip],
            external_ips: Vec::new(),
            balancer_ips: Vec::new(),
            ports: vec![ServicePort {
                name: "http".into(),
                port: 80,
                node_port: None,
                target: TargetPort::Number(80),
                app_protocol: protocol.map(Into::into),
            }],
            selector: Dict::default(),
            publish_not_ready: false,
            opaque_ports: Box::default(),
        }));
    }

    /// Applies manifests. None may have a problem.
    #[track_caller]
    pub(super) fn manifest(&mut self, text: &str) {
        let trust_domain = TrustDomain("cluster.local".into());
        let mut converter = Converter::new(trust_domain, NetnsFrom::Annotation);
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value = serde_json::Value::deserialize(document).unwrap();
            let read = converter.value(&value);
            assert!(read.problems.is_empty(), "{:?}", read.problems);
            self.apply(read.object.expect("an object"));
        }
    }

    /// An HTTPRoute of Service `web` with these rules.
    #[track_caller]
    pub(super) fn route(&mut self, rules: &str) {
        self.manifest(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, \
             namespace: shop}}\nspec:\n  parentRefs: [{{name: web, group: '', kind: Service}}]\n  \
             rules: {rules}\n"
        ));
    }
}

/// One request on a connection of its own.
pub(super) async fn get(client: &TestPod, service: &Served, path: &str, headers: &str) -> Heard {
    request(
        client,
        service,
        &format!("GET {path} HTTP/1.1\r\nHost: web\r\n{headers}\r\n"),
    )
    .await
}

/// Likewise, written out.
pub(super) async fn request(client: &TestPod, service: &Served, text: &str) -> Heard {
    let mut stream = client.dial(SocketAddr::new(service.ip, 80)).await;
    ask(&mut stream, text).await
}

/// So short that a test waits for it, so long that an answer comes before.
pub(super) const SHORT: Duration = Duration::from_millis(300);
