//! The metrics of connections, with the labels of Istio's standard TCP metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::access::AccessCounts;
use super::event::{Destination, Direction, FlowEvent, FlowProtocol, Source, TlsState};
use super::marks::Marks;
use super::requests::RequestMetrics;
use crate::model::SpiffeId;

/// What is known of a connection when it opens. Borrowed: nothing is allocated where
/// the label set was seen before.
#[derive(Clone, Copy, Debug)]
pub struct OpenLabels<'a> {
    /// Which side reports.
    pub direction: Direction,
    /// The client.
    pub source: &'a Source,
    /// The server.
    pub destination: &'a Destination,
    /// What it carries.
    pub protocol: FlowProtocol,
    /// How it crosses the network.
    pub tls: TlsState,
}

impl<'a> OpenLabels<'a> {
    /// Those of a record.
    pub fn of(event: &'a FlowEvent) -> Self {
        Self {
            direction: event.direction,
            source: &event.source,
            destination: &event.destination,
            protocol: event.protocol,
            tls: event.tls,
        }
    }
}

/// A label set that no connection had for so many sweeps is dropped.
pub(super) const IDLE_SWEEPS: u32 = 60;
/// From one sweep to the next: so a label set lasts for an hour after its last use.
const SWEEP: Duration = Duration::from_mins(1);

/// The metrics of all connections and requests. A clone counts into the same series.
///
/// Workloads, identities and Services come and go. A label set goes once no connection
/// with it was open for an hour: what is scraped, and the memory for it, is bounded by
/// what was used lately. One that comes back starts from zero, as after a restart.
#[derive(Clone, Debug, Default)]
pub struct FlowMetrics {
    used: Arc<Mutex<HashMap<Labels, Used>>>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    pub(super) open: Gauge,
    pub(super) requests: RequestMetrics,
    pub(super) marks: Marks,
    pub(super) access: AccessCounts,
}

impl FlowMetrics {
    /// Adds them to what is scraped.
    pub fn register(&self, registry: &mut Registry) {
        let mut family = |name: &str, help: &str, metric: &Family<Labels, Counter>| {
            registry.register(name, help, metric.clone());
        };
        family(
            "fairlead_tcp_connections_opened",
            "Connections opened",
            &self.opened,
        );
        family(
            "fairlead_tcp_connections_closed",
            "Connections closed",
            &self.closed,
        );
        family(
            "fairlead_tcp_sent_bytes",
            "Application bytes from client to server",
            &self.sent,
        );
        family(
            "fairlead_tcp_received_bytes",
            "Application bytes from server to client",
            &self.received,
        );
        registry.register(
            "fairlead_agent_open_connections",
            "Connections that this agent carries now",
            self.open.clone(),
        );
        registry.register_collector(Box::new(self.requests.clone()));
        self.marks.register(registry);
        self.access.register(registry);
    }

    /// The counters of one label set, which stays as long as somebody holds them.
    pub(super) fn series(&self, labels: &OpenLabels<'_>) -> Arc<Series> {
        let labels = Labels::from(labels);
        let mut used = self.used();
        if let Some(known) = used.get_mut(&labels) {
            known.idle = 0;
            return Arc::clone(&known.series);
        }
        let series = Arc::new(Series {
            opened: self.opened.get_or_create_owned(&labels),
            closed: self.closed.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
        });
        let new = Used {
            series: Arc::clone(&series),
            idle: 0,
        };
        drop(used.insert(labels, new));
        series
    }

    /// Drops label sets that are not used any more, for as long as it is polled.
    pub async fn forget_idle(self) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            let _now = tick.tick().await;
            self.sweep();
        }
    }

    /// One look at all label sets.
    pub(super) fn sweep(&self) {
        self.requests.sweep();
        self.used().retain(|labels, used| {
            used.idle = if Arc::strong_count(&used.series) > 1 {
                0
            } else {
                used.idle + 1
            };
            let stays = used.idle <= IDLE_SWEEPS;
            if !stays {
                for family in [&self.opened, &self.closed, &self.sent, &self.received] {
                    let _was = family.remove(labels);
                }
            }
            stays
        });
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Labels, Used>> {
        // The map is valid after each of its statements, so a poisoned one is too.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A label set that is scraped.
#[derive(Debug)]
struct Used {
    series: Arc<Series>,
    /// Sweeps since nobody holds the series.
    idle: u32,
}

/// The counters of one label set.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    sent: Counter,
    received: Counter,
}

impl Series {
    pub(super) fn add_bytes(&self, sent: u64, received: u64) {
        let _before = self.sent.inc_by(sent);
        let _before = self.received.inc_by(received);
    }
}

/// A label set. Workloads, not pods, so that it stays small; what is not known is
/// `unknown`, as in Istio.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Labels {
    reporter: &'static str,
    source_workload: Option<Arc<str>>,
    source_namespace: Option<Arc<str>>,
    source_principal: Option<SpiffeId>,
    destination_workload: Option<Arc<str>>,
    destination_namespace: Option<Arc<str>>,
    destination_principal: Option<SpiffeId>,
    service: Option<Arc<str>>,
    protocol: &'static str,
    security: &'static str,
}

impl From<&OpenLabels<'_>> for Labels {
    fn from(of: &OpenLabels<'_>) -> Self {
        Self {
            reporter: match of.direction {
                Direction::Outbound => "source",
                Direction::Inbound => "destination",
            },
            source_workload: of.source.workload.clone(),
            source_namespace: of.source.namespace.clone(),
            source_principal: of.source.identity.clone(),
            destination_workload: of.destination.workload.clone(),
            destination_namespace: of.destination.namespace.clone(),
            destination_principal: of.destination.identity.clone(),
            service: of.destination.service.clone(),
            protocol: of.protocol.as_str(),
            security: match of.tls {
                TlsState::Mtls => "mutual_tls",
                TlsState::None | TlsState::Passthrough => "none",
            },
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = |value: &Option<Arc<str>>| value.as_deref().unwrap_or("unknown").to_owned();
        let principal = |id: &Option<SpiffeId>| {
            id.as_ref()
                .map_or_else(|| "unknown".to_owned(), ToString::to_string)
        };
        let (service, service_name, service_namespace) = self.service();
        let pairs = [
            ("reporter", self.reporter.to_owned()),
            ("source_workload", text(&self.source_workload)),
            ("source_workload_namespace", text(&self.source_namespace)),
            ("source_principal", principal(&self.source_principal)),
            ("destination_workload", text(&self.destination_workload)),
            (
                "destination_workload_namespace",
                text(&self.destination_namespace),
            ),
            (
                "destination_principal",
                principal(&self.destination_principal),
            ),
            ("destination_service", service),
            ("destination_service_name", service_name),
            ("destination_service_namespace", service_namespace),
            ("request_protocol", self.protocol.to_owned()),
            ("connection_security_policy", self.security.to_owned()),
        ];
        for pair in pairs {
            EncodeLabel::encode(&pair, encoder.encode_label())?;
        }
        Ok(())
    }
}

impl Labels {
    /// Host name, name and namespace of the Service that was dialled.
    fn service(&self) -> (String, String, String) {
        let unknown = || "unknown".to_owned();
        let Some(service) = self.service.as_deref() else {
            return (unknown(), unknown(), unknown());
        };
        let (namespace, name) = match (service.split_once('/'), &self.destination_namespace) {
            (Some(parts), _) => parts,
            (None, Some(namespace)) => (&**namespace, service),
            (None, None) => return (service.to_owned(), service.to_owned(), unknown()),
        };
        let host = format!("{name}.{namespace}.svc.cluster.local");
        (host, name.to_owned(), namespace.to_owned())
    }
}
