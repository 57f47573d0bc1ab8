//! What the kernel's programs tell, as records of connections.

use std::sync::Arc;

use jiff::Timestamp;

use crate::flow::{
    Destination, Direction, FlowEvent, FlowProtocol, FlowSender, Source, TlsState, Verdict,
};
use crate::model::NodeName;
use crate::policy::Table;
use crate::redirect::{EventKind, Events, PodEvent};
use crate::state::Pod;

/// Records every event that is about a connection; ends where the ring can't be read.
pub(super) async fn run(
    mut events: Events,
    node: NodeName,
    tables: tokio::sync::watch::Receiver<Arc<Table>>,
    flows: FlowSender,
) -> anyhow::Result<()> {
    let mut count = 0_u64;
    loop {
        let event = events.next().await?;
        count += 1;
        tracing::debug!(?event, "the kernel tells");
        let table = Arc::clone(&tables.borrow());
        if let Some(flow) = flow(&event, &node, &table, count) {
            flows.record(flow);
        }
    }
}

/// The record of an event; `None` for one that is about no connection.
fn flow(event: &PodEvent, node: &NodeName, table: &Table, count: u64) -> Option<FlowEvent> {
    let (direction, verdict, reason) = match event.kind {
        EventKind::Bypassed => (Direction::Outbound, Verdict::Forwarded, "bypassed"),
        EventKind::Refused => (Direction::Outbound, Verdict::Denied, "refused_by_kernel"),
        EventKind::BypassedInbound => (Direction::Inbound, Verdict::Forwarded, "bypassed"),
        EventKind::RefusedInbound => (Direction::Inbound, Verdict::Failed, "agent_away"),
        EventKind::ListenOpened | EventKind::ListenClosed => return None,
    };
    let other = event.remote.and_then(|it| table.pod_by_ip(it.ip()));
    let (from, from_pod, to, to_pod) = match direction {
        Direction::Outbound => (event.local, event.pod.as_ref(), event.remote, other),
        Direction::Inbound => (event.remote, other, event.local, event.pod.as_ref()),
    };
    let namespace = |pod: &Arc<Pod>| Arc::clone(&pod.name.namespace);
    let name = |pod: &Arc<Pod>| Arc::clone(&pod.name.name);
    let workload = |pod: &Arc<Pod>| Arc::clone(&pod.workload);
    Some(FlowEvent {
        time: Timestamp::now(),
        node: Arc::clone(&node.0),
        direction,
        source: Source {
            namespace: from_pod.map(namespace),
            pod: from_pod.map(name),
            workload: from_pod.map(workload),
            ip: from
                .map(|it| it.ip())
                .or_else(|| from_pod?.ips.first().copied()),
            port: from.map_or(0, |it| it.port()),
            identity: None,
        },
        destination: Destination {
            namespace: to_pod.map(namespace),
            pod: to_pod.map(name),
            workload: to_pod.map(workload),
            service: None,
            ip: to.map(|it| it.ip()),
            port: to.map_or(0, |it| it.port()),
            identity: None,
        },
        protocol: FlowProtocol::Tcp,
        tls: TlsState::None,
        verdict,
        reason: reason.to_owned(),
        policy: None,
        audit: Vec::new(),
        bytes_sent: 0,
        bytes_received: 0,
        duration_ms: 0,
        connection_id: format!("kernel-{count}"),
        kernel: None,
        http: None,
    })
}
