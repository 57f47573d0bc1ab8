//! The settings of the traffic to a Service's port, with every default.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use imbl::OrdMap;

use super::table::{Table, both};
use crate::model::NamespacedName;
use crate::state::traffic::{
    AdaptiveConcurrencySpec, Algorithm, ConnectionsSpec, Fault, GlobalLimit, HashKey,
    HashTableKind, LatencyOutlierSpec, LimitKey, LimitKind, LoadBalancingSpec, LocalitySpec,
    OutlierDetectionSpec, RequestsSpec, RetriesSpec, RetryOn, SlowStartSpec, SuccessRateSpec,
    TargetedPort, TimeoutsSpec, TrafficMatch, TrafficPolicy, TrafficSpec,
};
use crate::state::{Service, Snapshot};

/// What holds for the traffic to one port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficSettings {
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Limits of connections.
    pub connections: Connections,
    /// Limits of requests.
    pub requests: Requests,
    /// Which endpoints are left out for a while; `None`: none.
    pub outlier_detection: Option<OutlierDetection>,
    /// What is tried again.
    pub retries: Retries,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// A policy says so.
    pub has_timeouts: bool,
    /// Limits of rates, in the order of the policies.
    pub rate_limits: Vec<RateLimit>,
    /// Failures that are made on purpose: the first that matches counts.
    pub faults: Vec<Fault>,
    /// A limit of requests in flight that is found out; `None`: there is none.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// The policies that it is made of, for people.
    pub policies: Vec<NamespacedName>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancing {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// What leads to an endpoint; there where the algorithm is
    /// [`Algorithm::ConsistentHash`].
    pub hash: Option<ConsistentHashing>,
    /// Which endpoints go first.
    pub locality: Locality,
    /// How new endpoints are begun with; `None`: at once.
    pub slow_start: Option<SlowStart>,
}

/// A consistent hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistentHashing {
    /// Its table.
    pub table: HashTableKind,
    /// What it is made of.
    pub key: HashKey,
    /// In percent of the average of requests in flight; `None`: without bound.
    pub bounded_load: Option<u32>,
}

/// Which endpoints go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locality {
    /// Those on the client's node.
    pub node: bool,
    /// Those in the client's zone.
    pub zone: bool,
    /// In percent: healthy ones count this much more before requests go further away.
    pub overprovisioning: u32,
}

/// How new endpoints are begun with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long one is new.
    pub window: Duration,
    /// What it gets at first, in percent.
    pub minimum_percent: u32,
}

/// Limits of connections. All are of this node to one port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open ones.
    pub max: u32,
    /// Open ones of one pod; `None`: as many as `max`.
    pub per_client: Option<u32>,
    /// Requests that wait for one.
    pub pending: u32,
    /// How long one without a request stays open.
    pub idle_timeout: Duration,
}

/// Limits of requests in flight. All are of this node to one port of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// All.
    pub max: u32,
    /// Of one pod; `None`: as many as `max`.
    pub per_client: Option<u32>,
    /// Those that are retries.
    pub retries: u32,
}

/// Which endpoints are left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Errors of the server, in a row; `None`: they don't count.
    pub consecutive_5xx: Option<u32>,
    /// Errors of a gateway, in a row; `None`: they don't count.
    pub consecutive_gateway_errors: Option<u32>,
    /// Rates of success, compared.
    pub success_rate: Option<SuccessRate>,
    /// Latencies, compared.
    pub latency: Option<LatencyOutlier>,
    /// How often those two are looked at.
    pub interval: Duration,
    /// Of the first ejection.
    pub base_ejection_time: Duration,
    /// Of any.
    pub max_ejection_time: Duration,
    /// The share of endpoints that are ejected at a time.
    pub max_ejection_percent: u32,
    /// Where less than this percentage is left, all get requests.
    pub panic_threshold: u32,
}

/// Rates of success, compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// Fewer endpoints are not compared.
    pub minimum_hosts: u32,
    /// An endpoint with fewer requests in an interval is not compared.
    pub request_volume: u32,
    /// So many thousandths of a standard deviation below the mean is an outlier.
    pub stdev_factor: u32,
}

/// Latencies, compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyOutlier {
    /// Fewer endpoints are not compared.
    pub minimum_hosts: u32,
    /// An endpoint with fewer requests in an interval is not compared.
    pub request_volume: u32,
    /// A mean of so many percent of the median is an outlier.
    pub percent_of_median: u32,
    /// Below this nothing is.
    pub minimum: Duration,
}

/// What is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Beside the first try.
    pub attempts: u32,
    /// How long is waited before.
    pub backoff: Backoff,
    /// Why.
    pub on: Vec<RetryOn>,
    /// And after these answers.
    pub codes: Vec<StatusCode>,
    /// Requests of other methods only where the endpoint has not seen them
    /// ([`RetryOn::ConnectFailure`], [`RetryOn::RefusedStream`]).
    pub methods: Vec<Method>,
    /// How many of all requests.
    pub budget: Budget,
}

/// How long is waited before a retry: a random part of the time, which doubles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The most that the first one waits.
    pub base: Duration,
    /// The most that any waits.
    pub max: Duration,
}

/// How many of all requests may be retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the requests of the last ten seconds.
    pub percent: u32,
    /// Always permitted.
    pub min_per_second: u32,
}

/// How long things may take; `None`: as long as they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the head of the request until the answer has begun, with all retries.
    pub request: Option<Duration>,
    /// Likewise of each try.
    pub per_try: Option<Duration>,
    /// Until a connection is there.
    pub connect: Duration,
    /// Without a byte of an answer that has begun.
    pub idle: Option<Duration>,
    /// From a request's first byte to its answer's last.
    pub stream: Option<Duration>,
}

/// A limit of a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The policy that has it.
    pub policy: NamespacedName,
    /// Its name there; empty where it has none.
    pub name: Arc<str>,
    /// Which requests.
    pub matches: TrafficMatch,
    /// Who counts.
    pub limiter: Limiter,
}

/// Who counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limiter {
    /// This node, for itself.
    Local {
        /// So many requests...
        requests: u32,
        /// ... in so much time.
        per: Duration,
        /// So many at once.
        burst: u32,
        /// What has a count of its own.
        by: LimitKey,
    },
    /// A service that counts for all.
    Global {
        /// Which, and what it is told.
        limit: GlobalLimit,
        /// How long it may take.
        timeout: Duration,
        /// Requests are refused while it does not answer.
        deny_on_failure: bool,
    },
}

/// A limit of requests in flight that is found out by their latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveConcurrency {
    /// At first.
    pub initial: u32,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// How much slower than usual counts as full, in percent.
    pub tolerance: u32,
}

/// Where a policy says nothing: this, and that nothing of the kind is done.
///
/// Where each is from: Envoy's defaults for outlier detection, panic, slow start and
/// overprovisioning; Finagle's for the retry budget; Netflix's `Gradient2Limit`.
mod defaults {
    use super::{Algorithm, Duration, HashTableKind, Method, RetryOn};

    pub(super) const ALGORITHM: Algorithm = Algorithm::PeakEwma;
    pub(super) const TABLE: HashTableKind = HashTableKind::Ring;
    pub(super) const OVERPROVISIONING: u32 = 140;
    pub(super) const SLOW_START_WINDOW: Duration = Duration::from_secs(30);
    pub(super) const SLOW_START_MINIMUM: u32 = 10;
    // Not Envoy's 1,024: one proxy stands for all pods of a node.
    pub(super) const CONNECTIONS: u32 = 16_384;
    pub(super) const PENDING: u32 = 4_096;
    pub(super) const IDLE_CONNECTION: Duration = Duration::from_mins(1);
    pub(super) const REQUESTS: u32 = 65_536;
    pub(super) const RETRIES_IN_FLIGHT: u32 = 1_024;
    pub(super) const CONSECUTIVE: u32 = 5;
    pub(super) const MINIMUM_HOSTS: u32 = 5;
    pub(super) const REQUEST_VOLUME: u32 = 100;
    pub(super) const STDEV_FACTOR: u32 = 1_900;
    pub(super) const PERCENT_OF_MEDIAN: u32 = 300;
    pub(super) const SLOW: Duration = Duration::from_millis(100);
    pub(super) const INTERVAL: Duration = Duration::from_secs(10);
    pub(super) const BASE_EJECTION: Duration = Duration::from_secs(30);
    pub(super) const MAX_EJECTION: Duration = Duration::from_mins(5);
    pub(super) const MAX_EJECTION_PERCENT: u32 = 10;
    pub(super) const PANIC_THRESHOLD: u32 = 50;
    pub(super) const ATTEMPTS: u32 = 2;
    pub(super) const BACKOFF_BASE: Duration = Duration::from_millis(25);
    pub(super) const BACKOFF_MAX: Duration = Duration::from_millis(250);
    /// Of these the endpoint has not seen the request: to try again is always safe.
    pub(super) const ON: [RetryOn; 2] = [RetryOn::ConnectFailure, RetryOn::RefusedStream];
    /// What may be done twice, by RFC 9110.
    pub(super) const METHODS: [Method; 6] = [
        Method::GET,
        Method::HEAD,
        Method::OPTIONS,
        Method::TRACE,
        Method::PUT,
        Method::DELETE,
    ];
    pub(super) const BUDGET_PERCENT: u32 = 20;
    pub(super) const BUDGET_PER_SECOND: u32 = 10;
    pub(super) const CONNECT: Duration = Duration::from_secs(5);
    pub(super) const LIMITER_TIMEOUT: Duration = Duration::from_millis(20);
    pub(super) const DENY_ON_FAILURE: bool = false;
    pub(super) const CONCURRENCY_INITIAL: u32 = 20;
    pub(super) const CONCURRENCY_MIN: u32 = 20;
    pub(super) const CONCURRENCY_MAX: u32 = 1_000;
    pub(super) const CONCURRENCY_TOLERANCE: u32 = 150;
}

impl TrafficSettings {
    /// Of a port that no policy speaks of.
    pub fn defaults() -> Self {
        Self::of(&[])
    }

    /// Each section is that of the first policy that has it; rate limits and faults are
    /// those of all.
    pub(super) fn of(policies: &[&TrafficPolicy]) -> Self {
        let first = |section: fn(&TrafficSpec) -> bool| {
            let found = policies.iter().find(|it| section(&it.spec));
            found.map(|it| &it.spec)
        };
        let load_balancing = first(|it| it.load_balancing.is_some());
        let load_balancing = load_balancing.and_then(|it| it.load_balancing.as_ref());
        let retries = first(|it| it.retries.is_some()).and_then(|it| it.retries.as_ref());
        let connections = first(|it| it.connections.is_some()).and_then(|it| it.connections);
        let requests = first(|it| it.requests.is_some()).and_then(|it| it.requests);
        let outliers = first(|it| it.outlier_detection.is_some());
        let outliers = outliers.and_then(|it| it.outlier_detection.as_ref());
        let timeouts = first(|it| it.timeouts.is_some()).and_then(|it| it.timeouts);
        let adaptive = first(|it| it.adaptive_concurrency.is_some());
        let adaptive = adaptive.and_then(|it| it.adaptive_concurrency.as_ref());
        let faults = policies.iter().flat_map(|it| it.spec.faults.clone());
        Self {
            load_balancing: LoadBalancing::of(load_balancing),
            connections: Connections::of(connections.unwrap_or_default()),
            requests: Requests::of(requests.unwrap_or_default()),
            outlier_detection: outliers.map(OutlierDetection::of),
            retries: Retries::of(retries),
            timeouts: Timeouts::of(timeouts.unwrap_or_default()),
            has_timeouts: timeouts.is_some(),
            rate_limits: policies.iter().flat_map(|it| RateLimit::all(it)).collect(),
            faults: faults.collect(),
            adaptive_concurrency: adaptive.map(AdaptiveConcurrency::of),
            policies: policies.iter().map(|it| it.name.clone()).collect(),
        }
    }
}

impl LoadBalancing {
    fn of(spec: Option<&LoadBalancingSpec>) -> Self {
        let hash = spec.and_then(|it| it.consistent_hash.as_ref());
        let algorithm = spec.and_then(|it| it.algorithm);
        let algorithm = match hash {
            Some(_) => algorithm.unwrap_or(Algorithm::ConsistentHash),
            None => algorithm.unwrap_or(defaults::ALGORITHM),
        };
        Self {
            algorithm,
            hash: hash
                .filter(|_| algorithm == Algorithm::ConsistentHash)
                .map(|hash| ConsistentHashing {
                    table: hash.table.unwrap_or(defaults::TABLE),
                    key: hash.key.clone(),
                    bounded_load: hash.bounded_load,
                }),
            locality: Locality::of(spec.and_then(|it| it.locality).unwrap_or_default()),
            slow_start: spec.and_then(|it| it.slow_start).map(SlowStart::of),
        }
    }
}

impl Locality {
    fn of(spec: LocalitySpec) -> Self {
        Self {
            node: spec.node.unwrap_or(false),
            zone: spec.zone.unwrap_or(false),
            overprovisioning: spec.overprovisioning.unwrap_or(defaults::OVERPROVISIONING),
        }
    }
}

impl SlowStart {
    fn of(spec: SlowStartSpec) -> Self {
        Self {
            window: spec.window.unwrap_or(defaults::SLOW_START_WINDOW),
            minimum_percent: spec.minimum_percent.unwrap_or(defaults::SLOW_START_MINIMUM),
        }
    }
}

impl Connections {
    fn of(spec: ConnectionsSpec) -> Self {
        Self {
            max: spec.max.unwrap_or(defaults::CONNECTIONS),
            per_client: spec.per_client,
            pending: spec.pending.unwrap_or(defaults::PENDING),
            idle_timeout: spec.idle_timeout.unwrap_or(defaults::IDLE_CONNECTION),
        }
    }
}

impl Requests {
    fn of(spec: RequestsSpec) -> Self {
        Self {
            max: spec.max.unwrap_or(defaults::REQUESTS),
            per_client: spec.per_client,
            retries: spec.retries.unwrap_or(defaults::RETRIES_IN_FLIGHT),
        }
    }
}

impl OutlierDetection {
    fn of(spec: &OutlierDetectionSpec) -> Self {
        let base = spec.base_ejection_time.unwrap_or(defaults::BASE_EJECTION);
        let max = spec.max_ejection_time.unwrap_or(defaults::MAX_EJECTION);
        let consecutive = spec.consecutive_5xx.unwrap_or(defaults::CONSECUTIVE);
        let gateway = spec.consecutive_gateway_errors.unwrap_or(0);
        let share = spec.max_ejection_percent;
        Self {
            consecutive_5xx: Some(consecutive).filter(|it| *it > 0),
            consecutive_gateway_errors: Some(gateway).filter(|it| *it > 0),
            success_rate: spec.success_rate.map(SuccessRate::of),
            latency: spec.latency.map(LatencyOutlier::of),
            interval: spec.interval.unwrap_or(defaults::INTERVAL),
            base_ejection_time: base,
            max_ejection_time: max.max(base),
            max_ejection_percent: share.unwrap_or(defaults::MAX_EJECTION_PERCENT),
            panic_threshold: spec.panic_threshold.unwrap_or(defaults::PANIC_THRESHOLD),
        }
    }
}

impl SuccessRate {
    fn of(spec: SuccessRateSpec) -> Self {
        Self {
            minimum_hosts: spec.minimum_hosts.unwrap_or(defaults::MINIMUM_HOSTS),
            request_volume: spec.request_volume.unwrap_or(defaults::REQUEST_VOLUME),
            stdev_factor: spec.stdev_factor.unwrap_or(defaults::STDEV_FACTOR),
        }
    }
}

impl LatencyOutlier {
    fn of(spec: LatencyOutlierSpec) -> Self {
        let percent = spec.percent_of_median;
        Self {
            minimum_hosts: spec.minimum_hosts.unwrap_or(defaults::MINIMUM_HOSTS),
            request_volume: spec.request_volume.unwrap_or(defaults::REQUEST_VOLUME),
            percent_of_median: percent.unwrap_or(defaults::PERCENT_OF_MEDIAN),
            minimum: spec.minimum.unwrap_or(defaults::SLOW),
        }
    }
}

impl Retries {
    fn of(spec: Option<&RetriesSpec>) -> Self {
        let given = spec.cloned().unwrap_or_default();
        let backoff = given.backoff.unwrap_or_default();
        let budget = given.budget.unwrap_or_default();
        let base = backoff.base.unwrap_or(defaults::BACKOFF_BASE);
        // Ten times the base, as Envoy has it, where only that is given.
        let max = match backoff.base {
            Some(base) => base.saturating_mul(10),
            None => defaults::BACKOFF_MAX,
        };
        let methods = given.methods;
        Self {
            attempts: given.attempts.unwrap_or(defaults::ATTEMPTS),
            backoff: Backoff {
                base,
                max: backoff.max.unwrap_or(max).max(base),
            },
            on: given.on.unwrap_or_else(|| defaults::ON.to_vec()),
            codes: given.codes.unwrap_or_default(),
            methods: methods.unwrap_or_else(|| defaults::METHODS.to_vec()),
            budget: Budget {
                percent: budget.percent.unwrap_or(defaults::BUDGET_PERCENT),
                min_per_second: budget.min_per_second.unwrap_or(defaults::BUDGET_PER_SECOND),
            },
        }
    }
}

impl Timeouts {
    fn of(spec: TimeoutsSpec) -> Self {
        let given = |timeout: Option<Duration>| timeout.filter(|it| !it.is_zero());
        Self {
            request: given(spec.request),
            per_try: given(spec.per_try),
            connect: given(spec.connect).unwrap_or(defaults::CONNECT),
            idle: given(spec.idle),
            stream: given(spec.stream),
        }
    }
}

impl RateLimit {
    fn all(policy: &TrafficPolicy) -> impl Iterator<Item = Self> {
        policy.spec.rate_limits.iter().map(|it| Self {
            policy: policy.name.clone(),
            name: Arc::clone(&it.name),
            matches: it.matches.clone(),
            limiter: match &it.limit {
                LimitKind::Local(local) => Limiter::Local {
                    requests: local.requests,
                    per: local.per,
                    burst: local.burst.unwrap_or(local.requests),
                    by: local.by.clone(),
                },
                LimitKind::Global(global) => Limiter::Global {
                    timeout: global.timeout.unwrap_or(defaults::LIMITER_TIMEOUT),
                    deny_on_failure: global.deny_on_failure.unwrap_or(defaults::DENY_ON_FAILURE),
                    limit: global.clone(),
                },
            },
        })
    }
}

impl AdaptiveConcurrency {
    fn of(spec: &AdaptiveConcurrencySpec) -> Self {
        let min = spec.min.unwrap_or(defaults::CONCURRENCY_MIN).max(1);
        let max = spec.max.unwrap_or(defaults::CONCURRENCY_MAX).max(min);
        let initial = spec.initial.unwrap_or(defaults::CONCURRENCY_INITIAL);
        let tolerance = spec.tolerance.unwrap_or(defaults::CONCURRENCY_TOLERANCE);
        Self {
            initial: initial.clamp(min, max),
            min,
            max,
            tolerance,
        }
    }
}

/// The settings of every Service.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    services: OrdMap<NamespacedName, Arc<ServiceTraffic>>,
    defaults: Arc<TrafficSettings>,
}

impl Traffic {
    /// Of no Service.
    pub(super) fn new() -> Self {
        Self {
            services: OrdMap::new(),
            defaults: Arc::new(TrafficSettings::defaults()),
        }
    }

    /// Works out what differs between two snapshots. The cost is that of the policies in
    /// the namespaces of the Services that changed or that a changed policy names.
    pub(super) fn update(&mut self, old: &Snapshot, new: &Snapshot) {
        for service in Self::affected(old, new) {
            let known = new.services.get(&service);
            let previous = self.services.get(&service);
            let compiled = known.and_then(|known| {
                ServiceTraffic::compile(new, known, previous.map(|previous| &**previous))
            });
            match compiled {
                Some(compiled) if previous.is_some_and(|it| **it == compiled) => {}
                Some(compiled) => drop(self.services.insert(service, Arc::new(compiled))),
                None => drop(self.services.remove(&service)),
            }
        }
    }

    fn affected(old: &Snapshot, new: &Snapshot) -> BTreeSet<NamespacedName> {
        let mut affected = BTreeSet::new();
        for change in old.traffic_policies.diff(&new.traffic_policies) {
            for policy in both(&change) {
                let namespace = &policy.name.namespace;
                affected.extend(policy.targets.iter().map(|target| {
                    NamespacedName::new(Arc::clone(namespace), Arc::clone(&target.service))
                }));
            }
        }
        if new.traffic_policies.is_empty() {
            return affected;
        }
        for change in old.services.diff(&new.services) {
            let services = both(&change).into_iter();
            affected.extend(services.map(|service| service.name.clone()));
        }
        affected
    }
}

impl Table {
    /// What holds for the traffic to a port of a Service: what its `TrafficPolicies` say,
    /// and the defaults. The same `Arc` while nothing of it changes.
    pub fn traffic(&self, service: &NamespacedName, port: u16) -> Arc<TrafficSettings> {
        let traffic = self.traffic.services.get(service);
        let settings = traffic.map_or(&self.traffic.defaults, |traffic| traffic.port(port));
        Arc::clone(settings)
    }

    /// How long a request may take that dialled one Service's port and is sent to another's,
    /// where its route does not say: as the policies of the latter have it, else those of the
    /// former. To connect takes as long as the latter may always.
    pub fn timeouts(&self, dialled: (&NamespacedName, u16), of: &TrafficSettings) -> Timeouts {
        if of.has_timeouts {
            return of.timeouts;
        }
        let (service, port) = dialled;
        Timeouts {
            connect: of.timeouts.connect,
            ..self.traffic(service, port).timeouts
        }
    }
}

/// The settings of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServiceTraffic {
    /// Of ports that no policy speaks of alone.
    whole: Arc<TrafficSettings>,
    ports: BTreeMap<u16, Arc<TrafficSettings>>,
}

impl ServiceTraffic {
    /// Of the policies that have the Service as a target. `previous` keeps what is the
    /// same the same `Arc`. `None`: no policy does.
    fn compile(snapshot: &Snapshot, service: &Service, previous: Option<&Self>) -> Option<Self> {
        let name = &service.name;
        let of_namespace = Snapshot::in_namespace(&snapshot.traffic_policies, &name.namespace);
        let of_service = of_namespace.map(|(_, policy)| &**policy).filter(|policy| {
            let mut targets = policy.targets.iter();
            targets.any(|target| target.service == name.name)
        });
        let mut policies: Vec<&TrafficPolicy> = of_service.collect();
        if policies.is_empty() {
            return None;
        }
        policies.sort_by_key(|policy| (policy.created, policy.name.clone()));
        let settings = |port: Option<(u16, &str)>, old: Option<&Arc<TrafficSettings>>| {
            let new = TrafficSettings::of(&in_force(&policies, &name.name, port));
            match old.filter(|old| ***old == new) {
                Some(old) => Arc::clone(old),
                None => Arc::new(new),
            }
        };
        let targeted = |number: u16, port_name: &str| {
            let mut targets = policies.iter().flat_map(|policy| &policy.targets);
            targets.any(|target| {
                target.service == name.name
                    && target.port.is_some()
                    && specificity(target.port.as_ref(), Some((number, port_name))).is_some()
            })
        };
        let ports = service.ports.iter();
        let ports = ports.filter(|port| targeted(port.port, &port.name));
        let ports = ports.map(|port| {
            let old = previous.and_then(|it| it.ports.get(&port.port));
            (port.port, settings(Some((port.port, &port.name)), old))
        });
        Some(Self {
            whole: settings(None, previous.map(|it| &it.whole)),
            ports: ports.collect(),
        })
    }

    fn port(&self, port: u16) -> &Arc<TrafficSettings> {
        self.ports.get(&port).unwrap_or(&self.whole)
    }
}

/// Those that hold for a port: what speaks of the port alone before what speaks of the
/// Service, and among those the oldest first.
fn in_force<'p>(
    policies: &[&'p TrafficPolicy],
    service: &str,
    port: Option<(u16, &str)>,
) -> Vec<&'p TrafficPolicy> {
    let rank = |policy: &TrafficPolicy| {
        let targets = policy.targets.iter();
        let targets = targets.filter(|target| &*target.service == service);
        targets
            .filter_map(|target| specificity(target.port.as_ref(), port))
            .min()
    };
    let ranked = policies.iter().map(|policy| (rank(policy), *policy));
    let mut ranked: Vec<(u8, &TrafficPolicy)> = ranked
        .filter_map(|(rank, policy)| Some((rank?, policy)))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, policy)| policy).collect()
}

/// 0: it is this port that is targeted; 1: the whole Service; `None`: another port.
fn specificity(target: Option<&TargetedPort>, port: Option<(u16, &str)>) -> Option<u8> {
    match (target, port) {
        (None, _) => Some(1),
        (Some(TargetedPort::Number(wanted)), Some((number, _))) if *wanted == number => Some(0),
        (Some(TargetedPort::Name(wanted)), Some((_, name))) if **wanted == *name => Some(0),
        (Some(_), _) => None,
    }
}
