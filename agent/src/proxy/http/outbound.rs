//! Requests of a pod of this node: which server, which connection, what is made of the
//! answer.
//!
//! ```text
//! request ─► one form ─► route ─► endpoint ─┬─► local: the destination's policy ─┐
//!                                           ├─► tunnel ──────────────────────────┼─► server
//!                                           └─► passthrough ─────────────────────┘
//! ```

use std::collections::HashMap;
use std::convert::identity;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use http::request::Parts;
use http::{HeaderMap, Method, Request, Version};
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::Body;
use super::deadline::{Deadline, write_grpc_timeout};
use super::forward::{Asked, falls_back};
use super::gate::{Admitted, Door};
use super::guard::Guard;
use super::headers;
use super::io::Io;
use super::reason::{Reason, ReasonKind, disown};
use super::record::Exchange;
use super::server::{Answer, Handler};
use super::session::{finish, refuse, unanswered};
use super::timed::{Timed, in_time};
use super::upstream::{self, Dial, Exit, Failed, Sent};
use crate::flow::{RequestEnds, RequestFlow};
use crate::model::{NamespacedName, OrigDst};
use crate::policy::balance::{Balancer, ConnectionGuard};
use crate::policy::{Route, Table};
use crate::proxy::outcome::Outcome;
use crate::proxy::permit::Watch;
use crate::proxy::reach::{Dialler, Reached, Stream, Way};
use crate::proxy::record::ConnectionId;
use crate::state::Pod;

/// One connection of a pod's application, and what its requests have in common.
#[derive(Debug)]
pub(in crate::proxy) struct Outbound {
    pub(super) dialler: Dialler,
    /// What the application dialled.
    pub(super) dialled: SocketAddr,
    /// What that is, if it is a Service.
    service: Option<NamespacedName>,
    id: ConnectionId,
    /// Requests that were sent to no server.
    pub(super) ends: Arc<RequestFlow>,
    common: RequestEnds,
    known: Mutex<Known>,
    /// For tasks that go on when the request is answered.
    pub(super) this: Weak<Self>,
}

/// The endpoint that was dialled before the client was known to speak HTTP, and how that
/// went: the first request goes there.
#[derive(Debug)]
pub(in crate::proxy) struct Begun {
    pub(in crate::proxy) to: Reached,
    pub(in crate::proxy) dialled: Result<Stream, Outcome>,
    /// Its place among the connections to the Service.
    pub(in crate::proxy) counted: Option<ConnectionGuard>,
}

/// What one request leaves for the next.
#[derive(Debug)]
struct Known {
    tables: watch::Receiver<Arc<Table>>,
    table: Arc<Table>,
    servers: HashMap<SocketAddr, Arc<RequestFlow>>,
    begun: Option<Begun>,
}

/// Where a request goes.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) to: Reached,
    pod: Option<Arc<Pod>>,
    service: Option<NamespacedName>,
    pub(super) way: Way,
}

impl Outbound {
    pub(in crate::proxy) fn new(
        dialler: Dialler,
        (address, service): (SocketAddr, Option<NamespacedName>),
        (id, common): (ConnectionId, RequestEnds),
        begun: Option<Begun>,
    ) -> Arc<Self> {
        let shared = &dialler.shared;
        let mut tables = shared.tables.clone();
        let table = Arc::clone(&tables.borrow_and_update());
        let ends = Arc::new(shared.flows.requests(common.clone()));
        Arc::new_cyclic(|this| Self {
            dialler,
            dialled: address,
            service,
            id,
            ends,
            common,
            known: Mutex::new(Known {
                tables,
                table,
                servers: HashMap::new(),
                begun,
            }),
            this: Weak::clone(this),
        })
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (mut parts, mut body) = request.into_parts();
        let upload = body.counted();
        let version = parts.version;
        let flows = &self.dialler.shared.flows;
        let mut exchange = Exchange::begin(Arc::clone(&self.ends), flows, &parts, upload);
        let is_head = parts.method == Method::HEAD;
        let received = exchange
            .occupy(&self.dialler.client.account)
            .and_then(|()| headers::receive(&mut parts));
        let sent = match received {
            Ok(()) => self.pass_on(parts, body, &mut exchange).await,
            Err(reason) => Err(reason),
        };
        match sent {
            Ok(sent) => finish(sent, exchange, version),
            Err(reason) => refuse(&reason, exchange, is_head),
        }
    }

    async fn pass_on(
        &self,
        parts: Parts,
        body: Body,
        exchange: &mut Exchange,
    ) -> Result<Sent, Reason> {
        let table = self.table();
        let service = table.service_at(OrigDst(self.dialled));
        let Some((service, port)) = service.map(|(service, port)| (service.clone(), port)) else {
            return self.direct(&table, parts, body, exchange).await;
        };
        let asked = Asked {
            table,
            service: (service, port),
            parts,
            body,
        };
        Ok(self.forward(asked, exchange).await)
    }

    /// Sends a request to an address that is no Service's.
    async fn direct(
        &self,
        table: &Table,
        parts: Parts,
        body: Body,
        exchange: &mut Exchange,
    ) -> Result<Sent, Reason> {
        let server = self.server(table, self.dialled, self.service.as_ref())?;
        exchange.upstream = Some(server.address);
        exchange.ends = self.ends_at(&server);
        let until = exchange.deadline(&parts.headers);
        let asking = self.ask(&server, (parts, body), until, exchange);
        let mut sent = in_time(until, asking).await?;
        if sent.upgrade.is_none() {
            let timed =
                |body| Timed::new(body, until, None, true).map_or_else(identity, Body::timed);
            sent.response = sent.response.map(timed);
        }
        Ok(sent)
    }

    async fn ask(
        &self,
        server: &Server,
        (mut parts, mut body): (Parts, Body),
        until: Option<Deadline>,
        exchange: &mut Exchange,
    ) -> Result<Sent, Reason> {
        use http_body::Body as _;
        let admitted = self.admit(server, &mut parts, &mut body, exchange).await?;
        let version = if parts.version >= Version::HTTP_2 {
            upstream::Version::Http2
        } else {
            upstream::Version::Http1
        };
        headers::send(&mut parts, version, body.is_end_stream())?;
        if let Some(until) = until {
            write_grpc_timeout(&mut parts.headers, until.left(Instant::now()));
        }
        let shared = &self.dialler.shared;
        let exit = Exit {
            upstreams: &self.dialler.client.upstreams,
            tasks: &shared.tasks,
            to: &server.to,
            version,
            falls_back: headers::is_extended(&parts.extensions) && self.falls_back(server),
        };
        let request = Request::from_parts(parts, body);
        let sent = send(&exit, request, &(self, server), exchange).await;
        self.drop_begun();
        let mut sent = sent.map_err(|failed| unanswered(&failed.why))?;
        server.answered(&admitted, sent.response.headers_mut());
        Ok(sent)
    }

    fn falls_back(&self, server: &Server) -> bool {
        let port = server.address.port();
        let protocol = |pod| falls_back(self.table().pod_protocol(pod, port));
        server.pod.as_deref().is_none_or(protocol)
    }

    /// Asks the policies of a server of this node; those of others are asked at theirs.
    pub(super) async fn admit(
        &self,
        server: &Server,
        parts: &mut Parts,
        body: &mut Body,
        exchange: &mut Exchange,
    ) -> Result<Admitted, Reason> {
        let Way::Local(local) = &server.way else {
            exchange.guard = Guard::Silent;
            return Ok(Admitted::default());
        };
        exchange.occupy_server(&local.account)?;
        let subject = self.dialler.subject(server.address);
        exchange.guard = Guard::Idle(Watch::over(local, subject.clone()));
        let door = Door {
            shared: &self.dialler.shared,
            server: local,
            subject: &subject,
            client: self.dialler.shown(server.address),
            address: server.address,
        };
        door.admit(parts, body, exchange).await
    }

    /// Who is at an endpoint's address, and how that is reached.
    pub(super) fn server(
        &self,
        table: &Table,
        address: SocketAddr,
        service: Option<&NamespacedName>,
    ) -> Result<Server, Reason> {
        let route = table.route(&self.dialler.client.pod, OrigDst(address), rand::random());
        let (address, pod) = match route {
            Route::Pod { pod, address, .. } => (address, Some(pod)),
            Route::Passthrough { address, .. } => (address, None),
            Route::Unavailable { reason, .. } => {
                return Err(Reason::new(ReasonKind::NoEndpoints, reason.as_str()));
            }
        };
        let way = Way::to(&self.dialler.shared, pod.as_ref(), address);
        let way = way.map_err(|outcome| unreachable(&outcome))?;
        let service = service.cloned();
        Ok(Server {
            address,
            to: way.reached(address),
            pod,
            service,
            way,
        })
    }

    /// The address that was dialled before the first request.
    pub(super) fn begun_at(&self) -> Option<SocketAddr> {
        self.known().begun.as_ref().map(|begun| begun.to.address)
    }

    /// What was dialled before the first request, if it was this, this way.
    fn take_begun(&self, to: &Reached) -> Option<Result<Stream, Outcome>> {
        let begun = self.known().begun.take()?;
        (begun.to == *to).then_some(begun.dialled)
    }

    /// The place that it has among the connections of this balancer.
    pub(super) fn take_counted(
        &self,
        to: &Reached,
        balancer: &Balancer,
    ) -> Option<ConnectionGuard> {
        let mut known = self.known();
        let begun = known.begun.as_mut().filter(|begun| begun.to == *to)?;
        begun.counted.take_if(|counted| balancer.has(counted))
    }

    /// A request has gone its way: what was dialled for it, and not used, is of no use.
    pub(super) fn drop_begun(&self) {
        let begun = self.known().begun.take();
        drop(begun);
    }

    /// The table in force; looked for once it has changed.
    fn table(&self) -> Arc<Table> {
        let mut known = self.known();
        if known.tables.has_changed().unwrap_or(false) {
            let table = Arc::clone(&known.tables.borrow_and_update());
            known.table = table;
            // Pods may have gone, and others come at their addresses.
            known.servers.clear();
        }
        Arc::clone(&known.table)
    }

    /// Takes the records of requests that went to this server.
    pub(super) fn ends_at(&self, server: &Server) -> Arc<RequestFlow> {
        let mut known = self.known();
        if let Some(ends) = known.servers.get(&server.address) {
            return Arc::clone(ends);
        }
        let mut ends = self.common.clone();
        ends.tls = server.way.tls();
        if let Some(pod) = &server.pod {
            let destination = &mut ends.destination;
            destination.namespace = Some(Arc::clone(&pod.name.namespace));
            destination.pod = Some(Arc::clone(&pod.name.name));
            destination.workload = Some(Arc::clone(&pod.workload));
            destination.identity = pod.enrolled.then(|| pod.identity.clone());
        }
        let ends = Arc::new(self.dialler.shared.flows.requests(ends));
        let _before = known.servers.insert(server.address, Arc::clone(&ends));
        ends
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic under this lock would have ended the process.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Makes the headers of an answer what the client is to see.
    pub(super) fn answered(&self, admitted: &Admitted, headers: &mut HeaderMap) {
        // What is beyond a tunnel was looked at there, and may say why it is as it is.
        if !matches!(self.way, Way::Tunnel(_)) {
            disown(headers);
        }
        admitted.apply(headers);
    }
}

impl Handler for Outbound {
    async fn handle(&self, request: Request<Body>) -> Answer {
        self.answer(request).await
    }
}

impl Dial for (&Outbound, &Server) {
    async fn dial(&self) -> Result<Io, Outcome> {
        let (outbound, server) = self;
        if let Some(begun) = outbound.take_begun(&server.to) {
            return begun.map(Io::new);
        }
        let (way, service) = (&server.way, server.service.as_ref());
        let dialled = outbound
            .dialler
            .dial(way, server.address, service, outbound.id);
        dialled.await.map(Io::new)
    }
}

/// Sends a request that was let in, for as long as its guard says nothing.
pub(super) async fn send(
    exit: &Exit<'_>,
    request: Request<Body>,
    dial: &impl Dial,
    exchange: &mut Exchange,
) -> Result<Sent, Failed> {
    tokio::select! {
        biased;
        sent = exit.send(request, dial) => sent,
        outcome = exchange.guard.revoked() => {
            exchange.decided_anew(&outcome);
            Err(Failed::revoked(outcome))
        }
    }
}

/// Why there is no way to an endpoint.
fn unreachable(outcome: &Outcome) -> Reason {
    Reason::new(
        ReasonKind::ConnectFailed,
        outcome.close_reason().into_owned(),
    )
}
