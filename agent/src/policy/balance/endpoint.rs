//! What is known of one endpoint.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;

use super::ewma::Ewma;
use super::{Near, Outcome, nanos};
use crate::policy::traffic::SlowStart;

/// A request that got no answer counts as slow at least as this: an endpoint that fails
/// fast is no fast one.
const FAILED: Duration = Duration::from_secs(1);

/// An endpoint, with what its requests told. Shared by the views and the requests in
/// flight.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    pub(super) near: Near,
    pub(super) in_flight: AtomicU32,
    pub(super) ewma: Ewma,
    /// In a row.
    pub(super) server_errors: AtomicU32,
    /// In a row.
    pub(super) gateway_errors: AtomicU32,
    /// Of this interval.
    pub(super) window: Tally,
    /// Of its life.
    pub(super) requests: AtomicU64,
    /// Of its life.
    pub(super) failures: AtomicU64,
    /// Until then it is ejected; 0 where it is not.
    pub(super) ejected_until: AtomicU64,
    /// How often in a row, for how long the next time.
    pub(super) ejections: AtomicU32,
    /// Since then it is new, or back; 0 where it was there from the beginning.
    pub(super) since: AtomicU64,
}

/// What is compared of endpoints.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: AtomicU32,
    pub(super) successes: AtomicU32,
    /// Microseconds, of the answers.
    pub(super) latency: AtomicU64,
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It is picked.
    Healthy,
    /// It is new or back, and picked less.
    SlowStart,
    /// It is left out for a while.
    Ejected,
}

/// What is known of an endpoint, for people.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointFigures {
    /// Its address.
    pub address: SocketAddr,
    /// How it is.
    pub health: Health,
    /// Until it is back, where it is ejected.
    pub ejected_for: Option<Duration>,
    /// Ejections in a row.
    pub ejections: u32,
    /// Requests in flight of this node.
    pub in_flight: u32,
    /// Its latency as it counts for `PEAK_EWMA`.
    pub latency: Duration,
    /// Requests since it is known.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
}

impl Endpoint {
    /// `since` is 0 where it is not to be begun with slowly.
    pub(super) fn new(address: SocketAddr, near: Near, since: u64, now: u64) -> Self {
        Self {
            address,
            near,
            in_flight: AtomicU32::new(0),
            ewma: Ewma::new(now),
            server_errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            window: Tally::default(),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            ejected_until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            since: AtomicU64::new(since),
        }
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.ejected_until.load(Relaxed) > 0
    }

    /// The product of latency and requests in flight, with the one that is to be sent.
    pub(super) fn cost(&self, now: u64) -> f64 {
        self.ewma.now(now) * self.load()
    }

    /// Requests in flight, with the one that is to be sent.
    pub(super) fn load(&self) -> f64 {
        f64::from(self.in_flight.load(Relaxed)) + 1.0
    }

    /// What it gets beside an endpoint that is not new: Envoy's slow start with an
    /// aggression of 1.
    pub(super) fn weight(&self, slow: &SlowStart, now: u64) -> f64 {
        let since = self.since.load(Relaxed);
        let window = slow.window.as_secs_f64();
        if since == 0 || window <= 0.0 {
            return 1.0;
        }
        let age = Duration::from_nanos(now.saturating_sub(since)).as_secs_f64();
        let least = f64::from(slow.minimum_percent.clamp(1, 100)) / 100.0;
        (age / window).clamp(least, 1.0)
    }

    /// Notes what became of a request.
    pub(super) fn note(&self, outcome: Outcome, latency: Duration, now: u64) {
        let latency = match outcome {
            Outcome::Failed => latency.max(FAILED),
            Outcome::Success | Outcome::ServerError | Outcome::GatewayError => latency,
        };
        self.ewma.observe(nanos(latency), now);
        self.window.requests.fetch_add(1, Relaxed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.window.latency.fetch_add(micros, Relaxed);
        if outcome.is_failure() {
            self.failures.fetch_add(1, Relaxed);
            self.server_errors.fetch_add(1, Relaxed);
        } else {
            self.window.successes.fetch_add(1, Relaxed);
            self.server_errors.store(0, Relaxed);
        }
        match outcome {
            Outcome::GatewayError | Outcome::Failed => {
                self.gateway_errors.fetch_add(1, Relaxed);
            }
            Outcome::Success | Outcome::ServerError => self.gateway_errors.store(0, Relaxed),
        }
    }

    pub(super) fn figures(&self, slow: Option<&SlowStart>, now: u64) -> EndpointFigures {
        let until = self.ejected_until.load(Relaxed);
        let warm = slow.is_none_or(|slow| self.weight(slow, now) >= 1.0);
        EndpointFigures {
            address: self.address,
            health: match (until, warm) {
                (0, true) => Health::Healthy,
                (0, false) => Health::SlowStart,
                (_, _) => Health::Ejected,
            },
            ejected_for: (until > 0).then(|| Duration::from_nanos(until.saturating_sub(now))),
            ejections: self.ejections.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            latency: Duration::from_secs_f64(self.ewma.now(now) / 1e9),
            requests: self.requests.load(Relaxed),
            failures: self.failures.load(Relaxed),
        }
    }
}
