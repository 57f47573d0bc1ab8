//! HTTP/1.1, HTTP/2 and gRPC: what is decided for each request rather than for a connection.
//!
//! In: a client's connection whose first bytes are HTTP ([`detect`]). Out: answers, and one
//! record for each request. Between two nodes a request travels as plain HTTP inside a
//! stream of the tunnel, so that any peer can be at the other end.
//!
//! ```text
//! client ─► server ─► outbound ─► upstream ═══ tunnel ═══► server ─► inbound ─► application
//!                     route, balance                        policy
//! ```
//! Invariant: what two readers could understand differently is refused, never passed on.

mod authn;
mod body;
mod copies;
mod deadline;
pub(super) mod detect;
mod external;
mod filter;
mod forward;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod gate;
mod guard;
mod headers;
mod inbound;
mod interim;
mod io;
mod lease;
mod limit;
mod load;
mod outbound;
mod owed;
mod pump;
mod reason;
mod record;
mod replay;
mod reply;
mod retry;
mod server;
mod session;
mod stall;
mod strict;
mod switched;
mod timed;
mod tries;
mod upload;
mod upstream;

pub(super) use self::authn::Keys;
pub(super) use self::detect::Speaks;
pub(super) use self::external::Channels;
#[cfg(test)]
pub(super) use self::external::generated as external_protocol;
pub(super) use self::inbound::Inbound;
pub(super) use self::io::Io;
pub(super) use self::limit::Limits;
pub(super) use self::outbound::{Begun, Outbound};
pub(super) use self::server::{Client, let_go, not_http, serve};
pub(super) use self::upstream::Upstreams;
