//! How an address is reached from a pod of this node, and the stream to it.
//!
//! Invariant: an enrolled destination is reached by [`Way::Local`] or [`Way::Tunnel`], or
//! not at all.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::dial;
use super::network::PodKey;
use super::outcome::Outcome;
use super::permit::Subject;
use super::pod::LocalPod;
use super::record::ConnectionId;
use super::relay::Far as _;
use super::shared::Shared;
use super::tunnel::{Connect, HboneStream, Target};
use crate::flow::TlsState;
use crate::model::{ClientAddr, NamespacedName, SpiffeId};
use crate::state::Pod;

/// How an address is reached.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// Both ends are this agent's: the destination's policy is applied here, to the
    /// identity that the client's namespace proves, and nothing leaves the node.
    Local(Arc<LocalPod>),
    /// Through the destination's node, whose agent checks the destination's policy.
    Tunnel(Arc<Pod>),
    /// Out of the mesh, from the client's own address.
    Passthrough,
}

/// A server, and over what it was reached: a connection to the same address that was opened
/// another way is no way to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reached {
    pub(super) address: SocketAddr,
    over: Over,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Over {
    Node(PodKey),
    Tunnel(SpiffeId),
    Network,
}

/// A pod of this node that dials, as one of its connections.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    pub(super) shared: Arc<Shared>,
    pub(super) client: Arc<LocalPod>,
    /// The address that its application dialled from.
    pub(super) peer: SocketAddr,
}

/// A stream of bytes to somewhere, or from it.
#[derive(Debug)]
pub(super) enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A stream of a tunnel.
    Hbone(Box<HboneStream>),
}

impl Stream {
    /// Ends it with a reset, at once.
    pub(super) fn reset(self) {
        match self {
            Self::Tcp(stream) => dial::reset(stream),
            Self::Hbone(stream) => stream.reset(),
        }
    }
}

impl Way {
    /// The way to `address`, which is `pod`'s where there is one.
    pub(super) fn to(
        shared: &Shared,
        pod: Option<&Arc<Pod>>,
        address: SocketAddr,
    ) -> Result<Self, Outcome> {
        // What answers there would take the agent's address and namespace for a peer's.
        if address.port() == shared.config.tunnel.port {
            return Err(Outcome::ReservedPort);
        }
        let Some(pod) = pod.filter(|pod| pod.enrolled) else {
            return Ok(Self::Passthrough);
        };
        if pod.node.as_ref() != Some(&shared.config.node) {
            return Ok(Self::Tunnel(Arc::clone(pod)));
        }
        let server = shared.pod(&pod.name);
        let server = server.filter(|server| server.has_ip(address.ip()));
        let server = server.ok_or(Outcome::DestinationNotServed)?;
        if server.is_own_port(address.port()) {
            return Err(Outcome::ReservedPort);
        }
        Ok(Self::Local(server))
    }

    /// A server that is reached this way.
    pub(super) fn reached(&self, address: SocketAddr) -> Reached {
        let over = match self {
            Self::Local(server) => Over::Node(server.key()),
            Self::Tunnel(pod) => Over::Tunnel(pod.identity.clone()),
            Self::Passthrough => Over::Network,
        };
        Reached { address, over }
    }

    /// How the bytes cross the network.
    pub(super) fn tls(&self) -> TlsState {
        match self {
            Self::Tunnel(_) => TlsState::Mtls,
            Self::Local(_) | Self::Passthrough => TlsState::None,
        }
    }
}

impl Dialler {
    /// Who asks the pod of this node that serves `address`.
    pub(super) fn subject(&self, address: SocketAddr) -> Subject {
        Subject {
            peer: Some(self.client.pod.identity.clone()),
            client_ip: self.shown(address).ip(),
            port: address.port(),
            encrypted: true,
            probe: false,
        }
    }

    /// The client as the server at `address` is to see it.
    pub(super) fn shown(&self, address: SocketAddr) -> SocketAddr {
        self.client.client_address(self.peer, address.ip())
    }

    /// Dials `address`. Cancel safe.
    pub(super) async fn dial(
        &self,
        way: &Way,
        address: SocketAddr,
        service: Option<&NamespacedName>,
        id: ConnectionId,
    ) -> Result<Stream, Outcome> {
        let Self {
            shared,
            client,
            peer,
        } = self;
        let config = &shared.config;
        let shown = ClientAddr(self.shown(address));
        let source_ip = client.source_ip(peer.ip(), address.ip());
        match way {
            Way::Local(server) => {
                let app = dial::application(&*server.network, shown, address, config).await?;
                Ok(Stream::Tcp(app))
            }
            Way::Passthrough => {
                let stream = dial::network(&*client.network, source_ip, address, config).await?;
                Ok(Stream::Tcp(stream))
            }
            Way::Tunnel(pod) => {
                let connect = Connect {
                    to: address,
                    client: shown,
                    service: service.cloned(),
                    id,
                    baggage: client.baggage.clone(),
                };
                let target = Target {
                    source: client.pod.identity.clone(),
                    pod: client.key(),
                    source_ip,
                    network: Arc::clone(&client.network),
                    to: address.ip(),
                    expected: pod.identity.clone(),
                };
                let stream = Box::pin(shared.pool.open(&target, &connect)).await?;
                Ok(Stream::Hbone(Box::new(stream)))
            }
        }
    }
}
