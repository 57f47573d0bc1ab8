//! The wall clock, which steps: every validity is compared with it anew.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// What tells the time of day. Another than [`SystemClock`] makes expiry testable.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now; it may be before what an earlier call returned.
    fn now(&self) -> SystemTime;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A [`Clock`] as rustls asks for the time.
#[derive(Clone, Debug)]
pub(crate) struct TlsTime(pub(crate) Arc<dyn Clock>);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

/// The time in the form that webpki takes. Before 1970 nothing is valid.
pub(super) fn unix_time(time: SystemTime) -> UnixTime {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    UnixTime::since_unix_epoch(since)
}
