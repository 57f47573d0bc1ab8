//! What a run found: rows of values per contender, their medians and ratios, and the JSON form.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::contender::Contender;

/// What every comparison does not show.
const CAVEATS: [&str; 4] = [
    "Client, server and proxies share this machine's processors: a proxy that costs less also leaves more to its client and server.",
    "One node: both ends are the same agent's, and nothing is encrypted as nothing leaves the node. Its base is `direct, 1 node`; its ratio to Envoy is to the pair across nodes.",
    "Processor time is what the kernel charges to the proxies' processes; work in soft interrupts is charged to whoever runs at that moment, with all contenders alike.",
    "All routes, loopback too, are pinned to cubic: the pacing of BBR, where it is the default, stalls proxied hops by milliseconds.",
];

/// One line of the result: one metric of one case, for all contenders.
#[derive(Debug)]
pub(super) struct Row {
    /// The case, as `--only` takes it.
    pub(super) case: String,
    /// The case in words.
    pub(super) title: String,
    /// What is measured.
    pub(super) metric: Metric,
    /// The samples of each contender, a round each.
    pub(super) samples: BTreeMap<Contender, Vec<f64>>,
}

/// What a row measures; the unit of its values is in the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    RequestsPerSecond,
    ConnectionsPerSecond,
    MedianSeconds,
    P99Seconds,
    CpuSecondsPer10k,
    ResidentBytes,
    BitsPerSecond,
    CpuSecondsPerGb,
    IdleBytes,
    LoadedBytes,
    BytesPerConnection,
}

impl Metric {
    /// Its name for people.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests/s",
            Self::ConnectionsPerSecond => "connections/s",
            Self::MedianSeconds => "latency p50",
            Self::P99Seconds => "latency p99",
            Self::CpuSecondsPer10k => "proxies' CPU per 10k",
            Self::ResidentBytes => "proxies' RSS under load",
            Self::BitsPerSecond => "throughput",
            Self::CpuSecondsPerGb => "proxies' CPU per GB",
            Self::IdleBytes => "RSS idle, all sides",
            Self::LoadedBytes => "RSS with 1,000 connections",
            Self::BytesPerConnection => "bytes per idle connection",
        }
    }

    /// Its name in JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests_per_second",
            Self::ConnectionsPerSecond => "connections_per_second",
            Self::MedianSeconds => "latency_p50_seconds",
            Self::P99Seconds => "latency_p99_seconds",
            Self::CpuSecondsPer10k => "proxy_cpu_seconds_per_10k",
            Self::ResidentBytes => "proxy_rss_bytes",
            Self::BitsPerSecond => "bits_per_second",
            Self::CpuSecondsPerGb => "proxy_cpu_seconds_per_gb",
            Self::IdleBytes => "proxy_rss_idle_bytes",
            Self::LoadedBytes => "proxy_rss_1000_connections_bytes",
            Self::BytesPerConnection => "proxy_bytes_per_idle_connection",
        }
    }

    /// Whether more is better.
    pub(super) fn higher_is_better(self) -> bool {
        matches!(
            self,
            Self::RequestsPerSecond | Self::ConnectionsPerSecond | Self::BitsPerSecond
        )
    }

    /// A value as people read it.
    pub(super) fn format(self, value: f64) -> String {
        match self {
            Self::RequestsPerSecond | Self::ConnectionsPerSecond => thousands(value),
            Self::MedianSeconds | Self::P99Seconds if value < 1e-3 => {
                format!("{:.0} µs", value * 1e6)
            }
            Self::MedianSeconds | Self::P99Seconds => format!("{:.2} ms", value * 1e3),
            Self::CpuSecondsPer10k | Self::CpuSecondsPerGb => format!("{value:.2} s"),
            Self::BitsPerSecond => format!("{:.2} Gbit/s", value / 1e9),
            Self::IdleBytes | Self::LoadedBytes | Self::ResidentBytes => {
                format!("{:.1} MB", value / 1e6)
            }
            Self::BytesPerConnection => format!("{:.1} kB", value / 1e3),
        }
    }
}

impl Row {
    /// The median over the rounds; none where the metric does not exist for the contender.
    pub(super) fn median(&self, contender: Contender) -> Option<f64> {
        let mut sorted = self.samples.get(&contender)?.clone();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        Some(if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        })
    }

    /// How `contender` compares with `base`, as a multiple of the base's median.
    pub(super) fn ratio(&self, contender: Contender, base: Contender) -> Option<f64> {
        let base = self.median(base).filter(|base| *base > 0.0)?;
        Some(self.median(contender)? / base)
    }

    /// Whether `contender` is better than Envoy; none where either has no value.
    pub(super) fn beats_envoy(&self, contender: Contender) -> Option<bool> {
        let ratio = self.ratio(contender, Contender::Envoy)?;
        Some(if self.metric.higher_is_better() {
            ratio > 1.0
        } else {
            ratio < 1.0
        })
    }
}

/// A whole run.
#[derive(Debug)]
pub(super) struct Report {
    /// Where and how it ran, for the reader of the file.
    pub(super) setting: Setting,
    /// In the order of the cases.
    pub(super) rows: Vec<Row>,
    /// What went wrong without ending the run: failed requests, contenders left out.
    pub(super) warnings: Vec<String>,
    /// What this comparison does not show, beside what none does.
    pub(super) caveats: &'static [&'static str],
}

/// Where and how a run was made.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    /// RFC 3339, UTC.
    pub(super) time: String,
    /// `uname -r`.
    pub(super) kernel: String,
    /// Model of the processor.
    pub(super) processor: String,
    /// Processors that this process may use.
    pub(super) processors: usize,
    /// Rounds, of which the median is reported.
    pub(super) rounds: u32,
    /// Length of each measurement.
    pub(super) seconds: f64,
    /// Worker threads of each Envoy.
    pub(super) envoy_concurrency: u32,
    /// What Envoy says of itself.
    pub(super) envoy_version: Option<String>,
    /// The part of the processors that other work took meanwhile: it spoils the figures.
    pub(super) other_work: f64,
}

#[derive(Serialize)]
struct JsonReport<'a> {
    version: u32,
    setting: &'a Setting,
    caveats: Vec<&'a str>,
    warnings: &'a [String],
    rows: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    case: &'a str,
    metric: &'a str,
    higher_is_better: bool,
    results: BTreeMap<&'a str, JsonResult<'a>>,
}

#[derive(Serialize)]
struct JsonResult<'a> {
    median: f64,
    samples: &'a [f64],
    ratio_to_direct: Option<f64>,
    ratio_to_envoy: Option<f64>,
}

impl Report {
    /// Of a run that is about to begin.
    pub(super) fn new(setting: Setting, caveats: &'static [&'static str]) -> Self {
        Self {
            setting,
            rows: Vec::new(),
            warnings: Vec::new(),
            caveats,
        }
    }

    /// What the comparison does not show, printed with every result.
    pub(super) fn caveats(&self) -> impl Iterator<Item = &'static str> {
        CAVEATS.iter().chain(self.caveats).copied()
    }

    /// The samples of a row, which is made where it does not exist yet.
    pub(super) fn record(
        &mut self,
        (case, title): (&str, &str),
        metric: Metric,
        contender: Contender,
        value: f64,
    ) {
        let known = self
            .rows
            .iter()
            .position(|row| row.case == case && row.metric == metric);
        let index = known.unwrap_or_else(|| {
            self.rows.push(Row {
                case: case.to_owned(),
                title: title.to_owned(),
                metric,
                samples: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        self.rows[index]
            .samples
            .entry(contender)
            .or_default()
            .push(value);
    }

    /// Writes the machine's form.
    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let rows = self.rows.iter().map(json_row).collect();
        let report = JsonReport {
            version: 1,
            setting: &self.setting,
            caveats: self.caveats().collect(),
            warnings: &self.warnings,
            rows,
        };
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn json_row(row: &Row) -> JsonRow<'_> {
    let results = row.samples.iter().filter_map(|(&contender, samples)| {
        let result = JsonResult {
            median: row.median(contender)?,
            samples,
            ratio_to_direct: row.ratio(contender, contender.base()),
            ratio_to_envoy: row.ratio(contender, Contender::Envoy),
        };
        Some((contender.key(), result))
    });
    JsonRow {
        case: &row.case,
        metric: row.metric.key(),
        higher_is_better: row.metric.higher_is_better(),
        results: results.collect(),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn report() -> Report {
        let setting = Setting {
            time: "2026-01-01T00:00:00Z".to_owned(),
            kernel: "6.12".to_owned(),
            processor: "P".to_owned(),
            processors: 2,
            rounds: 1,
            seconds: 1.0,
            envoy_concurrency: 2,
            envoy_version: None,
            other_work: 0.0,
        };
        Report::new(setting, &[])
    }

    fn row(direct: &[f64], fairlead: &[f64]) -> Row {
        Row {
            case: "1k-c1".to_owned(),
            title: String::new(),
            metric: Metric::RequestsPerSecond,
            samples: BTreeMap::from([
                (Contender::Direct, direct.to_vec()),
                (Contender::Fairlead, fairlead.to_vec()),
            ]),
        }
    }

    #[test]
    fn median_ignores_an_outlier() {
        let row = row(&[10.0, 1000.0, 12.0], &[]);
        assert_eq!(row.median(Contender::Direct), Some(12.0));
        assert_eq!(row.median(Contender::Fairlead), None);
        assert_eq!(row.median(Contender::Envoy), None);
    }

    #[test]
    fn median_of_two_is_between_them() {
        assert_eq!(
            row(&[10.0, 20.0], &[]).median(Contender::Direct),
            Some(15.0)
        );
    }

    #[test]
    fn ratio_is_to_the_base() {
        let row = row(&[10.0], &[5.0]);
        assert_eq!(row.ratio(Contender::Fairlead, Contender::Direct), Some(0.5));
        assert_eq!(row.ratio(Contender::Fairlead, Contender::Envoy), None);
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1_234_567.0), "1,234,567");
        assert_eq!(Metric::P99Seconds.format(0.000_099), "99 µs");
        assert_eq!(Metric::P99Seconds.format(0.0123), "12.30 ms");
        assert_eq!(Metric::BitsPerSecond.format(9.8e9), "9.80 Gbit/s");
    }
}
