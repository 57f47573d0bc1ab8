//! The leaner protocol, which two Fairlead agents agree on by ALPN `fairlead/1`.
//!
//! A TLS connection carries one application's connection at a time, and after its end the
//! next: HTTP/2's windows, tables and tasks are not needed, TCP's own window is the
//! back-pressure. Frames are a type (one byte), a length (three bytes, big endian) and
//! that many bytes.
//!
//! ```text
//! client's node                      server's node
//!  idle  ── OPEN id, to, client ────►  checks, dials
//!        ◄─────────────── STATUS ────  connected, or why not (and idle again)
//!  open  ◄──── DATA, both ways ─────►  open
//!        ◄──── FIN, each way once ──►  after both: idle
//!        ◄──── RST, or the end of TCP, ends the connection for good
//! ```
//! Invariant: a TCP connection that ends without FIN resets the application: no answer is
//! ever cut short unnoticed.

mod frame;
mod stream;

pub(super) use self::frame::Code;
pub(in crate::proxy) use self::stream::LeanStream;
