//! The chained CNI plugin, `fairlead cni`, and the agent's side of it.
//!
//! ```text
//! runtime ─► plugin ──cni.sock──► server ─► Call ─► whoever enrols pods
//!              │ agent away
//!              └─► decisions, which the agent keeps on disk
//! ```
//!
//! In: what a container runtime tells of a pod's sandbox. Out: the sandbox's network
//! namespace and addresses for the agent, and for the runtime the result of the plugins
//! before this one, unchanged, as soon as the pod is enrolled. The plugin changes nothing
//! of a pod's network.
//!
//! Invariant: a pod that is to be meshed, or may be, is not started without the agent; and
//! no other pod waits for it.
//!
//! The installer adds the plugin to the node's network configuration and keeps it there.
//! Nothing here takes it away but [`uninstall`], on request: an agent that ends, for an
//! upgrade or for good, leaves the node failing closed.

mod conflist;
mod decisions;
mod install;
mod plugin;
mod protocol;
mod server;
mod spec;
mod watch;

#[cfg(test)]
mod tests;

pub use decisions::{Decision, Decisions};
pub use install::{InstallError, Installer, uninstall};
pub use plugin::run;
pub use protocol::{Command, PodRef, Reply, Request, Verdict};
pub use server::{Call, Server, SocketError};
pub use watch::keep_installed;

/// The file by which the plugin goes while the agent is away.
pub const DECISIONS: &str = "decisions.json";

/// The plugin's file name, and its `type` in a network configuration.
pub const PLUGIN: &str = "fairlead-cni";
