//! Services that are asked about requests.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::http1::in_force;
use super::services::{SHORT, app_of, get as http_get};
use super::websocket::{client_of, connect, refusal};
use super::{Heard, ask, everywhere};
use crate::model::NamespacedName;
use crate::proxy::http::external_protocol::auth::authorization_server::{
    Authorization, AuthorizationServer,
};
use crate::proxy::http::external_protocol::auth::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, RpcStatus,
};
use crate::proxy::http::external_protocol::ratelimit::rate_limit_response::{
    Code, DescriptorStatus,
};
use crate::proxy::http::external_protocol::ratelimit::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use crate::proxy::http::external_protocol::ratelimit::{RateLimitRequest, RateLimitResponse};
use crate::proxy::tests::paths::allow;
use crate::proxy::tests::world::{PATIENCE, TestPod, World, app, fresh_ip};
use crate::state::fixtures::{labels, service};
use crate::state::{
    Action, AuthorizationPolicy, ExternalProvider, IncludedBody, Object, PathPattern, Pod,
    PolicyScope, Rule, Selector, Service, ServicePort, StringMatch, TargetPort, To,
};

/// Decides by the path, and keeps what it was asked.
#[derive(Clone, Default)]
struct Judge(Arc<Mutex<Vec<CheckRequest>>>);

fn set(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        }),
        append: None,
        append_action: 0,
    }
}

#[tonic::async_trait]
impl Authorization for Judge {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let request = request.into_inner();
        let attributes = request.attributes.clone().unwrap();
        let path = attributes.request.unwrap().http.unwrap().path;
        self.0.lock().unwrap().push(request);
        let status = |code| {
            Some(RpcStatus {
                code,
                message: String::new(),
            })
        };
        let nothing = CheckResponse {
            status: status(0),
            denied_response: None,
            ok_response: None,
        };
        Ok(Response::new(match &*path {
            "/slow" => std::future::pending().await,
            "/broken" => return Err(Status::internal("no")),
            "/silent" => CheckResponse {
                status: None,
                ..nothing
            },
            "/deny" => CheckResponse {
                status: status(7),
                ..nothing
            },
            "/teapot" => CheckResponse {
                status: status(16),
                denied_response: Some(DeniedHttpResponse {
                    status: Some(HttpStatus { code: 418 }),
                    headers: vec![set("x-why", "tea"), set("content-length", "1")],
                    body: "short and stout".to_owned(),
                }),
                ..nothing
            },
            "/change" => CheckResponse {
                ok_response: Some(OkHttpResponse {
                    headers: vec![set("x-user", "joe"), set("host", "evil")],
                    headers_to_remove: vec!["x-secret".to_owned(), "host".to_owned()],
                    response_headers_to_add: vec![set("x-checked", "yes")],
                }),
                ..nothing
            },
            _ => nothing,
        }))
    }
}

fn custom(provider: ExternalProvider) -> Object {
    Object::AuthorizationPolicy(AuthorizationPolicy {
        name: NamespacedName::new("shop", "ask"),
        scope: PolicyScope::Mesh,
        action: Action::Custom,
        dry_run: false,
        rules: vec![Rule {
            to: vec![To {
                not_paths: vec![PathPattern::Text(StringMatch::Exact("/free".to_owned()))],
                ..To::default()
            }],
            ..Rule::default()
        }],
        provider: Some(Arc::new(provider)),
        generation: 0,
        invalid: None,
    })
}

fn provider() -> ExternalProvider {
    ExternalProvider {
        service: NamespacedName::new("shop", "judge"),
        port: 9000,
        timeout: PATIENCE,
        fail_open: false,
        body: None,
        headers: Vec::new(),
    }
}

/// A policy for the applications, not for the judge.
fn of_applications(object: Object, name: &str) -> Object {
    let Object::AuthorizationPolicy(policy) = object else {
        panic!("{object:?}");
    };
    Object::AuthorizationPolicy(AuthorizationPolicy {
        name: NamespacedName::new("shop", name),
        scope: PolicyScope::Pods(Selector(labels(&[("app", name)]))),
        ..policy
    })
}

/// Puts a policy on the applications, and waits until it is in force.
async fn apply(
    world: &mut World,
    servers: &[(TestPod, SocketAddr); 2],
    provider: &ExternalProvider,
) {
    for (server, _) in servers {
        let name = &server.pod.name.name;
        world.apply(of_applications(custom(provider.clone()), name));
    }
    for (node, (server, _)) in servers.iter().enumerate() {
        in_force(world, node, server).await;
    }
}

/// A judge on the second node, behind a Service.
fn judge(world: &mut World) -> (TestPod, Judge) {
    let pod = world.pod("judge", 1);
    let judge = judge_at(world, pod.listen());
    (pod, judge)
}

/// A judge that listens there, behind a Service.
fn judge_at(world: &mut World, (listener, address): (TcpListener, SocketAddr)) -> Judge {
    let judge = Judge::default();
    let server = AuthorizationServer::new(judge.clone());
    tokio::spawn(async move {
        let router = tonic::transport::Server::builder().add_service(server);
        router
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    world.apply(judge_service(address.port()));
    judge
}

fn judge_service(target: u16) -> Object {
    Object::Service(Service {
        selector: labels(&[("app", "judge")]),
        ports: vec![ServicePort {
            name: "grpc".into(),
            port: 9000,
            node_port: None,
            target: TargetPort::Number(target),
            app_protocol: None,
        }],
        ..service("shop/judge", "")
    })
}

#[track_caller]
fn unavailable(heard: &Heard, server: &TestPod) {
    assert_eq!(heard.status(), 503);
    let reason = format!("ext_authz_unavailable; by {}#0", server.pod.name);
    assert_eq!(heard.header("fairlead-reason"), Some(&*reason));
}

async fn get(stream: &mut TcpStream, path: &str) -> Heard {
    let headers = "X-Secret: s\r\nX-User: root\r\nX-List: a\r\nX-List: b\r\n";
    let request = format!("GET {path} HTTP/1.1\r\nHost: web.shop\r\n{headers}\r\n");
    ask(stream, &request).await
}

#[tokio::test]
async fn who_is_asked_decides() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_pod, judge) = judge(&mut world);
    apply(&mut world, &servers, &provider()).await;
    for (server, address) in &servers {
        let rule = format!("by {}#0", server.pod.name);
        let mut stream = client.dial(*address).await;
        assert_eq!(get(&mut stream, "/fine").await.status(), 200);
        let denied = get(&mut stream, "/deny").await;
        let reason = format!("ext_authz_denied; {rule}");
        assert_eq!(denied.status(), 403);
        assert_eq!(denied.header("fairlead-reason"), Some(&*reason));
        let teapot = get(&mut stream, "/teapot").await;
        assert_eq!((teapot.status(), teapot.text()), (418, "short and stout"));
        assert_eq!(teapot.header("x-why"), Some("tea"));
        let changed = get(&mut stream, "/change").await;
        assert_eq!(changed.header("x-checked"), Some("yes"));
        let text = changed.text();
        assert!(
            text.contains("\nx-user: joe\n") && !text.contains("x-secret"),
            "{text}"
        );
        assert!(
            text.contains("\nhost: web.shop\n") && !text.contains("root"),
            "{text}"
        );
        for path in ["/broken", "/silent"] {
            unavailable(&get(&mut stream, path).await, server);
        }
        let asked = judge.0.lock().unwrap().len();
        assert_eq!(get(&mut stream, "/free").await.status(), 200);
        assert_eq!(judge.0.lock().unwrap().len(), asked);
    }
    let asked = judge.0.lock().unwrap().remove(0).attributes.unwrap();
    let principal = |peer: Option<_>| -> String {
        let peer: crate::proxy::http::external_protocol::auth::attribute_context::Peer =
            peer.unwrap();
        peer.principal
    };
    assert_eq!(
        principal(asked.source),
        "spiffe://cluster.local/ns/shop/sa/client"
    );
    assert_eq!(
        principal(asked.destination),
        "spiffe://cluster.local/ns/shop/sa/near"
    );
    let http = asked.request.unwrap().http.unwrap();
    assert_eq!(
        (&*http.method, &*http.path, &*http.host),
        ("GET", "/fine", "web.shop")
    );
    assert_eq!(http.headers["x-list"], "a,b");
}

#[tokio::test]
async fn who_does_not_answer_in_time_is_not_waited_for() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_pod, _judge) = judge(&mut world);
    let hasty = ExternalProvider {
        timeout: SHORT,
        ..provider()
    };
    apply(&mut world, &servers, &hasty).await;
    for (server, address) in &servers {
        let mut stream = client.dial(*address).await;
        unavailable(&get(&mut stream, "/slow").await, server);
    }
}

#[tokio::test]
async fn who_is_asked_is_dialled_anew_once_its_pod_is_enrolled() {
    for node in [0, 1] {
        let mut world = World::new();
        let (client, servers) = everywhere(&mut world);
        let pod = world.declare("judge", node, false);
        let _judge = judge_at(&mut world, app(SocketAddr::new(pod.ips[0], 0)));
        apply(&mut world, &servers, &provider()).await;
        let mut stream = client.dial(servers[0].1).await;
        assert_eq!(get(&mut stream, "/fine").await.status(), 200);
        world.apply(allow("judge", "nobody"));
        world.apply(Object::Pod(Pod {
            labels: labels(&[("app", "judge"), ("fairlead.dev/mesh", "enabled")]),
            ..(*pod).clone()
        }));
        let pod = Arc::clone(world.table().snapshot().pods.get(&pod.name).unwrap());
        let pod = world.serve(pod, node);
        in_force(&world, node, &pod).await;
        assert_eq!(get(&mut stream, "/fine").await.status(), 503, "node {node}");
    }
}

#[tokio::test]
async fn who_can_not_be_asked_decides_as_the_policy_says() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let open = ExternalProvider {
        fail_open: true,
        ..provider()
    };
    // Without the Service nobody can say that the requests may go on.
    apply(&mut world, &servers, &open).await;
    for (server, address) in &servers {
        let mut stream = client.dial(*address).await;
        let heard = get(&mut stream, "/fine").await;
        let rule = &server.pod.name;
        let why = format!("ext_authz_unavailable; by {rule}#0: there is no such Service");
        assert_eq!(heard.status(), 503);
        assert_eq!(heard.header("fairlead-reason"), Some(&*why));
    }
    world.apply(judge_service(9));
    apply(&mut world, &servers, &provider()).await;
    for (server, address) in &servers {
        let mut stream = client.dial(*address).await;
        unavailable(&get(&mut stream, "/fine").await, server);
    }
    apply(&mut world, &servers, &open).await;
    for (_, address) in &servers {
        let mut stream = client.dial(*address).await;
        assert_eq!(get(&mut stream, "/fine").await.status(), 200);
    }
}

#[tokio::test]
async fn a_websocket_has_no_body_to_be_shown() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_pod, judge) = judge(&mut world);
    let shown = ExternalProvider {
        body: Some(IncludedBody {
            max_bytes: 10,
            allow_partial: false,
        }),
        ..provider()
    };
    apply(&mut world, &servers, &shown).await;
    for (_, address) in &servers {
        let mut sender = client_of(&client, *address).await;
        let asked = judge.0.lock().unwrap().len();
        // Neither does it wait for one; the application has no WebSockets.
        let (status, _) = refusal(&mut sender, connect("/fine", "websocket")).await;
        assert_eq!(status, 502);
        assert_eq!(judge.0.lock().unwrap().len(), asked + 1);
    }
}

#[tokio::test]
async fn who_is_asked_has_no_longer_than_the_request() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_pod, _judge) = judge(&mut world);
    let patient = ExternalProvider {
        timeout: 2 * PATIENCE,
        body: Some(IncludedBody {
            max_bytes: 100,
            allow_partial: true,
        }),
        ..provider()
    };
    apply(&mut world, &servers, &patient).await;
    let [(_, near), (far, _)] = &servers;
    let outside = fresh_ip();
    let (plain, _) = world.plaintext(1, far, outside, async |_address| {}).await;
    let lines = "Host: a\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 300m\r\n";
    let unasked = format!("POST /slow HTTP/1.1\r\n{lines}Content-Length: 4\r\n\r\nfour");
    let no_body = format!("POST /fine HTTP/1.1\r\n{lines}Content-Length: 4\r\n\r\nfo");
    for request in [&unasked, &no_body] {
        let heard = ask(&mut client.dial(*near).await, request).await;
        assert_eq!(heard.header("grpc-status"), Some("4"), "{heard:?}");
    }
    let mut plain = plain;
    let heard = ask(&mut plain, &unasked).await;
    assert_eq!(heard.header("grpc-status"), Some("4"), "{heard:?}");
    let message = heard.header("grpc-message");
    assert_eq!(message, Some("timed_out; after 300ms"));
}

#[tokio::test]
async fn bodies_are_shown_as_far_as_the_policy_says() {
    let mut world = World::new();
    let (client, servers) = everywhere(&mut world);
    let (_pod, judge) = judge(&mut world);
    for (allow_partial, expected) in [(false, 413), (true, 200)] {
        let body = Some(IncludedBody {
            max_bytes: 4,
            allow_partial,
        });
        let provider = ExternalProvider { body, ..provider() };
        apply(&mut world, &servers, &provider).await;
        for (_, address) in &servers {
            let mut stream = client.dial(*address).await;
            let post = "POST /fine HTTP/1.1\r\nHost: a\r\n";
            let sized = format!("{post}Content-Length: 4\r\n\r\nfour");
            let heard = ask(&mut stream, &sized).await;
            assert!(
                heard.text().ends_with("content-length: 4\n\nfour"),
                "{heard:?}"
            );
            let shown = judge.0.lock().unwrap().pop().unwrap().attributes.unwrap();
            assert_eq!(shown.request.unwrap().http.unwrap().raw_body, b"four");
            let chunks = "2\r\nab\r\n3\r\ncde\r\n2\r\nfg\r\n0\r\n\r\n";
            let longer = format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunks}");
            let heard = ask(&mut stream, &longer).await;
            assert_eq!(heard.status(), expected, "{heard:?}");
            if allow_partial {
                assert!(heard.text().ends_with("\n\nabcdefg"), "{heard:?}");
                let shown = judge.0.lock().unwrap().pop().unwrap().attributes.unwrap();
                assert_eq!(shown.request.unwrap().http.unwrap().raw_body, b"abcd");
            }
        }
    }
}

/// Counts, and keeps what it was asked. The path decides what it says.
#[derive(Clone, Default)]
struct Counter(Arc<Mutex<Vec<RateLimitRequest>>>);

#[tonic::async_trait]
impl RateLimitService for Counter {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let request = request.into_inner();
        let path = request.descriptors[0].entries[0].value.clone();
        self.0.lock().unwrap().push(request);
        let answer = |code: Code| RateLimitResponse {
            overall_code: code.into(),
            statuses: vec![DescriptorStatus {
                code: code.into(),
                limit_remaining: 0,
                duration_until_reset: Some(prost_types::Duration {
                    seconds: 90,
                    nanos: 0,
                }),
            }],
        };
        match &*path {
            "/over" => Ok(Response::new(answer(Code::OverLimit))),
            "/strange" => Ok(Response::new(answer(Code::Unknown))),
            "/slow" => std::future::pending().await,
            _ => Ok(Response::new(answer(Code::Ok))),
        }
    }
}

/// A policy of Service `web` that asks Service `counter`.
fn globally_limited(timeout: Duration, on_failure: &str) -> String {
    let timeout = timeout.as_millis();
    format!(
        "apiVersion: fairlead.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  rateLimits:
  - name: all
    global:
      service: {{name: counter, port: 80}}
      domain: shop
      timeout: {timeout}ms
      onFailure: {on_failure}
      descriptors: [{{entries: [{{key: path, from: PATH}}, {{key: client, from: CLIENT}}]}}]
"
    )
}

#[tokio::test]
async fn a_global_limit_is_asked_as_the_client() {
    let mut world = World::new();
    let client = world.pod("client", 0);
    let web = world.pod("web", 1);
    let app = app_of(&web, "web");
    let shop = world.service("web", &[app.address]);
    let pod = world.pod("counter", 0);
    let (listener, address) = pod.listen();
    let counter = Counter::default();
    let server = RateLimitServiceServer::new(counter.clone());
    tokio::spawn(async move {
        let router = tonic::transport::Server::builder().add_service(server);
        router
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
    });
    let _counter = world.service("counter", &[address]);
    for (on_failure, without) in [("DENY", 429), ("ALLOW", 200)] {
        world.manifest(&globally_limited(SHORT, on_failure));
        for path in ["/slow", "/strange"] {
            let heard = http_get(&client, &shop, path, "").await;
            assert_eq!(heard.status(), without, "{path}");
        }
    }
    world.manifest(&globally_limited(PATIENCE, "DENY"));
    assert_eq!(http_get(&client, &shop, "/", "").await.status(), 200);
    let over = http_get(&client, &shop, "/over", "").await;
    assert_eq!(over.status(), 429);
    assert_eq!(
        over.header("fairlead-reason"),
        Some("rate_limited; by shop/web#all")
    );
    assert_eq!(over.header("retry-after"), Some("91"));
    let asked = counter.0.lock().unwrap().pop().unwrap();
    assert_eq!((&*asked.domain, asked.hits_addend), ("shop", 1));
    let told = asked.descriptors[0].entries.iter();
    let told: Vec<_> = told.map(|entry| (&*entry.key, &*entry.value)).collect();
    let client = "spiffe://cluster.local/ns/shop/sa/client";
    assert_eq!(told, [("path", "/over"), ("client", client)]);
}
