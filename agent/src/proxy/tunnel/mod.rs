//! Between nodes: mutual TLS, and inside it the applications' connections.
//!
//! ```text
//! outbound ─► pool ─► client ══ TLS ══ server ─► inbound
//!              one connection for a (source identity, source pod, destination pod),
//!              many streams on it
//! ```
//! [`hbone`] is what any two implementations say: HTTP/2 CONNECT as Istio's ambient mesh
//! speaks it.

mod client;
mod error;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod hbone;
mod hop;
mod io;
mod keepalive;
mod link;
mod pool;
mod server;
mod stream;

pub(super) use self::error::TunnelError;
pub(super) use self::hbone::{Connect, baggage};
pub(super) use self::pool::{Pool, Target};
pub(super) use self::server::{Arrivals, serve};
pub(super) use self::stream::{HboneStream, Under};
