//! Traffic policies over real sockets: which endpoints get the requests of a pod.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::services::app_of;
use super::{Heard, ask, hear, service};
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::flow::Verdict;
use crate::model::{NamespacedName, TrustDomain};
use crate::proxy::tests::world::{PATIENCE, TestPod, World, soon, until};
use crate::proxy::tests::{check_flow, echo, expect_fin, expect_reset, round_trip};
use crate::state::{EndpointSlice, Object, SliceAddress};

/// An application that says its name, with a status of choice, when it is let.
struct App {
    name: String,
    address: SocketAddr,
    status: AtomicU16,
    requests: AtomicU32,
    /// One permit for each answer to a path that starts with `/held`.
    held: Semaphore,
    _pod: TestPod,
}

impl App {
    fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    fn fail(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        if request.uri().path().starts_with("/held") {
            self.held.acquire().await.unwrap().forget();
        }
        let body = Full::from(self.name.clone());
        let response = Response::builder().status(self.status.load(Ordering::SeqCst));
        Ok(response.body(body).unwrap())
    }
}

fn serve(app: Arc<App>, listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                let service = service_fn(|request| Arc::clone(&app).answer(request));
                let serving = Builder::new().serve_connection(TokioIo::new(stream), service);
                let _ended = serving.await;
            });
        }
    });
}

/// Service `web` with as many endpoints as there are nodes named, and a client on the first
/// node.
struct Shop {
    world: World,
    client: TestPod,
    apps: Vec<Arc<App>>,
}

impl Shop {
    fn new(nodes: &[usize]) -> Self {
        let mut world = World::new();
        let client = world.pod("client", 0);
        let mut shop = Self {
            world,
            client,
            apps: Vec::new(),
        };
        shop.apply(
            "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, \
             spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}",
        );
        for node in nodes {
            shop.add(*node);
        }
        shop
    }

    fn add(&mut self, node: usize) -> Arc<App> {
        let name = format!("web-{}", self.apps.len());
        let pod = self.world.pod(&name, node);
        let (listener, address) = pod.listen();
        let app = Arc::new(App {
            name,
            address,
            status: AtomicU16::new(200),
            requests: AtomicU32::new(0),
            held: Semaphore::new(0),
            _pod: pod,
        });
        serve(Arc::clone(&app), listener);
        self.apps.push(Arc::clone(&app));
        self.ready(&app, true);
        app
    }

    /// Not as a manifest: there nobody may be on the loopback device.
    fn ready(&mut self, app: &App, ready: bool) {
        self.world.apply(Object::EndpointSlice(EndpointSlice {
            name: NamespacedName::new("shop", &*app.name),
            service: "web".into(),
            ports: vec![("".into(), app.address.port())],
            addresses: vec![SliceAddress::at(app.address.ip(), ready)],
        }));
    }

    fn policy(&mut self, spec: &str) {
        self.apply(&format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: web, \
             namespace: shop}}, spec: {{targetRefs: [{{kind: Service, name: web}}], {spec}}}}}"
        ));
    }

    fn apply(&mut self, text: &str) {
        let trust_domain = TrustDomain("cluster.local".into());
        let mut conversion = Converter::new(trust_domain, NetnsFrom::Annotation);
        let document = serde_yaml_ng::Deserializer::from_str(text);
        let value = serde_json::Value::deserialize(document).unwrap();
        let converted = conversion.value(&value);
        assert!(converted.problems.is_empty(), "{:?}", converted.problems);
        self.world.apply(converted.object.unwrap());
    }

    async fn dial(&self) -> TcpStream {
        self.client.dial("10.96.0.1:80".parse().unwrap()).await
    }

    /// A request on a connection of its own.
    async fn get(&self, path: &str, header: &str) -> Heard {
        let mut stream = self.dial().await;
        ask(&mut stream, &request(path, header)).await
    }

    /// So many requests on one connection, each with its answer: who answered how often.
    async fn shares(&self, count: u32) -> BTreeMap<String, u32> {
        let mut stream = self.dial().await;
        let mut shares = BTreeMap::new();
        for _ in 0..count {
            let heard = ask(&mut stream, &request("/", "")).await;
            *shares.entry(heard.text().to_owned()).or_default() += 1;
        }
        shares
    }

    /// A request that its application does not answer before it is let.
    async fn hold(&self) -> (TcpStream, Arc<App>) {
        let before: Vec<u32> = self.apps.iter().map(|app| app.requests()).collect();
        let mut stream = self.dial().await;
        let request = request("/held", "");
        soon(stream.write_all(request.as_bytes())).await.unwrap();
        let got = || {
            let mut apps = self.apps.iter().zip(&before);
            apps.find(|(app, before)| app.requests() > **before)
        };
        until("the request is there", || got().is_some()).await;
        let (app, _before) = got().unwrap();
        (stream, Arc::clone(app))
    }
}

fn request(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: web.shop\r\n{header}\r\n")
}

#[track_caller]
fn refused(heard: &Heard, reason: &str) {
    assert_eq!(heard.status(), 503);
    assert_eq!(heard.header("fairlead-reason"), Some(reason));
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_out_and_comes_back() {
    let mut shop = Shop::new(&[0, 1]);
    shop.policy(
        "loadBalancing: {algorithm: ROUND_ROBIN}, retries: {attempts: 0}, \
         outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 3s}",
    );
    let bad = Arc::clone(&shop.apps[1]);
    bad.fail(500);
    drop(shop.shares(6).await);
    assert_eq!(bad.requests(), 3);
    let shares = shop.shares(10).await;
    assert_eq!(shares, BTreeMap::from([("web-0".to_owned(), 10)]));
    bad.fail(200);
    let end = tokio::time::Instant::now() + PATIENCE;
    while bad.requests() == 3 {
        assert!(tokio::time::Instant::now() < end, "it does not come back");
        drop(shop.shares(2).await);
    }
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_at_once() {
    let mut shop = Shop::new(&[1]);
    shop.policy("requests: {max: 1}");
    let (mut held, app) = shop.hold().await;
    let heard = shop.get("/", "").await;
    refused(&heard, "circuit_open; requests");
    assert_eq!(heard.header("retry-after"), Some("1"));
    assert_eq!(heard.header("grpc-retry-pushback-ms"), None);
    let grpc = "Content-Type: application/grpc\r\n";
    let call = shop.get("/a.B/C", grpc).await;
    assert_eq!(call.header("grpc-status"), Some("14"));
    assert_eq!(call.header("grpc-retry-pushback-ms"), Some("1000"));
    app.held.add_permits(1);
    assert_eq!(hear(&mut held).await.status(), 200);
    assert_eq!(shop.get("/", "").await.status(), 200);
    assert_eq!(app.requests(), 2);
}

#[tokio::test]
async fn a_client_is_told_when_an_endpoint_is_back() {
    let mut shop = Shop::new(&[0, 1]);
    shop.policy(
        "adaptiveConcurrency: {initial: 1, min: 1, max: 1}, retries: {attempts: 0}, \
         loadBalancing: {algorithm: ROUND_ROBIN}, \
         outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, \
         maxEjectionTime: 1h, maxEjectionPercent: 100, panicThreshold: 0}",
    );
    let (mut held, app) = shop.hold().await;
    let heard = shop.get("/", "").await;
    refused(&heard, "overloaded");
    assert_eq!(heard.header("retry-after"), Some("1"));
    app.held.add_permits(1);
    assert_eq!(hear(&mut held).await.status(), 200);
    for app in &shop.apps {
        app.fail(500);
    }
    drop(shop.shares(2).await);
    let heard = shop.get("/", "").await;
    refused(&heard, "no_endpoints");
    // The hour is long, and a new endpoint may be there at any time.
    assert_eq!(heard.header("retry-after"), Some("30"));
}

#[tokio::test]
async fn no_spelling_of_a_path_escapes_a_limit() {
    let mut shop = Shop::new(&[1]);
    shop.policy("rateLimits: [{match: {paths: [/admin]}, local: {requests: 1, per: 1h}}]");
    assert_eq!(shop.get("/admin", "").await.status(), 200);
    for path in [
        "/admin",
        "/%61dmin",
        "//admin",
        "/x/../admin",
        "/a%2Fdmin",
        "/admin;x=1",
        "/;y/admin;",
    ] {
        assert_eq!(shop.get(path, "").await.status(), 429, "{path}");
    }
    for path in ["/admins", "/admin/;x", "/a;dmin"] {
        assert_eq!(shop.get(path, "").await.status(), 200, "{path}");
    }
    shop.policy("faults: [{match: {paths: [/admin]}, abort: {status: 418}}]");
    for (path, status) in [
        ("/%61dmin", 418),
        ("/./admin", 418),
        ("/a%2Fdmin", 200),
        ("/admin;x", 200),
    ] {
        assert_eq!(shop.get(path, "").await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_are_not_opened() {
    let mut shop = Shop::new(&[1]);
    shop.policy("connections: {max: 1}");
    let (mut held, app) = shop.hold().await;
    let heard = shop.get("/", "").await;
    refused(&heard, "circuit_open; connections");
    assert_eq!(heard.header("retry-after"), Some("1"));
    app.held.add_permits(1);
    assert_eq!(hear(&mut held).await.status(), 200);
    // The one that there is takes the next request.
    assert_eq!(shop.get("/", "").await.status(), 200);
}

/// Service `db`, of whose port nobody says what it speaks, and one whose port is opaque.
fn opaque_services(world: &mut World, spec: &str) -> (TestPod, [SocketAddr; 2]) {
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    echo(listener);
    let told = service(world, "server", "tcp", address);
    let db = world.unknown_service("db", &[address]);
    for name in ["server", "db"] {
        world.manifest(&format!(
            "{{apiVersion: fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: {name}, \
             namespace: shop}}, spec: {{targetRefs: [{{kind: Service, name: {name}}}], {spec}}}}}"
        ));
    }
    (client, [told, SocketAddr::new(db.ip, 80)])
}

#[tokio::test]
async fn connections_without_http_count_too() {
    for (spec, why) in [
        ("connections: {max: 1}", "circuit_open: connections"),
        (
            "connections: {perClient: 1}",
            "circuit_open: connections of this client",
        ),
    ] {
        let mut world = World::new();
        let (client, services) =
            opaque_services(&mut world, &format!("{spec}, timeouts: {{connect: 300ms}}"));
        for address in services {
            let mut held = client.dial(address).await;
            round_trip(&mut held, b"one").await;
            // One that says something, and one that does not.
            let mut speaks = client.dial(address).await;
            let _said = speaks.write_all(b"two").await;
            expect_reset(&mut speaks).await;
            expect_reset(&mut client.dial(address).await).await;
            for _ in 0..2 {
                let flow = world.flow(0).await;
                check_flow(&flow, Verdict::Failed, why);
                assert_eq!((flow.bytes_sent, flow.bytes_received), (0, 0));
            }
            round_trip(&mut held, b"three").await;
            drop(held);
            let flow = world.flow(0).await;
            check_flow(&flow, Verdict::Forwarded, "closed");
            // There is room again.
            let mut next = client.dial(address).await;
            round_trip(&mut next, b"four").await;
            next.shutdown().await.unwrap();
            expect_fin(&mut next).await;
            check_flow(&world.flow(0).await, Verdict::Forwarded, "closed");
        }
    }
}

#[tokio::test]
async fn requests_are_answered_though_there_is_no_room_for_connections() {
    let mut world = World::new();
    let (client, [_, db]) = opaque_services(&mut world, "connections: {max: 1}");
    let mut held = client.dial(db).await;
    round_trip(&mut held, b"one").await;
    let mut stream = client.dial(db).await;
    refused(
        &ask(&mut stream, &request("/", "")).await,
        "circuit_open; connections",
    );
}

/// Of a client that is known to speak HTTP and has not asked for anything yet.
#[tokio::test]
async fn what_was_dialled_for_a_first_request_counts_until_it_comes() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let (listener, address) = server.listen();
    let _app = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0 {}
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            let _sent = stream.write_all(answer).await;
        }
    });
    let db = world.unknown_service("db", &[address]);
    let db = SocketAddr::new(db.ip, 80);
    world.manifest(
        "{apiVersion: fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: db, \
         namespace: shop}, spec: {targetRefs: [{kind: Service, name: db}], \
         connections: {max: 1}, timeouts: {connect: 300ms}}}",
    );
    let mut first = client.dial(db).await;
    first.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    // Nothing tells when it was seen to speak HTTP: before, it counts as well.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let mut other = client.dial(db).await;
    let _said = other.write_all(b"two").await;
    expect_reset(&mut other).await;
    first.write_all(b"Host: a\r\n\r\n").await.unwrap();
    assert_eq!(hear(&mut first).await.status(), 200);
}

#[tokio::test]
async fn no_connection_goes_to_an_endpoint_that_is_left_out() {
    let ejected = "outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 1h, \
                   maxEjectionTime: 1h, maxEjectionPercent: 100, panicThreshold: 0}, \
                   loadBalancing: {algorithm: ROUND_ROBIN}";
    let mut world = World::new();
    let client = world.pod("client", 0);
    let nobody = ["one", "other"].map(|name| world.pod(name, 0).listen().1);
    let db = world.unknown_service("db", &nobody);
    let db = SocketAddr::new(db.ip, 80);
    world.manifest(&format!(
        "{{apiVersion: fairlead.dev/v1alpha1, kind: TrafficPolicy, metadata: {{name: db, \
         namespace: shop}}, spec: {{targetRefs: [{{kind: Service, name: db}}], {ejected}}}}}"
    ));
    for expected in ["connect_refused", "connect_refused", "no_endpoints"] {
        let mut stream = client.dial(db).await;
        let _said = stream.write_all(b"one").await;
        expect_reset(&mut stream).await;
        check_flow(&world.flow(0).await, Verdict::Failed, expected);
    }
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let mut shop = Shop::new(&[0, 1]);
    shop.policy(
        "retries: {attempts: 1, retryOn: [gateway-error], backoff: {base: 1ms}, \
         budget: {percent: 0, minPerSecond: 1}}",
    );
    for app in &shop.apps {
        app.fail(503);
    }
    drop(shop.shares(20).await);
    // One for each of the ten seconds that are looked at.
    let tried: u32 = shop.apps.iter().map(|app| app.requests()).sum();
    assert_eq!(tried, 30);
}

#[tokio::test]
async fn a_retry_goes_elsewhere() {
    let mut shop = Shop::new(&[0, 1]);
    shop.policy("retries: {attempts: 1, retryOn: [gateway-error], backoff: {base: 1ms}}");
    shop.apps[0].fail(503);
    let shares = shop.shares(10).await;
    assert_eq!(shares, BTreeMap::from([("web-1".to_owned(), 10)]));
}

#[tokio::test]
async fn a_key_stays_with_its_endpoint_when_others_go() {
    let mut shop = Shop::new(&[0, 1, 1]);
    shop.policy("loadBalancing: {consistentHash: {header: x-user}}");
    let mut homes = BTreeMap::new();
    for user in 0..30 {
        let header = format!("X-User: {user}\r\n");
        let home = shop.get("/", &header).await.text().to_owned();
        for _ in 0..2 {
            assert_eq!(shop.get("/", &header).await.text(), home);
        }
        homes.insert(header, home);
    }
    let gone = Arc::clone(&shop.apps[1]);
    assert!(homes.values().any(|home| *home == gone.name));
    shop.ready(&gone, false);
    for (header, home) in &homes {
        let heard = shop.get("/", header).await;
        assert!(heard.text() == home || *home == gone.name);
        assert_ne!(heard.text(), gone.name);
    }
}

#[tokio::test]
async fn near_endpoints_get_the_requests_while_they_are_ready() {
    let mut shop = Shop::new(&[0, 1, 1]);
    shop.policy("loadBalancing: {locality: {node: true}}");
    let shares = shop.shares(20).await;
    assert_eq!(shares, BTreeMap::from([("web-0".to_owned(), 20)]));
    let near = Arc::clone(&shop.apps[0]);
    shop.ready(&near, false);
    assert!(!shop.shares(20).await.contains_key("web-0"));
}

#[tokio::test]
async fn an_endpoint_that_is_new_gets_little_at_first() {
    let mut shop = Shop::new(&[0]);
    shop.policy(
        "loadBalancing: {algorithm: ROUND_ROBIN, slowStart: {window: 1h, minimumPercent: 1}}",
    );
    assert_eq!(shop.shares(1).await.len(), 1);
    let new = shop.add(1);
    drop(shop.shares(40).await);
    // One percent of what the other gets.
    assert!(new.requests() <= 1, "{}", new.requests());
}

#[tokio::test]
async fn an_endpoint_that_drains_ends_what_it_has_and_gets_nothing_new() {
    let mut shop = Shop::new(&[1, 1]);
    let (mut held, app) = shop.hold().await;
    shop.ready(&app, false);
    let before = app.requests();
    drop(shop.shares(20).await);
    assert_eq!(app.requests(), before);
    app.held.add_permits(1);
    let heard = hear(&mut held).await;
    assert_eq!((heard.status(), heard.text()), (200, &*app.name));
    assert_eq!(shop.world.nodes[0].proxy.endpoint_figures().len(), 1);
}

/// A connection in which requests are found is none of the endpoint that it was for.
#[tokio::test]
async fn an_endpoint_has_in_flight_what_it_answers() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", 0), world.pod("server", 1));
    let app = app_of(&server, "server");
    let web = world.unknown_service("web", &[app.address]);
    let mut stream = client.dial(SocketAddr::new(web.ip, 80)).await;
    let heard = ask(&mut stream, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(heard.status(), 200);
    let in_flight = || world.nodes[0].proxy.endpoint_figures()[0].endpoints[0].in_flight;
    until("it is over", || in_flight() == 0).await;
}
