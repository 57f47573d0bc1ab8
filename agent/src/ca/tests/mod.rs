//! Tests of the module: a service on loopback, with agents that call it.

mod reviews;
mod rotation;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::KeyPair;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

use super::authorize::may_have;
use super::callers::Callers;
use super::service::{Service, Settings, Shared};
use super::tls::ServerCertificates;
use super::tokens::TokenDir;
use super::{Authentication, Authority, Config, Root, Server};
use crate::identity::generated::istio_certificate_service_server::IstioCertificateService as _;
use crate::identity::generated::{IstioCertificateRequest, IstioCertificateResponse};
use crate::identity::tests::{TestClock, config, id};
use crate::identity::{self, CaAddress, CertificateState, Clock as _, Identities, Leaf, create};
use crate::model::{NamespacedName, NodeName, SpiffeId, TrustDomain};
use crate::state::{Change, Dict, Object, Origin, Pod, PodPhase, Snapshot, Writer};

const TOKEN_A: &str = "token-of-node-a-0123456789";
const TOKEN_B: &str = "token-of-node-b-0123456789";
const DAY: Duration = Duration::from_hours(24);

fn node(name: &str) -> NodeName {
    NodeName(name.into())
}

fn pod(node: &str, account: &str) -> Pod {
    Pod {
        name: NamespacedName::new("shop", format!("{account}-{node}")),
        uid: "".into(),
        node: Some(self::node(node)),
        ips: Vec::new(),
        identity: id(account),
        labels: Dict::default(),
        workload: account.into(),
        phase: PodPhase::Running,
        ready: true,
        terminating: false,
        host_network: false,
        enrolled: true,
        container_ports: Dict::default(),
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

fn snapshot(pods: impl IntoIterator<Item = Pod>) -> Snapshot {
    let mut writer = Writer::new();
    for pod in pods {
        writer.apply(Change::Upsert(Object::Pod(pod), Origin::default()));
    }
    writer.publish().unwrap()
}

/// `web` on node-a, `cart` on node-b.
fn cluster() -> Snapshot {
    snapshot([pod("node-a", "web"), pod("node-b", "cart")])
}

fn settings(snapshots: watch::Receiver<Snapshot>, clock: &TestClock) -> Settings {
    Settings {
        trust_domain: TrustDomain("cluster.local".into()),
        default_ttl: DAY,
        max_ttl: 2 * DAY,
        snapshots,
        certificates: ServerCertificates::new(Vec::new(), clock.shared()),
    }
}

/// Directories of a CA and of its nodes' tokens.
struct Files {
    dir: TempDir,
    clock: TestClock,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            dir: TempDir::new().unwrap(),
            clock: TestClock::new(),
        };
        fs::create_dir(files.tokens()).unwrap();
        files.token("node-a", TOKEN_A);
        files.token("node-b", &format!("{TOKEN_B}\n"));
        Authority::open_at(&files.root(), files.clock.shared()).unwrap();
        files
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn tokens(&self) -> PathBuf {
        self.dir.path().join("tokens")
    }

    fn token(&self, node: &str, token: &str) {
        fs::write(self.tokens().join(node), token).unwrap();
    }

    /// The service without its network.
    fn service(&self, snapshot: Snapshot) -> (Service, watch::Sender<Snapshot>) {
        let (sender, snapshots) = watch::channel(snapshot);
        let settings = settings(snapshots, &self.clock);
        let tokens = TokenDir::open(self.tokens()).unwrap();
        let shared = Shared::new(settings, Callers::files(&tokens));
        let authority = Authority::open_at(&self.root(), self.clock.shared()).unwrap();
        shared.replace_authority(&Arc::new(authority));
        (Service(Arc::new(shared)), sender)
    }
}

/// A call as an agent makes it.
struct Call {
    token: Option<String>,
    impersonated: Option<String>,
    csr_for: SpiffeId,
    seconds: i64,
}

impl Call {
    fn new(token: &str, id: &SpiffeId) -> Self {
        Self {
            token: Some(format!("Bearer {token}")),
            impersonated: Some(id.to_string()),
            csr_for: id.clone(),
            seconds: 3600,
        }
    }

    fn request(self) -> Request<IstioCertificateRequest> {
        let key = KeyPair::generate().unwrap();
        let metadata = self.impersonated.map(|id| Struct {
            fields: BTreeMap::from([(
                "ImpersonatedIdentity".to_owned(),
                Value {
                    kind: Some(Kind::StringValue(id)),
                },
            )]),
        });
        let mut request = Request::new(IstioCertificateRequest {
            csr: create(&self.csr_for, &key).unwrap(),
            validity_duration: self.seconds,
            metadata,
        });
        if let Some(token) = self.token {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", token.parse().unwrap());
        }
        request
    }

    async fn make(self, service: &Service) -> Result<IstioCertificateResponse, Status> {
        let answer = service.create_certificate(self.request()).await;
        answer.map(tonic::Response::into_inner)
    }

    #[track_caller]
    fn fails(self, service: &Service, code: Code, message: &str) {
        let status = futures_util::FutureExt::now_or_never(self.make(service));
        let status = status.unwrap().unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(message), "{status}");
    }
}

#[tokio::test]
async fn a_node_gets_certificates_of_its_own_pods() {
    let files = Files::new();
    let (service, _snapshots) = files.service(cluster());
    let answer = Call::new(TOKEN_A, &id("web")).make(&service).await.unwrap();
    assert_eq!(answer.cert_chain.len(), 2);
    let leaf = pem::parse(&answer.cert_chain[0]).unwrap();
    let leaf = Leaf::parse(leaf.contents()).unwrap();
    assert_eq!(leaf.id, id("web"));
    let root = fs::read_to_string(files.root().join("root-cert.pem")).unwrap();
    assert_eq!(answer.cert_chain[1].trim(), root.trim());
    Call::new(TOKEN_B, &id("cart"))
        .make(&service)
        .await
        .unwrap();
    let figures = service.0.figures();
    assert_eq!(figures.issued, 2);
    assert!(
        figures
            .authority_ends
            .is_some_and(|ends| ends > leaf.not_after)
    );
}

#[tokio::test]
async fn a_node_asking_for_a_service_account_of_another_node_is_refused() {
    let files = Files::new();
    let (service, snapshots) = files.service(cluster());
    let refused = "no pod on node node-a runs as service account shop/cart";
    Call::new(TOKEN_A, &id("cart")).fails(&service, Code::PermissionDenied, refused);
    // Whether there is such an account anywhere is not told.
    let absent = "no pod on node node-a runs as service account shop/absent";
    Call::new(TOKEN_A, &id("absent")).fails(&service, Code::PermissionDenied, absent);

    snapshots.send_replace(snapshot([pod("node-a", "cart")]));
    Call::new(TOKEN_A, &id("cart"))
        .make(&service)
        .await
        .unwrap();
    snapshots.send_replace(snapshot([]));
    Call::new(TOKEN_A, &id("cart")).fails(&service, Code::PermissionDenied, refused);
}

#[test]
fn only_running_pods_with_their_own_network_count() {
    let check = |pod: Pod| may_have(&snapshot([pod]), &node("node-a"), &id("web"));
    assert!(check(pod("node-a", "web")));
    assert!(!check(pod("node-b", "web")));
    assert!(!check(pod("node-a", "cart")));
    let nobody = snapshot([pod("node-a", "")]);
    assert!(!may_have(&nobody, &node("node-a"), &id("default")));
    assert!(!may_have(&nobody, &node("node-a"), &id("")));
    assert!(!check(Pod {
        phase: PodPhase::Finished,
        ..pod("node-a", "web")
    }));
    assert!(!check(Pod {
        host_network: true,
        ..pod("node-a", "web")
    }));
    assert!(!check(Pod {
        node: None,
        ..pod("node-a", "web")
    }));
    assert!(check(Pod {
        enrolled: false,
        ..pod("node-a", "web")
    }));
}

#[tokio::test]
async fn a_caller_without_a_valid_token_learns_nothing() {
    let files = Files::new();
    let (service, _snapshots) = files.service(cluster());
    let tokens = [
        None,
        Some(""),
        Some("Bearer"),
        Some("Bearer "),
        Some("Bearer wrong"),
        Some(TOKEN_A),
    ];
    for token in tokens {
        let call = Call {
            token: token.map(str::to_owned),
            ..Call::new(TOKEN_A, &id("web"))
        };
        let status = call.make(&service).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(status.message(), "unauthenticated");
    }
    let basic = Call {
        token: Some(format!("Basic {TOKEN_A}")),
        ..Call::new(TOKEN_A, &id("web"))
    };
    basic.fails(&service, Code::Unauthenticated, "unauthenticated");
    assert_eq!(service.0.figures().refused[0], ("unauthenticated", 7));
}

#[tokio::test]
async fn calls_that_are_not_in_order_are_refused() {
    let files = Files::new();
    let (service, snapshots) = files.service(cluster());
    let web = || Call::new(TOKEN_A, &id("web"));
    let impersonated = |text: Option<&str>| Call {
        impersonated: text.map(str::to_owned),
        ..web()
    };
    impersonated(None).fails(
        &service,
        Code::InvalidArgument,
        "ImpersonatedIdentity is missing",
    );
    let form = "is not of the form spiffe://";
    impersonated(Some("shop/web")).fails(&service, Code::InvalidArgument, form);
    let other = "spiffe://other/ns/shop/sa/web";
    let domain = "not of the trust domain cluster.local";
    impersonated(Some(other)).fails(&service, Code::PermissionDenied, domain);
    let call = Call {
        csr_for: id("cart"),
        ..web()
    };
    call.fails(&service, Code::InvalidArgument, "a name other than");

    snapshots.send_replace(Snapshot::default());
    web().fails(&service, Code::Unavailable, "has not read the state");
    let refused = service.0.figures().refused;
    let told = [("permission_denied", 1), ("invalid_argument", 3)];
    assert_eq!(refused[1..3], told);
    assert_eq!(refused[4], ("unavailable", 1));
}

#[tokio::test]
async fn the_validity_is_capped() {
    let files = Files::new();
    let (service, _snapshots) = files.service(cluster());
    let cases = [
        (3600, Duration::from_hours(1)),
        (0, DAY),
        (-5, DAY),
        (i64::MAX, 2 * DAY),
    ];
    for (seconds, life) in cases {
        let call = Call {
            seconds,
            ..Call::new(TOKEN_A, &id("web"))
        };
        let now = files.clock.now();
        let answer = call.make(&service).await.unwrap();
        let leaf = pem::parse(&answer.cert_chain[0]).unwrap();
        let leaf = Leaf::parse(leaf.contents()).unwrap();
        let off = leaf
            .not_after
            .duration_since(now + life - Duration::from_secs(1));
        assert!(off.unwrap() <= Duration::from_secs(3), "{seconds}");
    }
}

#[tokio::test]
async fn an_authority_that_expired_signs_nothing_and_says_so() {
    let files = Files::new();
    let (service, _snapshots) = files.service(cluster());
    files.clock.forward(DAY * 366 * 10);
    let call = Call::new(TOKEN_A, &id("web"));
    call.fails(
        &service,
        Code::Unavailable,
        "renew it, or set the clock right",
    );
}

#[test]
fn tokens_follow_their_files() {
    let files = Files::new();
    let mut tokens = TokenDir::open(files.tokens()).unwrap();
    let node_of = |tokens: &TokenDir, token: &str| tokens.current().node(token).cloned();
    assert_eq!(node_of(&tokens, TOKEN_A), Some(node("node-a")));
    assert_eq!(node_of(&tokens, TOKEN_B), Some(node("node-b")));
    assert!(!tokens.refresh());

    files.token("node-a", "rotated-token-of-node-a");
    assert!(tokens.refresh());
    assert_eq!(node_of(&tokens, TOKEN_A), None);
    assert_eq!(
        node_of(&tokens, "rotated-token-of-node-a"),
        Some(node("node-a"))
    );

    files.token("node-c", &format!(" {TOKEN_B} "));
    files.token(".hidden", "token-of-a-hidden-file");
    files.token("node-d", " \n");
    assert!(tokens.refresh());
    assert_eq!(node_of(&tokens, TOKEN_B), None, "two nodes share it");
    assert_eq!(node_of(&tokens, "token-of-a-hidden-file"), None);
    assert_eq!(node_of(&tokens, ""), None);

    fs::remove_file(files.tokens().join("node-a")).unwrap();
    assert!(tokens.refresh());
    assert_eq!(node_of(&tokens, "rotated-token-of-node-a"), None);
    fs::remove_file(files.tokens().join("node-c")).unwrap();
    assert!(tokens.refresh());
    assert_eq!(node_of(&tokens, TOKEN_B), Some(node("node-b")));
    fs::remove_dir_all(files.tokens()).unwrap();
    assert!(tokens.refresh());
    assert_eq!(node_of(&tokens, TOKEN_B), None);
    assert!(TokenDir::open(files.tokens()).is_err());
}

/// The service with its network, for as long as it is not dropped.
struct Running {
    files: Files,
    address: SocketAddr,
    snapshots: watch::Sender<Snapshot>,
    task: JoinHandle<()>,
}

impl Running {
    async fn new() -> Self {
        Self::at("127.0.0.1").await
    }

    /// On a port of its own choice.
    async fn at(ip: &str) -> Self {
        let ip: IpAddr = ip.parse().unwrap();
        Self::with(Files::new(), (ip, 0).into()).await
    }

    async fn with(files: Files, listen: SocketAddr) -> Self {
        let (sender, snapshots) = watch::channel(cluster());
        let server = Server::bind(Config {
            listen,
            root: Root::Directory(files.root()),
            snapshots,
            authentication: Authentication::NodeTokens(files.tokens()),
            trust_domain: TrustDomain("cluster.local".into()),
            default_ttl: DAY,
            max_ttl: DAY,
            names: Vec::new(),
            clock: files.clock.shared(),
        })
        .await
        .unwrap();
        Self {
            address: server.local_addr(),
            snapshots: sender,
            task: tokio::spawn(async move { server.run().await.unwrap() }),
            files,
        }
    }

    async fn stop(self) -> Files {
        self.task.abort();
        self.task.await.unwrap_err();
        self.files
    }

    fn agent(&self, host: &str, token: &str) -> Identities {
        self.agent_at(host, token, &self.files.clock)
    }

    fn agent_at(&self, host: &str, token: &str, clock: &TestClock) -> Identities {
        let token_file = self.files.dir.path().join("agent-token");
        fs::write(&token_file, token).unwrap();
        let address = CaAddress::Url(format!("https://{host}:{}", self.address.port()));
        let mut config = config(address, clock.shared());
        config.token_file = Some(token_file);
        config.ca_root = Some(self.files.root().join("root-cert.pem"));
        let (identities, manager) = identity::start(config).unwrap();
        tokio::spawn(manager);
        identities
    }
}

async fn failure(identities: &Identities, account: &str) -> String {
    identities.set_wanted(BTreeSet::from([id(account)]));
    loop {
        let status = identities.certificates();
        if let Some(error) = status.first().and_then(|one| one.last_error.clone()) {
            return error;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_agent_fetches_over_tls() {
    let ca = Running::new().await;
    for host in ["127.0.0.1", "localhost"] {
        let agent = ca.agent(host, TOKEN_A);
        agent.set_wanted(BTreeSet::from([id("web")]));
        let credentials = agent.credentials(&id("web")).await.unwrap();
        assert_eq!(*credentials.id(), id("web"));
        assert_eq!(agent.certificates()[0].state, CertificateState::Active);
    }
}

#[tokio::test]
async fn an_agent_names_the_clock_that_is_wrong() {
    /// Of a minute, so that the seconds that the test takes don't change the text.
    const BETWEEN: Duration = Duration::from_secs(30);
    let ca = Running::new().await;
    let agent = |change: fn(&TestClock, Duration), by| {
        let clock = ca.files.clock.apart();
        change(&clock, by);
        (ca.agent_at("127.0.0.1", TOKEN_A, &clock), clock)
    };
    let minutes = Duration::from_mins;
    for (change, by) in [
        (TestClock::forward as fn(&_, _), minutes(10)),
        (TestClock::backward, minutes(4)),
    ] {
        let (agent, _) = agent(change, by);
        agent.set_wanted(BTreeSet::from([id("web")]));
        agent.credentials(&id("web")).await.unwrap();
    }
    let slow = [
        (minutes(10), "slow by 5m"),
        (minutes(25 * 60), "slow by 24h 55m"),
    ];
    for (by, expected) in slow {
        let by = by + BETWEEN;
        let (agent, clock) = agent(TestClock::backward, by);
        let error = failure(&agent, "web").await;
        assert!(
            error.contains(expected) && error.contains("the signer is fast"),
            "{error}"
        );
        clock.forward(by);
        agent.credentials(&id("web")).await.unwrap();
    }
    let by = minutes(25 * 60) + BETWEEN;
    let (agent, clock) = agent(TestClock::forward, by);
    let error = failure(&agent, "web").await;
    assert!(error.contains("clock is fast by 1h 0m"), "{error}");
    clock.backward(by);
    agent.credentials(&id("web")).await.unwrap();
}

#[tokio::test]
async fn an_agent_is_told_what_the_ca_says() {
    let ca = Running::new().await;
    let error = failure(&ca.agent("127.0.0.1", TOKEN_A), "cart").await;
    assert!(
        error.contains("no pod on node node-a runs as service account shop/cart"),
        "{error}"
    );
    let error = failure(&ca.agent("127.0.0.1", "wrong-token"), "web").await;
    assert!(error.contains("refused"), "{error}");
    assert!(error.contains("unauthenticated"), "{error}");
    let error = failure(&ca.agent("127.0.0.1", ""), "web").await;
    assert!(error.contains("agent-token: the token is empty"), "{error}");
    ca.snapshots.send_replace(Snapshot::default());
    let error = failure(&ca.agent("127.0.0.1", TOKEN_A), "web").await;
    assert!(error.contains("has not read the state"), "{error}");
}

#[tokio::test]
async fn a_token_that_is_put_right_is_used_soon() {
    let ca = Running::new().await;
    let agent = ca.agent("127.0.0.1", "wrong-token");
    failure(&agent, "web").await;
    fs::write(ca.files.dir.path().join("agent-token"), TOKEN_A).unwrap();
    agent.credentials(&id("web")).await.unwrap();
}

#[tokio::test]
async fn an_agent_does_not_give_its_token_to_another_ca() {
    let mut other = Running::new().await;
    // The agent knows these; at the address of its CA is somebody else by now.
    other.files = Files::new();
    let error = failure(&other.agent("127.0.0.1", TOKEN_A), "web").await;
    assert!(error.contains("can't be reached"), "{error}");
    assert!(error.contains("UnknownIssuer"), "{error}");
}

#[tokio::test]
async fn an_agent_recovers_when_the_ca_comes_up() {
    // At an address of its own nobody else takes the port meanwhile.
    let ip = "127.99.0.1";
    let ca = Running::at(ip).await;
    let address = ca.address;
    let agent = ca.agent(ip, TOKEN_A);
    let files = ca.stop().await;
    let error = failure(&agent, "web").await;
    assert!(
        error.contains("can't be reached: Connection refused"),
        "{error}"
    );
    let _ca = Running::with(files, address).await;
    agent.credentials(&id("web")).await.unwrap();
}

#[tokio::test]
async fn silent_connections_do_not_keep_an_agent_out() {
    let ca = Running::new().await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(ca.address).await.unwrap());
    }
    let agent = ca.agent("127.0.0.1", TOKEN_A);
    agent.set_wanted(BTreeSet::from([id("web")]));
    agent.credentials(&id("web")).await.unwrap();
}
