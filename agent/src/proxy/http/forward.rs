//! One request of a pod of this node to a Service, from its route to its answer.
//!
//! ```text
//! request ─► route ─► rate limits, faults ─► filters ─► back end ─► tries ─► answer
//!              │              │                 │           │         │        │
//!              └──────────────┴─────────────────┴───────────┴─────────┴─► our own
//!                                                                              │
//!                                                       client ◄─── filters ◄──┘
//! ```
//! Rate limits and faults are those of the Service that was dialled and of the one that the
//! route leads to; everything else is the latter's, but that timeouts for which it has no policy
//! are the former's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode, Version};
use http_body::Body as _;

use super::authn::since_1970;
use super::body::Body;
use super::deadline::until_answered;
use super::external::count_globally;
use super::filter::grpc_web::{self, Decoded, Encoded, Encoding};
use super::filter::session::{Endpoint, Scope, Token};
use super::filter::{Flow, Pending, Place, apply_request, apply_response, fault};
use super::headers;
use super::limit::{Counted, Limited};
use super::outbound::Outbound;
use super::reason::{FAIRLEAD_RETRIES, Reason, ReasonKind};
use super::record::Exchange;
use super::reply::reply;
use super::retry::GRPC_RETRY_PUSHBACK_MS;
use super::timed::in_time;
use super::tries::Target;
use super::upstream::{self, Sent};
use crate::model::{NamespacedName, normal_path};
use crate::policy::traffic::TrafficSettings;
use crate::policy::{AppProtocol, BackendTarget, CompiledRule, Matched, RequestHead, Table};
use crate::proxy::reach::Dialler;

/// When to come again where a limit of what is in flight is reached: nobody knows when there
/// is room, so in a second, as [`Refused::answer`] rounds.
const SOON: Duration = Duration::from_millis(999);

/// A Service and one of its ports.
pub(super) type ServicePort = (NamespacedName, u16);

/// Why the proxy answers in the place of a back end, and how.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    status: StatusCode,
    grpc: u16,
    /// The client may come again after so long.
    retry_after: Option<Duration>,
}

/// A request to a Service, as far as it is on its way.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) table: Arc<Table>,
    /// What was dialled.
    pub(super) service: ServicePort,
    pub(super) parts: Parts,
    pub(super) body: Body,
}

/// The back end of a request.
#[derive(Debug)]
struct Chosen {
    service: ServicePort,
    /// The endpoint of the client's session.
    kept: Option<SocketAddr>,
}

/// What is done to the answer, whoever gives it.
#[derive(Debug, Default)]
struct Finishing {
    rule: Option<Arc<CompiledRule>>,
    of_rule: Pending,
    /// The back end's place in the rule, and what its filters wait for.
    backend: Option<(usize, Pending)>,
    /// A session that begins.
    session: Option<Token>,
    /// The client speaks gRPC-Web.
    web: Option<grpc_web::Call>,
}

impl Refused {
    /// With the statuses of its kind.
    fn new(reason: Reason) -> Self {
        let kind = reason.kind;
        let is_full = matches!(kind, ReasonKind::CircuitOpen | ReasonKind::Overloaded);
        Self {
            status: kind.status(),
            grpc: kind.grpc_status(),
            reason,
            retry_after: is_full.then_some(SOON),
        }
    }

    /// Of this kind, for so long as is known.
    pub(super) fn until(kind: ReasonKind, retry_after: Option<Duration>) -> Self {
        Self {
            retry_after,
            ..kind.into()
        }
    }

    /// The answer.
    fn answer(self, exchange: &mut Exchange, is_head: bool) -> Sent {
        exchange.refused(&self.reason);
        let grpc = exchange.is_grpc();
        let mut response = reply(self.status, &self.reason, grpc);
        if grpc {
            self.reason.write_grpc(self.grpc, response.headers_mut());
        }
        if let Some(after) = self.retry_after {
            if grpc {
                let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                let pushback = HeaderValue::from(ms.saturating_add(1));
                let _before = response
                    .headers_mut()
                    .insert(GRPC_RETRY_PUSHBACK_MS, pushback);
            }
            // In whole seconds, and not too early.
            let seconds = HeaderValue::from(after.as_secs().saturating_add(1));
            let _before = response.headers_mut().insert(RETRY_AFTER, seconds);
        }
        if is_head {
            *response.body_mut() = Body::empty();
        }
        Sent::whole(response)
    }
}

impl<R: Into<Reason>> From<R> for Refused {
    fn from(reason: R) -> Self {
        Self::new(reason.into())
    }
}

impl From<Limited> for Refused {
    fn from(limited: Limited) -> Self {
        let refused = Self::new(Reason::new(ReasonKind::RateLimited, limited.limit));
        Self {
            retry_after: Some(limited.retry_after),
            ..refused
        }
    }
}

impl Outbound {
    /// Answers a request to a Service.
    pub(super) async fn forward(&self, asked: Asked, exchange: &mut Exchange) -> Sent {
        let is_head = asked.parts.method == Method::HEAD;
        let mut finishing = Finishing::default();
        let answered = self.routed(asked, &mut finishing, exchange).await;
        let sent = answered.unwrap_or_else(|refused| refused.answer(exchange, is_head));
        finishing.finish(sent, exchange)
    }

    /// Does what the rule says that the request is for.
    async fn routed(
        &self,
        mut asked: Asked,
        finishing: &mut Finishing,
        exchange: &mut Exchange,
    ) -> Result<Sent, Refused> {
        let matched = find(&asked, &self.dialler.client.pod.name.namespace)?;
        exchange.route = matched.as_ref().map(|it| Arc::clone(&it.rule.label));
        let rule = matched.as_ref().map(|it| &*it.rule);
        self.restrain(&asked, &asked.service, rule, exchange)
            .await?;
        let Some(Matched { rule, prefix }) = matched else {
            let chosen = Chosen {
                service: asked.service.clone(),
                kept: None,
            };
            return self.send(asked, &chosen, finishing, exchange).await;
        };
        if rule.invalid.is_some() {
            return Err(ReasonKind::BackendInvalid.into());
        }
        finishing.rule = Some(Arc::clone(&rule));
        let port = asked.service.1;
        let place = Place { prefix, port };
        match apply_request(&rule.filters, &mut asked.parts, place) {
            Flow::Continue(pending) => finishing.of_rule = pending,
            Flow::Reply(response) => return Ok(Sent::whole(response.map(|()| Body::empty()))),
            Flow::Fail(reason) => return Err(reason.into()),
        }
        let (chosen, index) = choose(&asked, &rule)?;
        self.copy(&mut asked, &rule.filters, &rule.label);
        match apply_request(&rule.backends[index].filters, &mut asked.parts, place) {
            Flow::Continue(pending) => finishing.backend = Some((index, pending)),
            Flow::Reply(response) => return Ok(Sent::whole(response.map(|()| Body::empty()))),
            Flow::Fail(reason) => return Err(reason.into()),
        }
        if chosen.service != asked.service {
            self.restrain(&asked, &chosen.service, Some(&rule), exchange)
                .await?;
        }
        self.copy(&mut asked, &rule.backends[index].filters, &rule.label);
        self.send(asked, &chosen, finishing, exchange).await
    }

    /// Rate limits and faults of a Service, for as long as the request may take.
    async fn restrain(
        &self,
        asked: &Asked,
        of: &ServicePort,
        rule: Option<&CompiledRule>,
        exchange: &Exchange,
    ) -> Result<(), Refused> {
        let table = &asked.table;
        let settings = table.traffic(&of.0, of.1);
        if settings.rate_limits.is_empty() && settings.faults.is_empty() {
            return Ok(());
        }
        let (dialled, port) = &asked.service;
        let policy = is_timed_by(table, rule, of, &asked.service)
            .then(|| table.timeouts((dialled, *port), &settings));
        let headers = &asked.parts.headers;
        let until = until_answered(rule, policy.as_ref(), headers, exchange);
        let label = rule.map(|rule| &*rule.label);
        in_time(until, self.hold_back(&settings, of, label, &asked.parts)).await
    }

    async fn hold_back(
        &self,
        settings: &TrafficSettings,
        (service, port): &ServicePort,
        rule: Option<&str>,
        parts: &Parts,
    ) -> Result<(), Refused> {
        let path = normal_path(parts.uri.path()).ok();
        if !settings.rate_limits.is_empty() {
            let counted = Counted {
                service,
                port: *port,
                client: &self.dialler.client.pod.identity,
                rule,
                path: path.as_deref(),
                parts,
            };
            let now = tokio::time::Instant::now().into_std();
            let limits = &self.dialler.shared.limits;
            limits.count(&settings.rate_limits, counted, now)?;
            let Dialler {
                shared,
                client,
                peer,
            } = &self.dialler;
            let asker = (shared, client);
            count_globally(&settings.rate_limits, counted, peer.ip(), asker).await?;
        }
        let head = (&parts.method, path.as_deref(), &parts.headers);
        let injected = fault::injected(&settings.faults, head, rand::random);
        if let Some(delay) = injected.delay {
            tokio::time::sleep(delay).await;
        }
        let Some(abort) = injected.abort else {
            return Ok(());
        };
        let (status, grpc) = fault::status(abort);
        Err(Refused {
            reason: ReasonKind::FaultInjected.into(),
            status,
            grpc,
            retry_after: None,
        })
    }

    /// Sends the request to the back end that was chosen.
    async fn send(
        &self,
        asked: Asked,
        chosen: &Chosen,
        finishing: &mut Finishing,
        exchange: &mut Exchange,
    ) -> Result<Sent, Refused> {
        let Asked {
            table,
            service: dialled,
            mut parts,
            mut body,
        } = asked;
        let (service, port) = &chosen.service;
        let protocol = table.service_protocol(service, *port);
        if protocol == AppProtocol::Grpc {
            finishing.web = grpc_web::translate_request(&mut parts);
        }
        if let Some(call) = &finishing.web
            && call.request == Encoding::Text
        {
            body = Body::decoded(Decoded::new(body));
        }
        let version = version_for(protocol, &parts);
        headers::send(&mut parts, version, body.is_end_stream())?;
        let target = Target {
            table: &table,
            dialled: &dialled,
            service: &chosen.service,
            rule: finishing.rule.as_deref(),
            kept: chosen.kept,
            version,
        };
        let (sent, address) = self.try_all(&target, parts, body, exchange).await?;
        if let Some(rule) = &finishing.rule
            && rule.session.is_some()
            && chosen.kept != Some(address)
        {
            let scope = scope(rule, service);
            finishing.session = Some(Token::issue(
                scope,
                endpoint(&table, address),
                since_1970().as_secs(),
            ));
        }
        Ok(sent)
    }
}

impl Finishing {
    /// Makes the client's answer of a back end's, or of our own.
    fn finish(self, mut sent: Sent, exchange: &Exchange) -> Sent {
        let (mut parts, mut body) = sent.response.into_parts();
        if let Some(rule) = &self.rule {
            if let Some((index, pending)) = &self.backend {
                apply_response(&rule.backends[*index].filters, &mut parts, pending);
            }
            apply_response(&rule.filters, &mut parts, &self.of_rule);
            if let Some((token, session)) = self.session.zip(rule.session.as_ref()) {
                token.write(session, &rule.label, &mut parts.headers);
            }
        }
        if exchange.retries > 0 {
            let retries = HeaderValue::from(exchange.retries);
            let _before = parts.headers.insert(FAIRLEAD_RETRIES, retries);
        }
        if let Some(call) = &self.web
            && call.translate_response(&mut parts)
        {
            body = Body::encoded(Encoded::new(body, call.response));
        }
        sent.response = http::Response::from_parts(parts, body);
        sent
    }
}

/// What is spoken with a Service: what its port declares, else what the client speaks.
/// What a client of HTTP/1.1 asks of its connection can't go on in HTTP/2.
pub(super) fn version_for(declared: AppProtocol, parts: &Parts) -> upstream::Version {
    let of_connection = parts.method == Method::CONNECT || headers::wants_upgrade(parts);
    match declared {
        AppProtocol::Http1 if headers::is_extended(&parts.extensions) => upstream::Version::Http1,
        _ if parts.version >= Version::HTTP_2 => upstream::Version::Http2,
        AppProtocol::Grpc | AppProtocol::Http2 if !of_connection => upstream::Version::Http2,
        _ => upstream::Version::Http1,
    }
}

/// A server that takes no WebSocket in HTTP/2 may take it in HTTP/1.1: nobody has declared
/// that it speaks HTTP/2.
pub(super) fn falls_back(declared: AppProtocol) -> bool {
    !matches!(declared, AppProtocol::Http2 | AppProtocol::Grpc)
}

/// The timeouts of a request to `dialled` that has come to the limits of this Service are this
/// one's, whichever back end it will have.
fn is_timed_by(
    table: &Table,
    rule: Option<&CompiledRule>,
    of: &ServicePort,
    dialled: &ServicePort,
) -> bool {
    let is_it = |target: &BackendTarget| match target {
        BackendTarget::Service { service, port } => {
            (service, port) == (&of.0, &of.1) || !table.traffic(service, *port).has_timeouts
        }
        BackendTarget::Invalid(_) => false,
    };
    of != dialled || rule.is_none_or(|rule| rule.backends.iter().all(|it| is_it(&it.target)))
}

/// The rule that the request is for; none where the Service has no routes.
fn find(asked: &Asked, namespace: &str) -> Result<Option<Matched>, Refused> {
    let (service, port) = &asked.service;
    let Some(routes) = asked.table.routes(namespace, service, *port) else {
        return Ok(None);
    };
    let parts = &asked.parts;
    let head = RequestHead {
        method: &parts.method,
        path: parts.uri.path(),
        query: parts.uri.query(),
        host: headers::host(parts),
        headers: &parts.headers,
    };
    let matched = routes.find(&head);
    matched.map(Some).ok_or_else(|| ReasonKind::NoRoute.into())
}

/// The back end of the client's session, else one by weight.
fn choose(asked: &Asked, rule: &CompiledRule) -> Result<(Chosen, usize), Refused> {
    if let Some(kept) = kept(asked, rule) {
        return Ok(kept);
    }
    let index = rule
        .choose_index(rand::random())
        .ok_or_else(|| Reason::new(ReasonKind::BackendInvalid, "the route has no back end"))?;
    match &rule.backends[index].target {
        BackendTarget::Invalid(_) => Err(ReasonKind::BackendInvalid.into()),
        BackendTarget::Service { service, port } => {
            let chosen = Chosen {
                service: (service.clone(), *port),
                kept: None,
            };
            Ok((chosen, index))
        }
    }
}

/// The back end and the endpoint of the session that the client names, whatever the weights.
fn kept(asked: &Asked, rule: &CompiledRule) -> Option<(Chosen, usize)> {
    let session = rule.session.as_ref()?;
    let token = Token::of(session, &rule.label, &asked.parts.headers)?;
    if !token.is_current(session, since_1970().as_secs()) {
        return None;
    }
    let endpoints = &asked.table.snapshot().endpoints;
    rule.backends
        .iter()
        .enumerate()
        .find_map(|(index, backend)| {
            let BackendTarget::Service { service, port } = &backend.target else {
                return None;
            };
            let key = (service.clone(), *port);
            let addresses = endpoints
                .get(&key)?
                .iter()
                .map(|it| SocketAddr::new(it.ip, it.port));
            let scope = scope(rule, service);
            let is_it = |address: &SocketAddr| token.names(scope, endpoint(&asked.table, *address));
            let kept = addresses.into_iter().find(is_it)?;
            let chosen = Chosen {
                service: key,
                kept: Some(kept),
            };
            Some((chosen, index))
        })
}

fn scope<'a>(rule: &'a CompiledRule, service: &'a NamespacedName) -> Scope<'a> {
    Scope {
        rule: &rule.label,
        service,
    }
}

fn endpoint(table: &Table, address: SocketAddr) -> Endpoint<'_> {
    let pod = table.pod_by_ip(address.ip());
    Endpoint {
        address,
        uid: pod.map_or("", |pod| &pod.uid),
    }
}
