//! The figures, as a table and as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Attribute, Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) time: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) processors: usize,
    /// The agent that was measured.
    pub(super) program: String,
    pub(super) rows: Vec<Row>,
}

/// One size of the cluster.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) pods: usize,
    pub(super) services: usize,
    pub(super) nodes: usize,
    pub(super) sync_seconds: f64,
    pub(super) sync_cpu_seconds: f64,
    pub(super) sync_bytes: u64,
    pub(super) sync_requests: usize,
    pub(super) watches: usize,
    pub(super) rss_peak_bytes: u64,
    pub(super) rss_synced_bytes: u64,
    pub(super) rss_churned_bytes: u64,
    pub(super) rss_churned_peak_bytes: u64,
    pub(super) changes_per_second: f64,
    pub(super) cpu_seconds_per_change: f64,
    pub(super) bytes_per_change: f64,
    pub(super) effect_p50_seconds: f64,
    pub(super) effect_p99_seconds: f64,
    pub(super) loaded_effect_p50_seconds: f64,
    pub(super) loaded_effect_p99_seconds: f64,
}

/// A line of the table: what it is, what is aimed at, how it is told.
type Line = (&'static str, &'static str, fn(&Row) -> String);

const LINES: [Line; 16] = [
    ("Services", "", |row| row.services.to_string()),
    ("nodes", "", |row| row.nodes.to_string()),
    ("first sync", "10 s", |row| {
        format!("{:.2} s", row.sync_seconds)
    }),
    ("CPU of the first sync", "", |row| {
        format!("{:.2} s", row.sync_cpu_seconds)
    }),
    ("RSS after it", "150 MiB", |row| {
        mebibytes(row.rss_synced_bytes)
    }),
    ("RSS peak until then", "", |row| {
        mebibytes(row.rss_peak_bytes)
    }),
    ("RSS after the changes", "150 MiB", |row| {
        mebibytes(row.rss_churned_bytes)
    }),
    ("RSS peak of all", "", |row| {
        mebibytes(row.rss_churned_peak_bytes)
    }),
    ("endpoint changes a second", "500", |row| {
        format!("{:.0}", row.changes_per_second)
    }),
    ("CPU of one change", "1 ms", |row| {
        milliseconds(row.cpu_seconds_per_change)
    }),
    ("to its effect, quiet, p50 / p99", "", |row| {
        pair(row.effect_p50_seconds, row.effect_p99_seconds)
    }),
    ("to its effect, among the others, p50 / p99", "", |row| {
        pair(row.loaded_effect_p50_seconds, row.loaded_effect_p99_seconds)
    }),
    ("API server: watches", "", |row| row.watches.to_string()),
    ("API server: requests of the first sync", "", |row| {
        row.sync_requests.to_string()
    }),
    ("API server: bytes of the first sync", "", |row| {
        mebibytes(row.sync_bytes)
    }),
    ("API server: bytes of one change", "", |row| {
        format!("{:.1} KiB", row.bytes_per_change / 1024.0)
    }),
];

impl Report {
    /// For a terminal.
    pub(super) fn render(&self) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let mut header = vec![Cell::new("pods"), Cell::new("aim")];
        header.extend(self.rows.iter().map(|row| right(row.pods.to_string())));
        let header = header
            .into_iter()
            .map(|cell| cell.add_attribute(Attribute::Bold));
        table.set_header(header);
        for (title, aim, value) in LINES {
            let mut cells = vec![Cell::new(title), Cell::new(aim)];
            cells.extend(self.rows.iter().map(|row| right(value(row))));
            table.add_row(cells);
        }
        format!("{table}\n{}", self.verdict())
    }

    /// Whether the cost of one change depends on the size.
    fn verdict(&self) -> String {
        let cost = |row: Option<&Row>| row.map(|row| row.cpu_seconds_per_change);
        match (cost(self.rows.first()), cost(self.rows.last())) {
            (Some(small), Some(large)) if self.rows.len() > 1 && small > 0.0 => format!(
                "One change costs {:.1} times as much in the largest cluster as in the smallest.",
                large / small
            ),
            _ => String::new(),
        }
    }

    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn mebibytes(bytes: u64) -> String {
    let kibibytes = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    format!("{:.1} MiB", f64::from(kibibytes) / 1024.0)
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2} ms", seconds * 1000.0)
}

fn pair(p50: f64, p99: f64) -> String {
    format!("{:.0} / {:.0} ms", p50 * 1000.0, p99 * 1000.0)
}
