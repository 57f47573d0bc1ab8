//! The API server of Kubernetes.

mod client;

pub use client::{Access, ClientError, client};

// The library's client is what this module lends to the wiring, which only hands it on.
pub use ::kube::Client;
