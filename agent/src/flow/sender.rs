//! The end that the data path holds: never waits, counts what it drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, Uri};
use tokio::sync::mpsc;

use super::event::FlowEvent;
use super::metrics::{FlowMetrics, OpenLabels, Series};
use super::open::{Ends, OpenByPod};
use super::request::{RequestEnds, RequestFlow, RequestRecord};
use super::requests::RequestSeries;
use super::tap::{Tapped, Taps};
use crate::model::NamespacedName;

/// Makes the queue between the data path and the [`super::FlowHub`]; it holds up to
/// `capacity` records.
pub fn queue(capacity: usize, metrics: FlowMetrics) -> (FlowSender, FlowReceiver) {
    let (sender, receiver) = mpsc::channel(capacity);
    let taps = Taps::default();
    let sender = FlowSender {
        queue: sender,
        dropped: Arc::new(AtomicU64::new(0)),
        open: OpenByPod::default(),
        metrics,
        taps: taps.clone(),
    };
    let queue = receiver;
    (sender, FlowReceiver { queue, taps })
}

/// What the queue carries.
#[expect(
    clippy::large_enum_variant,
    reason = "requests are the many: a box would be an allocation for each"
)]
#[derive(Debug)]
pub(super) enum Recorded {
    Connection(Box<FlowEvent>),
    Request(RequestRecord),
    /// Somebody looks on as it begins.
    Begun(Box<RequestRecord>),
}

impl Recorded {
    fn into_event(self) -> FlowEvent {
        match self {
            Self::Connection(event) => *event,
            Self::Request(request) => request.event(),
            Self::Begun(request) => request.event(),
        }
    }
}

/// Takes the records of connections and requests. A clone is cheap and feeds the same
/// queue.
#[derive(Clone, Debug)]
pub struct FlowSender {
    queue: mpsc::Sender<Recorded>,
    dropped: Arc<AtomicU64>,
    open: OpenByPod,
    metrics: FlowMetrics,
    taps: Taps,
}

/// The other end of [`queue`].
#[derive(Debug)]
pub struct FlowReceiver {
    queue: mpsc::Receiver<Recorded>,
    pub(super) taps: Taps,
}

impl FlowReceiver {
    /// The next record; `None` once every sender is gone and all was taken.
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<FlowEvent> {
        self.queue.recv().await.map(Recorded::into_event)
    }

    /// The next record if one is waiting.
    pub fn try_recv(&mut self) -> Option<FlowEvent> {
        self.queue.try_recv().ok().map(Recorded::into_event)
    }

    /// [`FlowReceiver::recv`], as it was queued.
    pub(super) async fn take(&mut self) -> Option<Recorded> {
        self.queue.recv().await
    }

    /// [`FlowReceiver::try_recv`], as it was queued.
    pub(super) fn try_take(&mut self) -> Option<Recorded> {
        self.queue.try_recv().ok()
    }
}

impl FlowSender {
    /// Records a connection that never carried bytes: refused, or failed before it
    /// was connected. Counts it as opened and closed at once. Never waits.
    pub fn record(&self, event: FlowEvent) {
        let series = self.metrics.series(&OpenLabels::of(&event));
        series.opened.inc();
        series.closed.inc();
        series.add_bytes(event.bytes_sent, event.bytes_received);
        self.enqueue(event);
    }

    /// Counts a connection as open, from now until the returned value is closed or
    /// dropped. One look-up of the label set for the life of the connection.
    pub fn opened(&self, labels: &OpenLabels<'_>) -> OpenFlow {
        let series = self.metrics.series(labels);
        series.opened.inc();
        self.metrics.open.inc();
        OpenFlow {
            sender: self.clone(),
            ends: self.open.add(labels),
            series,
            sent: 0,
            received: 0,
        }
    }

    /// Takes the requests between two ends, from now on. One look-up of the label sets for
    /// all of them.
    pub fn requests(&self, ends: RequestEnds) -> RequestFlow {
        RequestFlow::new(self.clone(), ends)
    }

    /// Notes the head of a request, as the client sent it, for [`EndedRequest::tap`]; `None`
    /// where nobody looks, which costs one relaxed load.
    ///
    /// [`EndedRequest::tap`]: super::EndedRequest::tap
    pub fn tap(&self, uri: &Uri, headers: &HeaderMap) -> Option<Box<Tapped>> {
        self.taps.note(uri, headers)
    }

    /// How many records were dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> u64 {
        u64::try_from(self.metrics.open.get()).unwrap_or(0)
    }

    /// How many connections with this pod at either end are open now.
    pub fn open_connections_of(&self, pod: &NamespacedName) -> u64 {
        self.open.of(pod)
    }

    /// How many records wait for the hub.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// How many lines of the access log are still to be written.
    pub fn lines_waiting(&self) -> usize {
        self.metrics.access.waiting()
    }

    fn enqueue(&self, event: FlowEvent) {
        self.metrics.marks.count(&event.audit);
        self.send(Recorded::Connection(Box::new(event)));
    }

    /// Shows a request that begins to those who look on, if they want that.
    pub(super) fn show_begun(&self, request: impl FnOnce() -> RequestRecord) {
        // Records go first: for these there is room while half of the queue is free.
        let room = self.queue.capacity() > self.queue.max_capacity() / 2;
        if room && self.taps.wants_begin() {
            let _shown = self
                .queue
                .try_send(Recorded::Begun(Box::new(request())))
                .is_ok();
        }
    }

    pub(super) fn enqueue_request(&self, request: RequestRecord) {
        self.metrics.marks.count(&request.audit);
        self.send(Recorded::Request(request));
    }

    pub(super) fn request_series(&self, labels: &OpenLabels<'_>) -> Arc<RequestSeries> {
        self.metrics.requests.series(labels)
    }

    fn send(&self, recorded: Recorded) {
        if self.queue.try_send(recorded).is_err() {
            let _before = self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One open connection, in the metrics. Its drop counts it as closed.
#[derive(Debug)]
pub struct OpenFlow {
    sender: FlowSender,
    ends: Ends,
    series: Arc<Series>,
    sent: u64,
    received: u64,
}

impl OpenFlow {
    /// Tells the bytes carried since the connection's start, so that the metrics of a
    /// long connection grow before it ends. A total below the last one changes nothing.
    pub fn progress(&mut self, sent_total: u64, received_total: u64) {
        let sent = sent_total.saturating_sub(self.sent);
        let received = received_total.saturating_sub(self.received);
        self.series.add_bytes(sent, received);
        self.sent += sent;
        self.received += received;
    }

    /// It carries something else than was thought when it opened. It stays counted as opened
    /// under the old labels; what follows counts under the new ones.
    pub fn turn_into(&mut self, labels: &OpenLabels<'_>) {
        self.series = self.sender.metrics.series(labels);
    }

    /// Ends it with its record. Never waits.
    pub fn close(mut self, event: FlowEvent) {
        self.progress(event.bytes_sent, event.bytes_received);
        self.sender.enqueue(event);
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.series.closed.inc();
        self.sender.metrics.open.dec();
        self.sender.open.remove(&mut self.ends);
    }
}
