//! The sections of a traffic policy that say one thing each.

use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::Reader;
use super::values::{self, flag, number, time, timeout, word};
use crate::state::traffic::{
    AdaptiveConcurrencySpec, Algorithm, BackoffSpec, BudgetSpec, ConnectionsSpec, ConsistentHash,
    HashKey, HashTableKind, LatencyOutlierSpec, LoadBalancingSpec, LocalitySpec,
    OutlierDetectionSpec, RequestsSpec, RetriesSpec, RetryOn, SlowStartSpec, SuccessRateSpec,
    TimeoutsSpec,
};

/// Codes and methods of one policy.
const LISTED: usize = 64;

pub(super) fn load_balancing(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> LoadBalancingSpec {
    let mut spec = LoadBalancingSpec::default();
    let known = ["algorithm", "consistentHash", "locality", "slowStart"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "algorithm" => {
                let words = [
                    ("PEAK_EWMA", Algorithm::PeakEwma),
                    ("ROUND_ROBIN", Algorithm::RoundRobin),
                    ("LEAST_REQUEST", Algorithm::LeastRequest),
                    ("RANDOM", Algorithm::Random),
                    ("CONSISTENT_HASH", Algorithm::ConsistentHash),
                ];
                spec.algorithm = word(reader, value, &path, &words);
            }
            "consistentHash" => spec.consistent_hash = consistent_hash(reader, value, &path),
            "locality" => spec.locality = Some(locality(reader, value, &path)),
            _ => spec.slow_start = Some(slow_start(reader, value, &path)),
        }
    }
    let hashes = value.get("consistentHash").is_some();
    match spec.algorithm {
        Some(Algorithm::ConsistentHash) if !hashes => {
            let message = "is missing: it says what of a request leads to an endpoint";
            reader.report(&path.key("consistentHash"), message);
        }
        Some(algorithm) if hashes && algorithm != Algorithm::ConsistentHash => {
            let message = "has no effect with this algorithm: leave one of the two out";
            reader.report(&path.key("consistentHash"), message);
        }
        Some(_) | None => {}
    }
    spec
}

fn consistent_hash(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<ConsistentHash> {
    let mut keys = Vec::new();
    let (mut table, mut bounded_load) = (None, None);
    let known = [
        "table",
        "header",
        "cookie",
        "source",
        "query",
        "boundedLoad",
    ];
    let mut given = 0;
    for (key, value, path) in reader.fields(value, path, &known) {
        given += usize::from(!matches!(key, "table" | "boundedLoad"));
        match key {
            "table" => {
                let words = [
                    ("RING", HashTableKind::Ring),
                    ("MAGLEV", HashTableKind::Maglev),
                ];
                table = word(reader, value, &path, &words);
            }
            "boundedLoad" => bounded_load = number(reader, value, &path, 100..=10_000),
            "header" => {
                let header = values::take(reader, &path, values::header(value));
                keys.extend(header.map(HashKey::Header));
            }
            "cookie" => keys.extend(
                reader
                    .text(value, &path)
                    .map(|it| HashKey::Cookie(it.into())),
            ),
            "query" => keys.extend(
                reader
                    .text(value, &path)
                    .map(|it| HashKey::Query(it.into())),
            ),
            _ => match value.as_bool() {
                Some(true) => keys.push(HashKey::Source),
                _ => reader.report(&path, "must be true, or left out"),
            },
        }
    }
    if given != 1 {
        reader.report(path, "must have one of header, cookie, source and query");
    }
    keys.pop().map(|key| ConsistentHash {
        table,
        key,
        bounded_load,
    })
}

fn locality(reader: &mut Reader, value: &Value, path: &FieldPath) -> LocalitySpec {
    let mut spec = LocalitySpec::default();
    for (key, value, path) in reader.fields(value, path, &["node", "zone", "overprovisioning"]) {
        match key {
            "node" => spec.node = flag(reader, value, &path),
            "zone" => spec.zone = flag(reader, value, &path),
            _ => spec.overprovisioning = number(reader, value, &path, 100..=1_000),
        }
    }
    spec
}

fn slow_start(reader: &mut Reader, value: &Value, path: &FieldPath) -> SlowStartSpec {
    let mut spec = SlowStartSpec::default();
    for (key, value, path) in reader.fields(value, path, &["window", "minimumPercent"]) {
        match key {
            "window" => spec.window = time(reader, value, &path),
            _ => spec.minimum_percent = number(reader, value, &path, 1..=100),
        }
    }
    spec
}

pub(super) fn connections(reader: &mut Reader, value: &Value, path: &FieldPath) -> ConnectionsSpec {
    let mut spec = ConnectionsSpec::default();
    let known = ["max", "perClient", "pending", "idleTimeout"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "max" => spec.max = number(reader, value, &path, 0..=u32::MAX),
            "perClient" => spec.per_client = number(reader, value, &path, 0..=u32::MAX),
            "pending" => spec.pending = number(reader, value, &path, 0..=u32::MAX),
            _ => spec.idle_timeout = time(reader, value, &path),
        }
    }
    spec
}

pub(super) fn requests(reader: &mut Reader, value: &Value, path: &FieldPath) -> RequestsSpec {
    let mut spec = RequestsSpec::default();
    for (key, value, path) in reader.fields(value, path, &["max", "perClient", "retries"]) {
        let limit = number(reader, value, &path, 0..=u32::MAX);
        match key {
            "max" => spec.max = limit,
            "perClient" => spec.per_client = limit,
            _ => spec.retries = limit,
        }
    }
    spec
}

pub(super) fn outliers(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> OutlierDetectionSpec {
    let mut spec = OutlierDetectionSpec::default();
    let known = [
        "consecutive5xxErrors",
        "consecutiveGatewayErrors",
        "successRate",
        "latency",
        "interval",
        "baseEjectionTime",
        "maxEjectionTime",
        "maxEjectionPercent",
        "panicThreshold",
    ];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "consecutive5xxErrors" => {
                spec.consecutive_5xx = number(reader, value, &path, 0..=u32::MAX);
            }
            "consecutiveGatewayErrors" => {
                spec.consecutive_gateway_errors = number(reader, value, &path, 0..=u32::MAX);
            }
            "successRate" => spec.success_rate = Some(success_rate(reader, value, &path)),
            "latency" => spec.latency = Some(latency(reader, value, &path)),
            "interval" => spec.interval = time(reader, value, &path),
            "baseEjectionTime" => spec.base_ejection_time = time(reader, value, &path),
            "maxEjectionTime" => spec.max_ejection_time = time(reader, value, &path),
            "maxEjectionPercent" => {
                spec.max_ejection_percent = number(reader, value, &path, 0..=100);
            }
            _ => spec.panic_threshold = number(reader, value, &path, 0..=100),
        }
    }
    spec
}

fn success_rate(reader: &mut Reader, value: &Value, path: &FieldPath) -> SuccessRateSpec {
    let mut spec = SuccessRateSpec::default();
    let known = ["minimumHosts", "requestVolume", "stdevFactor"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "minimumHosts" => spec.minimum_hosts = number(reader, value, &path, 1..=u32::MAX),
            "requestVolume" => spec.request_volume = number(reader, value, &path, 1..=u32::MAX),
            _ => spec.stdev_factor = number(reader, value, &path, 1..=100_000),
        }
    }
    spec
}

fn latency(reader: &mut Reader, value: &Value, path: &FieldPath) -> LatencyOutlierSpec {
    let mut spec = LatencyOutlierSpec::default();
    let known = [
        "minimumHosts",
        "requestVolume",
        "percentOfMedian",
        "minimum",
    ];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "minimumHosts" => spec.minimum_hosts = number(reader, value, &path, 1..=u32::MAX),
            "requestVolume" => spec.request_volume = number(reader, value, &path, 1..=u32::MAX),
            "percentOfMedian" => {
                spec.percent_of_median = number(reader, value, &path, 101..=10_000);
            }
            _ => spec.minimum = timeout(reader, value, &path),
        }
    }
    spec
}

pub(super) fn retries(reader: &mut Reader, value: &Value, path: &FieldPath) -> RetriesSpec {
    let mut spec = RetriesSpec::default();
    let known = [
        "attempts", "backoff", "retryOn", "codes", "methods", "budget",
    ];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "attempts" => spec.attempts = number(reader, value, &path, 0..=10),
            "backoff" => spec.backoff = Some(backoff(reader, value, &path)),
            "retryOn" => {
                let on = |value: &Value| {
                    let mut all = RetryOn::ALL.into_iter();
                    let found = all.find(|it| Some(it.as_str()) == value.as_str());
                    found.ok_or_else(|| {
                        let known = RetryOn::ALL.map(RetryOn::as_str);
                        format!("{value} is none of {}", known.join(", "))
                    })
                };
                spec.on = Some(values::list(reader, value, &path, LISTED, on));
            }
            "codes" => {
                let codes = values::list(reader, value, &path, LISTED, values::code);
                spec.codes = Some(codes);
            }
            "methods" => {
                let methods = values::list(reader, value, &path, LISTED, values::method);
                spec.methods = Some(methods);
            }
            _ => spec.budget = Some(budget(reader, value, &path)),
        }
    }
    spec
}

fn backoff(reader: &mut Reader, value: &Value, path: &FieldPath) -> BackoffSpec {
    let mut spec = BackoffSpec::default();
    for (key, value, path) in reader.fields(value, path, &["base", "max"]) {
        match key {
            "base" => spec.base = time(reader, value, &path),
            _ => spec.max = time(reader, value, &path),
        }
    }
    spec
}

fn budget(reader: &mut Reader, value: &Value, path: &FieldPath) -> BudgetSpec {
    let mut spec = BudgetSpec::default();
    for (key, value, path) in reader.fields(value, path, &["percent", "minPerSecond"]) {
        match key {
            "percent" => spec.percent = number(reader, value, &path, 0..=100),
            _ => spec.min_per_second = number(reader, value, &path, 0..=100_000),
        }
    }
    spec
}

pub(super) fn timeouts(reader: &mut Reader, value: &Value, path: &FieldPath) -> TimeoutsSpec {
    let mut spec = TimeoutsSpec::default();
    let known = ["request", "perTry", "connect", "idle", "stream"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "request" => spec.request = timeout(reader, value, &path),
            "perTry" => spec.per_try = timeout(reader, value, &path),
            "connect" => spec.connect = time(reader, value, &path),
            "idle" => spec.idle = timeout(reader, value, &path),
            _ => spec.stream = timeout(reader, value, &path),
        }
    }
    spec
}

pub(super) fn adaptive(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> AdaptiveConcurrencySpec {
    let mut spec = AdaptiveConcurrencySpec::default();
    for (key, value, path) in reader.fields(value, path, &["initial", "min", "max", "tolerance"]) {
        match key {
            "initial" => spec.initial = number(reader, value, &path, 1..=1_000_000),
            "min" => spec.min = number(reader, value, &path, 1..=1_000_000),
            "max" => spec.max = number(reader, value, &path, 1..=1_000_000),
            _ => spec.tolerance = number(reader, value, &path, 100..=1_000),
        }
    }
    spec
}
