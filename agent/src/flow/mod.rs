//! What happened: one record for each connection, once.
//!
//! In: [`FlowEvent`]s of the proxy and of the kernel's ring buffer. Out: the
//! last events for the CLI, a live feed, metrics. Recording never waits: what
//! can't be taken is counted and dropped.

mod event;

pub use event::{
    Destination, Direction, FlowEvent, FlowProtocol, KernelStats, Source, TlsState, Verdict,
};
