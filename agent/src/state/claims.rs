//! Who owns which address.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::objects::{Pod, PodPhase, Problem};
use super::problems::Owner;
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

/// Who says that an address is theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// A pod with an address of its own.
    Pod(NamespacedName),
    /// A Service.
    Service(NamespacedName),
    /// A pod in the node's own network, which shares the node's address.
    HostPod(NamespacedName),
}

impl Claimant {
    /// The pod that it is, if it is one.
    pub(super) fn pod(&self) -> Option<&NamespacedName> {
        match self {
            Self::Pod(name) | Self::HostPod(name) => Some(name),
            Self::Service(_) => None,
        }
    }

    fn key(&self) -> ObjectKey {
        let (kind, name) = match self {
            Self::Pod(name) | Self::HostPod(name) => (ObjectKind::Pod, name),
            Self::Service(name) => (ObjectKind::Service, name),
        };
        ObjectKey {
            kind,
            name: name.clone(),
        }
    }
}

/// What follows from all claims to one address.
enum Settled {
    /// It is this one's, if anyone's.
    Owner(Option<Claimant>),
    /// More than one insists on it, and so nobody has it.
    Contested(Vec<Claimant>),
}

impl Settled {
    fn of(claimants: &[Claimant], snapshot: &Snapshot) -> Self {
        let exclusive = claimants
            .iter()
            .filter(|claimant| !matches!(claimant, Claimant::HostPod(_)));
        let mut exclusive: Vec<&Claimant> = exclusive.collect();
        if exclusive.len() > 1 {
            // A pod that is being deleted may have lost its address to the next one
            // before its object goes.
            let stays = |claimant: &&Claimant| {
                let pod = claimant.pod().and_then(|name| snapshot.pods.get(name));
                !pod.is_some_and(|pod| pod.terminating)
            };
            let staying: Vec<&Claimant> = exclusive.iter().copied().filter(stays).collect();
            if !staying.is_empty() {
                exclusive = staying;
            }
        }
        match exclusive.as_slice() {
            [] => Self::Owner(None),
            [owner] => Self::Owner(Some((*owner).clone())),
            several => Self::Contested(several.iter().map(|&one| one.clone()).collect()),
        }
    }
}

/// The pods that answer at an address: its owner, or the node's own pods.
pub(super) fn owners(claimants: &[Claimant], snapshot: &Snapshot) -> Vec<NamespacedName> {
    let owner = match Settled::of(claimants, snapshot) {
        Settled::Owner(Some(Claimant::Pod(name))) => Some(name),
        Settled::Owner(_) | Settled::Contested(_) => None,
    };
    let host = claimants.iter().filter_map(|claimant| match claimant {
        Claimant::HostPod(name) => Some(name.clone()),
        Claimant::Pod(_) | Claimant::Service(_) => None,
    });
    owner.into_iter().chain(host).collect()
}

impl Writer {
    /// Adds or takes back what a pod claims.
    pub(super) fn claim(&mut self, pod: &Pod, add: bool) {
        if pod.phase == PodPhase::Finished {
            return;
        }
        for ip in &pod.ips {
            let claimant = if pod.host_network {
                Claimant::HostPod(pod.name.clone())
            } else {
                Claimant::Pod(pod.name.clone())
            };
            self.claim_one(*ip, claimant, add);
        }
    }

    /// Adds or takes back one claim; it counts once the address is settled.
    pub(super) fn claim_one(&mut self, ip: IpAddr, claimant: Claimant, add: bool) {
        let mut claimants = self.claimants(ip).into_owned();
        match (claimants.binary_search(&claimant), add) {
            (Err(at), true) => claimants.insert(at, claimant),
            (Ok(at), false) => drop(claimants.remove(at)),
            (Ok(_), true) | (Err(_), false) => {}
        }
        self.claims.insert(ip, claimants);
    }

    /// Everyone who claims an address, in order.
    pub(super) fn claimants(&self, ip: IpAddr) -> Cow<'_, [Claimant]> {
        if let Some(claimants) = self.claims.get(&ip) {
            return Cow::Borrowed(claimants);
        }
        let pod = self.snapshot.pods_by_ip.get(&ip);
        let pod = pod.map(|pod| Claimant::Pod(pod.name.clone()));
        let service = self.snapshot.services_by_ip.get(&ip);
        let service = service.map(|service| Claimant::Service(service.name.clone()));
        Cow::Owned(pod.into_iter().chain(service).collect())
    }

    /// Writes down who owns each address, if anyone.
    pub(super) fn settle(&mut self, ips: &BTreeSet<IpAddr>) {
        for ip in ips {
            self.settle_one(*ip);
        }
    }

    fn settle_one(&mut self, ip: IpAddr) {
        let Some(claimants) = self.claims.remove(&ip) else {
            return;
        };
        let (owner, contested) = match Settled::of(&claimants, &self.snapshot) {
            Settled::Owner(owner) => (owner, Vec::new()),
            Settled::Contested(several) => (None, several),
        };
        let pod = match &owner {
            Some(Claimant::Pod(name)) => self.snapshot.pods.get(name),
            Some(Claimant::Service(_) | Claimant::HostPod(_)) | None => None,
        };
        match pod {
            Some(pod) => self.snapshot.pods_by_ip.insert(ip, Arc::clone(pod)),
            None => self.snapshot.pods_by_ip.remove(&ip),
        };
        let service = match &owner {
            Some(Claimant::Service(name)) => self.snapshot.services.get(name),
            Some(Claimant::Pod(_) | Claimant::HostPod(_)) | None => None,
        };
        match service {
            Some(service) => self.snapshot.services_by_ip.insert(ip, Arc::clone(service)),
            None => self.snapshot.services_by_ip.remove(&ip),
        };
        let is_host = |claimant: &Claimant| matches!(claimant, Claimant::HostPod(_));
        let is_node = owner.is_none() && contested.is_empty() && claimants.iter().any(is_host);
        self.note_node_address(ip, is_node);
        self.settle_contest(ip, &contested);
        let told_by_the_index = owner.is_some() && claimants.len() == 1;
        if !told_by_the_index && !claimants.is_empty() {
            self.claims.insert(ip, claimants);
        }
    }

    fn settle_contest(&mut self, ip: IpAddr, contested: &[Claimant]) {
        let keys: Vec<ObjectKey> = contested.iter().map(Claimant::key).collect();
        let problems = keys
            .iter()
            .map(|key| self.contested_problem(ip, key, &keys))
            .collect();
        if keys.is_empty() {
            self.snapshot.contested.remove(&ip);
        } else {
            let names = keys.into_iter().map(|key| key.name).collect();
            self.snapshot.contested.insert(ip, names);
        }
        self.report(Owner::Address(ip), problems);
    }

    fn contested_problem(&self, ip: IpAddr, key: &ObjectKey, all: &[ObjectKey]) -> Problem {
        let others: Vec<String> = all
            .iter()
            .filter(|other| *other != key)
            .map(ToString::to_string)
            .collect();
        let field = match key.kind {
            ObjectKind::Service => "spec.clusterIPs",
            _ => "status.podIPs",
        };
        let others = others.join(", ");
        let message = format!(
            "{ip} is claimed by {others} too: nothing is sent there until one of them lets go"
        );
        self.problem(key, field, message)
    }
}
