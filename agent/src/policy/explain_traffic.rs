//! What holds for the traffic to a Service's port, in sentences.

use std::time::Duration;

use http::{HeaderMap, Method};

use super::explanation::TrafficStep;
use super::traffic::{
    Limiter, LoadBalancing, OutlierDetection, RateLimit, Retries, Timeouts, TrafficSettings,
};
use crate::model::normal_path;
use crate::state::traffic::{
    AbortWith, Algorithm, ComparedPath, Fault, HashKey, LimitKey, Share, TrafficMatch,
    TrafficPolicy,
};

/// The request that is asked about, as policies of traffic match it.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) headers: &'a HeaderMap,
}

/// What a policy says, in sentences.
pub fn describe_traffic(policy: &TrafficPolicy) -> Vec<String> {
    let settings = TrafficSettings::of(&[policy]);
    let defaults = traffic(&TrafficSettings::defaults(), None).settings;
    let mut said = traffic(&settings, None).settings;
    said.retain(|line| !defaults.contains(line));
    said
}

/// The settings in force; of limits of rates and of faults only those that match what is
/// asked about.
pub(super) fn traffic(settings: &TrafficSettings, seen: Option<Seen<'_>>) -> TrafficStep {
    let mut lines = vec![balancing(&settings.load_balancing)];
    lines.extend(timeouts(&settings.timeouts));
    lines.push(retries(&settings.retries));
    let defaults = TrafficSettings::defaults();
    if settings.connections != defaults.connections {
        let it = settings.connections;
        lines.push(format!(
            "at most {} connections and {} requests waiting for one",
            it.max, it.pending
        ));
    }
    if settings.requests != defaults.requests {
        let it = settings.requests;
        lines.push(format!("at most {} requests in flight", it.max));
    }
    lines.extend(settings.outlier_detection.as_ref().map(outliers));
    if let Some(it) = settings.adaptive_concurrency {
        lines.push(format!(
            "requests in flight are limited by latency, to {} at least and {} at most",
            it.min, it.max
        ));
    }
    let path = seen.and_then(|seen| normal_path(seen.path).ok());
    let matches = |it: &TrafficMatch, path| {
        seen.is_none_or(|seen| it.matches(seen.method, path, seen.headers))
    };
    let for_limit = ComparedPath::for_limit(path.as_deref());
    let for_fault = ComparedPath::for_fault(path.as_deref());
    let limits = settings
        .rate_limits
        .iter()
        .filter(|it| matches(&it.matches, for_limit));
    lines.extend(limits.map(limit));
    let faults = settings.faults.iter();
    let faults = faults.filter(|it| matches(&it.matches, for_fault));
    // The first that matches counts.
    let counting = if seen.is_some() { 1 } else { usize::MAX };
    lines.extend(faults.take(counting).map(fault));
    TrafficStep {
        policies: settings.policies.clone(),
        settings: lines,
    }
}

fn balancing(of: &LoadBalancing) -> String {
    let mut line = match of.algorithm {
        Algorithm::PeakEwma => "the faster and less loaded of two endpoints is taken".to_owned(),
        Algorithm::RoundRobin => "endpoints take turns".to_owned(),
        Algorithm::LeastRequest => "the less loaded of two endpoints is taken".to_owned(),
        Algorithm::Random => "any endpoint is taken".to_owned(),
        Algorithm::ConsistentHash => "the same key leads to the same endpoint".to_owned(),
    };
    if let Some(hash) = &of.hash {
        let key = match &hash.key {
            HashKey::Header(name) => format!("header {name}"),
            HashKey::Cookie(name) => format!("cookie {name}"),
            HashKey::Source => "the client's address".to_owned(),
            HashKey::Query(name) => format!("parameter {name} of the query"),
        };
        line = format!("{line}, by {key}");
    }
    line.push_str(match (of.locality.node, of.locality.zone) {
        (true, true) => ", those on this node and then in this zone first",
        (true, false) => ", those on this node first",
        (false, true) => ", those in this zone first",
        (false, false) => "",
    });
    line
}

/// Those of them that are limits.
pub(super) fn timeouts(of: &Timeouts) -> Option<String> {
    let limits = [
        ("the request", of.request),
        ("each try", of.per_try),
        ("silence", of.idle),
        ("the whole stream", of.stream),
    ];
    let given: Vec<String> = limits
        .iter()
        .filter_map(|(what, limit)| Some(format!("{what} {}", span((*limit)?))))
        .collect();
    (!given.is_empty()).then(|| format!("time limits: {}", given.join(", ")))
}

fn retries(of: &Retries) -> String {
    if of.attempts == 0 {
        return "nothing is tried again".to_owned();
    }
    let on: Vec<&str> = of.on.iter().map(|it| it.as_str()).collect();
    let codes: Vec<String> = of.codes.iter().map(|it| it.as_u16().to_string()).collect();
    let codes = if codes.is_empty() {
        String::new()
    } else {
        format!(" and answers {}", codes.join(", "))
    };
    format!(
        "up to {} retries after {}{codes}, of at most {} % of requests",
        of.attempts,
        on.join(", "),
        of.budget.percent
    )
}

fn outliers(of: &OutlierDetection) -> String {
    let mut signs = Vec::new();
    if let Some(count) = of.consecutive_5xx {
        signs.push(format!("{count} answers of 5xx in a row"));
    }
    if let Some(count) = of.consecutive_gateway_errors {
        signs.push(format!("{count} gateway errors in a row"));
    }
    if of.success_rate.is_some() {
        signs.push("a low rate of success".to_owned());
    }
    if of.latency.is_some() {
        signs.push("a high latency".to_owned());
    }
    format!(
        "an endpoint is left out for {} or more after {}; at most {} % of them",
        span(of.base_ejection_time),
        signs.join(", "),
        of.max_ejection_percent
    )
}

fn limit(of: &RateLimit) -> String {
    let limit = match &of.limiter {
        Limiter::Local {
            requests, per, by, ..
        } => {
            let each = match by {
                LimitKey::Service => String::new(),
                LimitKey::Client => " for each client".to_owned(),
                LimitKey::Route => " for each route".to_owned(),
                LimitKey::Header(name) => format!(" for each value of header {name}"),
            };
            format!("{requests} requests in {}{each}, on each node", span(*per))
        }
        Limiter::Global { limit, .. } => {
            format!("as {} port {} says", limit.service, limit.port)
        }
    };
    format!("limited by {} to {limit}", of.policy)
}

fn fault(of: &Fault) -> String {
    let mut parts = Vec::new();
    if let Some(delay) = of.delay {
        let (share, time) = (percent(delay.share), span(delay.duration));
        parts.push(format!("{share} of requests are delayed by {time}"));
    }
    if let Some(abort) = of.abort {
        let answer = match abort.with {
            AbortWith::Status(status) => status.as_u16().to_string(),
            AbortWith::Grpc(code) => format!("gRPC status {code}"),
        };
        let share = percent(abort.share);
        parts.push(format!("{share} are answered with {answer}"));
    }
    format!("a fault is injected: {}", parts.join(", "))
}

pub(super) fn percent(share: Share) -> String {
    format!("{} %", f64::from(share.0) / 10_000.0)
}

fn span(time: Duration) -> String {
    format!("{time:?}")
}
