//! Connections that a pod of this node dials.
//!
//! ```text
//! Accepted ─► OrigDst ─► route ─┬─► local: policy of the destination, its application
//!                               ├─► tunnel: the destination's node
//!                               └─► passthrough: the address itself
//!                                        └─► relay ─► record
//! ```
//! Invariant: no branch from `tunnel` or `local` leads to `passthrough`. An enrolled
//! destination that can't be reached the right way is not reached.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::dial;
use super::outcome::Outcome;
use super::permit::{Permit, Subject, closed};
use super::pod::LocalPod;
use super::record::{ConnectionId, Near, Record};
use super::relay::{NearSide, TcpFar, relay};
use super::shared::Shared;
use super::tunnel::{Connect, HboneStream, Target};
use crate::flow::{Direction, TlsState};
use crate::model::{ClientAddr, NamespacedName, OrigDst, canonical};
use crate::policy::Route;
use crate::state::Pod;

/// Where the bytes go, and the proof that they may.
#[derive(Debug)]
enum Connected {
    Tcp(TcpFar, Permit),
    Hbone(HboneStream, Permit),
}

/// A destination pod, resolved.
struct Destination {
    pod: Arc<Pod>,
    address: SocketAddr,
    service: Option<NamespacedName>,
}

/// Serves one connection that `client`'s application dialled, to its end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    client: Arc<LocalPod>,
    near: TcpStream,
    peer: SocketAddr,
) {
    let peer = canonical(peer);
    let mut record = shared.begin(Direction::Outbound, ConnectionId::random());
    record.from(Some(&client.pod), peer, Some(&client.pod.identity));
    let connected = tokio::select! {
        biased;
        outcome = closed(client.state.subscribe()) => Err(outcome),
        connected = connect(&shared, &client, &near, peer, &mut record) => connected,
    };
    let near = NearSide {
        stream: near,
        is: Near::Client,
        network: &*client.network,
    };
    let config = &shared.config;
    let outcome = match connected {
        Ok(Connected::Tcp(far, permit)) => relay(near, far, permit, &mut record, config).await,
        Ok(Connected::Hbone(far, permit)) => relay(near, far, permit, &mut record, config).await,
        Err(outcome) => {
            dial::reset(near.stream);
            outcome
        }
    };
    record.end(outcome);
}

/// Finds out where the connection goes, and gets it there.
async fn connect(
    shared: &Arc<Shared>,
    client: &Arc<LocalPod>,
    near: &TcpStream,
    peer: SocketAddr,
    record: &mut Record,
) -> Result<Connected, Outcome> {
    let dialled = client.network.original_destination(near.as_fd())?;
    let OrigDst(dialled) = dialled.ok_or(Outcome::NotRedirected)?;
    let dialled = canonical(dialled);
    record.towards(dialled);
    record.occupy(client.account.connection()?);
    let table = shared.table();
    match table.route(&client.pod, OrigDst(dialled), rand::random()) {
        Route::Pod {
            pod,
            address,
            service,
        } => {
            note(record, Some(&pod), service.as_ref());
            refuse_reserved(shared, address)?;
            let destination = Destination {
                pod,
                address,
                service,
            };
            to_pod(shared, client, peer, destination, record).await
        }
        Route::Passthrough { address, service } => {
            note(record, None, service.as_ref());
            refuse_reserved(shared, address)?;
            passthrough(shared, client, peer, address).await
        }
        Route::Unavailable { reason, service } => {
            note(record, None, service.as_ref());
            Err(Outcome::Unavailable(reason))
        }
    }
}

async fn to_pod(
    shared: &Arc<Shared>,
    client: &Arc<LocalPod>,
    peer: SocketAddr,
    destination: Destination,
    record: &mut Record,
) -> Result<Connected, Outcome> {
    let pod = &destination.pod;
    if !pod.enrolled {
        return passthrough(shared, client, peer, destination.address).await;
    }
    if pod.node.as_ref() == Some(&shared.config.node) {
        return local(shared, client, peer, &destination, record).await;
    }
    tunnel(shared, client, peer, destination, record).await
}

/// Both ends are this agent's: the destination's policy is applied here, to the identity
/// that the client's namespace proves, and nothing leaves the node.
async fn local(
    shared: &Arc<Shared>,
    client: &Arc<LocalPod>,
    peer: SocketAddr,
    destination: &Destination,
    record: &mut Record,
) -> Result<Connected, Outcome> {
    let address = destination.address;
    let server = shared.pod(&destination.pod.name);
    let server = server.filter(|server| server.has_ip(address.ip()));
    let server = server.ok_or(Outcome::DestinationNotServed)?;
    if server.is_own_port(address.port()) {
        return Err(Outcome::ReservedPort);
    }
    let client_address = client.client_address(peer, address.ip());
    let subject = Subject {
        peer: Some(client.pod.identity.clone()),
        client_ip: client_address.ip(),
        port: address.port(),
        encrypted: true,
        probe: false,
    };
    let permit = record.note_check(Permit::check(&server, subject))?;
    let permit = permit.with_client(client.state.subscribe());
    let client_address = ClientAddr(client_address);
    let config = &shared.config;
    let app = dial::application(&*server.network, client_address, address, config).await?;
    Ok(Connected::Tcp(TcpFar::application(app), permit))
}

/// To the destination's node. Its agent checks the destination's policy.
async fn tunnel(
    shared: &Arc<Shared>,
    client: &Arc<LocalPod>,
    peer: SocketAddr,
    destination: Destination,
    record: &mut Record,
) -> Result<Connected, Outcome> {
    record.tls = TlsState::Mtls;
    let permit = Permit::leaving(client.state.subscribe());
    let address = destination.address;
    let connect = Connect {
        to: address,
        client: ClientAddr(client.client_address(peer, address.ip())),
        service: destination.service,
        id: record.id,
        baggage: client.baggage.clone(),
    };
    let target = Target {
        source: client.pod.identity.clone(),
        pod: client.key(),
        source_ip: client.source_ip(peer.ip(), address.ip()),
        network: Arc::clone(&client.network),
        to: address.ip(),
        expected: destination.pod.identity.clone(),
    };
    let stream = Box::pin(shared.pool.open(&target, &connect)).await?;
    Ok(Connected::Hbone(stream, permit))
}

/// Out of the mesh, from the client's own address.
async fn passthrough(
    shared: &Arc<Shared>,
    client: &Arc<LocalPod>,
    peer: SocketAddr,
    address: SocketAddr,
) -> Result<Connected, Outcome> {
    let permit = Permit::leaving(client.state.subscribe());
    let source = client.source_ip(peer.ip(), address.ip());
    let stream = dial::network(&*client.network, source, address, &shared.config).await?;
    Ok(Connected::Tcp(TcpFar::network(stream), permit))
}

/// The mesh's own port is not for applications: what answers there would take the
/// agent's address and namespace for a peer's.
fn refuse_reserved(shared: &Shared, address: SocketAddr) -> Result<(), Outcome> {
    if address.port() == shared.config.tunnel.port {
        return Err(Outcome::ReservedPort);
    }
    Ok(())
}

fn note(record: &mut Record, pod: Option<&Pod>, service: Option<&NamespacedName>) {
    if let Some(pod) = pod {
        record.served_by(pod);
    }
    if let Some(service) = service {
        record.through(service);
    }
}
