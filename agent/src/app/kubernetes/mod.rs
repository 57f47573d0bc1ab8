//! What the command line does in a cluster: the manifests of `deploy/` put into it and
//! taken out, its agents asked, what it has looked over.
//!
//! In: [`Access`] to the API server as the user has it. Out: plain reports. Each function
//! is one command; what takes long tells how far it is through [`Progress`].

mod agents;
mod check;
mod doctor;
mod install;
mod manifests;
mod rollout;
mod uninstall;

pub use crate::cluster::kube::{Access, Change};
pub use agents::{NodeAgent, agents};
pub use check::{Finding, Outcome as Found, preflight};
pub use doctor::installed;
pub use install::{Report, ReportedObject, install, upgrade};
pub use manifests::{Settings, render};
pub use uninstall::{Removal, uninstall};

/// The namespace of the mesh's own objects.
const NAMESPACE: &str = "fairlead-system";
/// The DaemonSet of the agents.
const AGENT: &str = "fairlead-agent";
/// The Deployment of the certificate authority.
const CA: &str = "fairlead-ca";

/// Takes lines that tell how far something is.
pub type Progress<'a> = &'a mut (dyn FnMut(&str) + Send);
