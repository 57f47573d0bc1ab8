//! The answering end of a tunnel.
//!
//! ```text
//! accept ─► TLS ─► HTTP/2 ─► CONNECT ─► is it ours? ─► who asks? ─► policy ─► application
//!           └ one deadline ┘            400            403          401        503
//! ```
//! Invariant: before a peer has proven who it is, it costs a bounded number of bytes for
//! a bounded time, and one of a bounded number of places.

mod arrivals;
mod hbone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use h2::server::Connection;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub(in crate::proxy) use self::arrivals::Arrivals;
use super::hbone::Asked;
use super::hop::{EndHop, Hop};
use super::io::TunnelIo;
use crate::flow::{Direction, TlsState};
use crate::identity::{PeerIdentity, handshake_error, peer_identity};
use crate::model::canonical;
use crate::policy::Table;
use crate::proxy::cork::{Cork, Corked};
use crate::proxy::dial;
use crate::proxy::inbound::Arrival;
use crate::proxy::outcome::Outcome;
use crate::proxy::permit::{Admitted, Subject};
use crate::proxy::pod::LocalPod;
use crate::proxy::record::{ConnectionId, Record};
use crate::proxy::shared::Shared;

/// The other node, as far as it is proven.
#[derive(Debug)]
struct Peer {
    /// The client pod's address and the tunnel's port.
    address: SocketAddr,
    /// What its certificate says.
    proven: PeerIdentity,
    /// The log tells that its address is unknown: once for each tunnel.
    reported: AtomicBool,
}

type Secure = TlsStream<TunnelIo>;
type Http2 = Connection<Corked<Secure>, Bytes>;

/// A tunnel that is set up.
struct Secured {
    /// Boxed, so that a task is no larger than its beginning.
    http2: Box<Http2>,
    cork: Cork<Secure>,
    end: EndHop,
    proven: PeerIdentity,
}

/// Serves one tunnel to `pod`, to its end.
pub(in crate::proxy) async fn serve(
    shared: Arc<Shared>,
    pod: Arc<LocalPod>,
    stream: TcpStream,
    address: SocketAddr,
) {
    let address = canonical(address);
    // Not so where the namespace takes packets for its loopback from outside
    // (`route_localnet`): those go past the kernel's steering.
    let local = stream.local_addr().map(|local| canonical(local).ip());
    if !local.is_ok_and(|local| pod.has_ip(local)) {
        dial::reset(stream);
        refuse(&shared, &pod, address, Outcome::WrongAddress);
        return;
    }
    let Some(arrival) = pod.arrivals.admit(address.ip()) else {
        let _before = shared
            .counters
            .handshakes_shed
            .fetch_add(1, Ordering::Relaxed);
        dial::reset(stream);
        return;
    };
    let limit = shared.config.tunnel.handshake_timeout;
    let secured = tokio::time::timeout(limit, async {
        let place = arrival.place().await;
        let secured = Box::pin(secure(&shared, &pod, stream)).await?;
        Ok((secured, place))
    });
    let late = Outcome::Handshake("not done in time".into());
    let secured = secured.await.unwrap_or(Err(late));
    match secured {
        Ok((secured, place)) => {
            let peer = Arc::new(Peer {
                address,
                proven: secured.proven,
                reported: AtomicBool::new(false),
            });
            let tunnel = Tunnel { shared, pod, peer };
            let http2 = (secured.http2, secured.cork);
            Box::pin(hbone::run(tunnel, http2, secured.end, place)).await;
        }
        Err(outcome) => refuse(&shared, &pod, address, outcome),
    }
}

/// Records a tunnel that did not come to be.
fn refuse(shared: &Shared, pod: &LocalPod, address: SocketAddr, outcome: Outcome) {
    let mut record = shared.begin(Direction::Inbound, ConnectionId::random());
    let client = shared.table().pod_by_ip(address.ip()).cloned();
    record.from(client.as_deref(), address, None);
    record.served_by(&pod.pod);
    if let Some(ip) = pod.pod.ips.first() {
        record.towards(SocketAddr::new(*ip, shared.config.tunnel.port));
    }
    record.end(outcome);
}

/// TLS and HTTP/2.
async fn secure(shared: &Shared, pod: &LocalPod, stream: TcpStream) -> Result<Secured, Outcome> {
    let config = &shared.config.tunnel;
    let credentials = shared.identities.credentials(&pod.pod.identity).await;
    let credentials = credentials.map_err(|error| Outcome::Certificate(Arc::new(error)))?;
    let hop = Hop::of(&stream)?;
    let acceptor = TlsAcceptor::from(credentials.server_config());
    let tls = acceptor.accept(TunnelIo::new(stream)).await;
    let tls = tls.map_err(|error| Outcome::Handshake(handshake_error(&error).into()))?;
    let (_io, common) = tls.get_ref();
    let proven = peer_identity(common);
    let proven = proven.ok_or_else(|| Outcome::Handshake("no identity".into()))?;
    let end = EndHop(Arc::new(hop));
    dial::give_up_after(tls.get_ref().0.stream(), config.ping_interval);
    let (cork, corked) = Cork::new(tls);
    let http2 = hbone::builder(config).handshake(corked).await;
    let http2 = http2.map_err(|error| Outcome::Handshake(error.to_string().into()))?;
    Ok(Secured {
        http2: Box::new(http2),
        cork,
        end,
        proven,
    })
}

/// What the requests of one tunnel need.
#[derive(Clone, Debug)]
struct Tunnel {
    shared: Arc<Shared>,
    pod: Arc<LocalPod>,
    peer: Arc<Peer>,
}

impl Tunnel {
    /// Begins the record of a request.
    fn begin(&self, asked: &Result<Asked, &'static str>) -> Box<Record> {
        let id = asked.as_ref().ok().and_then(|asked| asked.id);
        let id = id.unwrap_or_else(ConnectionId::random);
        let mut record = self.shared.begin(Direction::Inbound, id);
        record.tls = TlsState::Mtls;
        record.served_by(&self.pod.pod);
        record
    }

    /// Whether the peer is who the state says is at its address; `None` where the state
    /// says nothing, and no gateway is there.
    fn verify(&self, table: &Table) -> Option<Result<(), Outcome>> {
        let ip = self.peer.address.ip();
        if let Some(client) = table.pod_by_ip(ip) {
            let same = client.identity == self.peer.proven.id;
            return Some(same.then_some(()).ok_or(Outcome::IdentityMismatch));
        }
        if table.snapshot().contested.contains_key(&ip) {
            return Some(Err(Outcome::IdentityMismatch));
        }
        let gateways = &self.shared.config.gateways;
        gateways
            .iter()
            .any(|net| net.contains(&ip))
            .then_some(Ok(()))
    }

    /// The same once the state says something: it may tell of a new pod later than the
    /// pod's first connection comes.
    async fn verify_when_known(&self) -> Result<(), Outcome> {
        let verified = match self.pod.unknown_peers.try_acquire() {
            Ok(_place) => {
                let mut tables = self.shared.tables.clone();
                let mut verified = None;
                let told = tables.wait_for(|table| {
                    verified = self.verify(table);
                    verified.is_some()
                });
                let patience = self.shared.config.tunnel.unknown_peer_patience;
                let _told = tokio::time::timeout(patience, told).await.is_ok();
                verified
            }
            Err(_full) => None,
        };
        verified.unwrap_or_else(|| {
            let refused = &self.shared.counters.unknown_peers;
            let _before = refused.fetch_add(1, Ordering::Relaxed);
            if !self.peer.reported.swap(true, Ordering::Relaxed) {
                let (peer, identity) = (self.peer.address.ip(), &self.peer.proven.id);
                let pod = &self.pod.pod.name;
                tracing::warn!(%peer, %identity, %pod, "refused: no pod is known at the address");
            }
            Err(Outcome::UnknownPeer)
        })
    }

    /// The way into the application, if the peer may have it.
    async fn connect(
        &self,
        asked: Result<Asked, &'static str>,
        record: &mut Record,
    ) -> Result<(Arrival, (Admitted, Option<TcpStream>)), Outcome> {
        let peer = &*self.peer;
        let client = self.shared.table().pod_by_ip(peer.address.ip()).cloned();
        let address = asked.as_ref().map_or(peer.address, |asked| asked.client.0);
        record.from(client.as_deref(), address, Some(&peer.proven.id));
        let Asked {
            to, client: shown, ..
        } = asked.map_err(Outcome::BadRequest)?;
        record.towards(to);
        if !self.pod.has_ip(to.ip()) {
            return Err(Outcome::BadRequest("the address is not this pod's"));
        }
        if to.port() == 0 || self.pod.is_own_port(to.port()) {
            return Err(Outcome::BadRequest("the port is not an application's"));
        }
        if peer.proven.not_after <= SystemTime::now() {
            return Err(Outcome::CertificateExpired);
        }
        if let Some(verified) = self.verify(&self.shared.table()) {
            verified?;
        } else {
            self.verify_when_known().await?;
            let client = self.shared.table().pod_by_ip(peer.address.ip()).cloned();
            record.from(client.as_deref(), address, Some(&peer.proven.id));
        }
        let subject = Subject {
            peer: Some(peer.proven.id.clone()),
            client_ip: peer.address.ip(),
            port: to.port(),
            encrypted: true,
            probe: false,
        };
        let arrival = Arrival {
            shared: Arc::clone(&self.shared),
            server: Arc::clone(&self.pod),
            subject,
            client: shown,
            address: to,
        };
        let admitted = arrival.admit(record).await?;
        Ok((arrival, admitted))
    }
}
