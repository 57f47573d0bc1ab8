//! Endpoints that are made up, requests at times that are handed in, seeded randomness.

mod choice;
mod hash;
mod limits;
mod outliers;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::policy::traffic::TrafficSettings;
use crate::state::traffic::Algorithm;

fn settings(change: impl FnOnce(&mut TrafficSettings)) -> Arc<TrafficSettings> {
    let mut settings = TrafficSettings::defaults();
    change(&mut settings);
    Arc::new(settings)
}

fn algorithm(algorithm: Algorithm) -> Arc<TrafficSettings> {
    settings(|it| it.load_balancing.algorithm = algorithm)
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 80))
}

fn candidate(number: u8) -> Candidate {
    Candidate {
        address: address(number),
        ready: true,
        near: Near::Far,
    }
}

/// `10.0.0.1:80` and those after it.
fn candidates(count: u8) -> Vec<Candidate> {
    (1..=count).map(candidate).collect()
}

const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A balancer, the time, and random numbers that are the same in each run.
struct Sim {
    balancer: Balancer,
    now: Instant,
    random: u64,
    client: NamespacedName,
}

impl Sim {
    fn new(settings: Arc<TrafficSettings>, endpoints: &[Candidate]) -> Self {
        let now = Instant::now();
        Self {
            balancer: Balancer::new(settings, endpoints, now),
            now,
            random: 1,
            client: NamespacedName::new("shop", "cart"),
        }
    }

    fn of(settings: Arc<TrafficSettings>, count: u8) -> Self {
        Self::new(settings, &candidates(count))
    }

    fn update(&self, settings: Arc<TrafficSettings>, endpoints: &[Candidate]) {
        self.balancer.update(settings, endpoints, self.now);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    fn ask(&mut self) -> Ask<'_> {
        self.random = mix(self.random);
        Ask {
            client: &self.client,
            hash: None,
            prefer: None,
            open: None,
            exclude: &[],
            random: self.random,
        }
    }

    fn ask_hash(&mut self, hash: u64) -> Ask<'_> {
        Ask {
            hash: Some(hash),
            ..self.ask()
        }
    }

    fn try_pick(&mut self) -> Result<Picked, Refusal> {
        let (balancer, now) = (self.balancer.clone(), self.now);
        balancer.pick(&self.ask(), now)
    }

    #[track_caller]
    fn pick(&mut self) -> Picked {
        self.try_pick().unwrap()
    }

    fn pick_hash(&mut self, hash: u64) -> Picked {
        let (balancer, now) = (self.balancer.clone(), self.now);
        balancer.pick(&self.ask_hash(hash), now).unwrap()
    }

    fn carry_hash(&mut self, hash: u64) -> Carried {
        let (balancer, now) = (self.balancer.clone(), self.now);
        balancer.carry(&self.ask_hash(hash), now).unwrap()
    }

    fn pick_other(&mut self, exclude: &[SocketAddr]) -> Picked {
        let (balancer, now) = (self.balancer.clone(), self.now);
        let ask = Ask {
            exclude,
            ..self.ask()
        };
        balancer.pick(&ask, now).unwrap()
    }

    /// A request that is answered at once.
    fn request(&mut self, outcome: impl Fn(SocketAddr) -> (Outcome, Duration)) -> SocketAddr {
        let picked = self.pick();
        let (outcome, latency) = outcome(picked.address());
        picked.sample(outcome, latency, self.now);
        picked.address()
    }

    /// Where so many requests go, a millisecond after each other, each answered well.
    fn shares(&mut self, requests: u32) -> BTreeMap<SocketAddr, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..requests {
            self.wait(ms(1));
            let address = self.request(|_| (Outcome::Success, ms(1)));
            *shares.entry(address).or_default() += 1;
        }
        shares
    }

    /// Requests come at a steady rate and take as long as `latency` says.
    fn load(
        &mut self,
        requests: u32,
        every: Duration,
        latency: impl Fn(SocketAddr) -> Duration,
    ) -> BTreeMap<SocketAddr, u32> {
        let mut shares = BTreeMap::new();
        let mut flying: Vec<(Instant, Duration, Picked)> = Vec::new();
        for _ in 0..requests {
            self.wait(every);
            let now = self.now;
            for (end, latency, picked) in flying.extract_if(.., |(end, ..)| *end <= now) {
                picked.sample(Outcome::Success, latency, end);
            }
            let picked = self.pick();
            *shares.entry(picked.address()).or_default() += 1;
            let latency = latency(picked.address());
            flying.push((now + latency, latency, picked));
        }
        shares
    }

    fn health(&self, number: u8) -> Health {
        let figures = self.balancer.figures(self.now);
        let mut figures = figures.iter();
        let found = figures.find(|it| it.address == address(number));
        found.unwrap().health
    }
}
