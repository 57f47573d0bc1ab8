//! Which endpoints are left out for a while.
//!
//! The definitions are Envoy's (`outlier_detection_impl.cc`): errors in a row eject at
//! once; rates of success are compared at intervals, and one below the mean by a number of
//! standard deviations ejects. Latencies are compared in the same way, against the median,
//! which Envoy does not do. Each ejection in a row takes longer by the base time, and is
//! forgotten by an interval in which the endpoint was not ejected.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::endpoint::Endpoint;
use super::ewma::as_f64;
use super::nanos;
use crate::policy::traffic::{LatencyOutlier, OutlierDetection, SuccessRate};

/// The errors in a row are enough to eject. They are counted from 0 again, so that the
/// next look is after as many more.
pub(super) fn is_enough(endpoint: &Endpoint, settings: &OutlierDetection) -> bool {
    let reached = |limit: Option<u32>, count: &std::sync::atomic::AtomicU32| {
        let reached = limit.is_some_and(|limit| count.load(Relaxed) >= limit);
        if reached {
            count.store(0, Relaxed);
        }
        reached
    };
    let server = reached(settings.consecutive_5xx, &endpoint.server_errors);
    let gateway = reached(
        settings.consecutive_gateway_errors,
        &endpoint.gateway_errors,
    );
    server || gateway
}

/// One more may be ejected beside `ejected` of `all`.
pub(super) fn may_eject(settings: &OutlierDetection, ejected: usize, all: usize) -> bool {
    let most = all.saturating_mul(settings.max_ejection_percent as usize) / 100;
    all > 1 && ejected < most.max(1)
}

/// Ejects from now on.
pub(super) fn eject(endpoint: &Endpoint, settings: &OutlierDetection, now: u64) {
    let times = endpoint.ejections.fetch_add(1, Relaxed) + 1;
    let time = settings.base_ejection_time.saturating_mul(times);
    let time = nanos(time.min(settings.max_ejection_time));
    let until = now.saturating_add(time).max(1);
    endpoint.ejected_until.store(until, Relaxed);
    endpoint.server_errors.store(0, Relaxed);
    endpoint.gateway_errors.store(0, Relaxed);
}

/// What an endpoint was like in an interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval {
    requests: u32,
    success: f64,
    latency: f64,
}

/// Takes what was counted in the interval that is over.
pub(super) fn take(endpoint: &Endpoint) -> Interval {
    let requests = endpoint.window.requests.swap(0, Relaxed);
    let successes = endpoint.window.successes.swap(0, Relaxed);
    let latency = endpoint.window.latency.swap(0, Relaxed);
    let count = f64::from(requests.max(1));
    Interval {
        requests,
        success: f64::from(successes.min(requests)) / count,
        latency: as_f64(latency) / count,
    }
}

/// Those that stand out from the others.
pub(super) fn outliers(
    settings: &OutlierDetection,
    endpoints: &[(Arc<Endpoint>, Interval)],
) -> Vec<Arc<Endpoint>> {
    let failing = settings.success_rate.map_or(0.0, |settings| {
        let compared = compared(endpoints, settings.request_volume, settings.minimum_hosts);
        success_threshold(&settings, &compared)
    });
    let slow = settings.latency.map_or(f64::INFINITY, |settings| {
        let compared = compared(endpoints, settings.request_volume, settings.minimum_hosts);
        latency_threshold(&settings, &compared)
    });
    let volume = |limit: Option<u32>, it: &Interval| limit.is_some_and(|min| it.requests >= min);
    let success_volume = settings.success_rate.map(|it| it.request_volume);
    let latency_volume = settings.latency.map(|it| it.request_volume);
    let stand_out = endpoints.iter().filter(|(_, it)| {
        (volume(success_volume, it) && it.success < failing)
            || (volume(latency_volume, it) && it.latency > slow)
    });
    stand_out
        .map(|(endpoint, _)| Arc::clone(endpoint))
        .collect()
}

/// Those with enough requests; none where they are too few.
fn compared(endpoints: &[(Arc<Endpoint>, Interval)], volume: u32, hosts: u32) -> Vec<Interval> {
    let intervals = endpoints.iter().map(|(_, interval)| *interval);
    let intervals: Vec<Interval> = intervals
        .filter(|it| it.requests >= volume.max(1))
        .collect();
    if intervals.len() < hosts.max(1) as usize {
        return Vec::new();
    }
    intervals
}

/// A rate below it is an outlier's.
fn success_threshold(settings: &SuccessRate, intervals: &[Interval]) -> f64 {
    if intervals.is_empty() {
        return 0.0;
    }
    let count = as_f64(intervals.len() as u64);
    let mean = intervals.iter().map(|it| it.success).sum::<f64>() / count;
    let squares = intervals.iter().map(|it| (it.success - mean).powi(2));
    let deviation = (squares.sum::<f64>() / count).sqrt();
    mean - deviation * f64::from(settings.stdev_factor) / 1_000.0
}

/// A latency above it is an outlier's, in microseconds.
fn latency_threshold(settings: &LatencyOutlier, intervals: &[Interval]) -> f64 {
    let mut latencies: Vec<f64> = intervals.iter().map(|it| it.latency).collect();
    latencies.sort_by(f64::total_cmp);
    let Some(median) = latencies.get(latencies.len() / 2) else {
        return f64::INFINITY;
    };
    let least = settings.minimum.as_secs_f64() * 1e6;
    (median * f64::from(settings.percent_of_median) / 100.0).max(least)
}
