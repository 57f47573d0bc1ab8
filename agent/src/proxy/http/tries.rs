//! The tries of one request: which endpoint, how it went, and whether to try another.
//!
//! ```text
//! pick ─► policy, if it is of this node ─► send ─┬─► answer ─► its body, in time
//!  ▲                                             └─► failed, or not to be passed on
//!  └────────────── wait ◄── plan, budget ◄────────────┘
//! ```

use std::convert::identity;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Request;
use http::request::Parts;
use http_body::Body as _;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::body::{Body, BodyError};
use super::deadline::{Deadline, Limits, write_grpc_timeout};
use super::forward::{Refused, ServicePort, falls_back};
use super::headers;
use super::lease::Limited;
use super::load::Load;
use super::outbound::{Outbound, Server, send};
use super::reason::{Reason, ReasonKind, word};
use super::record::Exchange;
use super::replay::{Replay, Reserve};
use super::retry::{Again, Ended, Plan};
use super::session::unanswered;
use super::timed::{Timed, TimedOut};
use super::upstream::{self, Exit, Failed, Sent, Why};
use crate::policy::balance::{Ask, Balancer, Picked, Refusal, RetryGuard, hash_of};
use crate::policy::traffic::TrafficSettings;
use crate::policy::{CompiledRule, Table};
use crate::proxy::account::{Account, Held};
use crate::proxy::outcome::Outcome;
use crate::proxy::reach::Way;

/// The longest that a client is told to stay away for want of endpoints: a new one may be there
/// long before one that was left out is back, and calls of gRPC wait as they are told. 30
/// seconds, as [`Refused::answer`] rounds.
const BACK: Duration = Duration::from_millis(29_999);

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) table: &'a Table,
    /// What was dialled.
    pub(super) dialled: &'a ServicePort,
    pub(super) service: &'a ServicePort,
    pub(super) rule: Option<&'a CompiledRule>,
    /// The endpoint of the client's session.
    pub(super) kept: Option<SocketAddr>,
    pub(super) version: upstream::Version,
}

/// A request that may be needed again.
enum Source {
    /// For as long as nobody has read of it.
    Once(Option<Box<Request<Body>>>),
    /// Its head, and its body if it has one.
    Again(Box<Parts>, Option<Replay<Body, Held>>),
}

/// How a try ended.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one")]
enum Tried {
    Answered {
        sent: Sent,
        picked: Picked,
        begun: Instant,
        /// Until the head had come.
        latency: Duration,
    },
    Failed {
        failure: Failure,
        /// If nobody has read of it.
        request: Option<Box<Request<Body>>>,
    },
}

/// Why there is no answer.
enum Failure {
    /// It makes no difference which endpoint is asked.
    Final(Refused),
    At(SocketAddr, Why),
    TimedOut(SocketAddr, Duration),
}

/// Why an endpoint has not answered.
enum Unanswered {
    /// It was not asked.
    Refused(Reason),
    Failed(Failed),
}

/// What the tries of a request have in common.
struct Tries<'a> {
    outbound: &'a Outbound,
    target: &'a Target<'a>,
    balancer: &'a Balancer,
    plan: Plan<'a>,
    limits: Limits,
    hash: Option<u64>,
    /// Endpoints that have failed.
    failed: Vec<SocketAddr>,
}

impl Outbound {
    /// Sends a request until it is answered, or there is no use in trying again. The answer,
    /// and whose it is.
    pub(super) async fn try_all(
        &self,
        target: &Target<'_>,
        parts: Parts,
        body: Body,
        exchange: &mut Exchange,
    ) -> Result<(Sent, SocketAddr), Refused> {
        let (service, port) = target.service;
        let now = Instant::now();
        let dialler = &self.dialler;
        let clusters = &dialler.shared.clusters;
        let v6 = self.dialled.is_ipv6();
        let balancer = clusters.balancer(target.table, (service, *port), v6, now.into_std());
        let settings = balancer.settings();
        let route = target.rule.and_then(|rule| rule.retry.as_ref());
        let http2 = target.version == upstream::Version::Http2;
        let plan = Plan::new(&settings.retries, route, &parts.method);
        let (asked_for, at) = target.dialled;
        let timeouts = target.table.timeouts((asked_for, *at), &settings);
        let limits = Limits::new(target.rule, &timeouts, &parts.headers, exchange);
        let mut tries = Tries {
            outbound: self,
            target,
            balancer: &balancer,
            plan,
            limits: if headers::is_extended(&parts.extensions) {
                limits.until_switched()
            } else {
                limits
            },
            hash: hash(&settings, &parts, dialler.peer.ip()),
            failed: Vec::new(),
        };
        let most = dialler.shared.config.http.replay_bytes;
        let room = plan
            .keeps_body(http2)
            .then_some((most, &dialler.client.account));
        tries.run(Source::new(parts, body, room), exchange).await
    }
}

impl Tries<'_> {
    async fn run(
        &mut self,
        mut source: Source,
        exchange: &mut Exchange,
    ) -> Result<(Sent, SocketAddr), Refused> {
        let mut guard = None;
        loop {
            let request = source.next().ok_or(ReasonKind::UpstreamReset)?;
            let mut tried = self.once(request, exchange).await;
            if let Tried::Failed { request, .. } = &mut tried {
                source.put_back(request.take());
            }
            let wanted = exchange.retries < self.plan.attempts()
                && tried.ended().is_some_and(|ended| self.plan.repeats(ended))
                && source.can_repeat();
            let again = wanted.then(|| tried.again());
            let Some((granted, wait)) = self.granted(again, exchange.retries) else {
                source.settle();
                return self.settle(tried, guard, exchange);
            };
            guard = Some(granted);
            self.failed.extend(tried.address());
            // Before the pause: it is of no use, and others want its connection.
            tried.give_up(exchange.is_grpc());
            tokio::time::sleep(wait).await;
            exchange.retries += 1;
        }
    }

    fn falls_back(&self) -> bool {
        let (service, port) = self.target.service;
        falls_back(self.target.table.service_protocol(service, *port))
    }

    /// Another try, and the pause before it. `None`: there is none, because it is not wanted,
    /// here or by the server, or too many are being made already, or it would come too late.
    fn granted(&self, again: Option<Again>, before: u32) -> Option<(RetryGuard, Duration)> {
        let wait = self.plan.pause(before + 1, again?, rand::random())?;
        let now = Instant::now();
        if self.limits.head.is_some_and(|head| head.left(now) <= wait) {
            return None;
        }
        let guard = self.balancer.retry(now.into_std()).ok()?;
        Some((guard, wait))
    }

    /// The last try is what the client gets.
    fn settle(
        &self,
        tried: Tried,
        guard: Option<RetryGuard>,
        exchange: &mut Exchange,
    ) -> Result<(Sent, SocketAddr), Refused> {
        match tried {
            Tried::Failed { failure, .. } => Err(failure.refused()),
            Tried::Answered {
                mut sent,
                picked,
                begun,
                latency,
            } => {
                let address = picked.address();
                let grpc = exchange.is_grpc();
                let load = Load::answered(picked, guard, &sent.response, grpc, latency);
                exchange.load = Some(load);
                if sent.upgrade.is_none() {
                    let (whole, idle) = (self.limits.whole_of_try(begun), self.limits.idle);
                    let timed = |body| Timed::new(body, whole, idle, grpc);
                    let timed = |body| timed(body).map_or_else(identity, Body::timed);
                    sent.response = sent.response.map(timed);
                }
                Ok((sent, address))
            }
        }
    }

    /// One try.
    async fn once(&self, request: Request<Body>, exchange: &mut Exchange) -> Tried {
        let begun = Instant::now();
        let picked = match self.pick(begun) {
            Ok(picked) => picked,
            Err(refused) => return Tried::hopeless(refused),
        };
        let address = picked.address();
        let (service, _port) = self.target.service;
        let server = self
            .outbound
            .server(self.target.table, address, Some(service));
        let server = match server {
            Ok(server) => server,
            Err(reason) => return Tried::hopeless(reason.into()),
        };
        exchange.upstream = Some(address);
        exchange.ends = self.outbound.ends_at(&server);
        let until = self.limits.head_of_try(begun);
        let asking = self.ask(&server, request, begun, exchange);
        let asked = match until {
            Some(until) => timeout_at(until.at, asking).await,
            None => Ok(asking.await),
        };
        self.outbound.drop_begun();
        let (failure, request) = match asked {
            Ok(Ok(sent)) => return Tried::answered(sent, picked, begun),
            Ok(Err(Unanswered::Refused(reason))) => return Tried::hopeless(reason.into()),
            Ok(Err(Unanswered::Failed(failed))) => {
                (Failure::At(address, failed.why), failed.request)
            }
            Err(_elapsed) => (Failure::passed(&self.limits, address, until), None),
        };
        failure.sample(&picked, begun);
        Tried::Failed { failure, request }
    }

    /// Asks those who have a say about the endpoint, and then the endpoint itself.
    async fn ask(
        &self,
        server: &Server,
        request: Request<Body>,
        begun: Instant,
        exchange: &mut Exchange,
    ) -> Result<Sent, Unanswered> {
        let (mut parts, mut body) = request.into_parts();
        // A policy may change the head, for this server alone.
        let unchanged = matches!(server.way, Way::Local(_)).then(|| parts.clone());
        let outbound = self.outbound;
        let admitting = outbound.admit(server, &mut parts, &mut body, exchange);
        let admitted = admitting.await.map_err(Unanswered::Refused)?;
        if exchange.is_grpc()
            && let Some(whole) = self.limits.whole_of_try(begun)
        {
            write_grpc_timeout(&mut parts.headers, whole.left(Instant::now()));
        }
        let exit = Exit {
            upstreams: &outbound.dialler.client.upstreams,
            tasks: &outbound.dialler.shared.tasks,
            to: &server.to,
            version: self.target.version,
            falls_back: headers::is_extended(&parts.extensions) && self.falls_back(),
        };
        let dial = Limited {
            outbound,
            server,
            balancer: self.balancer,
        };
        let sending = send(&exit, Request::from_parts(parts, body), &dial, exchange);
        match sending.await {
            Ok(mut sent) => {
                server.answered(&admitted, sent.response.headers_mut());
                Ok(sent)
            }
            Err(Failed { why, request }) => {
                let request = request.map(|request| restore(request, unchanged));
                Err(Unanswered::Failed(Failed { why, request }))
            }
        }
    }

    fn pick(&self, now: Instant) -> Result<Picked, Refused> {
        if let Some(head) = self.limits.head
            && head.left(now).is_zero()
        {
            return Err(timed_out(head.after));
        }
        let first = self.failed.is_empty();
        let ask = Ask {
            client: &self.outbound.dialler.client.pod.name,
            hash: self.hash,
            prefer: self.target.kept.filter(|_| first),
            open: self.outbound.begun_at().filter(|_| first),
            exclude: &self.failed,
            random: rand::random(),
        };
        let picked = self.balancer.pick(&ask, now.into_std());
        picked.map_err(|refusal| match refusal {
            Refusal::NoEndpoints => {
                let back = self.balancer.next_return(now.into_std());
                Refused::until(ReasonKind::NoEndpoints, back.map(|it| it.min(BACK)))
            }
            Refusal::Overloaded => ReasonKind::Overloaded.into(),
            Refusal::CircuitOpen(circuit) => {
                Reason::new(ReasonKind::CircuitOpen, circuit.as_str()).into()
            }
        })
    }
}

impl Tried {
    fn answered(sent: Sent, picked: Picked, begun: Instant) -> Self {
        Self::Answered {
            sent,
            picked,
            begun,
            latency: begun.elapsed(),
        }
    }

    /// There is another try. The balancer is told of this one's answer; of a failure it was
    /// told at once.
    fn give_up(self, grpc: bool) {
        if let Self::Answered {
            sent,
            picked,
            latency,
            ..
        } = self
        {
            drop(Load::answered(picked, None, &sent.response, grpc, latency));
        }
    }

    fn hopeless(refused: Refused) -> Self {
        Self::Failed {
            failure: Failure::Final(refused),
            request: None,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Answered { picked, .. } => Some(picked.address()),
            Self::Failed { failure, .. } => match failure {
                Failure::Final(_) => None,
                Failure::At(address, _) | Failure::TimedOut(address, _) => Some(*address),
            },
        }
    }

    /// When the server wants to be asked again.
    fn again(&self) -> Again {
        match self {
            Self::Answered { sent, .. } => Again::said(sent.response.headers(), Timestamp::now()),
            Self::Failed { .. } => Again::Anytime,
        }
    }

    /// How it ended; `None`: in a way that another try does not change.
    fn ended(&self) -> Option<Ended<'_>> {
        let (why, request) = match self {
            Self::Answered { sent, .. } if sent.upgrade.is_some() => return None,
            Self::Answered { sent, .. } => {
                let response = &sent.response;
                return Some(match word(response.headers()) {
                    Some("connect_failed") => Ended::Unreached,
                    Some("upstream_reset") => Ended::Reset,
                    _ => Ended::Answered(response.status(), response.headers()),
                });
            }
            Self::Failed {
                failure: Failure::TimedOut(..),
                ..
            } => return Some(Ended::TimedOut),
            Self::Failed {
                failure: Failure::Final(_),
                ..
            } => return None,
            Self::Failed {
                failure: Failure::At(_, why),
                request,
            } => (why, request),
        };
        match why {
            Why::Connect(
                Outcome::Denied { .. } | Outcome::DeniedByPeer(_) | Outcome::CircuitOpen(_),
            )
            | Why::Client
            | Why::Slow
            | Why::Unsupported => None,
            Why::Connect(_) => Some(Ended::Unreached),
            Why::Reset(error) if is_refusal(error) => Some(Ended::Refused),
            _ if request.is_some() => Some(Ended::Refused),
            Why::Closed { .. } | Why::Reset(_) => Some(Ended::Reset),
        }
    }
}

impl Failure {
    /// Which of the two limits it was that has passed.
    fn passed(limits: &Limits, address: SocketAddr, until: Option<Deadline>) -> Self {
        let after = until.map(|until| until.after).unwrap_or_default();
        if limits.head.is_some_and(|head| Some(head) == until) {
            return Self::Final(timed_out(after));
        }
        Self::TimedOut(address, after)
    }

    /// Tells the balancer how the endpoint did.
    fn sample(&self, picked: &Picked, begun: Instant) {
        let why = match self {
            Self::Final(_) => return,
            Self::TimedOut(..) => None,
            Self::At(_, why) => Some(why),
        };
        let fault = !matches!(
            why,
            Some(
                Why::Client
                    | Why::Slow
                    | Why::Unsupported
                    | Why::Connect(
                        Outcome::Denied { .. } | Outcome::DeniedByPeer(_) | Outcome::CircuitOpen(_)
                    )
            )
        );
        if fault {
            let now = Instant::now();
            let failed = crate::policy::balance::Outcome::Failed;
            picked.sample(failed, now.duration_since(begun), now.into_std());
        }
    }

    fn refused(self) -> Refused {
        match self {
            Self::Final(refused) => refused,
            Self::At(_, why) => unanswered(&why).into(),
            Self::TimedOut(_, after) => timed_out(after),
        }
    }
}

impl Source {
    /// `room`: what may be kept of the body, so that the request can be sent again though
    /// somebody has read of it.
    fn new(parts: Parts, body: Body, room: Option<(usize, &std::sync::Arc<Account>)>) -> Self {
        let held = room.and_then(|(most, account)| Some((most, account.hold(0)?)));
        match held {
            None => Self::Once(Some(Box::new(Request::from_parts(parts, body)))),
            Some(_) if body.is_end_stream() => Self::Again(Box::new(parts), None),
            Some((most, held)) => {
                let replay = Replay::new(body, most, held);
                Self::Again(Box::new(parts), Some(replay))
            }
        }
    }

    /// The request, once more.
    fn next(&mut self) -> Option<Request<Body>> {
        let (parts, body) = match self {
            Self::Once(request) => return request.take().map(|request| *request),
            Self::Again(parts, None) => (parts, Body::empty()),
            Self::Again(parts, Some(replay)) => (parts, Body::replay(replay.next()?)),
        };
        Some(Request::from_parts((**parts).clone(), body))
    }

    fn put_back(&mut self, unread: Option<Box<Request<Body>>>) {
        if let Self::Once(request) = self {
            *request = unread;
        }
    }

    fn can_repeat(&self) -> bool {
        match self {
            Self::Once(request) => request.is_some(),
            Self::Again(_, replay) => replay.as_ref().is_none_or(Replay::can_repeat),
        }
    }

    /// There will be no other try.
    fn settle(&self) {
        if let Self::Again(_, Some(replay)) = self {
            replay.settle();
        }
    }
}

impl Reserve for Held {
    fn grow(&mut self, bytes: usize) -> bool {
        Held::grow(self, bytes)
    }
}

fn timed_out(after: Duration) -> Refused {
    TimedOut::Deadline(after).reason().into()
}

/// The request with the head that it had before a policy changed it.
fn restore(request: Box<Request<Body>>, unchanged: Option<Parts>) -> Box<Request<Body>> {
    match unchanged {
        Some(parts) => Box::new(Request::from_parts(parts, request.into_body())),
        None => request,
    }
}

/// The server says that it did not look at the request.
fn is_refusal(error: &BodyError) -> bool {
    match error {
        BodyError::Http2(error) => {
            let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
            error.is_remote() && (refused || error.is_go_away())
        }
        _ => false,
    }
}

fn hash(settings: &TrafficSettings, parts: &Parts, peer: IpAddr) -> Option<u64> {
    let hash = settings.load_balancing.hash.as_ref()?;
    hash_of(&hash.key, &parts.headers, parts.uri.query(), peer)
}
