//! `fairlead uninstall`

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::output::{Format, FormatFlag, Paint, Printer, harmless};
use super::{Outcome, say};
use crate::app::KubeArgs;
use crate::app::kubernetes::{self, Change, Removal};

const HELP: &str = "\
Ends the agents, cleans up each node, removes every object and the namespace, and with it
the authority's key. Connections of meshed pods are refused from the end of their agent
until their node is clean, some seconds; after that pods talk plaintext. Where workloads
are STRICT, make them PERMISSIVE first, or they refuse those that are out already.

Policies, and with them their kinds, stay unless --delete-policies is given: they are
yours. Ends with 1 where a node could not be cleaned up; it is named.";

/// Remove the mesh from a cluster and every trace of it from its nodes
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Delete all policies of the cluster and their kinds, too.
    #[arg(long, env = "FAIRLEAD_DELETE_POLICIES")]
    delete_policies: bool,
    /// Wait so long for the nodes to be cleaned up.
    #[arg(
        long,
        env = "FAIRLEAD_WAIT",
        default_value = "5m",
        value_parser = humantime::parse_duration,
        value_name = "TIME"
    )]
    wait: Duration,
    #[command(flatten)]
    kube: KubeArgs,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let access = self.kube.access();
        let with_policies = self.delete_policies;
        let removal = kubernetes::uninstall(&access, with_policies, self.wait, &mut say).await?;
        match self.format.output {
            Format::Table => print(&removal, &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &removal)?,
        }
        printer.flush()?;
        Ok(if removal.is_complete() {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }
}

/// The report as a few lines.
pub(super) fn print<W: Write>(removal: &Removal, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let deleted = removal.objects.iter();
    let deleted = deleted.filter(|it| it.change == Change::Deleted).count();
    if let Some(nodes) = &removal.nodes {
        printer.line(&format!("{} of {} nodes clean", nodes.ready, nodes.wanted))?;
    }
    printer.line(&format!("{deleted} objects deleted"))?;
    for kept in &removal.kept {
        printer.painted(Paint::Warn, &format!("kept {}", harmless(kept)))?;
    }
    for left in &removal.not_cleaned {
        printer.painted(Paint::Bad, &format!("not cleaned up: {}", harmless(left)))?;
    }
    if removal.is_complete() {
        printer.painted(Paint::Good, "Nothing of the mesh runs any more.")?;
    } else {
        printer.line("On these nodes run `fairlead cleanup`: docs/troubleshooting.md#cleanup")?;
    }
    Ok(())
}
