//! Plaintext connections to a pod of this node, and the way into its application that
//! they share with tunnels.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::dial;
use super::outcome::Outcome;
use super::permit::{Permit, Subject};
use super::pod::LocalPod;
use super::record::{ConnectionId, Near, Record};
use super::relay::{NearSide, TcpFar, relay};
use super::shared::Shared;
use crate::flow::Direction;
use crate::model::{ClientAddr, canonical};

/// Serves one plaintext connection to `server`, to its end. The kernel steered it here:
/// its local address is the pod's.
pub(super) async fn serve(
    shared: Arc<Shared>,
    server: Arc<LocalPod>,
    near: TcpStream,
    peer: SocketAddr,
) {
    let peer = canonical(peer);
    let mut record = shared.begin(Direction::Inbound, ConnectionId::random());
    let client = shared.table().pod_by_ip(peer.ip()).cloned();
    record.from(client.as_deref(), peer, None);
    record.served_by(&server.pod);
    let outcome = match connect(&shared, &server, &near, peer, &mut record).await {
        Ok((far, permit)) => {
            let near = NearSide {
                stream: near,
                is: Near::Client,
                network: &*server.network,
            };
            relay(near, far, permit, &mut record, &shared.config).await
        }
        Err(outcome) => {
            dial::reset(near);
            outcome
        }
    };
    record.end(outcome);
}

async fn connect(
    shared: &Arc<Shared>,
    server: &Arc<LocalPod>,
    near: &TcpStream,
    peer: SocketAddr,
    record: &mut Record,
) -> Result<(TcpFar, Permit), Outcome> {
    let address = canonical(near.local_addr()?);
    record.towards(address);
    if !server.has_ip(address.ip()) || server.is_own_port(address.port()) {
        return Err(Outcome::WrongAddress);
    }
    let probe = server.network.is_probe(near.as_fd())?;
    if probe {
        // The address is the node's, which pods of its network have too.
        record.from(None, peer, None);
        record.source.workload = Some("kubelet".into());
    }
    let subject = Subject {
        peer: None,
        client_ip: peer.ip(),
        port: address.port(),
        encrypted: false,
        probe,
    };
    let permit = record.note_check(Permit::check(server, subject))?;
    let client = ClientAddr(peer);
    let app = dial::application(&*server.network, client, address, &shared.config).await?;
    Ok((TcpFar::application(app), permit))
}
