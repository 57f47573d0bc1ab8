//! Tokens of end users: what a verified one says.

mod claims;

pub use claims::Claims;
