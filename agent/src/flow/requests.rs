//! The metrics of requests, with the labels of Istio's standard ones.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric as _, LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::metrics::{IDLE_SWEEPS, Labels, OpenLabels};

/// Upper bounds of the histogram in microseconds, each including itself.
const BOUNDS: [u64; 18] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
];

/// Answers that one label set tells apart; an application may make up any status.
const ANSWERS: usize = 32;

/// gRPC's UNKNOWN, which stands for statuses that it does not have.
const UNKNOWN: u16 = 2;
/// The last status that gRPC has.
const UNAUTHENTICATED: u16 = 16;

/// The metrics of all requests.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestMetrics(Arc<Mutex<HashMap<Labels, Used>>>);

#[derive(Debug)]
struct Used {
    series: Arc<RequestSeries>,
    /// Sweeps since nobody holds the series.
    idle: u32,
}

/// The counters of one label set but for the answer.
#[derive(Debug, Default)]
pub(super) struct RequestSeries {
    answers: OnceLock<Box<Answers>>,
}

/// Requests that had one answer; a list, because most label sets have few, and because it
/// grows without a lock.
#[derive(Debug)]
struct Answers {
    answer: Answer,
    latency: Latency,
    next: OnceLock<Box<Answers>>,
}

/// The labels that only the answer gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    code: Code,
    grpc: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Exact(u16),
    /// The first digit: where there are too many different ones.
    Class(u16),
}

/// How long requests took, and by that how many there were.
#[derive(Debug, Default)]
struct Latency {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl RequestMetrics {
    /// The counters of one label set, which stays as long as somebody holds them.
    pub(super) fn series(&self, labels: &OpenLabels<'_>) -> Arc<RequestSeries> {
        let mut used = self.used();
        let used = used.entry(Labels::from(labels)).or_insert_with(|| Used {
            series: Arc::default(),
            idle: 0,
        });
        used.idle = 0;
        Arc::clone(&used.series)
    }

    /// One look at all label sets, as of connections.
    pub(super) fn sweep(&self) {
        self.used().retain(|_labels, used| {
            used.idle = if Arc::strong_count(&used.series) > 1 {
                0
            } else {
                used.idle + 1
            };
            used.idle <= IDLE_SWEEPS
        });
    }

    /// As of now. Copied, so that no request waits for a scrape.
    fn all(&self) -> Vec<(Labels, Arc<RequestSeries>)> {
        let used = self.used();
        let series = used.iter();
        series
            .map(|(labels, used)| (labels.clone(), Arc::clone(&used.series)))
            .collect()
    }

    fn used(&self) -> MutexGuard<'_, HashMap<Labels, Used>> {
        // The map is valid after each of its statements, so a poisoned one is too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for RequestMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.all();
        let rows = || all.iter().flat_map(|(labels, series)| series.rows(labels));
        let help = "Requests that have ended";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("fairlead_requests", help, None, kind)?;
        for (labels, latency) in rows() {
            ConstCounter::new(latency.count()).encode(family.encode_family(&labels)?)?;
        }
        let help = "From a request's head to the end of its answer";
        let name = "fairlead_request_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, latency) in rows() {
            let (sum, count, buckets) = latency.read();
            let mut metric = family.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

impl RequestSeries {
    /// Counts one request. Allocates only for an answer that is new to the label set.
    pub(super) fn observe(&self, status: u16, grpc: Option<u16>, took: Duration) {
        let answer = Answer {
            code: Code::Exact(status),
            grpc: grpc.map(|it| if it > UNAUTHENTICATED { UNKNOWN } else { it }),
        };
        self.latency(answer).observe(took);
    }

    fn latency(&self, answer: Answer) -> &Latency {
        let mut wanted = answer;
        let mut slot = &self.answers;
        let mut seen = 0;
        loop {
            if seen >= ANSWERS
                && let Code::Exact(status) = wanted.code
            {
                // There are five classes at most, so that the list still ends.
                wanted = Answer {
                    code: Code::Class(status / 100),
                    grpc: None,
                };
                (slot, seen) = (&self.answers, 0);
            }
            let found = slot.get_or_init(|| Box::new(Answers::of(wanted)));
            if found.answer == wanted {
                return &found.latency;
            }
            slot = &found.next;
            seen += 1;
        }
    }

    fn rows<'a>(
        &'a self,
        labels: &'a Labels,
    ) -> impl Iterator<Item = (AnswerLabels<'a>, &'a Latency)> {
        let first = self.answers.get();
        let all = std::iter::successors(first, |it| it.next.get());
        all.map(move |it| {
            let answer = it.answer;
            (AnswerLabels { labels, answer }, &it.latency)
        })
    }
}

impl Answers {
    fn of(answer: Answer) -> Self {
        Self {
            answer,
            latency: Latency::default(),
            next: OnceLock::new(),
        }
    }
}

impl Latency {
    fn observe(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < took);
        let _before = self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let _before = self.sum_us.fetch_add(took, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        let counts = self.buckets.iter();
        counts.map(|it| it.load(Ordering::Relaxed)).sum()
    }

    /// Seconds in all, requests in all, and requests by upper bound.
    fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound));
        let bounds = bounds.chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|it| it.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        (seconds(self.sum_us.load(Ordering::Relaxed)), count, buckets)
    }
}

fn seconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64()
}

/// A whole label set.
#[derive(Debug)]
struct AnswerLabels<'a> {
    labels: &'a Labels,
    answer: Answer,
}

impl EncodeLabelSet for AnswerLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        self.labels.encode(encoder)?;
        let code = match self.answer.code {
            Code::Exact(code) => code.to_string(),
            Code::Class(class) => format!("{class}xx"),
        };
        let grpc = self.answer.grpc.map(|it| it.to_string());
        let pairs = [
            ("response_code", code),
            ("grpc_response_status", grpc.unwrap_or_default()),
        ];
        for pair in pairs {
            EncodeLabel::encode(&pair, encoder.encode_label())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::request::tests::{ended, ends};
    use crate::flow::tests::scrape;
    use crate::flow::{EndedRequest, FlowMetrics, FlowProtocol, queue};

    const LABELS: &str = "reporter=\"source\",source_workload=\"web\",\
        source_workload_namespace=\"shop\",\
        source_principal=\"spiffe://cluster.local/ns/shop/sa/web\",\
        destination_workload=\"ledger\",destination_workload_namespace=\"bank\",\
        destination_principal=\"unknown\",\
        destination_service=\"ledger.bank.svc.cluster.local\",destination_service_name=\"ledger\",\
        destination_service_namespace=\"bank\",";

    #[test]
    fn requests_count_by_what_was_answered() {
        let metrics = FlowMetrics::default();
        let (sender, _receiver) = queue(16, metrics.clone());
        let requests = sender.requests(ends("web-1"));
        requests.record(ended(200));
        requests.record(ended(200));
        requests.record(ended(503));
        requests.record(EndedRequest {
            protocol: FlowProtocol::Grpc,
            grpc_status: Some(14),
            duration: Duration::from_hours(2),
            ..ended(200)
        });
        let text = scrape(&metrics);
        let http2 = "request_protocol=\"http2\",connection_security_policy=\"mutual_tls\"";
        let grpc = "request_protocol=\"grpc\",connection_security_policy=\"mutual_tls\"";
        for line in [
            format!(
                "fairlead_requests_total{{{LABELS}{http2},response_code=\"200\",grpc_response_status=\"\"}} 2\n"
            ),
            format!(
                "fairlead_requests_total{{{LABELS}{http2},response_code=\"503\",grpc_response_status=\"\"}} 1\n"
            ),
            format!(
                "fairlead_requests_total{{{LABELS}{grpc},response_code=\"200\",grpc_response_status=\"14\"}} 1\n"
            ),
            format!(
                "fairlead_request_duration_seconds_sum{{{LABELS}{http2},response_code=\"200\",grpc_response_status=\"\"}} 0.003\n"
            ),
            format!(
                "fairlead_request_duration_seconds_bucket{{le=\"0.001\",{LABELS}{http2},response_code=\"200\",grpc_response_status=\"\"}} 0\n"
            ),
            format!(
                "fairlead_request_duration_seconds_bucket{{le=\"0.0025\",{LABELS}{http2},response_code=\"200\",grpc_response_status=\"\"}} 2\n"
            ),
            format!(
                "fairlead_request_duration_seconds_bucket{{le=\"1800.0\",{LABELS}{grpc},response_code=\"200\",grpc_response_status=\"14\"}} 0\n"
            ),
            format!(
                "fairlead_request_duration_seconds_bucket{{le=\"+Inf\",{LABELS}{grpc},response_code=\"200\",grpc_response_status=\"14\"}} 1\n"
            ),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn a_server_that_makes_up_statuses_makes_no_series_without_end() {
        let series = RequestSeries::default();
        for status in 100..1000 {
            series.observe(status, Some(status), Duration::ZERO);
        }
        let answers = std::iter::successors(series.answers.get(), |it| it.next.get());
        let answers: Vec<_> = answers
            .map(|it| (it.answer.code, it.latency.count()))
            .collect();
        assert_eq!(answers.len(), ANSWERS + 9);
        let count = |code| answers.iter().find(|it| it.0 == code).map(|it| it.1);
        assert_eq!(count(Code::Exact(131)), Some(1));
        assert_eq!(count(Code::Exact(132)), None);
        assert_eq!(count(Code::Class(1)), Some(68));
        assert_eq!(count(Code::Class(9)), Some(100));
    }

    #[test]
    fn label_sets_of_requests_go_when_nobody_uses_them() {
        let metrics = FlowMetrics::default();
        let (sender, _receiver) = queue(16, metrics.clone());
        let requests = sender.requests(ends("web-1"));
        requests.record(ended(200));
        let sweep = |times: u32| (0..times).for_each(|_| metrics.sweep());
        sweep(1000);
        drop(requests);
        sweep(60);
        assert!(scrape(&metrics).contains("fairlead_requests_total{"));
        sweep(1);
        assert!(!scrape(&metrics).contains("fairlead_requests_total{"));
    }
}
