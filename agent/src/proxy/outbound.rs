//! Connections that a pod of this node dials.
//!
//! ```text
//! OrigDst ─► route ─► way ─┬─► dial ──────────────┬─► not HTTP: relay ─► record
//!                          └─► its first bytes ───┴─► HTTP: each request by itself
//! ```
//! Both at once: a protocol in which the server speaks first is not kept waiting.
//!
//! Invariant: an enrolled destination that can't be reached the right way ([`Way`]) is not
//! reached.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial;
use super::hello::asked_name;
use super::http::detect::{anything, of_socket};
use super::http::{self, Begun, Outbound, Speaks};
use super::outcome::Outcome;
use super::permit::{Admitted, Permit, closed};
use super::pod::LocalPod;
use super::reach::{Dialler, Stream, Way};
use super::record::{ConnectionId, Near, Record};
use super::relay::{NearSide, TcpFar, relay};
use super::shared::Shared;
use crate::flow::Direction;
use crate::model::{NamespacedName, OrigDst, canonical};
use crate::policy::{ConnectionRoutes, Route};

/// Where a connection goes, and that it may.
struct Bound {
    /// What the application has dialled.
    dialled: SocketAddr,
    /// Where that is.
    address: SocketAddr,
    service: Option<NamespacedName>,
    way: Way,
    admitted: Admitted,
    /// The Service has routes of connections: nothing is decided per request.
    by_connection: bool,
}

/// A connection that nobody looks into: both its ends, and the proof that it may be.
struct Opaque {
    near: TcpStream,
    far: Stream,
    permit: Permit,
    /// It crosses the network as it is.
    network_hop: bool,
}

/// What is known once either end has spoken: the client's first bytes, and how the dial went
/// meanwhile, if there was one.
struct Told {
    speaks: Speaks,
    dialled: Option<Result<Stream, Outcome>>,
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
    let (config, network) = (Arc::clone(&shared.config), Arc::clone(&client.network));
    let dialler = Dialler {
        shared,
        client,
        peer,
    };
    // Boxed, so that a relay's task is not as large as what comes before it.
    let outcome = match Box::pin(open(dialler, near, &mut record)).await {
        Ok(opaque) => {
            let Opaque {
                near,
                far,
                permit,
                network_hop,
            } = opaque;
            let near = NearSide {
                stream: near,
                is: Near::Client,
                network: &*network,
            };
            match far {
                Stream::Hbone(far) => relay(near, *far, permit, &mut record, &config).await,
                Stream::Tcp(far) => {
                    let far = TcpFar::new(far, network_hop);
                    relay(near, far, permit, &mut record, &config).await
                }
            }
        }
        Err(outcome) => outcome,
    };
    record.end(outcome);
}

/// The routes of connections of what was dialled, if there are any.
fn routes_at(dialler: &Dialler, address: SocketAddr) -> Option<Arc<ConnectionRoutes>> {
    let table = dialler.shared.table();
    let (service, port) = table.service_at(OrigDst(address))?;
    let namespace = &dialler.client.pod.name.namespace;
    table.connection_routes(namespace, service, port)
}

/// Finds out where the connection goes, and whether it may.
async fn bind(dialler: &Dialler, near: &TcpStream, record: &mut Record) -> Result<Bound, Outcome> {
    let Dialler { shared, client, .. } = dialler;
    let dialled = client.network.original_destination(near.as_fd())?;
    let OrigDst(dialled) = dialled.ok_or(Outcome::NotRedirected)?;
    let dialled = canonical(dialled);
    record.towards(dialled);
    record.occupy(client.account.connection()?);
    let routes = routes_at(dialler, dialled);
    let name = match &routes {
        Some(routes) if routes.by_name() => {
            let asked = asked_name(near);
            let asked = timeout(shared.config.http.head_timeout, asked);
            asked.await.ok().flatten()
        }
        Some(_) | None => None,
    };
    let random = rand::random();
    let (pod, address, service) =
        match shared
            .table()
            .route_named(&client.pod, OrigDst(dialled), name.as_deref(), random)
        {
            Route::Pod {
                pod,
                address,
                service,
            } => (Some(pod), address, service),
            Route::Passthrough { address, service } => (None, address, service),
            Route::Unavailable { reason, service } => {
                if let Some(service) = &service {
                    record.through(service);
                }
                return Err(Outcome::Unavailable(reason));
            }
        };
    if let Some(pod) = &pod {
        record.served_by(pod);
    }
    if let Some(service) = &service {
        record.through(service);
    }
    let way = Way::to(shared, pod.as_ref(), address)?;
    record.tls = way.tls();
    let admitted = match &way {
        Way::Local(server) => {
            let checked = Admitted::check(server, dialler.subject(address));
            let admitted = record.note_check(checked)?;
            admitted.with_client(client.state.subscribe())
        }
        Way::Tunnel(_) | Way::Passthrough => Admitted::leaving(client.state.subscribe()),
    };
    Ok(Bound {
        dialled,
        address,
        service,
        way,
        admitted,
        by_connection: routes.is_some(),
    })
}

/// Carries the connection to where it is opaque, or to its end.
async fn open(dialler: Dialler, near: TcpStream, record: &mut Record) -> Result<Opaque, Outcome> {
    let mut bound = match bind(&dialler, &near, record).await {
        Ok(bound) => bound,
        Err(outcome) => {
            dial::reset(near);
            return Err(outcome);
        }
    };
    if bound.by_connection {
        return opaque(&dialler, near, bound, None, record).await;
    }
    match tell(&dialler, &near, &mut bound, record).await {
        Ok(Told {
            speaks: Speaks::Other,
            dialled,
        }) => opaque(&dialler, near, bound, dialled, record).await,
        Ok(told) => Err(requests(dialler, near, bound, told, record).await),
        Err(outcome) => {
            dial::reset(near);
            Err(outcome)
        }
    }
}

/// What is not HTTP is relayed.
async fn opaque(
    dialler: &Dialler,
    near: TcpStream,
    bound: Bound,
    dialled: Option<Result<Stream, Outcome>>,
    record: &mut Record,
) -> Result<Opaque, Outcome> {
    let Bound {
        address,
        service,
        way,
        admitted,
        ..
    } = bound;
    let connected = match (record.note_opaque(admitted), dialled) {
        (Err(outcome), _) => Err(outcome),
        (Ok(permit), Some(dialled)) => dialled.map(|far| (permit, far)),
        (Ok(permit), None) => {
            let dialled = dialler.dial(&way, address, service.as_ref(), record.id);
            dialled.await.map(|far| (permit, far))
        }
    };
    match connected {
        Ok((permit, far)) => Ok(Opaque {
            near,
            far,
            permit,
            network_hop: !matches!(way, Way::Local(_)),
        }),
        Err(outcome) => {
            dial::reset(near);
            Err(outcome)
        }
    }
}

/// Serves what is HTTP.
async fn requests(
    dialler: Dialler,
    near: TcpStream,
    bound: Bound,
    told: Told,
    record: &mut Record,
) -> Outcome {
    let begun = told.dialled.map(|dialled| Begun {
        address: bound.address,
        dialled,
    });
    let shared = Arc::clone(&dialler.shared);
    let pod = Arc::clone(&dialler.client);
    let to = (bound.dialled, bound.service);
    let common = (record.id, record.request_ends());
    let outbound = Outbound::new(dialler, to, common, begun);
    // Each request has its own server, and is checked there.
    let revoked = closed(pod.state.subscribe());
    let client = http::Client {
        stream: Stream::Tcp(near),
        speaks: told.speaks,
        leaving: &pod.leaving,
        config: &shared.config.http,
    };
    http::serve(client, outbound, revoked, record).await
}

/// Dials, unless that depends on what the client says, and listens to who speaks first.
async fn tell(
    dialler: &Dialler,
    near: &TcpStream,
    bound: &mut Bound,
    record: &mut Record,
) -> Result<Told, Outcome> {
    let Bound {
        address,
        service,
        way,
        admitted,
        ..
    } = bound;
    let may_dial = admitted.may_be_opaque();
    let mut dial = pin!(dialler.dial(way, *address, service.as_ref(), record.id));
    let speaks = tokio::select! {
        biased;
        outcome = admitted.revoked() => return Err(outcome),
        speaks = of_socket(near) => speaks,
        far = &mut dial, if may_dial => {
            let mut far = far?;
            record.connected(Near::Client);
            let speaks = tokio::select! {
                biased;
                outcome = admitted.revoked() => return Err(outcome),
                speaks = of_socket(near) => speaks,
                () = anything(&mut far) => Speaks::Other,
            };
            return Ok(Told { speaks, dialled: Some(Ok(far)) });
        }
    };
    if !may_dial {
        return Ok(Told {
            speaks,
            dialled: None,
        });
    }
    let dialled = tokio::select! {
        biased;
        outcome = admitted.revoked() => return Err(outcome),
        dialled = &mut dial => dialled,
    };
    match (speaks, dialled) {
        (Speaks::Other, Err(outcome)) => Err(outcome),
        (speaks, dialled) => Ok(Told {
            speaks,
            dialled: Some(dialled),
        }),
    }
}
