//! Enrolling pods and letting them go.
//!
//! Everything that can fail is prepared first; then the maps are written in an
//! order in which each step is safe: listeners before the entries that lead to
//! them, and the way out before the way in is let go.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::programs::links::PinnedLink;
use fairlead_common::abi::{Ip, Ports};

use super::keep::lookup_pin;
use super::kernel::in_map;
use super::listeners::{self, Listeners};
use super::netns::Netns;
use super::network::Network;
use super::plan::{self, Plan};
use super::sys::Abi;
use super::{RedirectError, Redirector, pins, sock_diag};
use crate::model::NamespacedName;
use crate::state::Pod;

/// A pod under the programs.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) pod: Arc<Pod>,
    pub(super) netns: Arc<Netns>,
    /// By which to see that the namespace goes; none where another tells.
    pub(super) anchor: Option<PathBuf>,
    pub(super) plan: Plan,
    /// Nothing goes in or out.
    pub(super) blocked: bool,
    /// The hook on its namespace.
    pub(super) link: Option<PinnedLink>,
    pub(super) seeded: Vec<u16>,
    pub(super) existing: Vec<sock_diag::SocketEntry>,
}

/// What a newly enrolled pod is served with.
#[derive(Debug)]
pub struct Enrolled {
    /// Its listeners.
    pub listeners: Listeners,
    /// Sockets in its namespace.
    pub network: Network,
    /// Connections from before the enrolment, which are not meshed; without those
    /// that were closed.
    pub existing: Vec<ExistingConnection>,
    /// How many of them were closed, as the pod asked for.
    pub closed: usize,
}

/// A connection from before the enrolment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExistingConnection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Redirector {
    /// Brings a pod in its namespace ([`Redirector::locate`], [`Redirector::take_in`])
    /// under the programs, without a restart of anything in it.
    ///
    /// Where this fails although the namespace is this pod's, the pod is blocked: its
    /// connections are refused until it is enrolled (call this again) or un-enrolled.
    pub fn enrol(&mut self, pod: &Arc<Pod>, netns: &Arc<Netns>) -> Result<Enrolled, RedirectError> {
        if pod.host_network {
            return Err(refusal(pod, "it uses the node's own network"));
        }
        self.let_go_elsewhere(pod, netns.cookie())?;
        if let Err(error) = self.check(pod, netns.cookie()) {
            if self.is_nobodys(pod, netns.cookie()) {
                // An address is another's, but the namespace is this pod's.
                self.block(pod, netns);
            }
            return Err(error);
        }
        match self.mesh(pod, netns) {
            Ok(enrolled) => {
                let _was = self.unguarded.remove(&pod.name);
                Ok(enrolled)
            }
            Err(error) => {
                self.block(pod, netns);
                Err(error)
            }
        }
    }

    /// Applies a pod's changed bypass lists. `false`: its addresses or its namespace
    /// changed, or it is not enrolled; un-enrol and enrol it.
    pub fn update(&mut self, pod: &Arc<Pod>) -> Result<bool, RedirectError> {
        let Some(entry) = self.entries.get_mut(&pod.name) else {
            return Ok(false);
        };
        let same = entry.pod.ips == pod.ips && entry.pod.netns == pod.netns;
        if entry.blocked || !same || !entry.is_present() {
            return Ok(false);
        }
        let cookie = entry.netns.cookie();
        let plan = plan::meshed(pod, cookie, entry.plan.value.ports);
        self.kernel.write_exclusions(&plan)?;
        self.kernel
            .pods
            .insert(cookie, Abi(plan.value), 0)
            .map_err(in_map("PODS"))?;
        let before = std::mem::replace(&mut entry.plan, plan);
        entry.pod = Arc::clone(pod);
        self.names.insert(cookie, pod);
        self.kernel.remove_exclusions(&before, Some(&entry.plan));
        Ok(true)
    }

    /// Lets a pod go: its connections are the kernel's alone again. The caller
    /// closes the listeners when it has served what they accepted. An unknown pod
    /// is none of its business.
    pub fn unenrol(&mut self, name: &NamespacedName) -> Result<(), RedirectError> {
        let _was = self.unguarded.remove(name);
        let Some(mut entry) = self.entries.remove(name) else {
            return Ok(());
        };
        let cookie = entry.netns.cookie();
        // What can fail comes first, so that all is there for another attempt.
        drop(entry.link.take());
        if let Err(error) = pins::remove(&self.pins.path(&lookup_pin(&entry.pod.uid, cookie))) {
            drop(self.entries.insert(name.clone(), entry));
            return Err(error);
        }
        // What is gone is as good as removed.
        drop(self.kernel.pods.remove(&cookie));
        self.forget(&entry, cookie);
        self.names.remove(cookie);
        Ok(())
    }

    /// Takes connections from before the enrolment that have ended off the lists.
    pub fn forget_ended(&mut self) {
        let entries = self.entries.values_mut();
        for entry in entries.filter(|entry| !entry.existing.is_empty()) {
            // What can't be looked at stays on the list.
            if let Ok(open) = entry.netns.run(sock_diag::open) {
                entry
                    .existing
                    .retain(|old| open.iter().any(|now| now.is_same(old)));
            }
        }
    }

    /// The namespace and the addresses belong to no other pod, and the pod has not
    /// been enrolled already.
    fn check(&self, pod: &Pod, cookie: u64) -> Result<(), RedirectError> {
        let conflict = |what: String, owner: &Entry| RedirectError::Conflict {
            pod: pod.name.clone(),
            what,
            owner: owner.pod.name.clone(),
        };
        for entry in self.entries.values() {
            if entry.pod.name == pod.name {
                if entry.blocked && entry.netns.cookie() == cookie {
                    continue;
                }
                return Err(conflict("enrolment".to_owned(), entry));
            }
            if entry.netns.cookie() == cookie {
                return Err(conflict("network namespace".to_owned(), entry));
            }
            let theirs = &entry.plan.addresses;
            if let Some(ip) = pod.ips.iter().find(|&&ip| theirs.contains(&ip.into())) {
                return Err(conflict(format!("address {ip}"), entry));
            }
        }
        Ok(())
    }

    /// Neither the pod nor the namespace is enrolled, but the pod may be blocked.
    fn is_nobodys(&self, pod: &Pod, cookie: u64) -> bool {
        self.entries.values().all(|entry| {
            let (same_pod, same_netns) =
                (entry.pod.name == pod.name, entry.netns.cookie() == cookie);
            same_pod == same_netns && (!same_pod || entry.blocked)
        })
    }

    /// Un-enrols a blocked pod that is in another namespace by now.
    fn let_go_elsewhere(&mut self, pod: &Pod, cookie: u64) -> Result<(), RedirectError> {
        let elsewhere = |entry: &Entry| entry.blocked && entry.netns.cookie() != cookie;
        if self.entries.get(&pod.name).is_some_and(elsewhere) {
            self.unenrol(&pod.name)?;
        }
        Ok(())
    }

    fn mesh(&mut self, pod: &Arc<Pod>, netns: &Arc<Netns>) -> Result<Enrolled, RedirectError> {
        if pod.ips.is_empty() {
            return Err(refusal(pod, "it has no address"));
        }
        let cookie = netns.cookie();
        let failed = |step| network_error(&pod.name, step);
        let (listeners, ports) = netns.run(listeners::open).map_err(failed("listen"))?;
        if ports.outbound6 == 0 && pod.ips.iter().any(std::net::IpAddr::is_ipv6) {
            let reason = "it has an IPv6 address, but its network namespace has no IPv6 loopback";
            return Err(refusal(pod, reason));
        }
        let link = self.attach_lookup(pod, netns)?;
        // Before this point nothing has changed for the pod but the way in, which
        // resets until the listeners are in place.
        let mut entry = Entry {
            plan: plan::meshed(pod, cookie, ports),
            pod: Arc::clone(pod),
            netns: Arc::clone(netns),
            anchor: netns.anchor().map(Path::to_owned),
            blocked: false,
            link: Some(link),
            seeded: Vec::new(),
            existing: Vec::new(),
        };
        self.kernel.write_exclusions(&entry.plan)?;
        self.kernel
            .write_listeners(&entry.plan.addresses, &listeners)?;
        self.kernel.write_pod(&entry.plan, cookie)?;
        let (listening, open) = netns
            .run(|| Ok((sock_diag::listening()?, sock_diag::open()?)))
            .map_err(failed("list the sockets"))?;
        entry.seeded = self.seed(&pod.name, cookie, &listening)?;
        entry.existing = self.existing(open, ports);
        let closed = if pod.close_existing {
            close(netns, &mut entry.existing).map_err(failed("close a connection"))?
        } else {
            0
        };
        let existing = entry.existing_connections();
        self.names.insert(cookie, pod);
        if let Some(blocked) = self.entries.remove(&pod.name) {
            entry.seeded.extend(blocked.seeded);
            entry.seeded.sort_unstable();
            entry.seeded.dedup();
        }
        drop(self.entries.insert(pod.name.clone(), entry));
        self.release(cookie)?;
        Ok(Enrolled {
            listeners,
            network: Network {
                netns: Arc::clone(netns),
                maps: Arc::clone(&self.kernel.shared),
                looks: Arc::default(),
            },
            existing,
            closed,
        })
    }

    /// Attaches the hook on the namespace, unless the pod was blocked and has it.
    pub(super) fn attach_lookup(
        &mut self,
        pod: &Pod,
        netns: &Netns,
    ) -> Result<PinnedLink, RedirectError> {
        let kept = self
            .entries
            .get_mut(&pod.name)
            .and_then(|entry| entry.link.take());
        if let Some(link) = kept {
            return Ok(link);
        }
        let pin = self.pins.path(&lookup_pin(&pod.uid, netns.cookie()));
        if let Ok(link) = PinnedLink::from_pin(&pin) {
            // A failed attempt of this instance left it. To attach another instead
            // would leave a gap.
            return Ok(link);
        }
        pins::remove(&pin)?;
        self.kernel.attach_lookup(netns.as_fd(), &pin)
    }

    /// Connections that are neither inside the namespace nor the agent's.
    fn existing(
        &self,
        mut open: Vec<sock_diag::SocketEntry>,
        ports: Ports,
    ) -> Vec<sock_diag::SocketEntry> {
        open.retain(|entry| {
            let inside = [entry.local, entry.remote]
                .iter()
                .any(|end| Ip::from(end.ip()).is_loopback());
            !inside && entry.cgroup != self.agent.id && !ports.contains(entry.local.port())
        });
        open
    }

    pub(super) fn forget(&mut self, entry: &Entry, cookie: u64) {
        for &ip in &entry.plan.addresses {
            drop(self.kernel.addresses.remove(&Abi(ip)));
            self.kernel.remove_listeners(ip);
        }
        self.kernel.remove_exclusions(&entry.plan, None);
        self.forget_ports(entry, cookie);
    }
}

impl Entry {
    /// Its namespace is where it was found.
    pub(super) fn is_present(&self) -> bool {
        let anchor = self.anchor.as_deref();
        anchor.is_none_or(|path| self.netns.is_at(path))
    }

    /// Connections from before the enrolment that were left alone.
    pub(super) fn existing_connections(&self) -> Vec<ExistingConnection> {
        self.existing
            .iter()
            .map(|entry| ExistingConnection {
                local: crate::model::canonical(entry.local),
                remote: crate::model::canonical(entry.remote),
            })
            .collect()
    }
}

fn refusal(pod: &Pod, reason: &'static str) -> RedirectError {
    RedirectError::NotEnrollable {
        pod: pod.name.clone(),
        reason,
    }
}

/// Ends connections and takes them off the list; how many there were.
fn close(netns: &Netns, existing: &mut Vec<sock_diag::SocketEntry>) -> io::Result<usize> {
    let found = std::mem::take(existing);
    netns.run(|| {
        let mut closed = 0;
        for entry in &found {
            closed += usize::from(sock_diag::destroy(entry)?);
        }
        Ok(closed)
    })
}

pub(super) fn network_error(
    pod: &NamespacedName,
    step: &'static str,
) -> impl FnOnce(io::Error) -> RedirectError {
    let pod = pod.clone();
    move |source| RedirectError::Network { pod, step, source }
}
