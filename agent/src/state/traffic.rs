//! `TrafficPolicy` as plain data: what was given, without what follows from leaving
//! something out. The defaults are in [`crate::policy`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, StatusCode};
use serde::Serialize;

use super::objects::StringMatch;
use crate::model::{NamespacedName, below, without_parameters};

/// A `TrafficPolicy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The Services of its namespace that it holds for.
    pub targets: Vec<TrafficTarget>,
    /// What it says.
    pub spec: TrafficSpec,
    /// `metadata.creationTimestamp`, in seconds; 0 where the source gives none. Of several
    /// policies that say something of the same Service the oldest one counts.
    pub created: i64,
    /// `metadata.generation`: counts the changes of its spec; 0 where the source gives none.
    pub generation: i64,
    /// What of it was not understood. What it said when it was last understood is in
    /// force; where it never was, those of its limits that are understood.
    pub invalid: Option<String>,
    /// It is invalid, and `targets` and `spec` are what it said before. The writer decides
    /// that.
    pub held: bool,
}

/// A Service, or one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrafficTarget {
    /// The Service, in the policy's namespace.
    pub service: Arc<str>,
    /// Its port; `None`: all of them.
    pub port: Option<TargetedPort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetedPort {
    /// By number.
    Number(u16),
    /// By name (`sectionName`).
    Name(Arc<str>),
}

/// The spec of a `TrafficPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficSpec {
    /// How an endpoint is chosen.
    pub load_balancing: Option<LoadBalancingSpec>,
    /// Limits of connections.
    pub connections: Option<ConnectionsSpec>,
    /// Limits of requests.
    pub requests: Option<RequestsSpec>,
    /// Which endpoints are left out for a while.
    pub outlier_detection: Option<OutlierDetectionSpec>,
    /// What is tried again.
    pub retries: Option<RetriesSpec>,
    /// How long things may take.
    pub timeouts: Option<TimeoutsSpec>,
    /// Limits of rates.
    pub rate_limits: Vec<RateLimit>,
    /// Failures that are made on purpose.
    pub faults: Vec<Fault>,
    /// A limit of requests in flight that is found out.
    pub adaptive_concurrency: Option<AdaptiveConcurrencySpec>,
}

/// `loadBalancing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancingSpec {
    /// `algorithm`.
    pub algorithm: Option<Algorithm>,
    /// `consistentHash`.
    pub consistent_hash: Option<ConsistentHash>,
    /// `locality`.
    pub locality: Option<LocalitySpec>,
    /// `slowStart`.
    pub slow_start: Option<SlowStartSpec>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Algorithm {
    /// Of two that are drawn, the one with the lower product of latency and requests in
    /// flight.
    PeakEwma,
    /// One after the other.
    RoundRobin,
    /// Of two that are drawn, the one with fewer requests in flight.
    LeastRequest,
    /// Any.
    Random,
    /// The one that something of the request leads to.
    ConsistentHash,
}

/// `consistentHash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistentHash {
    /// `table`; `None`: the default.
    pub table: Option<HashTableKind>,
    /// `header`, `cookie`, `source` or `query`.
    pub key: HashKey,
    /// `boundedLoad`: no endpoint has more requests in flight than so many percent of what
    /// they have on the average; 100 at least.
    pub bounded_load: Option<u32>,
}

/// The table of a consistent hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HashTableKind {
    /// Points on a ring.
    Ring,
    /// Maglev's table.
    Maglev,
}

/// What of a request a consistent hash is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Arc<str>),
    /// The client's address.
    Source,
    /// The value of a parameter of the query.
    Query(Arc<str>),
}

/// `locality`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalitySpec {
    /// `node`: endpoints on the client's node go first.
    pub node: Option<bool>,
    /// `zone`: then those in the client's zone.
    pub zone: Option<bool>,
    /// `overprovisioning`: the near ones get all requests for as long as their healthy share
    /// times this is 100 percent or more; 100 at least.
    pub overprovisioning: Option<u32>,
}

/// `slowStart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowStartSpec {
    /// `window`: how long a new endpoint gets less than the others.
    pub window: Option<Duration>,
    /// `minimumPercent`: what it gets at first.
    pub minimum_percent: Option<u32>,
}

/// `connections`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionsSpec {
    /// `max`: of this node's pods to the Service's port.
    pub max: Option<u32>,
    /// `perClient`: of each pod.
    pub per_client: Option<u32>,
    /// `pending`: requests that wait for a connection.
    pub pending: Option<u32>,
    /// `idleTimeout`: how long one without a request stays open.
    pub idle_timeout: Option<Duration>,
}

/// `requests`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestsSpec {
    /// `max`: in flight, of this node's pods to the Service's port.
    pub max: Option<u32>,
    /// `perClient`: in flight, of each pod.
    pub per_client: Option<u32>,
    /// `retries`: in flight that are retries.
    pub retries: Option<u32>,
}

/// `outlierDetection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutlierDetectionSpec {
    /// `consecutive5xxErrors`: answers of 500 to 599 and failures to get one, in a row; 0
    /// switches it off.
    pub consecutive_5xx: Option<u32>,
    /// `consecutiveGatewayErrors`: 502, 503, 504 and failures, in a row; 0 switches it off.
    pub consecutive_gateway_errors: Option<u32>,
    /// `successRate`.
    pub success_rate: Option<SuccessRateSpec>,
    /// `latency`.
    pub latency: Option<LatencyOutlierSpec>,
    /// `interval`: how often rates and latencies are looked at.
    pub interval: Option<Duration>,
    /// `baseEjectionTime`: of the first ejection; the second takes twice as long.
    pub base_ejection_time: Option<Duration>,
    /// `maxEjectionTime`.
    pub max_ejection_time: Option<Duration>,
    /// `maxEjectionPercent`: the share of endpoints that are ejected at a time; one may always
    /// be, where there are two.
    pub max_ejection_percent: Option<u32>,
    /// `panicThreshold`: where less than this percentage of endpoints is left, all get
    /// requests.
    pub panic_threshold: Option<u32>,
}

/// `outlierDetection.successRate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SuccessRateSpec {
    /// `minimumHosts`: with enough requests, else nothing is compared.
    pub minimum_hosts: Option<u32>,
    /// `requestVolume`: that an endpoint must have had in an interval.
    pub request_volume: Option<u32>,
    /// `stdevFactor`: in thousandths.
    pub stdev_factor: Option<u32>,
}

/// `outlierDetection.latency`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyOutlierSpec {
    /// `minimumHosts`: with enough requests, else nothing is compared.
    pub minimum_hosts: Option<u32>,
    /// `requestVolume`: that an endpoint must have had in an interval.
    pub request_volume: Option<u32>,
    /// `percentOfMedian`: an endpoint whose mean is above this share of the endpoints' median
    /// is an outlier.
    pub percent_of_median: Option<u32>,
    /// `minimum`: below this nothing is too slow.
    pub minimum: Option<Duration>,
}

/// `retries`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetriesSpec {
    /// `attempts`: beside the first try; 0 switches retries off.
    pub attempts: Option<u32>,
    /// `backoff`.
    pub backoff: Option<BackoffSpec>,
    /// `retryOn`.
    pub on: Option<Vec<RetryOn>>,
    /// `codes`.
    pub codes: Option<Vec<StatusCode>>,
    /// `methods`.
    pub methods: Option<Vec<Method>>,
    /// `budget`.
    pub budget: Option<BudgetSpec>,
}

/// `retries.backoff`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackoffSpec {
    /// `base`: the most that the first retry waits; it doubles with each.
    pub base: Option<Duration>,
    /// `max`: the most that any waits.
    pub max: Option<Duration>,
}

/// `retries.budget`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetSpec {
    /// `percent`: of the requests of the last seconds.
    pub percent: Option<u32>,
    /// `minPerSecond`: that are always permitted.
    pub min_per_second: Option<u32>,
}

/// Why something is tried again, as Envoy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection came about: the request was not seen.
    ConnectFailure,
    /// The endpoint said that it did not look at it: `REFUSED_STREAM`, or a `GOAWAY` before.
    RefusedStream,
    /// The connection or stream ended before an answer.
    Reset,
    /// A try took too long.
    PerTryTimeout,
    /// 502, 503 or 504.
    GatewayError,
    /// 500 to 599, a reset, or a try that took too long.
    #[serde(rename = "5xx")]
    ServerError,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    /// `grpc-status` 1.
    Cancelled,
    /// `grpc-status` 4.
    DeadlineExceeded,
    /// `grpc-status` 13.
    Internal,
    /// `grpc-status` 8.
    ResourceExhausted,
    /// `grpc-status` 14.
    Unavailable,
}

impl RetryOn {
    /// Every condition.
    pub const ALL: [Self; 12] = [
        Self::ConnectFailure,
        Self::RefusedStream,
        Self::Reset,
        Self::PerTryTimeout,
        Self::GatewayError,
        Self::ServerError,
        Self::Retriable4xx,
        Self::Cancelled,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::ResourceExhausted,
        Self::Unavailable,
    ];

    /// As a policy spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectFailure => "connect-failure",
            Self::RefusedStream => "refused-stream",
            Self::Reset => "reset",
            Self::PerTryTimeout => "per-try-timeout",
            Self::GatewayError => "gateway-error",
            Self::ServerError => "5xx",
            Self::Retriable4xx => "retriable-4xx",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Internal => "internal",
            Self::ResourceExhausted => "resource-exhausted",
            Self::Unavailable => "unavailable",
        }
    }
}

/// `timeouts`. Zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeoutsSpec {
    /// `request`: from the request's head until the answer has begun, with all retries.
    pub request: Option<Duration>,
    /// `perTry`: likewise of each try.
    pub per_try: Option<Duration>,
    /// `connect`: until a connection is there.
    pub connect: Option<Duration>,
    /// `idle`: without a byte of an answer that has begun.
    pub idle: Option<Duration>,
    /// `stream`: from a request's first byte to its answer's last.
    pub stream: Option<Duration>,
}

/// Which requests something holds for: each field that is given must match, within one any
/// of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficMatch {
    /// `methods`.
    pub methods: Vec<Method>,
    /// `paths`.
    pub paths: Vec<StringMatch>,
    /// `headers`: all of them.
    pub headers: Vec<HeaderMatch>,
}

/// The path of a request as it is compared.
#[derive(Clone, Copy, Debug)]
pub enum ComparedPath<'a> {
    /// In the form of [`crate::model::normal_path`], without the query.
    Form(&'a str),
    /// Likewise; some servers take what follows `;` in a segment for no part of it, and so
    /// it is also what it is without.
    Parameters(&'a str),
    /// It has no such form; with `matches` it is taken for any path that is asked for,
    /// otherwise for none.
    Formless {
        /// Whether it is taken for any.
        matches: bool,
    },
}

impl<'a> ComparedPath<'a> {
    /// As limits see it, that nobody escapes by a path without a form, or by parameters.
    pub fn for_limit(form: Option<&'a str>) -> Self {
        match form {
            Some(path) if path.contains(';') => Self::Parameters(path),
            Some(path) => Self::Form(path),
            None => Self::Formless { matches: true },
        }
    }

    /// As faults see it, which are made only where they are meant.
    pub fn for_fault(form: Option<&'a str>) -> Self {
        form.map_or(Self::Formless { matches: false }, Self::Form)
    }

    fn is_one_of(self, paths: &[StringMatch]) -> bool {
        match self {
            Self::Form(path) => paths.iter().any(|it| it.matches(path)),
            Self::Parameters(path) => {
                let bare = without_parameters(path);
                let either = |it: &StringMatch| {
                    it.matches(path) || bare.as_deref().is_some_and(|bare| it.matches(bare))
                };
                paths.iter().any(either)
            }
            Self::Formless { matches } => matches,
        }
    }
}

impl TrafficMatch {
    /// It holds for a request. Of a header that is there more than once any may match.
    pub fn matches(&self, method: &Method, path: ComparedPath<'_>, headers: &HeaderMap) -> bool {
        let any = |value: &StringMatch, values: http::header::GetAll<'_, _>| {
            let mut texts = values
                .iter()
                .map(|it: &http::HeaderValue| it.to_str().unwrap_or_default());
            texts.any(|text| value.matches(text))
        };
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || path.is_one_of(&self.paths))
            && self
                .headers
                .iter()
                .all(|it| any(&it.value, headers.get_all(&it.name)))
    }
}

/// A header and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// Its value.
    pub value: StringMatch,
}

/// One of `rateLimits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `name`, for the reason that a client is told; empty where there is none.
    pub name: Arc<str>,
    /// `match`.
    pub matches: TrafficMatch,
    /// `local` or `global`.
    pub limit: LimitKind,
}

/// Who counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// This node, for itself.
    Local(LocalLimit),
    /// A service that counts for all.
    Global(GlobalLimit),
}

/// `local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalLimit {
    /// `requests`: so many.
    pub requests: u32,
    /// `per`: in so much time.
    pub per: Duration,
    /// `burst`: so many at once; `None`: as many as `requests`.
    pub burst: Option<u32>,
    /// `by`: what has a count of its own.
    pub by: LimitKey,
}

/// What has a count of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// `SERVICE`: all requests to the Service are counted together.
    Service,
    /// `CLIENT`: each identity.
    Client,
    /// `ROUTE`: each rule of a route.
    Route,
    /// `HEADER`: each value of a header; requests without it together.
    Header(HeaderName),
}

/// `global`: Envoy's rate limit service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalLimit {
    /// `service.name`, `service.namespace`.
    pub service: NamespacedName,
    /// `service.port`.
    pub port: u16,
    /// `domain`.
    pub domain: Arc<str>,
    /// `descriptors`; one is left out where a value of it is not there.
    pub descriptors: Vec<Vec<DescriptorEntry>>,
    /// `timeout`; `None`: the default.
    pub timeout: Option<Duration>,
    /// `onFailure: DENY`: requests are refused while the service does not answer; `None`: the
    /// default.
    pub deny_on_failure: Option<bool>,
}

/// A part of a descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorEntry {
    /// `key`.
    pub key: Arc<str>,
    /// `value`, `header` or `from`.
    pub value: DescriptorValue,
}

/// Where the value of a [`DescriptorEntry`] is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DescriptorValue {
    /// `value`.
    Literal(Arc<str>),
    /// `header`.
    Header(HeaderName),
    /// `from: CLIENT`: the client's identity.
    Client,
    /// `from: SOURCE`: the client's address.
    Source,
    /// `from: METHOD`.
    Method,
    /// `from: PATH`.
    Path,
    /// `from: HOST`.
    Host,
    /// `from: ROUTE`: the rule of the route.
    Route,
}

/// A share, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Share(pub u32);

impl Share {
    /// Everything.
    pub const ALL: Self = Self(1_000_000);

    /// Chosen, where `random` is spread over all of its values.
    pub fn hits(self, random: u64) -> bool {
        below(random, u64::from(Self::ALL.0)) < u64::from(self.0)
    }
}

/// One of `faults`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `match`.
    pub matches: TrafficMatch,
    /// `delay`.
    pub delay: Option<Delay>,
    /// `abort`.
    pub abort: Option<Abort>,
}

/// `faults[].delay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// `percent`.
    pub share: Share,
    /// `duration`.
    pub duration: Duration,
}

/// `faults[].abort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// `percent`.
    pub share: Share,
    /// `status` or `grpcStatus`.
    pub with: AbortWith,
}

/// What an aborted request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortWith {
    /// `status`; in gRPC what stands for it.
    Status(StatusCode),
    /// `grpcStatus`, 1 to 16; outside gRPC what stands for it.
    Grpc(u8),
}

/// `adaptiveConcurrency`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdaptiveConcurrencySpec {
    /// `initial`: requests in flight at first.
    pub initial: Option<u32>,
    /// `min`: never fewer.
    pub min: Option<u32>,
    /// `max`: never more.
    pub max: Option<u32>,
    /// `tolerance`: how much slower than usual counts as full, in percent; 100 at least.
    pub tolerance: Option<u32>,
}

impl HashKey {
    /// The bytes that are hashed. `None`: the request does not have it.
    pub fn value<'a>(
        &self,
        headers: &'a HeaderMap,
        query: Option<&'a str>,
        client: &'a Octets,
    ) -> Option<&'a [u8]> {
        match self {
            Self::Header(name) => headers.get(name).map(http::HeaderValue::as_bytes),
            Self::Cookie(name) => {
                let all = headers.get_all(http::header::COOKIE).iter();
                let pairs = all.filter_map(|it| it.to_str().ok());
                let mut pairs = pairs.flat_map(|it| it.split(';'));
                pairs.find_map(|it| pair(it.trim_start(), name))
            }
            Self::Query(name) => query?.split('&').find_map(|it| pair(it, name)),
            Self::Source => Some(client.as_slice()),
        }
    }
}

fn pair<'a>(text: &'a str, name: &str) -> Option<&'a [u8]> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key == name).then_some(value.as_bytes())
}

/// An address as bytes.
#[derive(Clone, Copy, Debug)]
pub enum Octets {
    /// Of IPv4.
    V4([u8; 4]),
    /// Of IPv6.
    V6([u8; 16]),
}

impl Octets {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

impl From<IpAddr> for Octets {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }
}
