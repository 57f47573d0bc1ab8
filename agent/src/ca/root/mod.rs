//! The authority of `--root secret:`: followed, and where the CA made it, rotated.
//!
//! A root that the CA made itself is replaced in phases, each of them written in the
//! Secret, so that any replica can go on where another one stopped:
//!
//! ```text
//!            asked for, or a fifth of the root's life is left
//!   Steady ──────────────────────────────────────────────────► Announced: the bundle has
//!     ▲                                                        old and new, the old signs
//!     │ the longest certificate and the                          │ the overlap is over
//!     │ overlap are over: the old one goes                       ▼
//!     └─────────────────────────────────────────────────────── Switched: the new signs
//! ```
//!
//! All replicas sign; the leader alone writes, guarded by the Secret's version.

mod content;
mod keeper;
mod overlap;
mod rotation;

use std::time::Duration;

pub use keeper::SecretRoot;

pub(super) use keeper::Keeper;

/// How long things take until every agent knows of them.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// From a root's publication until it may sign.
    overlap: Duration,
    /// The longest life of a certificate.
    life: Duration,
}
