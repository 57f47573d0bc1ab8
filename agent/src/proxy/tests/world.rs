//! Two nodes on the loopback device: pods are addresses of 127/8, certificates and TLS
//! are real, and a table in memory stands in for the kernel's redirection.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::flow::{FlowEvent, FlowMetrics, FlowReceiver, queue};
use crate::identity::{self, CaAddress, Identities, SystemClock};
use crate::model::{ClientAddr, NamespacedName, NodeName, OrigDst, SpiffeId, TrustDomain};
use crate::policy::Table;
use crate::proxy::{
    Config, EnrolledPod, Family, Listeners, PodKey, PodNetwork, Proxy, TcpInfo, pod::LocalPod,
};
use crate::state::{Change, Dict, Object, Origin, Pod, PodPhase, Writer};

/// No step of a test takes longer, also on a machine that has much else to do.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// Stands in for the kernel side of one pod.
#[derive(Debug, Default)]
pub(super) struct Loopback {
    /// Original destinations by the address of the dialling socket.
    dialled: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Clients as presented to applications, in order.
    pub(super) presented: Mutex<Vec<ClientAddr>>,
    /// Ports that nobody listened on.
    pub(super) forgotten: Mutex<Vec<u16>>,
    /// Addresses that kubelet dials from.
    pub(super) kubelet: Mutex<Vec<IpAddr>>,
    /// Whether to tell what waits in send queues, which costs a look at all sockets here.
    pub(super) look_at_queues: AtomicBool,
}

impl PodNetwork for Loopback {
    fn socket(&self, family: Family) -> io::Result<OwnedFd> {
        let domain = match family {
            Family::V4 => Domain::IPV4,
            Family::V6 => Domain::IPV6,
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        Ok(socket.into())
    }

    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>> {
        let peer = SockRef::from(&accepted).peer_addr()?.as_socket().unwrap();
        Ok(self.dialled.lock().unwrap().remove(&peer).map(OrigDst))
    }

    fn is_probe(&self, accepted: BorrowedFd<'_>) -> io::Result<bool> {
        let peer = SockRef::from(&accepted).peer_addr()?.as_socket().unwrap();
        Ok(self.kubelet.lock().unwrap().contains(&peer.ip()))
    }

    fn present_client(&self, _socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()> {
        self.presented.lock().unwrap().push(client);
        Ok(())
    }

    fn is_listening(&self, _address: SocketAddr) -> bool {
        true
    }

    fn forget_listener(&self, port: u16) {
        self.forgotten.lock().unwrap().push(port);
    }

    /// The send queue as /proc tells it; the agent itself asks the socket.
    fn tcp_info(&self, socket: BorrowedFd<'_>) -> Option<TcpInfo> {
        if !self.look_at_queues.load(Ordering::Relaxed) {
            return None;
        }
        let link = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let link = std::fs::read_link(link).ok()?.display().to_string();
        let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
        let table = std::fs::read_to_string("/proc/self/net/tcp").ok()?;
        let row = table
            .lines()
            .find(|row| row.split_whitespace().nth(9) == Some(&inode))?;
        let queues = row.split_whitespace().nth(4)?;
        let unacknowledged = u32::from_str_radix(queues.split(':').next()?, 16).ok()?;
        Some(TcpInfo {
            unacknowledged,
            ..TcpInfo::default()
        })
    }
}

/// One agent.
pub(super) struct Node {
    pub(super) name: NodeName,
    pub(super) proxy: Proxy,
    pub(super) flows: FlowReceiver,
    run: JoinHandle<()>,
}

impl Node {
    /// The agent ends at once, without draining.
    pub(super) fn stop(&self) {
        self.run.abort();
    }
}

/// A served pod.
pub(super) struct TestPod {
    pub(super) pod: Arc<Pod>,
    pub(super) ip: IpAddr,
    pub(super) network: Arc<Loopback>,
    outbound: SocketAddr,
}

pub(super) struct World {
    _dir: TempDir,
    pub(super) identities: Identities,
    wanted: BTreeSet<SpiffeId>,
    writer: Writer,
    tables: watch::Sender<Arc<Table>>,
    pub(super) nodes: Vec<Node>,
    manager: JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.manager.abort();
        for node in &self.nodes {
            node.run.abort();
        }
    }
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain("cluster.local".into()), "shop", account)
}

/// Addresses are unique to the process, so that test binaries may run side by side: 4,000
/// for each of 1,920.
pub(super) fn fresh_ip() -> IpAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next < 4000, "too many addresses");
    let process = u16::try_from(std::process::id() % 1920).unwrap();
    let octets = [
        process / 16 + 1,
        process % 16 * 16 + next / 250,
        next % 250 + 1,
    ];
    let [second, third, last] = octets.map(|octet| u8::try_from(octet).unwrap());
    Ipv4Addr::new(127, second, third, last).into()
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_config| {})
    }

    /// One that carries connections where it was made, and one with threads of their own
    /// for them, as agents have them.
    pub(super) fn each() -> [Self; 2] {
        [Self::new(), Self::with(|config| config.workers = 2)]
    }

    /// Two nodes whose configuration `adjust` has changed.
    pub(super) fn with(adjust: impl Fn(&mut Config)) -> Self {
        Self::with_ttl(Duration::from_hours(24), adjust)
    }

    /// Certificates live for `ttl` of real time.
    pub(super) fn with_ttl(ttl: Duration, adjust: impl Fn(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        let config = identity::Config {
            trust_domain: TrustDomain("cluster.local".into()),
            ca: CaAddress::Dir(dir.path().to_owned()),
            node: NodeName("a".into()),
            token_file: None,
            ca_root: None,
            cluster_id: "Kubernetes".to_owned(),
            ttl,
            clock: Arc::new(SystemClock),
        };
        let (identities, manager) = identity::start(config).unwrap();
        let table = Table::compile(None, Writer::new().publish().unwrap());
        let (tables, _) = watch::channel(Arc::new(table));
        let mut nodes = Vec::new();
        for name in ["a", "b"] {
            let name = NodeName(name.into());
            let mut config = Config::recommended(name.clone());
            adjust(&mut config);
            let (sender, flows) = queue(100_000, FlowMetrics::default());
            let (proxy, run) =
                Proxy::new(config, tables.subscribe(), identities.clone(), sender).unwrap();
            let run = tokio::spawn(run);
            nodes.push(Node {
                name,
                proxy,
                flows,
                run,
            });
        }
        Self {
            _dir: dir,
            identities,
            wanted: BTreeSet::new(),
            writer: Writer::new(),
            tables,
            nodes,
            manager: tokio::spawn(manager),
        }
    }

    /// Applies one object and publishes the table.
    pub(super) fn apply(&mut self, object: Object) {
        let origin = Origin {
            file: "test.yaml".into(),
            line: 1,
        };
        self.writer.apply(Change::Upsert(object, origin));
        self.publish();
    }

    pub(super) fn publish(&mut self) {
        if let Some(snapshot) = self.writer.publish() {
            let table = Table::compile(Some(&self.tables.borrow().clone()), snapshot);
            let _before = self.tables.send_replace(Arc::new(table));
        }
    }

    pub(super) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.tables.borrow())
    }

    /// A pod of the state that no agent serves.
    pub(super) fn declare(&mut self, name: &str, node: usize, enrolled: bool) -> Arc<Pod> {
        let label = if enrolled { "enabled" } else { "disabled" };
        let mut labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
        let _before = labels.insert("fairlead.dev/mesh".to_owned(), label.to_owned());
        let pod = Pod {
            name: NamespacedName::new("shop", name),
            uid: format!("{name}-uid").into(),
            node: Some(self.nodes[node].name.clone()),
            ips: vec![fresh_ip()],
            identity: id(name),
            labels: labels.into(),
            workload: name.into(),
            phase: PodPhase::Running,
            ready: true,
            terminating: false,
            host_network: false,
            enrolled: false,
            container_ports: Dict::default(),
            netns: None,
            runtime_class: None,
            static_uid: None,
            exclude_outbound_ports: Box::default(),
            exclude_outbound_cidrs: Box::default(),
            exclude_inbound_ports: Box::default(),
            opaque_ports: Box::default(),
            close_existing: false,
        };
        let name = pod.name.clone();
        self.apply(Object::Pod(pod));
        Arc::clone(self.table().snapshot().pods.get(&name).unwrap())
    }

    /// An enrolled pod that its node serves.
    pub(super) fn pod(&mut self, name: &str, node: usize) -> TestPod {
        let pod = self.declare(name, node, true);
        assert!(pod.enrolled, "the writer enrols it");
        self.serve(pod, node)
    }

    pub(super) fn serve(&mut self, pod: Arc<Pod>, node: usize) -> TestPod {
        let _new = self.wanted.insert(pod.identity.clone());
        self.identities.set_wanted(self.wanted.clone());
        let ip = pod.ips[0];
        let network = Arc::new(Loopback::default());
        let outbound = listen(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        let address = outbound.local_addr().unwrap();
        let listeners = Listeners {
            outbound: vec![outbound],
            inbound: Vec::new(),
            tunnel: vec![listen(SocketAddr::new(ip, 15008))],
        };
        let enrolled = EnrolledPod {
            pod: Arc::clone(&pod),
            listeners,
            network: Arc::clone(&network) as Arc<dyn PodNetwork>,
        };
        let proxy = &self.nodes[node].proxy;
        proxy.add_pod(enrolled, Duration::ZERO).unwrap();
        TestPod {
            pod,
            ip,
            network,
            outbound: address,
        }
    }

    pub(super) async fn flow(&mut self, node: usize) -> FlowEvent {
        let next = self.nodes[node].flows.recv();
        soon(next).await.expect("the proxy runs")
    }

    /// No record is waiting.
    #[track_caller]
    pub(super) fn no_more_flows(&mut self) {
        for node in &mut self.nodes {
            let more = node.flows.try_recv();
            assert!(more.is_none(), "{more:?}");
        }
    }

    /// A plaintext connection to `pod`, as the kernel steers it: the agent's end of it has
    /// the pod's own address. Returns the client's end and the port; the application may
    /// listen there from `ready` on.
    pub(super) async fn plaintext(
        &self,
        node: usize,
        pod: &TestPod,
        from: IpAddr,
        ready: impl AsyncFnOnce(SocketAddr),
    ) -> (TcpStream, SocketAddr) {
        let listener = TcpListener::from_std(listen(SocketAddr::new(pod.ip, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from, 0)).unwrap();
        let (client, accepted) = tokio::join!(socket.connect(address), listener.accept());
        let (steered, peer) = accepted.unwrap();
        drop(listener);
        ready(address).await;
        let shared = Arc::clone(&self.nodes[node].proxy.shared);
        let local: Arc<LocalPod> = shared.pod(&pod.pod.name).unwrap();
        let tasks = shared.tasks.clone();
        tasks.spawn(crate::proxy::inbound::serve(shared, local, steered, peer));
        (client.unwrap(), address)
    }
}

impl TestPod {
    /// Dials what is refused. The refusal may be faster than the connect.
    pub(super) async fn dial_refused(&self, to: SocketAddr) {
        let end = match self.try_dial(to).await {
            Ok(mut stream) => soon(stream.read(&mut [0; 16])).await.map(|_count| ()),
            Err(error) => Err(error),
        };
        let kind = end.map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::ConnectionReset));
    }

    /// Dials as an application of the pod does.
    pub(super) async fn dial(&self, to: SocketAddr) -> TcpStream {
        self.try_dial(to).await.unwrap()
    }

    async fn try_dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(self.ip, 0)).unwrap();
        let local = socket.local_addr().unwrap();
        let _before = self.network.dialled.lock().unwrap().insert(local, to);
        soon(socket.connect(self.outbound)).await
    }

    pub(super) fn key(&self) -> PodKey {
        PodKey::of(&self.pod)
    }

    /// An application's listener on a port of its own choice.
    pub(super) fn listen(&self) -> (TcpListener, SocketAddr) {
        app(SocketAddr::new(self.ip, 0))
    }
}

/// An application's listener.
pub(super) fn app(address: SocketAddr) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::from_std(listen(address)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn listen(address: SocketAddr) -> std::net::TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// The result, or a failed test.
pub(super) async fn soon<T>(step: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, step)
        .await
        .expect("within the test's patience")
}

/// Waits until `done` says so.
pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Both ends of a descriptor's peer are gone.
pub(super) fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let _fd = stream.as_fd();
    drop(stream);
}
