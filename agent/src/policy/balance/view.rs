//! Who may be picked: what [`super::Balancer::pick`] reads.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::endpoint::Endpoint;
use super::ewma::as_f64;
use super::hash::HashTable;
use super::{Ask, index, mix};
use crate::policy::traffic::TrafficSettings;
use crate::state::traffic::Algorithm;

/// Of how much the loads of tiers are parts.
pub(super) const WHOLE: u32 = 10_000;

/// So often an endpoint that is begun with slowly is drawn again.
const DRAWS: usize = 4;

/// The endpoints as of the last change.
#[derive(Debug)]
pub(super) struct View {
    pub(super) settings: Arc<TrafficSettings>,
    /// Those that get requests, by how near they are.
    pub(super) tiers: Box<[Tier]>,
    /// All of the tiers' endpoints, by address.
    pub(super) by_address: Box<[Arc<Endpoint>]>,
    /// Until then some are begun with slowly.
    pub(super) warm_at: u64,
}

/// Endpoints that are as near as each other.
#[derive(Debug)]
pub(super) struct Tier {
    /// Its share of the requests, of [`WHOLE`].
    pub(super) load: u32,
    /// Never empty.
    pub(super) endpoints: Box<[Arc<Endpoint>]>,
    /// There for `CONSISTENT_HASH`.
    pub(super) table: Option<HashTable>,
    /// For `ROUND_ROBIN`.
    pub(super) turn: Turn,
}

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) next: AtomicUsize,
    /// While weights differ.
    pub(super) smooth: Mutex<Box<[f64]>>,
}

impl View {
    /// The endpoint for a question; `None`: there is none at all.
    pub(super) fn choose(&self, ask: &Ask<'_>, in_flight: u32, now: u64) -> Option<&Arc<Endpoint>> {
        let preferred = ask.prefer.filter(|it| !ask.exclude.contains(it));
        if let Some(endpoint) = preferred.and_then(|address| self.endpoint(address)) {
            return Some(endpoint);
        }
        let hashed = self.settings.load_balancing.algorithm == Algorithm::ConsistentHash;
        // A hash leads to one tier, too.
        let random = ask.hash.filter(|_| hashed).unwrap_or(ask.random);
        let tier = self.tier(random)?;
        if !ask.exclude.is_empty() {
            let tiers = std::iter::once(tier).chain(&self.tiers);
            let mut others = tiers.filter_map(|tier| tier.other(random, ask.exclude));
            if let Some(other) = others.next() {
                return Some(other);
            }
        }
        let slow = self.settings.load_balancing.slow_start.as_ref();
        let warming = slow.filter(|_| now < self.warm_at);
        let open = ask.open.and_then(|address| tier.endpoint(address));
        let [first, second] = draws(ask.random, tier.endpoints.len());
        let (first, second) = (&tier.endpoints[first], &tier.endpoints[second]);
        let one = open.unwrap_or(first);
        // Not the same twice, where there is another.
        let two = if Arc::ptr_eq(one, second) {
            first
        } else {
            second
        };
        let weight = |endpoint: &Endpoint| warming.map_or(1.0, |slow| endpoint.weight(slow, now));
        let least = |cost: fn(&Endpoint, u64) -> f64| {
            // Without a weight to divide by, to compare is all that there is to do.
            if cost(two, now) / weight(two) < cost(one, now) / weight(one) {
                two
            } else {
                one
            }
        };
        Some(match self.settings.load_balancing.algorithm {
            Algorithm::PeakEwma => least(Endpoint::cost),
            Algorithm::LeastRequest => least(|endpoint, _| endpoint.load()),
            Algorithm::Random if open.is_some() && warming.is_none() => one,
            Algorithm::Random => tier.random(ask.random, weight),
            Algorithm::RoundRobin => tier.next(warming.is_some(), weight),
            Algorithm::ConsistentHash => {
                let bound = self.settings.load_balancing.hash.as_ref();
                let bound = bound.and_then(|hash| hash.bounded_load);
                tier.hashed(random, self.most(bound, in_flight))
            }
        })
    }

    /// What an endpoint may have in flight by a bound: "Consistent Hashing with Bounded
    /// Loads" (Mirrokni, Thorup, Zadimoghaddam, 2016).
    fn most(&self, bound: Option<u32>, in_flight: u32) -> f64 {
        let endpoints = u32::try_from(self.by_address.len()).unwrap_or(u32::MAX);
        bound.map_or(f64::INFINITY, |percent| {
            let all = f64::from(in_flight.max(1));
            (all * f64::from(percent) / 100.0 / f64::from(endpoints)).ceil()
        })
    }

    fn endpoint(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        let of = |it: &Arc<Endpoint>| it.address;
        let found = self.by_address.binary_search_by_key(&address, of);
        found.ok().map(|at| &self.by_address[at])
    }

    /// A tier by the tiers' loads.
    fn tier(&self, random: u64) -> Option<&Tier> {
        if let [only] = &*self.tiers {
            return Some(only);
        }
        // Other bits than those that choose in the tier.
        let mut left = index(mix(random), WHOLE as usize);
        let chosen = self.tiers.iter().find(|tier| {
            let load = tier.load as usize;
            let hit = left < load;
            left = left.saturating_sub(load);
            hit
        });
        chosen.or(self.tiers.last())
    }
}

impl Tier {
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>, load: u32) -> Self {
        let addresses = endpoints.iter().map(|it| it.address.port());
        let first = addresses.fold(load as usize, |sum, port| sum.wrapping_add(port.into()));
        Self {
            load,
            table: None,
            turn: Turn {
                next: AtomicUsize::new(first),
                smooth: Mutex::new(vec![0.0; endpoints.len()].into()),
            },
            endpoints: endpoints.into(),
        }
    }

    fn endpoint(&self, address: SocketAddr) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|it| it.address == address)
    }

    fn random(&self, random: u64, weight: impl Fn(&Endpoint) -> f64) -> &Arc<Endpoint> {
        let mut random = random;
        let mut chosen = &self.endpoints[index(random, self.endpoints.len())];
        for _ in 1..DRAWS {
            random = mix(random);
            // One is kept with the probability of its weight.
            let kept = weight(chosen) * as_f64(u64::MAX) >= as_f64(random);
            if kept {
                break;
            }
            random = mix(random);
            chosen = &self.endpoints[index(random, self.endpoints.len())];
        }
        chosen
    }

    /// One after the other; by the smooth weighted round robin of nginx while some get less.
    fn next(&self, weighted: bool, weight: impl Fn(&Endpoint) -> f64) -> &Arc<Endpoint> {
        if !weighted {
            let turn = self.turn.next.fetch_add(1, Relaxed);
            return &self.endpoints[turn % self.endpoints.len()];
        }
        let mut current = self
            .turn
            .smooth
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut sum = 0.0;
        let mut best = 0;
        for (at, endpoint) in self.endpoints.iter().enumerate() {
            let weight = weight(endpoint);
            sum += weight;
            current[at] += weight;
            if current[at] > current[best] {
                best = at;
            }
        }
        current[best] -= sum;
        &self.endpoints[best]
    }

    /// The endpoint of a hash with less than `most` in flight; where all have that, the
    /// first.
    fn hashed(&self, hash: u64, most: f64) -> &Arc<Endpoint> {
        let count = self.endpoints.len();
        let found = self.table.as_ref().and_then(|table| {
            let below = |at: usize| self.endpoints[at].load() <= most;
            let bounded = table.find(hash, count, below);
            bounded.or_else(|| table.find(hash, count, |_| true))
        });
        &self.endpoints[found.unwrap_or_else(|| index(hash, count))]
    }

    /// One that is not excluded.
    fn other(&self, random: u64, exclude: &[SocketAddr]) -> Option<&Arc<Endpoint>> {
        let permitted = |endpoint: &Endpoint| !exclude.contains(&endpoint.address);
        if let Some(table) = &self.table {
            let count = self.endpoints.len();
            let found = table.find(random, count, |at| permitted(&self.endpoints[at]));
            return found.map(|at| &self.endpoints[at]);
        }
        let others = || self.endpoints.iter().filter(|it| permitted(it));
        let count = others().count();
        (count > 0).then(|| others().nth(index(random, count)))?
    }
}

/// Two places, which are not the same where there are two.
fn draws(random: u64, len: usize) -> [usize; 2] {
    let one = index(random, len);
    let two = index(mix(random), len.saturating_sub(1).max(1));
    let two = if two >= one { two + 1 } else { two };
    [one, two.min(len - 1)]
}
