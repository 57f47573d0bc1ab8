//! Connections that a pod of this node dials.
//!
//! ```text
//! OrigDst ─► route ─► way ─┬─► dial ──────────────┬─► not HTTP: relay ─► record
//!                          └─► its first bytes ───┴─► HTTP: each request by itself
//! ```
//! Both at once where nobody has declared a protocol: one in which the server speaks first is
//! not kept waiting. Where HTTP is declared, nothing is dialled before a request; where
//! another protocol is, nobody looks.
//!
//! Invariant: an enrolled destination that can't be reached the right way ([`Way`]) is not
//! reached.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::config::HttpConfig;
use super::dial;
use super::endpoint::{Endpoint, speaks_http};
use super::hello::asked_name;
use super::http::detect::{of_socket, of_socket_in_time, server_first};
use super::http::{self, Begun, Outbound, Speaks};
use super::outcome::Outcome;
use super::permit::{Admitted, HttpPermit, Permit, closed};
use super::pod::LocalPod;
use super::reach::{Dialler, Stream, Way};
use super::record::{ConnectionId, Near, Record};
use super::relay::{NearSide, TcpFar, relay};
use super::shared::Shared;
use crate::flow::Direction;
use crate::model::{NamespacedName, OrigDst, canonical};
use crate::policy::{AppProtocol, ConnectionRoutes, Route, Table, Towards, UnavailableReason};

/// What the application has dialled.
struct Dialled {
    to: OrigDst,
    /// Whose address that is.
    service: Option<NamespacedName>,
    protocol: AppProtocol,
    /// Its routes of connections: then nothing is decided per request.
    routes: Option<Arc<ConnectionRoutes>>,
    /// What all of that was found in.
    table: Arc<Table>,
}

/// Where a connection goes, and that it may.
struct Bound {
    address: SocketAddr,
    service: Option<NamespacedName>,
    way: Way,
    admitted: Admitted,
    /// The endpoint, where a Service's was chosen.
    endpoint: Option<Endpoint>,
    /// How long the dial took, once it has ended.
    took: Duration,
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
    begun: Option<Result<Stream, Outcome>>,
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

/// Finds out what the application has dialled.
fn begin(dialler: &Dialler, near: &TcpStream, record: &mut Record) -> Result<Dialled, Outcome> {
    let Dialler { shared, client, .. } = dialler;
    let to = client.network.original_destination(near.as_fd())?;
    let OrigDst(to) = to.ok_or(Outcome::NotRedirected)?;
    let to = OrigDst(canonical(to));
    record.towards(to.0);
    record.occupy(client.account.connection()?);
    let table = shared.table();
    let service = table.service_at(to);
    let namespace = &client.pod.name.namespace;
    let routes =
        service.and_then(|(service, port)| table.connection_routes(namespace, service, port));
    let protocol = match service {
        Some(_) if routes.is_some() => AppProtocol::Opaque,
        Some((service, port)) => {
            match table.service_protocol(service, port) {
                // Whoever writes routes of HTTP has said what it is.
                AppProtocol::Detect if table.routes(namespace, service, port).is_some() => {
                    AppProtocol::Http1
                }
                protocol => protocol,
            }
        }
        None => match table.pod_by_ip(to.0.ip()) {
            Some(pod) => table.pod_protocol(pod, to.0.port()),
            None => AppProtocol::Detect,
        },
    };
    let service = service.map(|(service, _port)| service.clone());
    Ok(Dialled {
        to,
        service,
        protocol,
        routes,
        table,
    })
}

/// The server that the client asks for by name, where routes look at that.
async fn name_for(routes: &ConnectionRoutes, near: &TcpStream, shared: &Shared) -> Option<String> {
    if !routes.by_name() {
        return None;
    }
    let asked = timeout(shared.config.http.head_timeout, asked_name(near));
    asked.await.ok().flatten()
}

/// Finds out where the connection goes, and whether it may.
fn bind(
    dialler: &Dialler,
    goal: &Dialled,
    name: Option<&str>,
    record: &mut Record,
) -> Result<Bound, Outcome> {
    let Dialler { shared, client, .. } = dialler;
    let table = &goal.table;
    let (route, endpoint) = match table.towards(&client.pod, goal.to, name, rand::random()) {
        Towards::Decided(route) => (route, None),
        Towards::Service {
            service,
            port,
            random,
        } => {
            let ip = goal.to.0.ip();
            match Endpoint::choose(dialler, table, (&service, port), ip.is_ipv6(), random) {
                Some((route, endpoint)) => (route, Some(endpoint)),
                None => (
                    unavailable(table.route_to(&service, port, ip, random)),
                    None,
                ),
            }
        }
    };
    let (pod, address, service) = match route {
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
        address,
        service,
        way,
        admitted,
        endpoint,
        took: Duration::ZERO,
    })
}

/// The route of a Service of which no endpoint is to be had. Where there are some that are
/// ready, all of them are left out.
fn unavailable(route: Route) -> Route {
    match route {
        Route::Pod { service, .. } | Route::Passthrough { service, .. } => Route::Unavailable {
            reason: UnavailableReason::AllLeftOut,
            service,
        },
        Route::Unavailable { .. } => route,
    }
}

/// Carries the connection to where it is opaque, or to its end.
async fn open(dialler: Dialler, near: TcpStream, record: &mut Record) -> Result<Opaque, Outcome> {
    let goal = begin(&dialler, &near, record);
    let goal = or_reset(goal, &near)?;
    if goal.protocol.is_http() {
        return Err(declared(dialler, near, goal, record).await);
    }
    let name = match &goal.routes {
        Some(routes) => name_for(routes, &near, &dialler.shared).await,
        None => None,
    };
    let bound = bind(&dialler, &goal, name.as_deref(), record);
    let looks = goal.protocol == AppProtocol::Detect;
    if let Err(Outcome::Unavailable(UnavailableReason::AllLeftOut)) = bound
        && looks
        && let Some(speaks) = speaks_http(&near, dialler.shared.config.connect_timeout).await
    {
        return Err(requests(dialler, (near, speaks, None), (goal, None), record).await);
    }
    let mut bound = or_reset(bound, &near)?;
    let told = tell(&dialler, looks.then_some(&near), &mut bound, record).await;
    if let (Err(failed), Some(endpoint)) = (&told, &bound.endpoint) {
        endpoint.note(Some(failed), bound.took);
    }
    let Told { speaks, begun } = or_reset(told, &near)?;
    if speaks == Speaks::Other {
        return opaque(&dialler, near, bound, begun, record).await;
    }
    let counted = bound.endpoint.and_then(Endpoint::into_counted);
    let begun = begun.map(|begun| Begun {
        to: bound.way.reached(bound.address),
        dialled: begun,
        counted,
    });
    // A Service has other servers; each request has its own, which it is checked and counted
    // at.
    let permit = goal.service.is_none().then(|| bound.admitted.http());
    let connection = (near, speaks, permit);
    Err(requests(dialler, connection, (goal, begun), record).await)
}

/// What is an error to the application is a reset.
fn or_reset<T>(result: Result<T, Outcome>, near: &TcpStream) -> Result<T, Outcome> {
    if result.is_err() {
        dial::reset_on_close(near);
    }
    result
}

/// Serves a port that is declared to be HTTP's.
async fn declared(
    dialler: Dialler,
    near: TcpStream,
    goal: Dialled,
    record: &mut Record,
) -> Outcome {
    if let Some(service) = &goal.service {
        record.through(service);
    }
    let config = &dialler.shared.config.http;
    let speaks = tokio::select! {
        biased;
        outcome = closed(dialler.client.state.subscribe()) => {
            dial::reset(near);
            return outcome;
        }
        speaks = of_socket_in_time(&near, config) => speaks,
    };
    match speaks {
        Some(speaks @ (Speaks::Http1 | Speaks::Http2)) => {
            requests(dialler, (near, speaks, None), (goal, None), record).await
        }
        Some(Speaks::Other) => http::not_http(Stream::Tcp(near)).await,
        None => http::let_go(Stream::Tcp(near)).await,
    }
}

/// What is not HTTP is relayed.
async fn opaque(
    dialler: &Dialler,
    near: TcpStream,
    bound: Bound,
    goal: Option<Result<Stream, Outcome>>,
    record: &mut Record,
) -> Result<Opaque, Outcome> {
    let Bound {
        address,
        service,
        way,
        admitted,
        mut endpoint,
        mut took,
    } = bound;
    let client = &dialler.client.pod.name;
    let counted = endpoint.as_mut().map_or(Ok(()), |it| it.count(client));
    let connected = match (record.note_opaque(admitted), goal) {
        (Err(outcome), _) => Err(outcome),
        (Ok(permit), Some(goal)) => goal.map(|far| (permit, far)),
        (Ok(_), None) if let Err(full) = counted => Err(full.into()),
        (Ok(permit), None) => {
            let goal = dialler.dial(&way, address, service.as_ref(), record.id);
            timed(goal, &mut took).await.map(|far| (permit, far))
        }
    };
    if let Some(endpoint) = endpoint {
        endpoint.note(connected.as_ref().err(), took);
        record.endpoint = Some(endpoint);
    }
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

/// Waits for a dial, and notes how long that took.
async fn timed(
    dial: impl Future<Output = Result<Stream, Outcome>>,
    took: &mut Duration,
) -> Result<Stream, Outcome> {
    let begun = Instant::now();
    let dialled = dial.await;
    *took = begun.elapsed();
    dialled
}

/// Serves what is HTTP.
async fn requests(
    dialler: Dialler,
    (near, speaks, permit): (TcpStream, Speaks, Option<HttpPermit>),
    (goal, begun): (Dialled, Option<Begun>),
    record: &mut Record,
) -> Outcome {
    let shared = Arc::clone(&dialler.shared);
    let pod = Arc::clone(&dialler.client);
    let to = (goal.to.0, goal.service);
    let common = (record.id, record.request_ends());
    let outbound = Outbound::new(dialler, to, common, begun);
    let revoked = async {
        match permit {
            Some(permit) => permit.revoked().await,
            None => closed(pod.state.subscribe()).await,
        }
    };
    let client = http::Client {
        stream: Stream::Tcp(near),
        speaks,
        leaving: &pod.leaving,
        config: &shared.config,
        network: &*pod.network,
    };
    http::serve(client, outbound, revoked, record).await
}

/// Dials, unless that depends on what the client says, and listens to who speaks first; only
/// to the dial where `near` is none.
async fn tell(
    dialler: &Dialler,
    near: Option<&TcpStream>,
    bound: &mut Bound,
    record: &mut Record,
) -> Result<Told, Outcome> {
    let Bound {
        address,
        service,
        way,
        admitted,
        took,
        endpoint,
    } = bound;
    let may_dial = admitted.may_be_opaque();
    let counted = match endpoint {
        Some(endpoint) if may_dial => endpoint.count(&dialler.client.pod.name),
        _ => Ok(()),
    };
    if let Err(full) = counted {
        // It has nothing of the endpoint while it waits.
        *endpoint = None;
        let speaks = tokio::select! {
            biased;
            outcome = admitted.revoked() => return Err(outcome),
            speaks = full.requests_only(near) => speaks?,
        };
        let begun = None;
        return Ok(Told { speaks, begun });
    }
    if !may_dial && near.is_none() {
        let (speaks, begun) = (Speaks::Other, None);
        return Ok(Told { speaks, begun });
    }
    let limits = (!may_dial).then_some(&dialler.shared.config.http);
    let dial = dialler.dial(way, *address, service.as_ref(), record.id);
    let mut dial = pin!(timed(dial, took));
    let speaks = tokio::select! {
        biased;
        outcome = admitted.revoked() => return Err(outcome),
        speaks = first_of(near, limits) => speaks.ok_or(Outcome::Closed)?,
        far = &mut dial, if may_dial => {
            let mut far = far?;
            record.connected(Near::Client);
            let speaks = match near {
                None => Speaks::Other,
                Some(near) => tokio::select! {
                    biased;
                    outcome = admitted.revoked() => return Err(outcome),
                    speaks = of_socket(near) => speaks,
                    () = server_first(&mut far) => Speaks::Other,
                },
            };
            let begun = Some(Ok(far));
            return Ok(Told { speaks, begun });
        }
    };
    if !may_dial {
        let begun = None;
        return Ok(Told { speaks, begun });
    }
    let goal = tokio::select! {
        biased;
        outcome = admitted.revoked() => return Err(outcome),
        goal = &mut dial => goal,
    };
    match (speaks, goal) {
        (Speaks::Other, Err(outcome)) => Err(outcome),
        (speaks, goal) => Ok(Told {
            speaks,
            begun: Some(goal),
        }),
    }
}

async fn first_of(near: Option<&TcpStream>, limits: Option<&HttpConfig>) -> Option<Speaks> {
    match (near, limits) {
        (Some(near), Some(limits)) => of_socket_in_time(near, limits).await,
        (Some(near), None) => Some(of_socket(near).await),
        (None, _) => std::future::pending().await,
    }
}
