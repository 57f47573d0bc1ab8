//! All endpoints of a port, and the view that follows from how they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::endpoint::Endpoint;
use super::hash::HashTable;
use super::outlier;
use super::view::{Tier, View, WHOLE};
use super::{Candidate, Near, nanos};
use crate::policy::traffic::{Locality, OutlierDetection, TrafficSettings};

/// The endpoints of a port.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) settings: Arc<TrafficSettings>,
    /// Those that are ready.
    pub(super) endpoints: BTreeMap<SocketAddr, Arc<Endpoint>>,
    /// How far those are that are not.
    unready: Vec<Near>,
    /// When rates and latencies are looked at again.
    interval_ends: u64,
    interval_began: u64,
}

impl Members {
    /// What is there from the beginning is not begun with slowly.
    pub(super) fn new(settings: Arc<TrafficSettings>, candidates: &[Candidate], now: u64) -> Self {
        let mut members = Self {
            settings: Arc::clone(&settings),
            endpoints: BTreeMap::new(),
            unready: Vec::new(),
            interval_ends: 0,
            interval_began: now,
        };
        members.update(settings, candidates, now);
        for endpoint in members.endpoints.values() {
            endpoint.since.store(0, Relaxed);
        }
        members
    }

    /// Takes over the endpoints as they are by now; what is known of one stays for as long as
    /// it is ready.
    pub(super) fn update(
        &mut self,
        settings: Arc<TrafficSettings>,
        candidates: &[Candidate],
        now: u64,
    ) {
        let interval = settings.outlier_detection.map(|it| nanos(it.interval));
        if self.settings.outlier_detection.is_none() || self.interval_ends == 0 {
            self.interval_ends = interval.map_or(0, |interval| now.saturating_add(interval));
        }
        self.settings = settings;
        let mut old = std::mem::take(&mut self.endpoints);
        let ready = candidates.iter().filter(|it| it.ready);
        for it in ready {
            let known = old.remove(&it.address).filter(|old| old.near == it.near);
            let endpoint =
                known.unwrap_or_else(|| Arc::new(Endpoint::new(it.address, it.near, now, now)));
            if self.settings.outlier_detection.is_none() {
                endpoint.ejected_until.store(0, Relaxed);
                endpoint.ejections.store(0, Relaxed);
            }
            self.endpoints.insert(it.address, endpoint);
        }
        let unready = candidates.iter().filter(|it| !it.ready);
        self.unready = unready.map(|it| it.near).collect();
    }

    /// Ejects an endpoint for its errors, unless too many are or it is gone.
    pub(super) fn eject(&self, endpoint: &Arc<Endpoint>, now: u64) {
        let member = self.endpoints.get(&endpoint.address);
        let member = member.is_some_and(|it| Arc::ptr_eq(it, endpoint));
        let Some(settings) = self.settings.outlier_detection.filter(|_| member) else {
            return;
        };
        if !endpoint.is_ejected() && self.may_eject(&settings) {
            outlier::eject(endpoint, &settings, now);
        }
    }

    fn may_eject(&self, settings: &OutlierDetection) -> bool {
        let ejected = self.endpoints.values().filter(|it| it.is_ejected()).count();
        outlier::may_eject(settings, ejected, self.endpoints.len())
    }

    /// Does what is due: endpoints return, and what the interval told is looked at.
    pub(super) fn tend(&mut self, now: u64) {
        let Some(settings) = self.settings.outlier_detection else {
            return;
        };
        for endpoint in self.endpoints.values() {
            let until = endpoint.ejected_until.load(Relaxed);
            if until > 0 && until <= now {
                endpoint.ejected_until.store(0, Relaxed);
                endpoint.since.store(now, Relaxed);
            }
        }
        if now < self.interval_ends {
            return;
        }
        self.interval_ends = now.saturating_add(nanos(settings.interval).max(1));
        let endpoints = self.endpoints.values().filter(|it| !it.is_ejected());
        let counted = endpoints.map(|it| (Arc::clone(it), outlier::take(it)));
        let counted: Vec<_> = counted.collect();
        let outliers = outlier::outliers(&settings, &counted);
        for endpoint in &outliers {
            if self.may_eject(&settings) {
                outlier::eject(endpoint, &settings, now);
            }
        }
        let began = std::mem::replace(&mut self.interval_began, now);
        let kept = counted.iter().filter(|(it, _)| {
            // One that came back in this interval was ejected for a part of it.
            !it.is_ejected() && it.since.load(Relaxed) <= began
        });
        for (endpoint, _) in kept {
            let fewer = |times: u32| times.checked_sub(1);
            let _was_zero = endpoint.ejections.fetch_update(Relaxed, Relaxed, fewer);
        }
    }

    /// When there is something to do again.
    pub(super) fn due(&self) -> u64 {
        if self.settings.outlier_detection.is_none() {
            return u64::MAX;
        }
        let returns = self.next_return();
        returns.unwrap_or(u64::MAX).min(self.interval_ends)
    }

    /// When the first endpoint returns of those that are ejected.
    pub(super) fn next_return(&self) -> Option<u64> {
        let ejected = self.endpoints.values();
        let ejected = ejected.map(|it| it.ejected_until.load(Relaxed));
        ejected.filter(|until| *until > 0).min()
    }

    /// Who may be picked.
    pub(super) fn view(&self, now: u64) -> View {
        let locality = self.settings.load_balancing.locality;
        let mut groups: BTreeMap<u8, Group> = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let group = groups.entry(rank(locality, endpoint.near)).or_default();
            group.all.push(Arc::clone(endpoint));
            group.healthy += usize::from(!endpoint.is_ejected());
        }
        for near in &self.unready {
            if let Some(group) = groups.get_mut(&rank(locality, *near)) {
                group.unready += 1;
            }
        }
        let groups: Vec<Group> = groups.into_values().collect();
        let panic = self.panics(&groups);
        let loads = loads(&groups, locality.overprovisioning, panic);
        let tiers = groups.into_iter().zip(loads).filter_map(|(group, load)| {
            let all = group.all.into_iter();
            let usable = all.filter(|it| panic || !it.is_ejected()).collect();
            self.tier(usable, load)
        });
        let tiers: Box<[Tier]> = tiers.collect();
        let picked = tiers.iter().flat_map(|tier| tier.endpoints.iter());
        let mut by_address: Vec<Arc<Endpoint>> = picked.map(Arc::clone).collect();
        by_address.sort_unstable_by_key(|it| it.address);
        View {
            settings: Arc::clone(&self.settings),
            tiers,
            warm_at: self.warm_at(now),
            by_address: by_address.into(),
        }
    }

    fn tier(&self, endpoints: Vec<Arc<Endpoint>>, load: u32) -> Option<Tier> {
        if endpoints.is_empty() {
            return None;
        }
        let hash = self.settings.load_balancing.hash.as_ref();
        let table = hash.map(|hash| {
            let addresses: Vec<SocketAddr> = endpoints.iter().map(|it| it.address).collect();
            HashTable::new(hash.table, &addresses)
        });
        let mut tier = Tier::new(endpoints, load);
        tier.table = table;
        Some(tier)
    }

    /// So few are left that those that are out would do better than nobody.
    fn panics(&self, groups: &[Group]) -> bool {
        let all: usize = groups.iter().map(|it| it.all.len()).sum();
        let healthy: usize = groups.iter().map(|it| it.healthy).sum();
        let threshold = self
            .settings
            .outlier_detection
            .map_or(0, |it| it.panic_threshold);
        healthy < all && healthy * 100 < all * threshold as usize
    }

    fn warm_at(&self, now: u64) -> u64 {
        let Some(slow) = &self.settings.load_balancing.slow_start else {
            return 0;
        };
        let since = self.endpoints.values().map(|it| it.since.load(Relaxed));
        let latest = since.max().filter(|since| *since > 0);
        let warm_at = latest.map_or(0, |since| since.saturating_add(nanos(slow.window)));
        if warm_at > now { warm_at } else { 0 }
    }
}

/// Endpoints that are as near as each other.
#[derive(Debug, Default)]
struct Group {
    all: Vec<Arc<Endpoint>>,
    healthy: usize,
    unready: usize,
}

/// Which tier.
fn rank(locality: Locality, near: Near) -> u8 {
    match near {
        Near::Node if locality.node => 0,
        Near::Node | Near::Zone if locality.zone => 1,
        Near::Node | Near::Zone | Near::Far => 2,
    }
}

/// The share of the requests of each tier, of [`WHOLE`]: Envoy's priority levels. A tier's
/// health is its healthy share times the overprovisioning, and the nearest get as much as
/// their health is.
fn loads(groups: &[Group], overprovisioning: u32, panic: bool) -> Vec<u32> {
    let whole = WHOLE as usize;
    let health = |group: &Group| {
        let all = (group.all.len() + group.unready).max(1);
        // In a panic by number: who is healthy says nothing any more.
        let healthy = if panic {
            group.all.len()
        } else {
            group.healthy
        };
        let share = healthy * whole / all;
        (share * overprovisioning as usize / 100).min(whole)
    };
    let total: usize = groups.iter().map(health).sum::<usize>().clamp(1, whole);
    let mut left = whole;
    let load = |group: &Group| {
        let load = (health(group) * whole / total).min(left);
        left -= load;
        u32::try_from(load).unwrap_or(WHOLE)
    };
    groups.iter().map(load).collect()
}
