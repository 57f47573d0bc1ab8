//! Tokens of end users: whether one is valid, and what it says.
//!
//! In: a token, its issuer's keys, the time. Out: [`Claims`]. What a token says before
//! its signature was checked decides nothing but whose keys to check it with.

mod claims;
mod error;
mod keys;
mod token;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

pub use claims::Claims;
pub use error::JwtError;
pub use keys::{KeySet, NotAKeySet};
pub use token::Token;
