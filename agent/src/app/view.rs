//! The running agent as the admin side shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cni::Trouble;
use super::enrol::Enrolment;
use super::source;
use super::tools::features;
use crate::admin::{
    CertificateRow, FlowStatus, KernelFeature, KernelStatus, PodState, PodStatus, PodUsage,
    ProxyStatus, ServiceLoad, Severity, Status, StatusProblem, Usage, View,
};
use crate::cluster::Health;
use crate::flow::FlowSender;
use crate::identity::{CertificateState, CertificateStatus, Identities};
use crate::model::NamespacedName;
use crate::policy::Table;
use crate::policy::balance::Health as EndpointHealth;
use crate::proxy::{self, Proxy};
use crate::redirect;
use crate::state::Problem;

/// What of the kernel does not change while the agent runs.
#[derive(Debug)]
pub(super) struct KernelSide {
    release: String,
    features: Vec<KernelFeature>,
}

impl KernelSide {
    /// Looks at it, by trying.
    pub(super) fn probe(config: &redirect::Config) -> Self {
        Self {
            release: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            features: features(config),
        }
    }
}

/// Whatever has something to say about how the agent is.
#[derive(Debug)]
pub(super) struct AgentView {
    pub(super) node: String,
    pub(super) trust_domain: String,
    pub(super) started: Timestamp,
    pub(super) clock: Instant,
    pub(super) source: watch::Receiver<Health>,
    pub(super) tables: watch::Receiver<Arc<Table>>,
    pub(super) enrolment: watch::Receiver<Enrolment>,
    pub(super) identities: Identities,
    pub(super) flows: FlowSender,
    pub(super) proxy: Proxy,
    pub(super) kernel: KernelSide,
    pub(super) plugin: Trouble,
}

impl View for AgentView {
    fn status(&self) -> Status {
        let table = self.table();
        let enrolment = self.enrolment.borrow().clone();
        let source = source::status(&self.source.borrow(), table.snapshot(), Timestamp::now());
        let certificates = self.identities.certificates();
        let mut pods = enrolment.pods;
        for pod in &mut pods {
            let name = NamespacedName::new(&*pod.namespace, &*pod.name);
            pod.open_connections = self.flows.open_connections_of(&name);
            pod.refused_connections = self.proxy.refused_connections(&name);
        }
        let mut not_ready = Vec::new();
        if !source.synced {
            not_ready.push(source::not_read_yet(&source));
        } else if !enrolment.complete {
            not_ready.push("the pods of this node are being enrolled".to_owned());
        }
        not_ready.extend(self.plugin.absent());
        not_ready.extend(unproven(&pods, &certificates));
        let mut problems: Vec<StatusProblem> =
            table.snapshot().problems.iter().map(of_object).collect();
        problems.extend(source.error.iter().map(|error| StatusProblem {
            severity: Severity::Error,
            subject: source.name.clone(),
            message: error.clone(),
        }));
        problems.extend(enrolment.error.iter().map(|error| StatusProblem {
            severity: Severity::Error,
            subject: "Kernel".to_owned(),
            message: error.clone(),
        }));
        problems.extend(self.plugin.all().into_iter().map(|message| StatusProblem {
            severity: Severity::Error,
            subject: "CNI plugin".to_owned(),
            message,
        }));
        problems.extend(pods.iter().filter_map(of_pod));
        problems.extend(pods.iter().filter_map(of_unseen));
        problems.extend(certificates.iter().filter_map(of_certificate));
        problems.extend(self.loads().iter().filter_map(of_load));
        problems.sort();
        Status {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.clone(),
            started: self.started,
            now: Timestamp::now(),
            not_ready,
            source,
            kernel: self.kernel_status(&enrolment.counters),
            pods,
            certificates: certificates.iter().map(row).collect(),
            proxy: self.proxy_status(),
            flows: FlowStatus {
                open: self.flows.open_connections(),
                dropped: self.flows.dropped(),
            },
            problems,
        }
    }

    fn usage(&self) -> Usage {
        let mut pods: Vec<PodUsage> = self.proxy.usage().into_iter().map(usage).collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Usage {
            node: self.node.clone(),
            at_us: microseconds(self.clock.elapsed()),
            pods,
        }
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.tables.borrow())
    }

    fn loads(&self) -> Vec<ServiceLoad> {
        let all = self.proxy.endpoint_figures().into_iter();
        all.map(|of| ServiceLoad {
            service: of.service,
            port: of.port,
            endpoints: of.endpoints,
        })
        .collect()
    }
}

impl AgentView {
    fn proxy_status(&self) -> ProxyStatus {
        let stats = self.proxy.stats();
        ProxyStatus {
            tunnels: stats.tunnels,
            accept_exhausted: stats.accept_exhausted,
            handshakes_shed: stats.handshakes_shed,
            unknown_peers: stats.unknown_peers,
        }
    }

    fn kernel_status(&self, counters: &[(&'static str, u64)]) -> KernelStatus {
        let counters = counters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value));
        let counters: BTreeMap<String, u64> = counters.collect();
        KernelStatus {
            release: self.kernel.release.clone(),
            features: self.kernel.features.clone(),
            events_dropped: counters.get("events_lost").copied().unwrap_or(0),
            counters,
        }
    }
}

/// Why the agent can't prove who its pods are, in a sentence; `None` where it can.
fn unproven(pods: &[PodStatus], certificates: &[CertificateStatus]) -> Option<String> {
    let wanted: BTreeSet<&str> = pods.iter().map(|pod| pod.identity.as_str()).collect();
    let usable = certificates.iter().filter(|it| match it.state {
        CertificateState::Active | CertificateState::Stale => true,
        CertificateState::Fetching | CertificateState::Failed => false,
    });
    let usable: BTreeSet<String> = usable.map(|it| it.id.to_string()).collect();
    let mut lacking = wanted.iter().filter(|id| !usable.contains(**id));
    let first = lacking.next()?;
    let why = certificates.iter().find_map(|it| it.last_error.as_deref());
    Some(format!(
        "{} of {} certificates are missing, such as that of {first}: {}",
        lacking.count() + 1,
        wanted.len(),
        why.unwrap_or("being fetched")
    ))
}

fn usage((name, usage): (NamespacedName, proxy::PodUsage)) -> PodUsage {
    PodUsage {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        busy_us: microseconds(usage.busy),
        turns_over: usage.turns_over,
        connections: usage.connections,
        connections_refused: usage.connections_refused,
        requests_in_flight: usage.requests_in_flight,
        requests: usage.requests,
        requests_refused: usage.requests_refused,
        sent_bytes: usage.sent_bytes,
        received_bytes: usage.received_bytes,
        memory_bytes: usage.memory_bytes,
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn of_object(problem: &Problem) -> StatusProblem {
    let place = match problem.line {
        0 => problem.file.clone(),
        line => format!("{}:{line}", problem.file),
    };
    let subject = format!("{place} {} {}", problem.kind, problem.object);
    let message = if problem.field.is_empty() {
        problem.message.clone()
    } else {
        format!("{}: {}", problem.field, problem.message)
    };
    StatusProblem {
        severity: Severity::Error,
        subject: subject.trim().to_owned(),
        message,
    }
}

fn of_pod(pod: &PodStatus) -> Option<StatusProblem> {
    let subject = format!("Pod {}/{}", pod.namespace, pod.name);
    if let (PodState::Failed, Some(error)) = (pod.state, &pod.error) {
        return Some(StatusProblem {
            severity: Severity::Error,
            subject,
            message: error.clone(),
        });
    }
    let count = pod.bypassing.len();
    (count > 0).then(|| StatusProblem {
        severity: Severity::Warning,
        subject,
        message: format!(
            "{count} of its connections are from before it was meshed and bypass the mesh; \
             restart it, or label it fairlead.dev/close-existing: \"true\""
        ),
    })
}

fn of_unseen(pod: &PodStatus) -> Option<StatusProblem> {
    let (first, count) = (pod.unseen.first()?, pod.unseen.len());
    Some(StatusProblem {
        severity: Severity::Error,
        subject: format!("Pod {}/{}", pod.namespace, pod.name),
        message: format!(
            "{count} of the processes in its network namespace, such as {first}, are not below \
             --cgroup: what they dial bypasses the mesh"
        ),
    })
}

/// Endpoints that are left out, because they fail.
fn of_load(load: &ServiceLoad) -> Option<StatusProblem> {
    let ejected = load.endpoints.iter();
    let ejected: Vec<String> = ejected
        .filter(|it| it.health == EndpointHealth::Ejected)
        .map(|it| it.address.to_string())
        .collect();
    let (count, all) = (ejected.len(), load.endpoints.len());
    (count > 0).then(|| StatusProblem {
        severity: Severity::Warning,
        subject: format!("Service {} port {}", load.service, load.port),
        message: format!(
            "{count} of {all} endpoints are left out because they fail: {}; see `fairlead get \
             endpoints`",
            ejected.join(", ")
        ),
    })
}

fn of_certificate(certificate: &CertificateStatus) -> Option<StatusProblem> {
    let error = certificate.last_error.as_ref()?;
    let severity = match certificate.state {
        CertificateState::Active | CertificateState::Stale => Severity::Warning,
        CertificateState::Fetching | CertificateState::Failed => Severity::Error,
    };
    Some(StatusProblem {
        severity,
        subject: format!("Certificate {}", certificate.id),
        message: error.clone(),
    })
}

fn row(of: &CertificateStatus) -> CertificateRow {
    let state = match of.state {
        CertificateState::Active => "valid",
        CertificateState::Stale => "stale",
        CertificateState::Fetching => "fetching",
        CertificateState::Failed => "missing",
    };
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    CertificateRow {
        identity: of.id.to_string(),
        state: state.to_owned(),
        serial: some(&of.serial),
        issuer: some(&of.issuer),
        not_before: of.not_before,
        not_after: of.not_after,
        error: of.last_error.clone(),
    }
}
