use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::ServiceLoad;
use super::{
    AdminServer, AuthorityFigures, CertificateRow, Client, ClientError, FlowLine, FlowStatus,
    HttpServer, KernelStatus, Kind, Object, PodState, PodStatus, PodUsage, ProxyStatus, Severity,
    SocketError, SocketListener, SourceStatus, Status, StatusProblem, TapLine, Usage, View,
};
use crate::flow::tests::ended;
use crate::flow::{
    EndedRequest, Filter, FlowEvent, FlowHub, FlowMetrics, FlowSender, RequestEnds, TapWish,
    Verdict, queue,
};
use crate::model::{NamespacedName, SpiffeId, TrustDomain};
use crate::policy::Table;
use crate::state::{Dict, Pod, PodPhase, Service, ServicePort, Snapshot};

/// A view that nothing moves.
#[derive(Debug)]
struct Still(Status);

impl View for Still {
    fn status(&self) -> Status {
        self.0.clone()
    }

    fn usage(&self) -> Usage {
        let pod = PodUsage {
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            busy_us: 7,
            ..PodUsage::default()
        };
        Usage {
            node: self.0.node.clone(),
            at_us: 1,
            pods: vec![pod],
        }
    }

    fn table(&self) -> Arc<Table> {
        Arc::new(Table::compile(None, snapshot()))
    }

    fn loads(&self) -> Vec<ServiceLoad> {
        Vec::new()
    }
}

/// A status of a node with one of everything.
pub(crate) fn status() -> Status {
    let at = |text: &str| -> Timestamp { text.parse().unwrap() };
    Status {
        node: "node-a".to_owned(),
        version: "0.1.0".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        started: at("2026-01-02T00:00:00Z"),
        now: at("2026-01-02T03:04:05Z"),
        not_ready: vec!["no certificate yet".to_owned()],
        source: SourceStatus {
            name: "dir:/etc/mesh".to_owned(),
            synced: true,
            healthy: true,
            revision: 7,
            pods: 4,
            services: 2,
            policies: 1,
            ..SourceStatus::default()
        },
        kernel: KernelStatus {
            release: "6.18.1".to_owned(),
            counters: [("redirected".to_owned(), 12)].into(),
            ..KernelStatus::default()
        },
        pods: vec![PodStatus {
            namespace: "shop".to_owned(),
            name: "web-1".to_owned(),
            ips: vec!["10.1.0.5".parse().unwrap()],
            identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            state: PodState::Enrolled,
            since: at("2026-01-02T01:00:00Z"),
            open_connections: 3,
            refused_connections: 2,
            bypassing: vec!["10.1.0.5:41000 -> 10.96.0.9:5432".to_owned()],
            unseen: vec![],
            error: None,
        }],
        certificates: vec![CertificateRow {
            identity: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            state: "valid".to_owned(),
            serial: Some("0a1b".to_owned()),
            issuer: Some("O=cluster.local".to_owned()),
            not_before: Some(at("2026-01-02T00:00:00Z")),
            not_after: Some(at("2026-01-03T00:00:00Z")),
            error: None,
        }],
        proxy: ProxyStatus::default(),
        flows: FlowStatus::default(),
        problems: vec![StatusProblem {
            severity: Severity::Error,
            subject: "shop.yaml:3 Pod shop/web-2".to_owned(),
            message: "status.podIPs is empty".to_owned(),
        }],
    }
}

pub(crate) fn pod(namespace: &str, name: &str, ip: &str) -> Pod {
    Pod {
        name: NamespacedName::new(namespace, name),
        uid: "".into(),
        node: None,
        ips: vec![ip.parse().unwrap()],
        identity: SpiffeId::new(TrustDomain("cluster.local".into()), namespace, "web"),
        labels: Dict::default(),
        container_ports: Dict::default(),
        workload: "web".into(),
        phase: PodPhase::Running,
        ready: true,
        terminating: false,
        host_network: false,
        enrolled: true,
        netns: None,
        runtime_class: None,
        static_uid: None,
        exclude_outbound_ports: Box::default(),
        exclude_outbound_cidrs: Box::default(),
        exclude_inbound_ports: Box::default(),
        opaque_ports: Box::default(),
        close_existing: false,
    }
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let pod = Arc::new(pod("shop", "web-1", "10.1.0.5"));
    drop(snapshot.pods_by_ip.insert(pod.ips[0], Arc::clone(&pod)));
    drop(snapshot.pods.insert(pod.name.clone(), pod));
    let service = Service {
        name: NamespacedName::new("bank", "ledger"),
        cluster_ips: vec!["10.96.0.7".parse().unwrap()],
        external_ips: vec![],
        balancer_ips: vec![],
        ports: vec![ServicePort {
            name: "".into(),
            port: 80,
            node_port: None,
            target: crate::state::TargetPort::Number(80),
            app_protocol: None,
        }],
        selector: Dict::default(),
        publish_not_ready: false,
        opaque_ports: Box::default(),
    };
    drop(
        snapshot
            .services
            .insert(service.name.clone(), Arc::new(service)),
    );
    snapshot
}

/// A server on a socket in `run_dir`, and what feeds its flows.
fn serve(run_dir: &Path) -> (JoinSet<()>, FlowSender) {
    let (sender, receiver) = queue(64, FlowMetrics::default());
    let (hub, flows) = FlowHub::new(receiver, 100);
    let server = AdminServer::new(Arc::new(Still(status())), flows);
    let socket = SocketListener::bind(run_dir).unwrap();
    let mut tasks = JoinSet::new();
    drop(tasks.spawn(hub.run()));
    drop(tasks.spawn(async move { server.run(socket).await.unwrap() }));
    (tasks, sender)
}

fn event() -> FlowEvent {
    FlowEvent {
        time: Timestamp::now(),
        ..crate::flow::tests::event()
    }
}

#[tokio::test]
async fn answers_over_a_real_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (_tasks, _sender) = serve(dir.path());
    let mut client = Client::connect(dir.path()).await.unwrap();
    assert_eq!(client.status().await.unwrap(), status());
    let workloads = client.get(Kind::Workloads, "").await.unwrap();
    assert!(matches!(&workloads[..], [Object::Workload(row)] if row.pod == "web-1"));
    assert!(
        client
            .get(Kind::Workloads, "bank")
            .await
            .unwrap()
            .is_empty()
    );
    let services = client.get(Kind::Services, "bank").await.unwrap();
    assert!(matches!(&services[..], [Object::Service(row)] if row.ports[0].port == 80));
    let certificates = client.get(Kind::Certificates, "shop").await.unwrap();
    assert_eq!(certificates.len(), 1);
}

#[tokio::test]
async fn explains_or_says_what_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (_tasks, _sender) = serve(dir.path());
    let mut client = Client::connect(dir.path()).await.unwrap();
    let explanation = client
        .explain("shop/web-1", "bank/ledger:80", None)
        .await
        .unwrap();
    let expected = Table::compile(None, snapshot());
    let expected = expected.explain("shop/web-1", "bank/ledger:80").unwrap();
    assert_eq!(explanation, expected);
    let refused = client.explain("shop/web-2", "bank/ledger:80", None).await;
    assert!(
        matches!(refused, Err(ClientError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn flows_come_filtered_and_then_live() {
    let dir = tempfile::tempdir().unwrap();
    let (_tasks, sender) = serve(dir.path());
    let mut client = Client::connect(dir.path()).await.unwrap();
    let denied = FlowEvent {
        verdict: Verdict::Denied,
        ..event()
    };
    sender.record(event());
    sender.record(denied.clone());
    let filter = Filter {
        verdict: Some(Verdict::Denied),
        since: Some(Duration::from_mins(1)),
        ..Filter::default()
    };
    // The hub takes records in its own time.
    let mut lines = client.flows(&filter, true).await.unwrap();
    let FlowLine::Flow(got, text) = lines.next().await.unwrap().unwrap() else {
        panic!("a record was expected");
    };
    assert_eq!(*got, denied);
    assert!(text.contains("\"verdict\":\"denied\""), "{text}");
    sender.record(event());
    sender.record(denied.clone());
    let next = lines.next().await.unwrap().unwrap();
    assert!(matches!(next, FlowLine::Flow(got, _) if *got == denied));
    let mut all = client.flows(&Filter::default(), false).await.unwrap();
    let mut count = 0;
    while all.next().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 4);
}

#[tokio::test]
async fn a_tap_shows_live_requests_and_ends_with_its_client() {
    let dir = tempfile::tempdir().unwrap();
    let (_tasks, sender) = serve(dir.path());
    let mut client = Client::connect(dir.path()).await.unwrap();
    let uri = http::Uri::from_static("/a?b=c");
    let mut headers = http::HeaderMap::new();
    let secret = http::HeaderValue::from_static("secret");
    drop(headers.insert(http::header::AUTHORIZATION, secret));
    assert!(sender.tap(&uri, &headers).is_none());
    let wish = TapWish {
        headers: true,
        ..TapWish::default()
    };
    let mut lines = client.tap(&wish).await.unwrap();
    let event = event();
    let requests = sender.requests(RequestEnds {
        node: event.node,
        direction: event.direction,
        source: event.source,
        destination: event.destination,
        tls: event.tls,
        connection_id: "1".into(),
    });
    requests.record(EndedRequest {
        tap: sender.tap(&uri, &headers),
        ..ended(404)
    });
    let TapLine::Request(event, text) = lines.next().await.unwrap().unwrap() else {
        panic!("a request was expected");
    };
    assert_eq!(event.flow.http.unwrap().status, 404);
    assert_eq!(event.query.as_deref(), Some("b=***"));
    assert!(
        text.contains("authorization") && !text.contains("secret"),
        "{text}"
    );
    drop((lines, client));
    while sender.tap(&uri, &headers).is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_socket_is_private_and_of_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run/fairlead");
    let socket = SocketListener::bind(&run_dir).unwrap();
    let path = run_dir.join("agent.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(
        SocketListener::bind(&run_dir),
        Err(SocketError::InUse(_))
    ));
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_successors_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = SocketListener::bind(dir.path()).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = SocketListener::bind(dir.path()).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Client::connect(dir.path()).await;
    assert!(
        matches!(refused, Err(ClientError::Unreachable { .. })),
        "{refused:?}"
    );
}

async fn request(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _length = stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_and_health_over_http() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = HttpServer::new(listener, &FlowMetrics::default(), Arc::new(Still(status())));
    let mut tasks = JoinSet::new();
    drop(tasks.spawn(server.run()));
    let metrics = request(address, "/metrics").await;
    for line in [
        "fairlead_agent_build_info{version=\"0.1.0\",node=\"node-a\"} 1\n",
        "fairlead_agent_enrolled_pods 1\n",
        "fairlead_agent_open_connections 0\n",
        "fairlead_agent_flow_drops_total 0\n",
        "fairlead_agent_source_healthy 1\n",
        "fairlead_agent_snapshot_revision 7\n",
        "fairlead_agent_certificate_expiry_timestamp_seconds{\
         identity=\"spiffe://cluster.local/ns/shop/sa/web\"} 1767398400\n",
        "fairlead_agent_kernel_events_total{kind=\"redirected\"} 12\n",
        "# EOF\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(
        request(address, "/healthz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let ready = request(address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.ends_with("no certificate yet\n"));
    assert!(request(address, "/").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn an_authority_tells_what_it_did() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ends = UNIX_EPOCH + Duration::from_hours(490_944);
    let figures = move || AuthorityFigures {
        issued: 3,
        refused: vec![("unauthenticated", 2), ("internal", 0)],
        authority_ends: Some(ends),
        leader: Some(true),
    };
    let server = HttpServer::of_authority(listener, Vec::new, figures);
    let mut tasks = JoinSet::new();
    drop(tasks.spawn(server.run()));
    let metrics = request(address, "/metrics").await;
    for line in [
        "fairlead_ca_certificates_issued_total 3\n",
        "fairlead_ca_requests_refused_total{reason=\"unauthenticated\"} 2\n",
        "fairlead_ca_requests_refused_total{reason=\"internal\"} 0\n",
        "fairlead_ca_root_expiry_timestamp_seconds 1767398400\n",
        "fairlead_ca_leader 1\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let ready = request(address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 200"));
}

/// Opens connections from an address of the machine that is not the one it dials.
async fn flood(from: [u8; 4], to: SocketAddr, count: usize) -> Vec<tokio::net::TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((IpAddr::from(from), 0).into()).unwrap();
        held.push(socket.connect(to).await.unwrap());
    }
    held
}

#[tokio::test]
async fn a_flood_of_pods_does_not_keep_probes_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = HttpServer::new(listener, &FlowMetrics::default(), Arc::new(Still(status())));
    let mut tasks = JoinSet::new();
    drop(tasks.spawn(server.run()));
    let mut held = Vec::new();
    for pod in 2..=12 {
        held.extend(flood([127, 0, 0, pod], address, 20).await);
    }
    // Kubelet of the node, and one that comes from elsewhere.
    let own = request(address, "/healthz").await;
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
    let mut scraper = flood([127, 0, 0, 99], address, 1).await.remove(0);
    scraper
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    let _length = scraper.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
