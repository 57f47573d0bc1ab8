//! What the data path asks of the kernel side, and what it is given for each pod.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::flow::KernelStats;
use crate::model::{ClientAddr, NamespacedName, OrigDst};
use crate::state::Pod;

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What the kernel tells of a connected socket (`TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// For the flow record.
    pub stats: KernelStats,
    /// Bytes that the peer has not acknowledged, sent or not; also above zero while a
    /// FIN is not acknowledged.
    pub unacknowledged: u32,
}

/// One enrolled pod's network, as the data path needs it. Each call is a few cheap
/// system calls and does not block.
pub trait PodNetwork: Send + Sync + Debug + 'static {
    /// A new non-blocking TCP socket inside the pod's namespace, with
    /// `IP_BIND_ADDRESS_NO_PORT` set, so that a source address does not cost a port.
    fn socket(&self, family: Family) -> io::Result<OwnedFd>;

    /// Where the application wanted to go, of a socket that the outbound listener
    /// accepted. `None`: it came another way, and is to be dropped.
    fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<OrigDst>>;

    /// Kubelet of this node dialled the socket that the inbound listener accepted.
    fn is_probe(&self, accepted: BorrowedFd<'_>) -> io::Result<bool>;

    /// Before `connect`: `accept` and `getpeername` on the other end shall show `client`.
    fn present_client(&self, socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()>;

    /// Somebody in the pod listens on this port for this family of addresses, as far as is
    /// known.
    fn is_listening(&self, address: SocketAddr) -> bool;

    /// Tells that nobody listens on this port (a dial was refused), so that the kernel
    /// answers by itself next time.
    fn forget_listener(&self, port: u16);

    /// `TCP_INFO` of a connected socket; `None` where the kernel does not tell.
    fn tcp_info(&self, socket: BorrowedFd<'_>) -> Option<TcpInfo>;
}

/// The agent's listeners inside one pod's namespace; all non-blocking.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Redirected connections of the pod's applications.
    pub outbound: Vec<TcpListener>,
    /// Plaintext connections to the pod, steered here; their local address is the pod's.
    pub inbound: Vec<TcpListener>,
    /// Tunnels to the pod.
    pub tunnel: Vec<TcpListener>,
}

/// A pod whose traffic the kernel sends to this agent.
#[derive(Debug)]
pub struct EnrolledPod {
    /// The pod, as it was when it was enrolled.
    pub pod: Arc<Pod>,
    /// Where its traffic arrives.
    pub listeners: Listeners,
    /// Its namespace.
    pub network: Arc<dyn PodNetwork>,
}

/// One life of a pod: a successor of the same name has another `uid`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodKey {
    /// Namespace and name.
    pub name: NamespacedName,
    /// `metadata.uid`.
    pub uid: Arc<str>,
}

impl PodKey {
    /// That of a pod.
    pub fn of(pod: &Pod) -> Self {
        Self {
            name: pod.name.clone(),
            uid: Arc::clone(&pod.uid),
        }
    }
}
