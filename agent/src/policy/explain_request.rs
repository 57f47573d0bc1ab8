//! Every step of a request, for people: protocol, route, filters, back end, traffic policy.
//! What each server makes of it is in [`super::explain`].

use std::collections::BTreeSet;

use http::Method;

use super::authorization::PathUse;
use super::explain::{Resolved, outcome, unrouted};
use super::explain_effects::{Asked, Effects, effects, rule_limits};
use super::explain_traffic::{timeouts, traffic};
use super::explanation::{
    BackendStep, Candidate, Outcome, RequestSteps, RuleCandidate, Server, Verdict,
};
use super::http::{BackendTarget, CompiledRule, Matched};
use super::protocol::AppProtocol;
use super::request::HttpRequest;
use super::table::Table;
use super::target::Target;
use crate::model::{NamespacedName, normal_path};
use crate::state::{Pod, RouteKind};

/// What became of it.
pub(super) struct Followed {
    pub(super) steps: RequestSteps,
    pub(super) candidates: Vec<Candidate>,
    pub(super) servers: Vec<Server>,
    pub(super) outcome: Outcome,
}

/// Which rule the request is for.
enum Routed {
    /// The destination itself.
    Straight,
    Rule(Matched),
    /// The rule of the connection.
    Connection(std::sync::Arc<CompiledRule>),
    Nowhere,
}

impl Table {
    /// Follows a request from the client to the servers that may get it.
    pub(super) fn follow(
        &self,
        client: &Pod,
        target: &Target,
        resolved: Resolved,
        mut asked: Asked,
    ) -> Followed {
        asked.dialled = resolved.service.clone().zip(resolved.port);
        let (protocol, said) = self.spoken(target, &resolved);
        let mut steps = RequestSteps {
            method: asked.method.to_string(),
            path: match &asked.query {
                Some(query) => format!("{}?{query}", asked.path),
                None => asked.path.clone(),
            },
            host: asked.host.clone(),
            protocol: said,
            looked_at: !matches!(protocol, AppProtocol::Opaque | AppProtocol::Tls),
            routes: String::new(),
            rules: Vec::new(),
            more_rules: 0,
            filters: Vec::new(),
            backends: Vec::new(),
        };
        if resolved.unavailable.is_some() {
            steps.routes.push_str("it does not come so far");
            let end = (Vec::new(), outcome(&resolved, &[]));
            return Followed::straight(steps, resolved, end);
        }
        if let Some(why) = unrouted(client, target) {
            steps.routes = format!("{why}, so no route or TrafficPolicy is looked at");
            let end = self.reached(client, &resolved, target, &asked);
            return Followed::straight(steps, resolved, end);
        }
        match self.routed(client, &resolved, &asked, &mut steps) {
            Routed::Straight => {
                let end = self.reached(client, &resolved, target, &asked);
                if let (Some(service), Some(port)) = (&resolved.service, resolved.port) {
                    let share = (service.clone(), port, 100);
                    let step = self.backend(share, &asked, Vec::new(), &resolved.candidates);
                    steps.backends.push(step);
                }
                Followed::straight(steps, resolved, end)
            }
            Routed::Nowhere => {
                let answered = answered(404, "no_route");
                Followed::ended(steps, answered)
            }
            Routed::Rule(Matched { rule, prefix }) => {
                self.along(client, target, (&rule, prefix), (asked, steps))
            }
            Routed::Connection(rule) => {
                let prefix = asked.path.len();
                self.along(client, target, (&rule, prefix), (asked, steps))
            }
        }
    }

    /// What is spoken on the port, and a sentence that says who says so.
    fn spoken(&self, target: &Target, resolved: &Resolved) -> (AppProtocol, String) {
        let (place, protocol) = match (&resolved.service, resolved.port, target) {
            (Some(service), Some(port), _) => (
                format!("port {port} of Service {service}"),
                self.service_protocol(service, port),
            ),
            (_, _, Target::Pod(pod, port)) => (
                format!("port {port} of pod {}", pod.name),
                self.pod_protocol(pod, *port),
            ),
            (_, _, Target::Address(address)) => {
                let pod = self.pod_by_ip(address.ip());
                let protocol = pod.map(|pod| self.pod_protocol(pod, address.port()));
                (address.to_string(), protocol.unwrap_or_default())
            }
            (_, _, Target::Service(service, port)) => (
                format!("port {port} of Service {}", service.name),
                AppProtocol::Detect,
            ),
        };
        let declared = |what: &str| format!("{place} is declared to speak {what}");
        let said = match protocol {
            AppProtocol::Detect => format!(
                "nothing says what is spoken on {place}: the client's first bytes tell that it \
                 is HTTP"
            ),
            AppProtocol::Opaque => format!(
                "{place} is declared opaque: requests are not looked at, only the connection"
            ),
            AppProtocol::Http1 => declared("HTTP/1.1"),
            AppProtocol::Http2 => declared("HTTP/2"),
            AppProtocol::Grpc => declared("gRPC"),
            AppProtocol::Tls => format!(
                "{place} is declared to speak TLS of the application's own: requests can't be \
                 looked at, only the connection"
            ),
        };
        (protocol, said)
    }

    /// The rule that the request is for; fills in whose routes hold and which match.
    fn routed(
        &self,
        client: &Pod,
        resolved: &Resolved,
        asked: &Asked,
        steps: &mut RequestSteps,
    ) -> Routed {
        let (Some(service), Some(port)) = (&resolved.service, resolved.port) else {
            steps
                .routes
                .push_str("no Service is dialled, so no route holds");
            return Routed::Straight;
        };
        let own = &client.name.namespace;
        let in_force = self.snapshot().routes_in_force(service);
        let of = |namespace: &str| in_force.get(namespace)?.get(&port).map(|it| it.kind);
        let found = of(own).map(|kind| (kind, own));
        let found = found.or_else(|| Some((of(&service.namespace)?, &service.namespace)));
        let Some((kind, namespace)) = found else {
            steps.routes = format!("no route is for port {port} of Service {service}");
            return Routed::Straight;
        };
        let whose = if *namespace == service.namespace {
            format!("of namespace {namespace}")
        } else {
            format!("of the client's own namespace {namespace}, for it alone")
        };
        let kind_name = kind.object().as_str();
        if matches!(kind, RouteKind::Tls | RouteKind::Tcp) {
            steps.routes = format!("{kind_name}s {whose} decide on the connection");
            let routes = self.connection_routes(own, service, port);
            let rule = routes.and_then(|it| it.find(None).cloned());
            return rule.map_or(Routed::Nowhere, Routed::Connection);
        }
        if !steps.looked_at {
            steps.routes = format!("{kind_name}s {whose} hold, but requests are not looked at");
            return Routed::Straight;
        }
        steps.routes = format!("{kind_name}s {whose} hold");
        let Some(routes) = self.routes(own, service, port) else {
            return Routed::Straight;
        };
        (steps.rules, steps.more_rules) = routes.explain(&asked.head());
        routes
            .find(&asked.head())
            .map_or(Routed::Nowhere, Routed::Rule)
    }

    /// Follows the request along a rule.
    fn along(
        &self,
        client: &Pod,
        target: &Target,
        (rule, prefix): (&CompiledRule, usize),
        (asked, mut steps): (Asked, RequestSteps),
    ) -> Followed {
        if let Some(invalid) = &rule.invalid {
            let why = format!("the rule was not understood, so it answers 500: {invalid}");
            steps.filters.push(why);
            return Followed::ended(steps, answered(500, "backend_invalid"));
        }
        let Effects {
            said,
            asked,
            answer,
        } = effects(&rule.filters, asked, prefix);
        steps.filters = said;
        steps.filters.extend(rule_limits(rule));
        if let Some((status, why)) = answer {
            return Followed::ended(steps, answered(status, &why));
        }
        let sum: u64 = rule.backends.iter().map(|it| u64::from(it.weight)).sum();
        let mut ends = Ends::default();
        for backend in rule.backends.iter().filter(|it| it.weight > 0) {
            let percent = u64::from(backend.weight) * 100 / sum;
            let percent = u32::try_from(percent).unwrap_or(100);
            let (service, port) = match &backend.target {
                BackendTarget::Service { service, port } => (service.clone(), *port),
                BackendTarget::Invalid(why) => {
                    steps.backends.push(BackendStep::invalid(percent, why));
                    ends.outcomes.push(answered(500, "backend_invalid"));
                    continue;
                }
            };
            let own = effects(&backend.filters, asked.clone(), prefix);
            let resolved = self.resolve_backend(&service, port);
            let share = (service, port, percent);
            let step = self.backend(share, &own.asked, own.said, &resolved.candidates);
            steps.backends.push(step);
            let outcome = if let Some((status, why)) = own.answer {
                answered(status, &why)
            } else {
                let (servers, outcome) = self.reached(client, &resolved, target, &own.asked);
                ends.servers.extend(servers);
                outcome
            };
            ends.candidates.extend(resolved.candidates);
            ends.outcomes.push(outcome);
        }
        if ends.outcomes.is_empty() {
            return Followed::ended(steps, answered(500, "backend_invalid"));
        }
        ends.followed(steps)
    }

    fn backend(
        &self,
        (service, port, percent): (NamespacedName, u16, u32),
        asked: &Asked,
        filters: Vec<String>,
        candidates: &[Candidate],
    ) -> BackendStep {
        let settings = self.traffic(&service, port);
        let mut step = traffic(&settings, Some(asked.seen()));
        if let Some((dialled, port)) = &asked.dialled
            && !settings.has_timeouts
        {
            let given = timeouts(&self.timeouts((dialled, *port), &settings));
            step.settings
                .extend(given.map(|line| format!("{line}, as {dialled} has them")));
        }
        BackendStep {
            traffic: Some(step),
            service: Some(service),
            port,
            percent,
            invalid: None,
            filters,
            candidates: candidates.to_vec(),
        }
    }

    /// What the servers that can be chosen make of the request, and the end of it.
    fn reached(
        &self,
        client: &Pod,
        resolved: &Resolved,
        target: &Target,
        asked: &Asked,
    ) -> (Vec<Server>, Outcome) {
        let path = match normal_path(&asked.path) {
            Ok(path) => path,
            Err(why) if self.decides_by_paths(resolved) => {
                return (Vec::new(), answered(400, &format!("bad_request: {why}")));
            }
            Err(_ignored) => asked.path.as_str().into(),
        };
        let http = HttpRequest {
            method: &asked.method,
            path: (asked.method != Method::CONNECT).then_some(&path),
            host: &asked.host,
            headers: &asked.headers,
            claims: None,
        };
        let servers = self.servers(client, &resolved.candidates, target, Some(&http));
        let outcome = outcome(resolved, &servers);
        (servers, outcome)
    }

    /// A policy of one of the servers looks at paths, and so refuses what it can't compare.
    fn decides_by_paths(&self, resolved: &Resolved) -> bool {
        let usable = resolved
            .candidates
            .iter()
            .filter(|it| it.skipped.is_empty());
        let mut pods = usable.filter_map(|it| self.pod_by_ip(it.address.ip()));
        pods.any(|pod| pod.enrolled && self.inbound(&pod.name).paths() == PathUse::Decides)
    }

    /// What the servers that can be chosen make of the connection, or of the request.
    pub(super) fn servers(
        &self,
        client: &Pod,
        candidates: &[Candidate],
        target: &Target,
        http: Option<&HttpRequest<'_>>,
    ) -> Vec<Server> {
        let usable = candidates.iter().filter(|it| it.skipped.is_empty());
        usable
            .filter_map(|candidate| self.server(client, candidate, target, http))
            .collect()
    }
}

/// What of several back ends comes together.
#[derive(Default)]
struct Ends {
    candidates: Vec<Candidate>,
    servers: Vec<Server>,
    outcomes: Vec<Outcome>,
}

impl Ends {
    fn followed(self, steps: RequestSteps) -> Followed {
        let kind = |it: &Outcome| (format!("{:?}", it.verdict), it.reason.clone());
        let distinct: BTreeSet<_> = self.outcomes.iter().map(kind).collect();
        let first = self.outcomes.into_iter().next();
        let outcome = match first {
            Some(first) if distinct.len() == 1 => first,
            _ => Outcome {
                verdict: Verdict::Depends,
                reason: Some("the back ends differ".to_owned()),
                policy: None,
                status: None,
            },
        };
        Followed {
            steps,
            candidates: self.candidates,
            servers: self.servers,
            outcome,
        }
    }
}

impl Followed {
    /// It goes where the connection would.
    fn straight(
        steps: RequestSteps,
        resolved: Resolved,
        (servers, outcome): (Vec<Server>, Outcome),
    ) -> Self {
        Self {
            steps,
            outcome,
            candidates: resolved.candidates,
            servers,
        }
    }

    /// It comes to no server.
    fn ended(steps: RequestSteps, outcome: Outcome) -> Self {
        Self {
            steps,
            candidates: Vec::new(),
            servers: Vec::new(),
            outcome,
        }
    }
}

impl BackendStep {
    fn invalid(percent: u32, why: &str) -> Self {
        Self {
            service: None,
            port: 0,
            percent,
            invalid: Some(why.to_owned()),
            filters: Vec::new(),
            traffic: None,
            candidates: Vec::new(),
        }
    }
}

fn answered(status: u16, reason: &str) -> Outcome {
    Outcome {
        verdict: Verdict::Answered,
        reason: Some(reason.to_owned()),
        policy: None,
        status: Some(status),
    }
}

impl RuleCandidate {
    /// The rule that is taken, of those that were told of.
    pub fn taken(rules: &[Self]) -> Option<&Self> {
        rules.iter().find(|it| it.chosen)
    }
}
