//! Worlds of network namespaces in which Fairlead runs against a real kernel.
//!
//! A [`World`] is a small cluster on one machine: nodes are network namespaces
//! that route, each with its own cgroup; pods are namespaces behind a node. Real
//! programs run in them. What a world made is removed when it is dropped; what a
//! killed run left behind, when the next one starts ([`sweep`]).
//!
//! The library starts processes and waits for conditions; it decides nothing of
//! what is right. Tests and `cargo xtask demo` do.

mod agent;
pub mod apiserver;
mod capture;
pub mod cluster;
mod manifest;
mod place;
mod pod;
mod port;
mod process;
mod requirements;
pub mod servers;
mod system;
mod wait;
mod world;

pub use agent::{Agent, AgentOptions, Authority, Cli, binary, cleanup, cleanup_with};
pub use capture::{Capture, Traffic};
pub use manifest::Manifests;
pub use place::Place;
pub use pod::{Pod, PodSpec};
pub use port::free_port;
pub use process::{Output, Process, run, without_own_variables};
pub use requirements::{
    missing_for_cluster_tier, missing_for_node_tier, missing_programs, skips_are_failures,
};
pub use system::{remove_world, sweep};
pub use wait::{patient, until, until_ok};
pub use world::{Node, World, WorldOptions};
