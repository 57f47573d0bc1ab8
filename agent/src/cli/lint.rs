//! `fairlead lint`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{Format, FormatFlag, Paint, Printer};
use super::status::table;
use super::table::Cell;
use crate::app;

const HELP: &str = "\
Examples:
  fairlead lint -f mesh/                a directory as `fairlead agent --source dir:mesh` reads it
  fairlead lint -f policy.yaml -o json  one file

Needs no agent. Ends with 1 where it found something.";

/// Check manifests before the mesh sees them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// A file, or a directory of files.
    #[arg(short, long, env = "FAIRLEAD_FILE", value_name = "PATH")]
    file: PathBuf,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let problems = app::lint(&self.file);
        match self.format.output {
            Format::Table if problems.is_empty() => {
                printer.painted(Paint::Good, "No problems.")?;
            }
            Format::Table => {
                let rows = problems.iter().map(|it| {
                    let line = if it.line == 0 {
                        String::new()
                    } else {
                        format!(":{}", it.line)
                    };
                    vec![
                        format!("{}{line}", it.file).into(),
                        format!("{} {}", it.kind, it.object).trim().into(),
                        it.field.as_str().into(),
                        Cell::painted(Paint::Bad, &it.message),
                    ]
                });
                let headers = vec!["WHERE", "OBJECT", "FIELD", "WHAT"];
                table(&mut printer, &(headers, rows.collect()), "")?;
            }
            format @ (Format::Json | Format::Yaml) => printer.value(format, &problems)?,
        }
        printer.flush()?;
        let clean = problems.is_empty();
        Ok(if clean {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }
}
