//! The result on a terminal.

use comfy_table::{Attribute, Cell, CellAlignment, Color, Table};
use comfy_table::{LineStyle, TableStyle};

use super::contender::Contender;
use super::report::{Report, Row};

/// The whole report as text.
pub(super) fn render(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─')));
    let contenders = contenders(report);
    let mut header = vec![Cell::new("case"), Cell::new("metric")];
    header.extend(
        contenders
            .iter()
            .map(|contender| right(Cell::new(contender.title()))),
    );
    let envoy = contenders.contains(&Contender::Envoy);
    let versus: Vec<Contender> = contenders
        .iter()
        .copied()
        .filter(|contender| envoy && contender.is_fairlead())
        .collect();
    header.extend(
        versus
            .iter()
            .map(|contender| right(Cell::new(versus_title(*contender)))),
    );
    table.set_header(
        header
            .into_iter()
            .map(|cell| cell.add_attribute(Attribute::Bold)),
    );
    let mut last_case = "";
    for row in &report.rows {
        let title = if row.case == last_case {
            ""
        } else {
            if !last_case.is_empty() {
                table.add_row([""]);
            }
            row.title.as_str()
        };
        last_case = &row.case;
        let mut cells = vec![Cell::new(title), Cell::new(row.metric.title())];
        cells.extend(contenders.iter().map(|contender| value(row, *contender)));
        cells.extend(
            versus
                .iter()
                .map(|contender| against_envoy(row, *contender)),
        );
        table.add_row(cells);
    }
    let mut text = format!("{table}\n(0.50×): of direct on the same path.\n\n");
    for caveat in report.caveats() {
        text.push_str("- ");
        text.push_str(caveat);
        text.push('\n');
    }
    for warning in &report.warnings {
        text.push_str("warning: ");
        text.push_str(warning);
        text.push('\n');
    }
    text
}

/// Those that have any value, in the order of columns.
pub(super) fn contenders(report: &Report) -> Vec<Contender> {
    let present = |contender: &Contender| {
        report
            .rows
            .iter()
            .any(|row| row.samples.contains_key(contender))
    };
    Contender::ALL.into_iter().filter(present).collect()
}

fn versus_title(contender: Contender) -> &'static str {
    if contender == Contender::FairleadLocal {
        "1 node / Envoy"
    } else {
        "Fairlead / Envoy"
    }
}

fn value(row: &Row, contender: Contender) -> Cell {
    let Some(median) = row.median(contender) else {
        return right(Cell::new("–"));
    };
    let text = row.metric.format(median);
    let base = contender.base();
    let ratio = row.ratio(contender, base).filter(|_| base != contender);
    right(Cell::new(match ratio {
        Some(ratio) => format!("{text} ({ratio:.2}×)"),
        None => text,
    }))
}

fn against_envoy(row: &Row, contender: Contender) -> Cell {
    let Some(ratio) = row.ratio(contender, Contender::Envoy) else {
        return right(Cell::new("–"));
    };
    let cell = right(Cell::new(format!("{ratio:.2}×")));
    match row.beats_envoy(contender) {
        Some(true) => cell.fg(Color::Green),
        Some(false) => cell.fg(Color::Red),
        None => cell,
    }
}

fn right(cell: Cell) -> Cell {
    cell.set_alignment(CellAlignment::Right)
}
