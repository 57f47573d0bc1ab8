//! The result as a picture: a panel for each metric of each case, a bar for each contender.
//!
//! Written by hand: bars with their values beside them need no axes, and a plotting library would
//! be a large dependency for rectangles. The picture follows the reader's dark or light scheme.

use std::fmt::Write;

use super::contender::Contender;
use super::report::{Report, Row};
use super::table::contenders;

const COLUMNS: usize = 4;
const PANEL_WIDTH: f64 = 370.0;
const MARGIN: f64 = 16.0;
const BAR_HEIGHT: f64 = 18.0;
const HEAD: f64 = 96.0;
const LABEL_WIDTH: f64 = 104.0;
const BAR_WIDTH: f64 = 116.0;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.title{font-size:20px;font-weight:600}.case{font-weight:600}.quiet{fill:#59636e}\
.background{fill:#fff}.direct,.direct-local{fill:#8c959f}.envoy{fill:#bf3989}\
.fairlead{fill:#0969da}.fairlead-local{fill:#54aeff}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.quiet{fill:#9198a1}.background{fill:#0d1117}}";

/// The whole report as an SVG document.
pub(super) fn render(report: &Report) -> String {
    let contenders = contenders(report);
    let places = places(report);
    let lines = places.last().map_or(0, |((_, line), _)| line + 1);
    let panel_height = 56.0 + BAR_HEIGHT * count(contenders.len());
    let width = MARGIN * 2.0 + PANEL_WIDTH * count(COLUMNS);
    let height = HEAD + panel_height * count(lines) + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\">\n<style>{STYLE}</style>\n\
         <rect class=\"background\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    head(&mut svg, report);
    for ((column, line), row) in places {
        let x = MARGIN + PANEL_WIDTH * count(column);
        let y = HEAD + panel_height * count(line);
        panel(&mut svg, (x, y), row, &contenders);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Column and line of each panel: a case begins a new line where it does not fit on the last one.
fn places(report: &Report) -> Vec<((usize, usize), &Row)> {
    let (mut column, mut line) = (0, 0);
    let mut places = Vec::new();
    for case in report.rows.chunk_by(|left, right| left.case == right.case) {
        if column > 0 && column + case.len() > COLUMNS {
            (column, line) = (0, line + 1);
        }
        for row in case {
            if column == COLUMNS {
                (column, line) = (0, line + 1);
            }
            places.push(((column, line), row));
            column += 1;
        }
    }
    places
}

fn head(svg: &mut String, report: &Report) {
    let setting = &report.setting;
    text(
        svg,
        (MARGIN, 34.0),
        "title",
        "Fairlead, Envoy and no proxy on one topology",
    );
    let line = format!(
        "{} processors shared by client, server and proxies; {}; Linux {}; medians of {} rounds of {} s; {}",
        setting.processors,
        setting.processor,
        setting.kernel,
        setting.rounds,
        setting.seconds,
        setting.time,
    );
    text(svg, (MARGIN, 56.0), "quiet", &line);
    let caveat = "The Envoys are dialled explicitly: no redirection, no policy, no flow records. \
                  One node: one agent, nothing to encrypt. Ratios in brackets: to direct on the same path, then to Envoy.";
    text(svg, (MARGIN, 74.0), "quiet", caveat);
}

fn panel(svg: &mut String, (x, y): (f64, f64), row: &Row, contenders: &[Contender]) {
    text(svg, (x, y + 14.0), "case", &row.title);
    let better = if row.metric.higher_is_better() {
        "more is better"
    } else {
        "less is better"
    };
    text(
        svg,
        (x, y + 30.0),
        "quiet",
        &format!("{}: {better}", row.metric.title()),
    );
    let medians = contenders
        .iter()
        .filter_map(|contender| row.median(*contender));
    let largest = medians.fold(f64::MIN_POSITIVE, f64::max);
    let present = contenders
        .iter()
        .filter(|contender| row.samples.contains_key(contender));
    for (index, &contender) in present.enumerate() {
        let Some(median) = row.median(contender) else {
            continue;
        };
        let top = y + 38.0 + BAR_HEIGHT * count(index);
        let baseline = top + 12.0;
        text(svg, (x, baseline), "quiet", contender.title());
        let length = (median / largest * BAR_WIDTH).max(1.0);
        let left = x + LABEL_WIDTH;
        // Writing to a String cannot fail.
        let _infallible = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{left}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>",
            contender.key(),
            BAR_HEIGHT - 4.0,
        );
        text(
            svg,
            (left + length + 5.0, baseline),
            "value",
            &label(row, contender, median),
        );
    }
}

fn label(row: &Row, contender: Contender, median: f64) -> String {
    let mut label = row.metric.format(median);
    let direct = row
        .ratio(contender, contender.base())
        .filter(|_| contender.base() != contender);
    let envoy = row
        .ratio(contender, Contender::Envoy)
        .filter(|_| contender.is_fairlead());
    let ratios: Vec<String> = direct
        .into_iter()
        .chain(envoy)
        .map(|ratio| format!("{ratio:.2}×"))
        .collect();
    if !ratios.is_empty() {
        let _infallible = write!(label, " ({})", ratios.join(", "));
    }
    label
}

fn text(svg: &mut String, (x, y): (f64, f64), class: &str, content: &str) {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _infallible = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{content}</text>"
    );
}

/// Counts of rows and columns as coordinates.
fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Metric, tests::report};

    fn place_of(cases: &[(&'static str, usize)]) -> Vec<(usize, usize)> {
        let metrics = [
            Metric::RequestsPerSecond,
            Metric::MedianSeconds,
            Metric::P99Seconds,
            Metric::CpuSecondsPer10k,
        ];
        let mut report = report();
        for (case, rows) in cases {
            for metric in &metrics[..*rows] {
                report.record((case, case), *metric, Contender::Direct, 1.0);
            }
        }
        places(&report)
            .into_iter()
            .map(|(place, _)| place)
            .collect()
    }

    #[test]
    fn a_case_that_does_not_fit_begins_a_line() {
        assert_eq!(
            place_of(&[("a", 3), ("b", 2), ("c", 2)]),
            [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 1)]
        );
    }

    #[test]
    fn words_are_escaped() {
        let mut report = report();
        report.setting.processor = "A<B> & C".to_owned();
        assert!(render(&report).contains("A&lt;B&gt; &amp; C"));
    }
}
