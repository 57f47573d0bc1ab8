//! The API server of Kubernetes.

mod client;
mod failure;
#[cfg(test)]
pub(crate) mod fake;
mod lease;

pub use client::{Access, ClientError, client};
pub use failure::ApiFailure;
pub use lease::{Leader, LeaseConfig, elect};

// The library's client is what this module lends to the wiring, which only hands it on.
pub use ::kube::Client;
