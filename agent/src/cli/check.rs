//! `fairlead check`

use std::io::Write;

use clap::Args;

use super::Outcome;
use super::output::{Format, FormatFlag, Paint, Printer};
use super::status::table;
use super::table::Cell;
use crate::admin::KernelFeature;
use crate::app::kubernetes::{self, Finding, Found};
use crate::app::{self, KernelArgs, KubeArgs};

const HELP: &str = "\
Examples:
  fairlead check                 this machine: needs no agent, but root
  fairlead check --pre           a cluster, before the mesh is installed in it
  fairlead check -A              a cluster that the mesh is installed in

What this machine has is found by trying it, and by cleaning up after that. Ends with 1
where something is missing or does not work.";

/// Check whether this machine can run the mesh, and what to do where it can't
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Look at a cluster that the mesh is to be installed in.
    #[arg(long, env = "FAIRLEAD_PRE", conflicts_with = "all_nodes")]
    pre: bool,
    /// Look at a cluster that the mesh is installed in.
    #[arg(short = 'A', long, env = "FAIRLEAD_ALL_NODES")]
    all_nodes: bool,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        if self.pre || self.all_nodes {
            return super::wait(self.cluster(printer));
        }
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

impl Command {
    async fn cluster<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let access = self.kube.access();
        let findings = if self.pre {
            kubernetes::preflight(&access).await
        } else {
            kubernetes::installed(&access).await
        };
        match self.format.output {
            Format::Table => print_findings(&findings, &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &findings)?,
        }
        printer.flush()?;
        let failed = findings.iter().any(|it| it.outcome == Found::Error);
        Ok(if failed {
            Outcome::Problem
        } else {
            Outcome::Done
        })
    }
}

/// What was found in a cluster, with where to read on.
pub(super) fn print_findings<W: Write>(
    findings: &[Finding],
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    let row = |finding: &Finding| {
        let found = match finding.outcome {
            Found::Ok => Cell::painted(Paint::Good, "ok"),
            Found::Warning => Cell::painted(Paint::Warn, "warning"),
            Found::Error => Cell::painted(Paint::Bad, "error"),
        };
        vec![
            finding.name.into(),
            found,
            finding.detail.as_str().into(),
            finding.doc.as_deref().unwrap_or("-").into(),
        ]
    };
    let rows: Vec<_> = findings.iter().map(row).collect();
    table(
        printer,
        &(vec!["CHECK", "FOUND", "DETAIL", "WHAT TO DO"], rows),
        "",
    )
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
