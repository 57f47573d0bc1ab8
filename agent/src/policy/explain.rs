//! Every step of a decision, for people.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::authorization::{Compiled, Decision, Permission, Request};
use super::explain_effects::{Asked, asks};
use super::explanation::{
    Candidate, Explanation, MtlsStep, Outcome, PodSummary, PolicyStep, RequestQuestion, RuleStep,
    Server, Verdict,
};
use super::matching::{Subject, View};
use super::protocol::AppProtocol;
use super::request::HttpRequest;
use super::route::service_port;
use super::table::Table;
use super::target::{self, ExplainError, Target};
use crate::model::NamespacedName;
use crate::state::{MtlsMode, Pod, PolicyScope, Rule, Service};

/// The back ends that a destination leads to.
pub(super) struct Resolved {
    pub(super) service: Option<NamespacedName>,
    /// Of the Service.
    pub(super) port: Option<u16>,
    steps: Vec<String>,
    pub(super) candidates: Vec<Candidate>,
    /// Why there is none.
    pub(super) unavailable: Option<&'static str>,
}

impl Table {
    /// What would become of a connection from `source` (`namespace/pod` or a pod's
    /// address) to `destination` (`address:port`, `namespace/name:port`,
    /// `name.namespace:port`, or `name:port` in the source's namespace).
    pub fn explain(&self, source: &str, destination: &str) -> Result<Explanation, ExplainError> {
        let client = target::source(self, source)?;
        let target = target::destination(self, &client.name.namespace, destination)?;
        let resolved = self.resolve(&target);
        let servers = self.servers(client, &resolved.candidates, &target, None);
        let outcome = outcome(&resolved, &servers);
        Ok(Explanation {
            source: PodSummary::of(client),
            destination: destination.to_owned(),
            service: resolved.service,
            resolution: resolved.steps,
            candidates: resolved.candidates,
            servers,
            request: None,
            access_log: self.inbound(&client.name).access_log().explain(),
            outcome,
        })
    }

    /// The same of one request on such a connection.
    pub fn explain_request(
        &self,
        source: &str,
        destination: &str,
        question: &RequestQuestion,
    ) -> Result<Explanation, ExplainError> {
        let client = target::source(self, source)?;
        let target = target::destination(self, &client.name.namespace, destination)?;
        let asked = Asked::new(question, &target)?;
        let resolved = self.resolve(&target);
        let (service, resolution) = (resolved.service.clone(), resolved.steps.clone());
        let followed = self.follow(client, &target, resolved, asked);
        Ok(Explanation {
            source: PodSummary::of(client),
            destination: destination.to_owned(),
            service,
            resolution,
            candidates: followed.candidates,
            servers: followed.servers,
            request: Some(followed.steps),
            access_log: self.inbound(&client.name).access_log().explain(),
            outcome: followed.outcome,
        })
    }

    fn resolve(&self, target: &Target) -> Resolved {
        match target {
            Target::Service(service, port) => {
                let found = format!("Service {} by name", service.name);
                self.resolve_service(service, *port, None, found)
            }
            Target::Pod(pod, port) => self.resolve_pod(pod, *port),
            Target::Address(address) => self.resolve_address(*address),
        }
    }

    /// The endpoints of a back end of a route.
    pub(super) fn resolve_backend(&self, service: &NamespacedName, port: u16) -> Resolved {
        match self.snapshot().services.get(service) {
            Some(service) => self.resolve_service(service, port, None, String::new()),
            None => Resolved {
                service: Some(service.clone()),
                port: Some(port),
                steps: Vec::new(),
                candidates: Vec::new(),
                unavailable: Some("no_endpoints"),
            },
        }
    }

    fn resolve_address(&self, address: SocketAddr) -> Resolved {
        let ip = address.ip();
        if let Some(service) = self.snapshot().services_by_ip.get(&ip) {
            let found = format!("{ip} is a cluster address of Service {}", service.name);
            return self.resolve_service(service, address.port(), Some(ip), found);
        }
        match self.exposed(address) {
            Ok(Some((service, port))) => {
                let found = format!(
                    "{address} is where Service {} is reached from outside the cluster",
                    service.name
                );
                return self.resolve_service(service, port.port, Some(ip), found);
            }
            Err(several) => {
                let names: Vec<String> = several.iter().map(ToString::to_string).collect();
                let names = names.join(" and ");
                return Resolved {
                    service: None,
                    port: None,
                    steps: vec![format!("{address} is claimed by Services {names}")],
                    candidates: Vec::new(),
                    unavailable: Some("address_contested"),
                };
            }
            Ok(None) => {}
        }
        let candidate = self.candidate(address, true, &address.ip());
        let step = match (&candidate.pod, candidate.skipped.is_empty()) {
            (Some(pod), _) => format!("{ip} is the address of pod {pod}"),
            (None, true) => format!("{ip} is neither a Service's nor a pod's address"),
            (None, false) => format!("{ip} is {}", candidate.skipped),
        };
        let unavailable = (!candidate.skipped.is_empty()).then_some("address_contested");
        Resolved {
            service: None,
            port: None,
            steps: vec![step],
            candidates: vec![candidate],
            unavailable,
        }
    }

    fn resolve_pod(&self, pod: &Pod, port: u16) -> Resolved {
        match pod.ips.first() {
            Some(ip) => self.resolve_address(SocketAddr::new(*ip, port)),
            None => Resolved {
                service: None,
                port: None,
                steps: vec![format!("pod {} has no address", pod.name)],
                candidates: Vec::new(),
                unavailable: Some("no_endpoints"),
            },
        }
    }

    fn resolve_service(
        &self,
        service: &Service,
        port: u16,
        dialled: Option<IpAddr>,
        found: String,
    ) -> Resolved {
        let mut steps = vec![found];
        let resolved = |steps, candidates, unavailable| Resolved {
            service: Some(service.name.clone()),
            port: Some(port),
            steps,
            candidates,
            unavailable,
        };
        let Some(service_port) = service_port(service, port) else {
            let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
            steps.push(format!(
                "it has no TCP port {port}, only: {}",
                ports.join(", ")
            ));
            return resolved(steps, Vec::new(), Some("unknown_port"));
        };
        let endpoints = self.endpoints(service, service_port);
        // By name, the resolver hands the application a cluster address first, or, of
        // a headless Service, whichever pod's.
        let family = dialled.or_else(|| service.cluster_ips.first().copied());
        let candidates: Vec<Candidate> = endpoints
            .iter()
            .map(|endpoint| {
                let address = SocketAddr::new(endpoint.ip, endpoint.port);
                self.candidate(address, endpoint.ready, &family.unwrap_or(endpoint.ip))
            })
            .collect();
        let usable = candidates.iter().filter(|c| c.skipped.is_empty()).count();
        let all = candidates.len();
        steps.push(format!("{usable} of its {all} endpoints can be chosen"));
        let unavailable = (usable == 0).then_some("no_endpoints");
        resolved(steps, candidates, unavailable)
    }

    fn candidate(&self, address: SocketAddr, ready: bool, family: &IpAddr) -> Candidate {
        let ip = address.ip();
        let skipped = if let Some(owners) = self.snapshot().contested.get(&ip) {
            let owners: Vec<String> = owners.iter().map(ToString::to_string).collect();
            format!("claimed by {}", owners.join(" and "))
        } else if !ready {
            "not ready".to_owned()
        } else if ip.is_ipv4() != family.is_ipv4() {
            "of the other address family".to_owned()
        } else {
            String::new()
        };
        Candidate {
            address,
            ready,
            pod: self.pod_by_ip(ip).map(|pod| pod.name.clone()),
            skipped,
        }
    }

    pub(super) fn server(
        &self,
        client: &Pod,
        candidate: &Candidate,
        target: &Target,
        http: Option<&HttpRequest<'_>>,
    ) -> Option<Server> {
        let pod = self.pod_by_ip(candidate.address.ip())?;
        let port = candidate.address.port();
        let bypass = bypass(client, pod, port, target);
        let encrypted = bypass.is_none();
        let policy = self.inbound(&pod.name);
        let request = Request {
            peer: encrypted.then_some(&client.identity),
            client_ip: client_ip(client, pod),
            port,
            encrypted,
        };
        let unenforced = if !pod.enrolled {
            format!(
                "pod {} is not enrolled, so that nothing is enforced there",
                pod.name
            )
        } else if pod.exclude_inbound_ports.contains(&port) {
            format!("pod {} excludes port {port} from the mesh", pod.name)
        } else {
            String::new()
        };
        let spoken = self.pod_protocol(pod, port);
        let http = http.filter(|_| !matches!(spoken, AppProtocol::Opaque | AppProtocol::Tls));
        let decision = match http {
            Some(http) => policy.authorize_request(&request, http),
            None => policy.authorize(&request),
        };
        let mode = policy.mode(port);
        let policies = self.policies_in_reach(&pod.name.namespace);
        let same_node = client.node.is_some() && client.node == pod.node;
        Some(Server {
            pod: PodSummary::of(pod),
            port,
            transport: match (encrypted, same_node) {
                (false, _) => "plaintext",
                (true, true) => "same node",
                (true, false) => "mtls",
            }
            .into(),
            plaintext_because: bypass.map(Into::into),
            mtls: MtlsStep {
                mode: if pod.enrolled {
                    mode.mode
                } else {
                    MtlsMode::Permissive
                },
                policy: mode.policy.clone(),
            },
            policies: policies
                .map(|policy| self.step(policy, pod, &request, http))
                .collect(),
            asks: http.map_or_else(Vec::new, |http| {
                asks(self.snapshot(), &policy, &request, http)
            }),
            decision: unenforced.is_empty().then_some(decision),
            unenforced,
            access_log: policy.access_log().explain(),
        })
    }

    fn step(
        &self,
        policy: &Compiled,
        pod: &Pod,
        request: &Request<'_>,
        http: Option<&HttpRequest<'_>>,
    ) -> PolicyStep {
        let source = &policy.source;
        let selects = self.selects(&source.name.namespace, &source.scope, pod);
        let view = View::of(source.action);
        let subject = Subject::new(request, http);
        let rules = source.rules.iter().enumerate().filter(|_| selects);
        PolicyStep {
            policy: Arc::clone(&policy.name),
            action: source.action,
            dry_run: source.dry_run,
            selects,
            scope: scope(&source.scope, &source.name.namespace),
            invalid: source.invalid.clone(),
            rules: rules
                .map(|(index, rule)| rule_step(index, rule, &subject, view))
                .collect(),
        }
    }
}

/// Why the connection is not carried by the mesh; `None` where it is.
fn bypass(client: &Pod, server: &Pod, port: u16, target: &Target) -> Option<&'static str> {
    if !client.enrolled {
        Some("the client is not enrolled")
    } else if !server.enrolled {
        Some("the server is not enrolled")
    } else if excludes(client, target) {
        Some("the client excludes the destination")
    } else if server.exclude_inbound_ports.contains(&port) {
        Some("the server excludes the port")
    } else {
        None
    }
}

/// Why the client's requests are not looked at on its node; `None` where they are.
pub(super) fn unrouted(client: &Pod, target: &Target) -> Option<&'static str> {
    if client.enrolled {
        excludes(client, target).then_some("the client excludes the destination")
    } else {
        Some("the client is not enrolled")
    }
}

/// The client's annotations keep the destination out of the mesh.
fn excludes(client: &Pod, target: &Target) -> bool {
    let dialled_port = target.port();
    let excluded_ips = |ip: &IpAddr| client.exclude_outbound_cidrs.iter().any(|c| c.contains(ip));
    let excluded_ip = match target {
        Target::Service(service, _) => service.cluster_ips.first().is_some_and(excluded_ips),
        Target::Pod(pod, _) => pod.ips.first().is_some_and(excluded_ips),
        Target::Address(address) => excluded_ips(&address.ip()),
    };
    client.exclude_outbound_ports.contains(&dialled_port) || excluded_ip
}

/// The client's address of the server's family.
fn client_ip(client: &Pod, server: &Pod) -> IpAddr {
    let v4 = server.ips.first().is_none_or(IpAddr::is_ipv4);
    let same_family = client.ips.iter().find(|ip| ip.is_ipv4() == v4);
    let any = same_family.or(client.ips.first()).copied();
    any.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
}

fn scope(scope: &PolicyScope, namespace: &str) -> String {
    match scope {
        PolicyScope::Mesh => "the whole mesh".to_owned(),
        PolicyScope::Pods(selector) if selector.0.is_empty() => {
            format!("every pod of namespace {namespace}")
        }
        PolicyScope::Pods(selector) => {
            let labels = selector
                .0
                .iter()
                .map(|(key, value)| format!("{key}={value}"));
            let labels: Vec<String> = labels.collect();
            format!("pods of namespace {namespace} with {}", labels.join(", "))
        }
        PolicyScope::Services(services) => {
            format!(
                "pods of namespace {namespace} behind {}",
                services.join(", ")
            )
        }
    }
}

fn rule_step(index: usize, rule: &Rule, subject: &Subject<'_>, view: View) -> RuleStep {
    let (matches, why) = subject.explain(rule, view);
    RuleStep {
        index,
        matches,
        why,
    }
}

pub(super) fn outcome(resolved: &Resolved, servers: &[Server]) -> Outcome {
    let plain = |verdict, reason: Option<&str>| Outcome {
        verdict,
        reason: reason.map(str::to_owned),
        policy: None,
        status: None,
    };
    if let Some(reason) = resolved.unavailable {
        return plain(Verdict::Unavailable, Some(reason));
    }
    let Some(first) = servers.first() else {
        return plain(Verdict::Passthrough, None);
    };
    let verdicts = servers
        .iter()
        .map(|server| verdict(server.decision.as_ref()));
    let distinct: BTreeSet<&str> = verdicts.map(|(_, word)| word).collect();
    if distinct.len() > 1 {
        return plain(Verdict::Depends, Some("the back ends differ"));
    }
    let (verdict, word) = verdict(first.decision.as_ref());
    Outcome {
        verdict,
        reason: (verdict == Verdict::Denied).then(|| word.to_owned()),
        policy: first
            .decision
            .as_ref()
            .and_then(|decision| decision.policy.clone()),
        status: None,
    }
}

fn verdict(decision: Option<&Decision>) -> (Verdict, &'static str) {
    match decision.map(|decision| decision.verdict) {
        Some(Permission::Permitted) => (Verdict::Permitted, "permitted"),
        Some(Permission::Denied(reason)) => (Verdict::Denied, reason.as_str()),
        None => (Verdict::Passthrough, "passthrough"),
    }
}
