//! Consistent hashes: the same of a request leads to the same endpoint, on every node,
//! and few requests move when an endpoint comes or goes.
//!
//! The hash is XXH3 with 64 bits, without a seed. The ring is libketama's: each endpoint
//! has a number of points on a circle, and a request belongs to the next point. The other
//! table is Maglev's (Eisenbud et al., NSDI 2016, section 3.4): endpoints take turns to
//! claim the slots of a table, each in an order of its own.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::mix;
use crate::state::traffic::{HashKey, HashTableKind, Octets};

/// Points of each endpoint, as libketama has it.
const POINTS: u64 = 160;
/// Points of all: with more endpoints than these allow for each has fewer.
const MOST_POINTS: u64 = 1 << 20;
/// A prime, and Envoy's default.
const MAGLEV: usize = 65_537;

/// The hash of what leads a request to an endpoint. `None`: the request does not have it.
pub fn hash_of(
    key: &HashKey,
    headers: &HeaderMap,
    query: Option<&str>,
    client: IpAddr,
) -> Option<u64> {
    let client = Octets::from(client);
    key.value(headers, query, &client).map(xxh3_64)
}

/// From a hash to the places of endpoints in their list.
#[derive(Debug)]
pub(super) enum HashTable {
    Ring(Box<[Point]>),
    Maglev(Box<[u32]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    at: u64,
    endpoint: u32,
}

impl HashTable {
    pub(super) fn new(kind: HashTableKind, endpoints: &[SocketAddr]) -> Self {
        match kind {
            HashTableKind::Ring => Self::Ring(ring(endpoints)),
            HashTableKind::Maglev => Self::Maglev(maglev(endpoints)),
        }
    }

    /// The place of the endpoint for a hash; of those after the first that `permitted` turns
    /// down the next one on the ring, or that of another slot. `None`: it turns down all,
    /// or all that were tried.
    pub(super) fn find(
        &self,
        hash: u64,
        endpoints: usize,
        permitted: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut last = None;
        let mut fits = |endpoint: u32| {
            let place = endpoint as usize;
            let again = last.replace(place) == Some(place);
            (!again && permitted(place)).then_some(place)
        };
        match self {
            Self::Ring(points) => {
                let start = points.partition_point(|point| point.at < hash);
                let (before, after) = points.split_at(start);
                let mut points = after.iter().chain(before);
                points.find_map(|point| fits(point.endpoint))
            }
            Self::Maglev(slots) if slots.is_empty() => None,
            Self::Maglev(slots) => {
                let modulus = slots.len() as u64;
                let mut hash = hash;
                // After so many tries it is all but certain that all were seen.
                for _ in 0..endpoints.saturating_mul(8).max(16) {
                    let slot = usize::try_from(hash % modulus).unwrap_or(0);
                    if let Some(place) = slots.get(slot).and_then(|it| fits(*it)) {
                        return Some(place);
                    }
                    hash = mix(hash);
                }
                None
            }
        }
    }
}

/// What tells endpoints apart, whatever their place in a list.
fn seed(address: &SocketAddr) -> u64 {
    let octets = Octets::from(address.ip());
    xxh3_64_with_seed(octets.as_slice(), u64::from(address.port()))
}

fn ring(endpoints: &[SocketAddr]) -> Box<[Point]> {
    let each = (MOST_POINTS / (endpoints.len() as u64).max(1)).clamp(1, POINTS);
    let points = endpoints.iter().zip(0..).flat_map(|(address, endpoint)| {
        let seed = seed(address);
        (0..each).map(move |point: u64| Point {
            at: xxh3_64_with_seed(&point.to_le_bytes(), seed),
            endpoint,
        })
    });
    let mut points: Vec<Point> = points.collect();
    points.sort_unstable();
    points.into()
}

fn maglev(endpoints: &[SocketAddr]) -> Box<[u32]> {
    if endpoints.is_empty() {
        return Box::default();
    }
    // In the order of their hashes: who is first must not follow from the list.
    let mut order: Vec<(u64, u32)> = endpoints.iter().map(seed).zip(0..).collect();
    order.sort_unstable();
    let size = MAGLEV as u64;
    let mut next: Vec<(usize, usize, u32)> = order
        .into_iter()
        .map(|(seed, endpoint)| {
            let offset = usize::try_from(seed % size).unwrap_or(0);
            let skip = usize::try_from(mix(seed) % (size - 1)).unwrap_or(0) + 1;
            (offset, skip, endpoint)
        })
        .collect();
    let mut slots = vec![u32::MAX; MAGLEV];
    let mut filled = 0;
    loop {
        for (slot, skip, endpoint) in &mut next {
            while slots[*slot] != u32::MAX {
                *slot = (*slot + *skip) % MAGLEV;
            }
            slots[*slot] = *endpoint;
            filled += 1;
            if filled == MAGLEV {
                return slots.into();
            }
        }
    }
}
