//! The kernel: connections of enrolled pods go through the agent.
//!
//! In: pods to enrol ([`Redirector::enrol`]) and to let go. Out: for each pod
//! listening sockets inside its network namespace and a handle for sockets there
//! ([`Network`]), events of what only the kernel sees ([`Events`]), counts.
//! Everything here is about namespaces, sockets and maps; what is done with a
//! connection is not its concern, and nothing else may know eBPF.
//!
//! ```text
//!             enrol                          unenrol
//!   unknown ────────► meshed ───────────────────────► unknown
//!      │                ▲                               ▲
//!      │ enrol failed   │ enrol                         │ unenrol
//!      └────────────► blocked ──────────────────────────┘
//!                     (every connection refused)
//! ```
//!
//! Invariant: once a pod was enrolled, its connections are the agent's or are
//! refused, whatever happens to the agent, until it is un-enrolled.
//!
//! Calls make system calls and finish in milliseconds; they belong on a thread
//! that may block. [`Network`]'s are cheap enough for any.

mod cgroup;
mod cleanup;
mod enrol;
mod entries;
mod error;
mod events;
mod find;
mod guard;
mod handover;
mod keep;
mod kernel;
mod kubelet;
mod listeners;
mod netns;
mod network;
mod object;
mod pins;
mod plan;
mod ports;
mod probe;
mod sock_diag;
mod status;
mod sys;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use aya::programs::links::PinnedLink;

pub use cgroup::default_attach_point;
pub use cleanup::{Cleanup, Scope, cleanup, running_agents};
pub use enrol::{Enrolled, ExistingConnection};
pub use error::RedirectError;
pub use events::{Events, PodEvent};
pub use fairlead_common::abi::EventKind;
pub use find::enter_host_cgroups;
pub use kubelet::Kubelet;
pub use listeners::Listeners;
pub use netns::Netns;
pub use network::Network;
pub use pins::RunningAgent;
pub use probe::{Check, Outcome, probe};
pub use status::{PodStatus, Status};

use crate::model::{NamespacedName, NodeName};
use crate::state::Pod;
use cgroup::{AgentCgroup, file};
use enrol::Entry;
use events::Names;
use kernel::{CONNECT_PROGRAMS, Kernel};
use pins::Pins;

/// How to redirect.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node: its name keeps the pins of several agents on one machine apart.
    pub node: NodeName,
    /// The cgroup above all pods, see [`default_attach_point`].
    pub cgroup: PathBuf,
    /// Where bpffs is mounted.
    pub bpffs: PathBuf,
    /// Whose connections to pods are probes.
    pub kubelet: Kubelet,
    /// Have the programs write log lines, see [`Redirector::logs`].
    pub debug: bool,
}

/// The programs of this agent, loaded and attached, and the pods under them.
///
/// Dropping it leaves the links pinned: enrolled pods are then refused, until
/// another agent takes over or [`cleanup()`] removes them.
#[derive(Debug)]
pub struct Redirector {
    config: Config,
    kernel: Kernel,
    pins: Pins,
    agent: AgentCgroup,
    home: Arc<Netns>,
    /// Cookies of namespaces that are the node's own.
    hosts: BTreeSet<u64>,
    entries: BTreeMap<NamespacedName, Entry>,
    /// Pods that failed to be enrolled and could not even be blocked.
    unguarded: BTreeSet<NamespacedName>,
    /// By cookie.
    kept: BTreeMap<u64, keep::Kept>,
    names: Names,
    kubelet: kubelet::Watch,
    /// Of programs on cgroups. Held open so that they outlive their pins.
    links: Vec<PinnedLink>,
}

impl Redirector {
    /// Loads the programs, attaches them and moves the process into a cgroup of
    /// its own where it shares one. No pod is enrolled yet, and what an earlier
    /// instance left stays in force until [`Redirector::take_over`].
    pub fn start(config: Config) -> Result<Self, RedirectError> {
        // What is wrong with the configuration comes before the process is moved.
        pins::require_bpffs(&config.bpffs)?;
        drop(cgroup::open(&config.cgroup)?);
        let agent = cgroup::isolate(&config.node)?;
        let mut kernel = Kernel::load(config.debug)?;
        let pins = Pins::create(&config.bpffs, &config.node)?;
        let give_up = || {
            handover::withdraw(pins.previous(), agent.id);
            drop(pins::remove_directory(pins.directory()));
        };
        handover::exempt(&mut kernel, pins.previous(), agent.id).inspect_err(|_| give_up())?;
        let links = attach(&mut kernel, &config, &pins, &agent).inspect_err(|_| give_up())?;
        let home = Netns::current()
            .map(Arc::new)
            .map_err(|source| file("open", "/proc/thread-self/ns/net".as_ref(), source))?;
        tracing::info!(
            cgroup = %config.cgroup.display(),
            agent_cgroup = %agent.path.display(),
            pins = %pins.directory().display(),
            previous = pins.previous().len(),
            "the kernel redirects"
        );
        Ok(Self {
            hosts: hosts(&home),
            entries: BTreeMap::new(),
            unguarded: BTreeSet::new(),
            kept: BTreeMap::new(),
            names: Names::default(),
            kubelet: kubelet::Watch::default(),
            config,
            kernel,
            pins,
            agent,
            home,
            links,
        })
    }

    /// An earlier instance's links are still in force.
    pub fn has_previous(&self) -> bool {
        !self.pins.previous().is_empty()
    }

    /// Tells whether a later instance has taken over.
    pub fn tenure(&self) -> Tenure {
        Tenure(self.pins.directory().to_owned())
    }

    /// Drops what earlier instances left. Call it once every pod that is to be
    /// meshed has been enrolled, or its enrolment has failed: what failed is
    /// blocked by then. Does nothing where there is nothing left.
    ///
    /// `lost` are pods that are to be meshed and have not been found: those that an earlier
    /// instance guards stay refused, until they are found or
    /// [`Redirector::keep_only`] lets them go.
    ///
    /// [`RedirectError::Unguarded`] names pods that could not even be blocked;
    /// enrol or un-enrol these, and call again.
    pub fn take_over(&mut self, lost: &[Arc<Pod>]) -> Result<(), RedirectError> {
        if !self.unguarded.is_empty() {
            return Err(RedirectError::Unguarded {
                pods: self.unguarded.iter().cloned().collect(),
            });
        }
        self.keep(lost)?;
        self.pins.drop_previous()
    }

    /// Un-enrols every pod and detaches everything: connections go as if there
    /// were no mesh. For laboratories; an agent that only ends leaves its pods
    /// refused.
    pub fn remove(mut self) -> Result<(), RedirectError> {
        let names: Vec<_> = self.entries.keys().cloned().collect();
        for name in names {
            self.unenrol(&name)?;
        }
        drop(std::mem::take(&mut self.links));
        drop(std::mem::take(&mut self.kubelet));
        drop(pins::remove_directory(self.pins.directory())?);
        self.pins.drop_previous()
    }

    /// What the programs tell; `None` once it was taken. Call it inside a runtime.
    pub fn events(&mut self) -> Option<Result<Events, RedirectError>> {
        let ring = self.kernel.take_events()?;
        Some(ring.and_then(|ring| Events::new(ring, &self.names)))
    }

    /// Passes log lines of the programs to the `log` facade, for as long as it is
    /// polled; `None` unless [`Config::debug`] is set. Call it inside a runtime.
    pub fn logs(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        if self.config.debug {
            events::pump_logs(self.kernel.ebpf())
        } else {
            None
        }
    }
}

/// The time in which this instance's programs are in force.
#[derive(Clone, Debug)]
pub struct Tenure(PathBuf);

impl Tenure {
    /// A later instance has taken over: what this one does to the kernel has no effect
    /// any more.
    pub fn is_over(&self) -> bool {
        !self.0.exists()
    }
}

/// Namespaces that are never a pod's: the agent's, and where that is another one
/// the machine's and the first process's.
fn hosts(home: &Arc<Netns>) -> BTreeSet<u64> {
    let first = Netns::open("/proc/1/ns/net".as_ref(), home);
    let known = [netns::FIRST_COOKIE, home.cookie()];
    first.iter().map(Netns::cookie).chain(known).collect()
}

fn attach(
    kernel: &mut Kernel,
    config: &Config,
    pins: &Pins,
    agent: &AgentCgroup,
) -> Result<Vec<PinnedLink>, RedirectError> {
    let point = cgroup::open(&config.cgroup)?;
    let mut links = Vec::new();
    // First what carries destinations over, then what redirects.
    links.push(kernel.attach_sock_ops(&point, &pins.path("sockops"))?);
    if !cgroup::is_within(&agent.path, &config.cgroup) {
        // A program sees the sockets of the cgroups below it. The agent's accepted
        // sockets need it as much as the applications'.
        let own = cgroup::open(&agent.path)?;
        links.push(kernel.attach_sock_ops(&own, &pins.path("sockops-agent"))?);
    }
    for name in CONNECT_PROGRAMS.into_iter().rev() {
        let pin = pins.path(name.trim_start_matches("fl_"));
        links.push(kernel.attach_connect(name, &point, &pin)?);
    }
    Ok(links)
}
