//! What happened: one record for each connection and each request, once.
//!
//! In: [`FlowEvent`]s of the proxy and of the kernel's ring buffer. Out: the
//! last events for the CLI, a live feed, metrics. Recording never waits: what
//! can't be taken is counted and dropped; metrics count at the sender, so they
//! stay exact when records are dropped.
//!
//! ```text
//! FlowSender::opened ─► OpenFlow ─ close(event) ─┐            ┌─► ring of the last N
//! FlowSender::record(event)  (never opened) ─────┼─► FlowHub ─┴─► followers
//! FlowSender::requests ─► RequestFlow::record ───┘
//!        └─► metrics           FlowHub ─► AccessLog ─► a thread that writes lines
//! ```
//! A request is kept as what differs from the one before it on its connection; the
//! [`FlowEvent`] is made for those who ask.

mod access;
mod event;
mod filter;
mod hub;
mod marks;
mod metrics;
mod open;
mod recent;
mod request;
mod requests;
mod ring;
mod sender;
mod tap;
#[cfg(test)]
pub(crate) mod tests;
mod text;

pub use access::{AccessLog, AccessLogTo, AccessLogWriter};
pub use event::{
    Destination, Direction, FlowEvent, FlowProtocol, HttpFlow, KernelStats, Source, TlsState,
    Verdict,
};
pub use filter::{Filter, PathFilter, PodFilter, RecordKind, StatusFilter};
pub use hub::{FlowHub, Flows, Follower, Missed};
pub use metrics::{FlowMetrics, OpenLabels};
pub use request::{EndedRequest, RequestEnds, RequestFlow};
pub use sender::{FlowReceiver, FlowSender, OpenFlow, queue};
pub use tap::{Redaction, Tap, TapEvent, TapHeader, TapLoss, TapWish, Tapped, Taps, TooManyTaps};
