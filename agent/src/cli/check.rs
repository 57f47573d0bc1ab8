//! `fairlead check`

use std::io::Write;

use clap::Args;

use super::Outcome;
use super::output::{Format, FormatFlag, Paint, Printer};
use super::status::table;
use super::table::Cell;
use crate::admin::KernelFeature;
use crate::app::{self, KernelArgs};

const HELP: &str = "\
Needs no agent. Run it as root: what is there is found by trying it, and by cleaning up
after that. Ends with 1 where something is missing.";

/// Check whether this machine can run the mesh, and what to do where it can't
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let checks = app::check(&self.kernel)?;
        match self.format.output {
            Format::Table => print(&checks, &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &checks)?,
        }
        printer.flush()?;
        let complete = checks.iter().all(|check| check.available);
        Ok(if complete {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }
}

/// The checks as a table with what to do.
pub(super) fn print<W: Write>(
    checks: &[KernelFeature],
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    let row = |check: &KernelFeature| {
        let found = if check.available {
            Cell::painted(Paint::Good, "ok")
        } else {
            Cell::painted(Paint::Bad, "missing")
        };
        vec![
            check.name.as_str().into(),
            found,
            check.detail.as_str().into(),
            check.remedy.as_deref().unwrap_or("-").into(),
        ]
    };
    let rows: Vec<_> = checks.iter().map(row).collect();
    table(
        printer,
        &(vec!["CHECK", "FOUND", "DETAIL", "WHAT TO DO"], rows),
        "",
    )?;
    let missing = checks.iter().filter(|check| !check.available).count();
    printer.line("")?;
    match missing {
        0 => printer.painted(Paint::Good, "This machine can run the mesh.")?,
        1 => printer.painted(Paint::Bad, "One thing is missing.")?,
        count => printer.painted(Paint::Bad, &format!("{count} things are missing."))?,
    }
    Ok(())
}
