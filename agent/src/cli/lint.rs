//! `fairlead lint`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{Format, FormatFlag, Paint, Printer};
use super::status::table;
use super::table::Cell;
use crate::app::{self, Finding, Level, LintOptions};

const HELP: &str = "\
Examples:
  fairlead lint -f mesh/                  a directory as `fairlead agent --source dir:mesh` reads it
  fairlead lint -f policy.yaml --partial  the Services that it names are in the cluster
  helm template shop | fairlead lint -v -f -

Says what the conditions of the policies would say in a cluster, and what the API server
would refuse. Needs neither. Ends with 1 where it found something.";

/// Check manifests before the mesh sees them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Files, directories of files, or - for standard input.
    #[arg(
        short,
        long = "file",
        env = "FAIRLEAD_FILE",
        required = true,
        num_args = 1..,
        value_name = "PATH"
    )]
    files: Vec<PathBuf>,
    /// There is more in the cluster: do not ask for Services that are not in these files.
    #[arg(long, env = "FAIRLEAD_PARTIAL")]
    partial: bool,
    /// Name the objects that the mesh has no use for, too.
    #[arg(short, long, env = "FAIRLEAD_VERBOSE")]
    verbose: bool,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let findings = app::lint(&LintOptions {
            paths: self.files,
            partial: self.partial,
            ignored: self.verbose,
        });
        let clean = findings.iter().all(|it| it.level == Level::Ignored);
        match self.format.output {
            Format::Table => {
                if !findings.is_empty() {
                    let headers = vec!["WHERE", "OBJECT", "FIELD", "WHAT"];
                    let rows = findings.iter().map(row).collect();
                    table(&mut printer, &(headers, rows), "")?;
                }
                if clean {
                    printer.painted(Paint::Good, "No problems.")?;
                }
            }
            format @ (Format::Json | Format::Yaml) => printer.value(format, &findings)?,
        }
        printer.flush()?;
        Ok(if clean {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }
}

fn row(Finding { level, problem }: &Finding) -> Vec<Cell> {
    let place = match problem.line {
        0 => problem.file.clone(),
        line => format!("{}:{line}", problem.file),
    };
    let paint = match level {
        Level::Problem => Paint::Bad,
        Level::Ignored => Paint::Dim,
    };
    vec![
        place.into(),
        format!("{} {}", problem.kind, problem.object).trim().into(),
        problem.field.as_str().into(),
        Cell::painted(paint, &problem.message),
    ]
}
