//! Requests, answers and what is in them.

mod fields;
mod http2;
mod messages;
mod reading;
mod server;

#[cfg(test)]
pub(super) use self::fields::provider;
pub(crate) use self::fields::{deadline, session, tokens};
pub(crate) use self::http2::{http2_bytes, http2_frames};
pub(crate) use self::messages::{external, grpc_web, headers};
pub(crate) use self::server::{framing, server};
