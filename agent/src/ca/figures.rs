//! What the service counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tonic::Code;

/// Why requests are refused: each answer that the service gives, and its word.
const REFUSALS: [(Code, &str); 6] = [
    (Code::Unauthenticated, "unauthenticated"),
    (Code::PermissionDenied, "permission_denied"),
    (Code::InvalidArgument, "invalid_argument"),
    (Code::ResourceExhausted, "too_many"),
    (Code::Unavailable, "unavailable"),
    (Code::Internal, "internal"),
];

/// What the service did since it started, and what it does it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Certificates that were signed.
    pub issued: u64,
    /// Requests that were refused, by reason; every reason is there.
    pub refused: [(&'static str, u64); REFUSALS.len()],
    /// When the authority's certificate, or the first one above it, expires; `None` while
    /// there is none.
    pub authority_ends: Option<SystemTime>,
}

/// Counts while calls are served.
#[derive(Debug, Default)]
pub(super) struct Counts {
    issued: AtomicU64,
    refused: [AtomicU64; REFUSALS.len()],
}

impl Counts {
    pub(super) fn issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// Any code that the service does not give counts as the last of those that it does.
    pub(super) fn refused(&self, code: Code) {
        let known = REFUSALS.iter().position(|(of, _)| *of == code);
        let index = known.unwrap_or(REFUSALS.len() - 1);
        self.refused[index].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn figures(&self, authority_ends: Option<SystemTime>) -> Figures {
        let refused = |index: usize| self.refused[index].load(Ordering::Relaxed);
        Figures {
            issued: self.issued.load(Ordering::Relaxed),
            refused: std::array::from_fn(|index| (REFUSALS[index].1, refused(index))),
            authority_ends,
        }
    }
}
