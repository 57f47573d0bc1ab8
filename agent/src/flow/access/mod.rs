//! The access log: records of requests and connections as lines of JSON, where policies ask
//! for that.
//!
//! In: what the hub takes from its queue. Out: the same records as [`FlowEvent`]s have them,
//! on a thread that does nothing else. The hub never waits for that thread: what it has no
//! room for is counted. Secrets are in no record, and so in no line.
//!
//! ```text
//! FlowHub ─► AccessLog::offer ─ policy, chance ─► queue ─► AccessLogWriter ─► stdout, file
//! ```

mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

pub use self::writer::{AccessLogTo, AccessLogWriter};
use super::event::{Destination, FlowEvent, FlowProtocol, Source, Verdict};
use super::metrics::FlowMetrics;
use super::sender::Recorded;
use crate::model::NamespacedName;
use crate::policy::{Ended, Table};

/// Records that may wait for the writer: a second or so of a busy node.
const QUEUE: usize = 16_384;

/// Chooses what is written. The hub's.
#[derive(Debug)]
pub struct AccessLog {
    tables: watch::Receiver<Arc<Table>>,
    table: Arc<Table>,
    /// Some policy asks for something.
    on: bool,
    lines: SyncSender<Box<FlowEvent>>,
    counts: AccessCounts,
}

/// What became of the lines. A clone counts the same.
#[derive(Clone, Debug, Default)]
pub(super) struct AccessCounts {
    written: Counter,
    dropped: Counter,
    waiting: Arc<AtomicUsize>,
}

impl AccessCounts {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "fairlead_agent_access_log_lines",
            "Lines written to the access log",
            self.written.clone(),
        );
        registry.register(
            "fairlead_agent_access_log_drops",
            "Lines that the access log had no room for, or that could not be written",
            self.dropped.clone(),
        );
    }

    /// Lines that the writer has still to write.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl AccessLog {
    /// The part that chooses, by the policies in force, and the one that writes to `to`.
    ///
    /// # Errors
    ///
    /// The file can't be opened.
    pub fn new(
        tables: watch::Receiver<Arc<Table>>,
        metrics: &FlowMetrics,
        to: &AccessLogTo,
    ) -> std::io::Result<(Self, AccessLogWriter)> {
        let (log, lines) = Self::queued(tables, metrics, QUEUE);
        let writer = AccessLogWriter::open(lines, to, log.counts.clone())?;
        Ok((log, writer))
    }

    fn queued(
        mut tables: watch::Receiver<Arc<Table>>,
        metrics: &FlowMetrics,
        capacity: usize,
    ) -> (Self, Receiver<Box<FlowEvent>>) {
        let (lines, receiver) = sync_channel(capacity);
        let table = Arc::clone(&tables.borrow_and_update());
        let log = Self {
            on: table.has_access_log(),
            tables,
            table,
            lines,
            counts: metrics.access.clone(),
        };
        (log, receiver)
    }

    /// Hands a record to the writer, if a policy wants it.
    pub(super) fn offer(&mut self, recorded: &Recorded) {
        if self.tables.has_changed().unwrap_or(false) {
            self.table = Arc::clone(&self.tables.borrow_and_update());
            self.on = self.table.has_access_log();
        }
        if !self.on {
            return;
        }
        let event = match recorded {
            Recorded::Request(request) => {
                let ends = &request.ends;
                let wanted = self.wants(&ends.source, &ends.destination, &request.ended());
                wanted.then(|| Box::new(request.event()))
            }
            // It is written when it has ended.
            Recorded::Begun(_) => None,
            // Of a connection that carried requests those are written.
            Recorded::Connection(event) => match event.protocol {
                FlowProtocol::Http | FlowProtocol::Http2 | FlowProtocol::Grpc => None,
                FlowProtocol::Tcp | FlowProtocol::Tls => {
                    let ended = Ended {
                        forwarded: event.verdict == Verdict::Forwarded,
                        status: None,
                        grpc_status: None,
                    };
                    let wanted = self.wants(&event.source, &event.destination, &ended);
                    wanted.then(|| event.clone())
                }
            },
        };
        if let Some(event) = event {
            self.write(event);
        }
    }

    fn write(&self, event: Box<FlowEvent>) {
        let _before = self.counts.waiting.fetch_add(1, Ordering::Relaxed);
        if self.lines.try_send(event).is_err() {
            let _before = self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
            let _before = self.counts.dropped.inc();
        }
    }

    /// The policies of a pod of this node at either end say so.
    fn wants(&self, source: &Source, destination: &Destination, ended: &Ended) -> bool {
        let pods = [
            source.namespace.as_ref().zip(source.pod.as_ref()),
            destination.namespace.as_ref().zip(destination.pod.as_ref()),
        ];
        // One draw for both ends: where both want a tenth, it is a tenth.
        let random = rand::random();
        pods.into_iter().flatten().any(|(namespace, pod)| {
            let pod = NamespacedName::new(Arc::clone(namespace), Arc::clone(pod));
            let log = self.table.access_log(&pod);
            log.is_some_and(|log| log.wants(ended, random))
        })
    }
}

#[cfg(test)]
mod tests;
