//! The vocabulary: addresses, identities, the names of workloads and services.
//!
//! Plain values that every other module speaks in. Nothing here does I/O, reads
//! a clock or holds a lock, and nothing here imports another module.

mod address;
mod draw;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod identity;
mod name;
mod path;

pub use address::{ClientAddr, OrigDst, canonical};
pub use draw::below;
pub use identity::{SpiffeId, SpiffeIdError, TrustDomain};
pub use name::{NamespacedName, NodeName};
pub use path::{PathError, normal_path, without_parameters};
