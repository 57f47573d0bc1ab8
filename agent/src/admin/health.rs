//! The agent's own health as metrics, made from a [`Status`] at each scrape.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder};
use prometheus_client::metrics::MetricType::{self, Counter, Gauge};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use std::fmt;
use std::sync::Arc;

use super::status::{PodState, Severity, Status};
use super::view::View;

/// Writes the metrics `fairlead_agent_*`.
#[derive(Debug)]
pub(super) struct Health(pub(super) Arc<dyn View>);

impl Collector for Health {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.0.status();
        let mut build = encoder.encode_descriptor(
            "fairlead_agent_build_info",
            "The agent's version",
            None,
            Gauge,
        )?;
        let labels = [("version", status.version.as_str()), ("node", &status.node)];
        ConstGauge::new(1_i64).encode(build.encode_family(&labels)?)?;
        for (name, help, value) in gauges(&status) {
            let metric = encoder.encode_descriptor(name, help, None, Gauge)?;
            encode_gauge(value, metric)?;
        }
        for (name, help, value) in counters(&status) {
            let metric = encoder.encode_descriptor(name, help, None, Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        encode_families(&status, &mut encoder)
    }
}

fn encode_gauge(value: u64, metric: MetricEncoder<'_>) -> Result<(), fmt::Error> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric)
}

fn gauges(status: &Status) -> [(&'static str, &'static str, u64); 8] {
    let pods = |state| count(status.pods.iter().filter(|pod| pod.state == state));
    let problems = |severity| count(status.problems.iter().filter(|it| it.severity == severity));
    [
        (
            "fairlead_agent_enrolled_pods",
            "Pods of this node whose connections are carried",
            pods(PodState::Enrolled),
        ),
        (
            "fairlead_agent_failed_pods",
            "Pods of this node that could not be enrolled",
            pods(PodState::Failed),
        ),
        (
            "fairlead_agent_source_healthy",
            "1 where the source of objects can be read",
            u64::from(status.source.healthy),
        ),
        (
            "fairlead_agent_snapshot_revision",
            "Counts the states of the cluster that were taken",
            status.source.revision,
        ),
        (
            "fairlead_agent_ready",
            "1 where the agent is ready",
            u64::from(status.not_ready.is_empty()),
        ),
        (
            "fairlead_agent_errors",
            "Things that do not work now",
            problems(Severity::Error),
        ),
        (
            "fairlead_agent_warnings",
            "Things that work otherwise than meant now",
            problems(Severity::Warning),
        ),
        (
            "fairlead_agent_start_time_seconds",
            "When the agent started, in seconds since 1970",
            u64::try_from(status.started.as_second()).unwrap_or(0),
        ),
    ]
}

fn counters(status: &Status) -> [(&'static str, &'static str, u64); 5] {
    [
        (
            "fairlead_agent_flow_drops",
            "Records of connections lost because too many came at once",
            status.flows.dropped,
        ),
        (
            "fairlead_agent_kernel_event_drops",
            "Events that the kernel could not hand over",
            status.kernel.events_dropped,
        ),
        (
            "fairlead_agent_accept_exhausted",
            "Times that the kernel had no descriptor or memory to accept a connection",
            status.proxy.accept_exhausted,
        ),
        (
            "fairlead_agent_handshakes_shed",
            "Tunnels that were reset because too many were being set up at once",
            status.proxy.handshakes_shed,
        ),
        (
            "fairlead_agent_unknown_peers",
            "Requests refused because no pod is known at the peer's address",
            status.proxy.unknown_peers,
        ),
    ]
}

fn encode_families(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let mut expiry = encoder.encode_descriptor(
        "fairlead_agent_certificate_expiry_timestamp_seconds",
        "Until when a workload's certificate is valid, in seconds since 1970",
        None,
        Gauge,
    )?;
    for certificate in &status.certificates {
        let Some(not_after) = certificate.not_after else {
            continue;
        };
        let labels = [("identity", certificate.identity.as_str())];
        ConstGauge::new(not_after.as_second()).encode(expiry.encode_family(&labels)?)?;
    }
    let mut refused = encoder.encode_descriptor(
        "fairlead_agent_refused_connections",
        "Connections that were reset because their pod had too many",
        None,
        Counter,
    )?;
    for pod in &status.pods {
        let labels = [
            ("namespace", pod.namespace.as_str()),
            ("pod", pod.name.as_str()),
        ];
        ConstCounter::new(pod.refused_connections).encode(refused.encode_family(&labels)?)?;
    }
    encode_source(status, encoder)?;
    let mut events = encoder.encode_descriptor(
        "fairlead_agent_kernel_events",
        "What the kernel programs counted, by kind",
        None,
        Counter,
    )?;
    for (kind, value) in &status.kernel.counters {
        let labels = [("kind", kind.as_str())];
        ConstCounter::new(*value).encode(events.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_source(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let source = &status.source;
    if let Some(last_sync) = source.last_sync {
        let metric = encoder.encode_descriptor(
            "fairlead_agent_source_last_sync_age_seconds",
            "For how long it is not known whether the state is that of the source",
            None,
            Gauge,
        )?;
        let age = status.now.duration_since(last_sync).as_secs();
        encode_gauge(u64::try_from(age).unwrap_or(0), metric)?;
    }
    let objects = source.objects.iter().map(|(kind, objects)| {
        let objects = u64::try_from(*objects).unwrap_or(u64::MAX);
        (vec![("kind", kind.as_str())], objects)
    });
    let name = "fairlead_agent_source_objects";
    encode_rows(encoder, (name, "Objects in force, by kind", Gauge), objects)?;
    let behind = source.watches.iter().map(|watch| {
        let behind = u64::from(watch.behind_since.is_some());
        (vec![("kind", watch.kind.as_str())], behind)
    });
    let name = "fairlead_agent_source_behind";
    let help = "1 where what is known of a kind may be old";
    encode_rows(encoder, (name, help, Gauge), behind)?;
    let restarts = source.watches.iter();
    let restarts = restarts.map(|it| (vec![("kind", it.kind.as_str())], it.restarts));
    let name = "fairlead_agent_source_watch_restarts";
    let help = "How often the watch of a kind was made again";
    encode_rows(encoder, (name, help, Counter), restarts)?;
    let relists = source.watches.iter().flat_map(|watch| {
        let kind = ("kind", watch.kind.as_str());
        let relists = watch.relists.iter();
        relists.map(move |(reason, count)| (vec![kind, ("reason", reason.as_str())], *count))
    });
    let name = "fairlead_agent_source_relists";
    let help = "How often all objects of a kind were read once more, by reason";
    encode_rows(encoder, (name, help, Counter), relists)
}

/// One metric, with one value for each set of labels.
fn encode_rows<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    rows: impl IntoIterator<Item = (Vec<(&'static str, &'l str)>, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in rows {
        let metric = metric.encode_family(&labels)?;
        match kind {
            Counter => ConstCounter::new(value).encode(metric)?,
            _ => encode_gauge(value, metric)?,
        }
    }
    Ok(())
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    items.map(|_| 1).sum()
}
