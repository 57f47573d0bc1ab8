//! `TrafficPolicy`: how requests to Services are sent.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::selection::TargetKind;
use super::status::PolicyStatus;
use super::traffic_schema as schema;

/// How requests to the Services that it names are sent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    shortname = "ftp",
    category = "fairlead",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "How the requests of meshed pods to Services are sent: which endpoint they go to, how \
           many at once, how often again, for how long. Of several that name a Service the one \
           that names its port counts, then the oldest; section by section. A policy that is not \
           understood in full stays in force as it was, and its condition Accepted says why."
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The Services of this namespace, or single ports of them, that it holds for.
    #[schemars(length(min = 1, max = 64))]
    pub target_refs: Vec<TrafficTargetRef>,
    /// Which endpoint a request goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// How many connections there may be, of each node's pods to the port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// How many requests may be in flight, of each node's pods to the port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    /// Endpoints that fail are left out for a while. Without this section none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// What is tried again. Without this section: what no endpoint has seen, twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How long things may take. 0s is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// How many requests there may be in some time. Each that matches a request must
    /// permit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub rate_limits: Option<Vec<RateLimit>>,
    /// Failures that are made on purpose. The first that matches a request counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub faults: Option<Vec<Fault>>,
    /// A limit of requests in flight that follows from their latency. Without this section
    /// there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
}

/// A Service, or one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_PORT.rule()))]
pub struct TrafficTargetRef {
    /// The group of the kind: empty, as Service is of the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["", "core"]))]
    pub group: Option<String>,
    /// Service.
    pub kind: TargetKind,
    /// The name of the Service.
    #[schemars(length(min = 1))]
    pub name: String,
    /// The namespace of the Service: that of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The port of the Service, by number; all of them where neither this nor sectionName
    /// is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// The port of the Service, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub section_name: Option<String>,
}

/// Which endpoint a request goes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::HASH_OF_ALGORITHM.rule()))]
pub struct LoadBalancing {
    /// PEAK_EWMA (where nothing is given) takes the better of two by latency and requests in
    /// flight; LEAST_REQUEST by requests in flight; ROUND_ROBIN one after the other; RANDOM
    /// any; CONSISTENT_HASH the one that something of the request leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Algorithm")]
    pub algorithm: Option<Algorithm>,
    /// What leads to an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// Near endpoints go first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// Endpoints that are new get more and more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Algorithm {
    /// Of two the one with the lower product of latency and requests in flight.
    PeakEwma,
    /// One after the other.
    RoundRobin,
    /// Of two the one with fewer requests in flight.
    LeastRequest,
    /// Any.
    Random,
    /// By a hash.
    ConsistentHash,
}

/// What leads to an endpoint: one of header, cookie, source and query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_HASH_KEY.rule()))]
pub struct ConsistentHash {
    /// RING (where nothing is given) moves nothing but what must move when an endpoint comes or
    /// goes; MAGLEV spreads more evenly and moves a little more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HashTable")]
    pub table: Option<HashTable>,
    /// The value of this header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::header")]
    pub header: Option<String>,
    /// The value of this cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub cookie: Option<String>,
    /// The address of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [true]))]
    pub source: Option<bool>,
    /// The value of this parameter of the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub query: Option<String>,
    /// No endpoint has more than this percentage of the requests in flight that endpoints have
    /// on the average: what is beyond it goes to the next one. 100 to 10000; without it there
    /// is no bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 10_000))]
    pub bounded_load: Option<u32>,
}

/// The table of a consistent hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HashTable {
    /// Points on a ring.
    Ring,
    /// Maglev's table.
    Maglev,
}

/// Near endpoints go first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Locality {
    /// Those on the client's node go first. false where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<bool>,
    /// Those in the client's zone go next, or first. false where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<bool>,
    /// In percent: the near ones get all requests until their healthy share, times this, is
    /// less than 100 percent; then the others get what is missing. 100 to 1000, 140 where
    /// nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1_000))]
    pub overprovisioning: Option<u32>,
}

/// Endpoints that are new, or back after an ejection, get more and more.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// How long one is new. 30s where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub window: Option<String>,
    /// What it gets at first, of what others get. 1 to 100, 10 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub minimum_percent: Option<u32>,
}

/// How many connections there may be, of each node's pods to the port of the Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// Of all of the node's pods. 16384 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub max: Option<u32>,
    /// Of each pod. As many as max where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub per_client: Option<u32>,
    /// Requests that wait for a connection. 4096 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub pending: Option<u32>,
    /// How long a connection stays open without a request. 1m where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub idle_timeout: Option<String>,
}

/// How many requests may be in flight, of each node's pods to the port of the Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requests {
    /// Of all of the node's pods. 65536 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub max: Option<u32>,
    /// Of each pod. As many as max where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub per_client: Option<u32>,
    /// Those that are retries. 1024 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub retries: Option<u32>,
}

/// Endpoints that fail are left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// Answers of 500 to 599 and failures to get one, in a row. 0 switches it off; 5 where
    /// nothing is given.
    #[serde(
        rename = "consecutive5xxErrors",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "schema::count")]
    pub consecutive_5xx_errors: Option<u32>,
    /// Answers of 502, 503 and 504 and failures to get one, in a row. 0, and where nothing is
    /// given, switches it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub consecutive_gateway_errors: Option<u32>,
    /// Rates of success are compared. Without this section they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
    /// Latencies are compared. Without this section they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyOutlier>,
    /// How often rates and latencies are compared. 10s where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub interval: Option<String>,
    /// How long an endpoint is left out the first time; the second time twice as long, and so
    /// on. 30s where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub base_ejection_time: Option<String>,
    /// How long it is left out at most. 5m where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub max_ejection_time: Option<String>,
    /// How many endpoints are left out at a time. One always may be where there are two. 0 to
    /// 100, 10 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// Where less than this percentage of endpoints is left, all get requests again. 0 to 100,
    /// 50 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: Option<u32>,
}

/// Endpoints whose rate of success is far below the mean are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Fewer endpoints with enough requests are not compared. 5 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive")]
    pub minimum_hosts: Option<u32>,
    /// An endpoint with fewer requests in an interval is not compared. 100 where nothing is
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive")]
    pub request_volume: Option<u32>,
    /// How far, in thousandths of the standard deviation. 1 to 100000, 1900 where nothing is
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub stdev_factor: Option<u32>,
}

/// Endpoints whose latency is far above the median are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyOutlier {
    /// Fewer endpoints with enough requests are not compared. 5 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive")]
    pub minimum_hosts: Option<u32>,
    /// An endpoint with fewer requests in an interval is not compared. 100 where nothing is
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive")]
    pub request_volume: Option<u32>,
    /// How far, in percent of the median. 101 to 10000, 300 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 101, max = 10_000))]
    pub percent_of_median: Option<u32>,
    /// Below this nothing is too slow. 100ms where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub minimum: Option<String>,
}

/// What is tried again, on another endpoint where there is one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// How often, beside the first try. 0 to 10, 2 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10))]
    pub attempts: Option<u32>,
    /// How long is waited before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Why, in Envoy's words. connect-failure and refused-stream where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub retry_on: Option<Vec<RetryOn>>,
    /// After these answers, too: 400 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::codes")]
    pub codes: Option<Vec<u16>>,
    /// Requests of these methods. Those of others are tried again only where no endpoint has
    /// seen them. GET, HEAD, OPTIONS, TRACE, PUT and DELETE where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::retry_methods")]
    pub methods: Option<Vec<String>>,
    /// How many of all requests may be retries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// How long is waited before a retry: a random part of a time that doubles.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backoff {
    /// That time before the first retry. 25ms where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub base: Option<String>,
    /// That time at most. Ten times the base where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub max: Option<String>,
}

/// How many of all requests of the last ten seconds may be retries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// In percent. 0 to 100, 20 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Beside these in each second. 0 to 100000, 10 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub min_per_second: Option<u32>,
}

/// Why something is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RetryOn {
    /// No connection came about.
    ConnectFailure,
    /// The endpoint said that it did not look at it.
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

/// How long things may take. 0s is no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// From the head of a request until its answer begins, with all retries. No limit where
    /// nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub request: Option<String>,
    /// The same of each try. No limit where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub per_try: Option<String>,
    /// Until a connection is there; more than 0s. 5s where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub connect: Option<String>,
    /// Of an answer in which no byte comes. No limit where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub idle: Option<String>,
    /// From a request's first byte to its answer's last. No limit where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub stream: Option<String>,
}

/// Which requests: each field that is given must match, within a field any of its values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("minProperties" = 1))]
pub struct Match {
    /// Methods, in capitals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub methods: Option<Vec<String>>,
    /// Paths without the query. A * as the first or the last character stands for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::traffic_paths")]
    pub paths: Option<Vec<String>>,
    /// Headers: all of them must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub headers: Option<Vec<HeaderMatch>>,
}

/// A header and its value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderMatch {
    /// Its name.
    #[schemars(schema_with = "schema::header")]
    pub name: String,
    /// Its value. A * as the first or the last character stands for anything; alone it is
    /// any value that is not empty.
    #[schemars(schema_with = "schema::name")]
    pub value: String,
}

/// How many requests there may be in some time: one of local and global.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_LIMIT.rule()))]
pub struct RateLimit {
    /// Its name, which clients are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub name: Option<String>,
    /// Which requests; all where it is left out.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// Each node counts for itself the requests of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalLimit>,
    /// A service counts for all, by Envoy's rate limit protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global: Option<GlobalLimit>,
}

/// Each node counts for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::HEADER_OF_LIMIT.rule()))]
pub struct LocalLimit {
    /// So many requests...
    #[schemars(schema_with = "schema::positive")]
    pub requests: u32,
    /// ... in so much time.
    #[schemars(schema_with = "schema::duration")]
    pub per: String,
    /// So many at once. As many as requests where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::positive")]
    pub burst: Option<u32>,
    /// What has a count of its own: SERVICE (where nothing is given) counts all together,
    /// CLIENT each identity, ROUTE each rule of a route, HEADER each value of a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "LimitKey")]
    pub by: Option<LimitKey>,
    /// The header, for HEADER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::header")]
    pub header: Option<String>,
}

/// What has a count of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LimitKey {
    /// The Service.
    Service,
    /// Each identity of clients.
    Client,
    /// Each rule of a route.
    Route,
    /// Each value of a header.
    Header,
}

/// A service counts for all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GlobalLimit {
    /// The service, which speaks envoy.service.ratelimit.v3.
    pub service: ServiceRef,
    /// What it calls the set of its limits.
    #[schemars(length(min = 1))]
    pub domain: String,
    /// What it is told of a request. One is left out where a value of it is not there.
    #[schemars(length(min = 1, max = 16))]
    pub descriptors: Vec<Descriptor>,
    /// How long its answer may take. 20ms where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub timeout: Option<String>,
    /// Without an answer requests pass with ALLOW (where nothing is given), and are refused
    /// with DENY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OnFailure")]
    pub on_failure: Option<OnFailure>,
}

/// What happens without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum OnFailure {
    /// Requests pass.
    Allow,
    /// Requests are refused.
    Deny,
}

/// A Service and its port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceRef {
    /// Its name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Its namespace. That of the policy where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
}

/// What a service is told of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Descriptor {
    /// In this order.
    #[schemars(length(min = 1, max = 16))]
    pub entries: Vec<DescriptorEntry>,
}

/// A key, and one of value, header and from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_VALUE.rule()))]
pub struct DescriptorEntry {
    /// The key.
    #[schemars(length(min = 1))]
    pub key: String,
    /// Always this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub value: Option<String>,
    /// The value of this header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::header")]
    pub header: Option<String>,
    /// CLIENT: the identity of the client; SOURCE: its address; METHOD, PATH (without the
    /// query) or HOST of the request; ROUTE: the rule of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DescriptorOrigin")]
    pub from: Option<DescriptorOrigin>,
}

/// What of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum DescriptorOrigin {
    /// The identity of the client.
    Client,
    /// The address of the client.
    Source,
    /// The method.
    Method,
    /// The path.
    Path,
    /// The host.
    Host,
    /// The rule of the route.
    Route,
}

/// A failure that is made on purpose: a delay, an abort, or both.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::SOME_FAULT.rule()))]
pub struct Fault {
    /// Which requests; all where it is left out.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Match>,
    /// They wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// They are answered here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
}

/// Requests wait.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Delay {
    /// How many of them, in percent, such as 0.1. All where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::percent")]
    pub percent: Option<f64>,
    /// How long.
    #[schemars(schema_with = "schema::duration")]
    pub duration: String,
}

/// Requests are answered here: with one of status and grpcStatus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_STATUS.rule()))]
pub struct Abort {
    /// How many of them, in percent, such as 0.1. All where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::percent")]
    pub percent: Option<f64>,
    /// With this status, 400 to 599.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub status: Option<u16>,
    /// With this status of gRPC, 1 to 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub grpc_status: Option<u8>,
}

/// A limit of requests in flight that follows from their latency, as Netflix's Gradient2.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdaptiveConcurrency {
    /// At first. 20 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub initial: Option<u32>,
    /// Never fewer. 20 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min: Option<u32>,
    /// Never more. 1000 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max: Option<u32>,
    /// How much slower than usual counts as full, in percent. 100 to 1000, 150 where nothing
    /// is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1_000))]
    pub tolerance: Option<u32>,
}
