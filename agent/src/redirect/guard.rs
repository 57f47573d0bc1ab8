//! Pods that can't be carried are refused, and namespaces that go are noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fairlead_common::abi::Ip;

use super::enrol::Entry;
use super::find::pids;
use super::netns::Netns;
use super::{RedirectError, Redirector, cgroup, plan};
use crate::model::NamespacedName;
use crate::state::Pod;

impl Redirector {
    /// Refuses everything in and out of an enrolled pod, until it is enrolled again or
    /// un-enrolled: for what changes its enrolment, or fails to.
    pub fn hold(&mut self, name: &NamespacedName) {
        if let Some(entry) = self.entries.get(name) {
            let (pod, netns) = (Arc::clone(&entry.pod), Arc::clone(&entry.netns));
            self.block(&pod, &netns);
        }
    }

    /// Pods whose namespace has gone: it is not any more where it was found, and no process
    /// is in it.
    pub fn vanished(&mut self) -> Vec<NamespacedName> {
        let lost = self.entries.values().filter(|entry| !entry.is_present());
        let lost: BTreeSet<_> = lost.map(|entry| entry.netns.identity()).collect();
        if lost.is_empty() {
            return Vec::new();
        }
        let mut alive: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        for (_, path, namespace) in namespaces() {
            if lost.contains(&namespace) {
                let _before = alive.insert(namespace, path);
            }
        }
        let mut gone = Vec::new();
        for (name, entry) in &mut self.entries {
            let identity = entry.netns.identity();
            if !lost.contains(&identity) {
                continue;
            }
            match alive.get(&identity) {
                // The next look is at that process, and so is cheap.
                Some(path) => entry.anchor = Some(path.clone()),
                None => gone.push(name.clone()),
            }
        }
        gone
    }

    /// Some process is in the network namespace of this pod, which is enrolled or blocked.
    pub fn is_inhabited(&self, name: &NamespacedName) -> bool {
        let entry = self.entries.get(name);
        entry.is_some_and(|entry| {
            let identity = entry.netns.identity();
            namespaces().any(|(_, _, namespace)| namespace == identity)
        })
    }

    /// Processes in the pods' namespaces that are not below [`super::Config::cgroup`]: what
    /// they dial is not redirected. Looks at every process of the machine.
    pub fn unseen(&self) -> BTreeMap<NamespacedName, Vec<u32>> {
        let entries = self.entries.iter();
        let names: BTreeMap<(u64, u64), &NamespacedName> = entries
            .map(|(name, entry)| (entry.netns.identity(), name))
            .collect();
        let mut unseen: BTreeMap<NamespacedName, Vec<u32>> = BTreeMap::new();
        let Ok(mount) = cgroup::mount() else {
            return unseen;
        };
        for (pid, _, namespace) in namespaces() {
            if let Some(name) = names.get(&namespace)
                && !cgroup::sees(&mount, &self.config.cgroup, pid)
            {
                unseen.entry((*name).clone()).or_default().push(pid);
            }
        }
        unseen
    }

    /// What the earlier instance guards must stay so where this one could not even look.
    pub(super) fn remember_exhaustion(
        &mut self,
        name: &NamespacedName,
        error: Option<&RedirectError>,
    ) {
        if error.is_some_and(RedirectError::is_exhaustion) {
            let _new = self.unguarded.insert(name.clone());
        }
    }

    /// Refuses everything in and out of a pod that could not be meshed.
    pub(super) fn block(&mut self, pod: &Arc<Pod>, netns: &Arc<Netns>) {
        let cookie = netns.cookie();
        let mut plan = plan::blocked(pod, cookie);
        let taken = |ip: &Ip| {
            let mut others = self.entries.values().filter(|it| it.pod.name != pod.name);
            others.any(|other| other.plan.addresses.contains(ip))
        };
        plan.addresses.retain(|ip| !taken(ip));
        let written = self.kernel.write_pod(&plan, cookie);
        for &ip in &plan.addresses {
            self.kernel.remove_listeners(ip);
        }
        let link = self.attach_lookup(pod, netns);
        match written.and(link) {
            Ok(link) => {
                let _was = self.unguarded.remove(&pod.name);
                // What it bypassed with, before or in the attempt that failed.
                let before = self.entries.remove(&pod.name);
                if let Some(before) = &before {
                    self.kernel.remove_exclusions(&before.plan, None);
                }
                let attempted = plan::meshed(pod, cookie, plan.value.ports);
                self.kernel.remove_exclusions(&attempted, None);
                let entry = Entry {
                    pod: Arc::clone(pod),
                    netns: Arc::clone(netns),
                    anchor: netns.anchor().map(Path::to_owned),
                    plan,
                    blocked: true,
                    link: Some(link),
                    seeded: before.map_or_else(Vec::new, |before| before.seeded),
                    existing: Vec::new(),
                };
                self.names.insert(cookie, pod);
                drop(self.entries.insert(pod.name.clone(), entry));
                if let Err(error) = self.release(cookie) {
                    tracing::warn!(pod = %pod.name, %error, "an earlier hook stays beside this one's");
                }
                tracing::warn!(pod = %pod.name, "the pod is blocked until it can be enrolled");
            }
            Err(error) => {
                tracing::error!(pod = %pod.name, %error, "the pod can be neither enrolled nor blocked");
                let _new = self.unguarded.insert(pod.name.clone());
            }
        }
    }
}

/// Every process with the path and the identity of its network namespace. Processes end
/// while they are looked at.
fn namespaces() -> impl Iterator<Item = (u32, PathBuf, (u64, u64))> {
    pids().filter_map(|pid| {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let data = std::fs::metadata(&path).ok()?;
        Some((pid, path, (data.dev(), data.ino())))
    })
}
