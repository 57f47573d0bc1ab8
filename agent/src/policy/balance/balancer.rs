//! The balancer of one port of a Service.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::adaptive::Adaptive;
use super::admission::{Admission, ClientRequest, ConnectionGuard, PendingGuard, RetryGuard};
use super::budget::RetryBudget;
use super::endpoint::{Endpoint, EndpointFigures};
use super::members::Members;
use super::outlier;
use super::view::View;
use super::{Ask, Candidate, Circuit, Epoch, Outcome, Refusal};
use crate::model::NamespacedName;
use crate::policy::traffic::TrafficSettings;

/// Chooses among the endpoints of one port of a Service, for all pods of this node. A clone
/// is the same balancer.
#[derive(Clone, Debug)]
pub struct Balancer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    epoch: Epoch,
    view: ArcSwap<View>,
    members: Mutex<Members>,
    /// When the members are to be looked at again.
    due: AtomicU64,
    admission: Arc<Admission>,
    budget: RetryBudget,
    adaptive: ArcSwapOption<Adaptive>,
    /// All that is in flight, requests and connections.
    carried: AtomicU32,
}

/// An endpoint for a request. The request is in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    carried: Carried,
    _client: Option<ClientRequest>,
}

/// An endpoint for a connection in which nobody looks for requests. It is in flight there until
/// this is dropped.
#[derive(Debug)]
pub struct Carried {
    balancer: Arc<Shared>,
    endpoint: Arc<Endpoint>,
}

impl Balancer {
    /// Of endpoints that are there from the beginning.
    pub fn new(settings: Arc<TrafficSettings>, endpoints: &[Candidate], now: Instant) -> Self {
        let epoch = Epoch(now);
        let members = Members::new(settings, endpoints, epoch.nanos(now));
        let settings = &members.settings;
        let adaptive = settings.adaptive_concurrency.as_ref().map(Adaptive::new);
        Self(Arc::new(Shared {
            epoch,
            view: ArcSwap::from_pointee(members.view(epoch.nanos(now))),
            due: AtomicU64::new(members.due()),
            members: Mutex::new(members),
            admission: Arc::default(),
            budget: RetryBudget::new(now),
            adaptive: ArcSwapOption::new(adaptive.map(Arc::new)),
            carried: AtomicU32::new(0),
        }))
    }

    /// Takes over other settings and endpoints; of what stays, what is known of it stays.
    pub fn update(&self, settings: Arc<TrafficSettings>, endpoints: &[Candidate], now: Instant) {
        let shared = &*self.0;
        let now = shared.epoch.nanos(now);
        let mut members = shared.members();
        let adaptive = settings.adaptive_concurrency;
        if members.settings.adaptive_concurrency != adaptive {
            let new = adaptive.as_ref().map(Adaptive::new);
            shared.adaptive.store(new.map(Arc::new));
        }
        members.update(settings, endpoints, now);
        shared.publish(&members, now);
    }

    /// An endpoint for a request, counted as in flight. Nothing is permitted beyond the
    /// limits of the settings.
    pub fn pick(&self, ask: &Ask<'_>, now: Instant) -> Result<Picked, Refusal> {
        let shared = &self.0;
        let nanos = shared.tended(now);
        let view = shared.view.load();
        let admission = &shared.admission;
        let in_flight = admission.requests.load(Relaxed);
        if shared.is_overloaded(&view.settings, in_flight) {
            return Err(Refusal::Overloaded);
        }
        let client = admission.request(&view.settings.requests, ask.client)?;
        let Some(endpoint) = view.choose(ask, shared.with_one_more(), nanos) else {
            admission.requests.fetch_sub(1, Relaxed);
            return Err(Refusal::NoEndpoints);
        };
        endpoint.requests.fetch_add(1, Relaxed);
        if ask.exclude.is_empty() {
            shared.budget.deposit(now);
        }
        Ok(Picked {
            carried: Carried::new(shared, endpoint),
            _client: client,
        })
    }

    /// An endpoint for a connection, by the same rules as of requests, but that no limit of
    /// requests holds for it. `None`: there is none.
    pub fn carry(&self, ask: &Ask<'_>, now: Instant) -> Option<Carried> {
        let shared = &self.0;
        let nanos = shared.tended(now);
        let view = shared.view.load();
        let endpoint = view.choose(ask, shared.with_one_more(), nanos)?;
        Some(Carried::new(shared, endpoint))
    }

    /// A retry may be sent: it is within the budget of retries, and not too many are in
    /// flight. Ask for the endpoint of a retry with what it is not to be sent to.
    pub fn retry(&self, now: Instant) -> Result<RetryGuard, Circuit> {
        let settings = self.settings();
        let guard = self.0.admission.retry(settings.requests.retries)?;
        if self.0.budget.withdraw(&settings.retries.budget, now) {
            Ok(guard)
        } else {
            Err(Circuit::RetryBudget)
        }
    }

    /// A connection to any of the endpoints may be opened.
    pub fn connection(&self, client: &NamespacedName) -> Result<ConnectionGuard, Circuit> {
        let settings = self.settings();
        self.0.admission.connection(&settings.connections, client)
    }

    /// The connection is one of those that are counted here.
    pub fn has(&self, connection: &ConnectionGuard) -> bool {
        connection.is_of(&self.0.admission)
    }

    /// A request may wait for a connection.
    pub fn pending(&self) -> Result<PendingGuard, Circuit> {
        self.0
            .admission
            .pending(self.settings().connections.pending)
    }

    /// How long it takes until one of the endpoints that are left out is back; `None`: none is
    /// left out.
    pub fn next_return(&self, now: Instant) -> Option<Duration> {
        let returns = self.0.members().next_return()?;
        let left = returns.saturating_sub(self.0.epoch.nanos(now));
        Some(Duration::from_nanos(left))
    }

    /// The settings that are in force.
    pub fn settings(&self) -> Arc<TrafficSettings> {
        Arc::clone(&self.0.view.load().settings)
    }

    /// How the endpoints are that are ready, by address.
    pub fn figures(&self, now: Instant) -> Vec<EndpointFigures> {
        let now = self.0.epoch.nanos(now);
        let members = self.0.members();
        let slow = members.settings.load_balancing.slow_start;
        let endpoints = members.endpoints.values();
        endpoints
            .map(|endpoint| endpoint.figures(slow.as_ref(), now))
            .collect()
    }
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, members: &Members, now: u64) {
        self.view.store(Arc::new(members.view(now)));
        self.due.store(members.due(), Relaxed);
    }

    /// Does what is due. Returns the time since the epoch, in nanoseconds.
    fn tended(&self, now: Instant) -> u64 {
        let nanos = self.epoch.nanos(now);
        if nanos >= self.due.load(Relaxed) {
            self.tend(nanos);
        }
        nanos
    }

    /// Does what is due. Whoever finds another at it goes on with what there is.
    fn tend(&self, now: u64) {
        if let Ok(mut members) = self.members.try_lock() {
            members.tend(now);
            self.publish(&members, now);
        }
    }

    /// What is in flight with what is about to be.
    fn with_one_more(&self) -> u32 {
        self.carried.load(Relaxed).saturating_add(1)
    }

    fn is_overloaded(&self, settings: &TrafficSettings, in_flight: u32) -> bool {
        settings.adaptive_concurrency.is_some()
            && self
                .adaptive
                .load()
                .as_ref()
                .is_some_and(|adaptive| in_flight >= adaptive.limit())
    }
}

impl Picked {
    /// Where the request goes.
    pub fn address(&self) -> SocketAddr {
        self.carried.address()
    }

    /// Tells what became of the request, once, and how long the answer took to begin. A
    /// request that its client gave up tells nothing of the endpoint.
    pub fn sample(&self, outcome: Outcome, latency: Duration, now: Instant) {
        let shared = &*self.carried.balancer;
        let view = shared.view.load();
        if let Some(settings) = &view.settings.adaptive_concurrency
            && let Some(adaptive) = &*shared.adaptive.load()
        {
            let in_flight = shared.admission.requests.load(Relaxed);
            adaptive.sample(settings, latency, in_flight, shared.epoch.nanos(now));
        }
        self.carried.sample(outcome, latency, now);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.carried
            .balancer
            .admission
            .requests
            .fetch_sub(1, Relaxed);
    }
}

impl Carried {
    fn new(balancer: &Arc<Shared>, endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, Relaxed);
        balancer.carried.fetch_add(1, Relaxed);
        Self {
            balancer: Arc::clone(balancer),
            endpoint: Arc::clone(endpoint),
        }
    }

    /// Where it goes.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address
    }

    /// Tells what became of the connection, once, and how long it took to begin.
    pub fn sample(&self, outcome: Outcome, latency: Duration, now: Instant) {
        let shared = &*self.balancer;
        let nanos = shared.epoch.nanos(now);
        self.endpoint.note(outcome, latency, nanos);
        let view = shared.view.load();
        let Some(settings) = &view.settings.outlier_detection else {
            return;
        };
        if outcome.is_failure() && outlier::is_enough(&self.endpoint, settings) {
            let members = shared.members();
            members.eject(&self.endpoint, nanos);
            shared.publish(&members, nanos);
        }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Relaxed);
        self.balancer.carried.fetch_sub(1, Relaxed);
    }
}
