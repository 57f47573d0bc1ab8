//! What is in force, for `fairlead status`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use fairlead_common::abi::{Counter, Ports};

use super::Redirector;
use super::enrol::{Entry, ExistingConnection};
use super::sys::Abi;
use crate::model::NamespacedName;

/// The state of the kernel's side.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// Where the hooks are attached.
    pub cgroup: PathBuf,
    /// The agent's own cgroup.
    pub agent_cgroup: PathBuf,
    /// Cgroups whose connections to pods are kubelet's probes.
    pub kubelet: Vec<PathBuf>,
    /// Where the links are pinned.
    pub pins: PathBuf,
    /// Earlier instances whose links are still in force.
    pub previous: usize,
    /// Enrolled and blocked pods.
    pub pods: Vec<PodStatus>,
    /// Pods that could neither be enrolled nor blocked.
    pub unguarded: Vec<NamespacedName>,
    /// What the programs counted, by name.
    pub counters: Vec<(&'static str, u64)>,
}

/// One pod's.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PodStatus {
    /// The pod.
    pub name: NamespacedName,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The namespace's cookie.
    pub cookie: u64,
    /// Everything in and out of it is refused.
    pub blocked: bool,
    /// Its namespace is still there.
    pub present: bool,
    /// Ports that it listens on, as the programs know them.
    pub listening: Vec<u16>,
    /// The agent's ports in its namespace.
    pub agent_ports: Vec<u16>,
    /// Connections from before the enrolment that were left alone then.
    pub existing: Vec<ExistingConnection>,
}

impl Redirector {
    /// What is in force now.
    pub fn status(&self) -> Status {
        let mut listening: HashMap<u64, Vec<u16>> = HashMap::new();
        for (Abi(key), count) in self.kernel.listening.iter().flatten() {
            if count > 0 {
                listening.entry(key.cookie).or_default().push(key.port);
            }
        }
        let pod = |entry: &Entry| {
            let counted = listening.remove(&entry.netns.cookie());
            self.pod(entry, counted.unwrap_or_default())
        };
        Status {
            cgroup: self.config.cgroup.clone(),
            agent_cgroup: self.agent.path.clone(),
            kubelet: self.kubelet.cgroups(),
            pins: self.pins.directory().to_owned(),
            previous: self.pins.previous().len(),
            pods: self.entries.values().map(pod).collect(),
            unguarded: self.unguarded.iter().cloned().collect(),
            counters: self.counters(),
        }
    }

    /// What the programs counted, by name.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Counter::ALL
            .iter()
            .map(|&counter| (counter.as_str(), self.kernel.count(counter).unwrap_or(0)))
            .collect()
    }

    /// Connections from before the enrolment that go past the mesh, by pod.
    pub fn bypassing(&self) -> BTreeMap<NamespacedName, Vec<ExistingConnection>> {
        let entries = self.entries.iter();
        entries
            .map(|(name, entry)| (name.clone(), entry.existing_connections()))
            .collect()
    }

    fn pod(&self, entry: &Entry, mut listening: Vec<u16>) -> PodStatus {
        let cookie = entry.netns.cookie();
        listening.extend(self.seeded(entry));
        listening.sort_unstable();
        listening.dedup();
        PodStatus {
            name: entry.pod.name.clone(),
            ips: entry.pod.ips.clone(),
            netns: entry.netns.path().to_owned(),
            cookie,
            blocked: entry.blocked,
            present: entry.is_present(),
            listening,
            agent_ports: ports(&entry.plan.value.ports),
            existing: entry.existing_connections(),
        }
    }
}

fn ports(ports: &Ports) -> Vec<u16> {
    let all = [
        ports.outbound4,
        ports.outbound6,
        ports.inbound4,
        ports.inbound6,
        ports.tunnel4,
        ports.tunnel6,
    ];
    all.into_iter().filter(|&port| port != 0).collect()
}
