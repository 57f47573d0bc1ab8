//! `fairlead cleanup`

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::output::{Format, FormatFlag, Paint, Printer, harmless};
use crate::app::{self, Scope};

const HELP: &str = "\
Stop the agent first. After this the pods are out of the mesh and talk plaintext; peers
that ask for mTLS refuse them. While an agent runs it is refused, with the agent's process.
Ends with 1 where something remains.";

/// Take pods out of the mesh and remove every trace of stopped agents from the kernel
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Only what agents of this node left; of every node of this machine where not given.
    #[arg(long, env = "FAIRLEAD_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Where the BPF file system is mounted.
    #[arg(
        long,
        env = "FAIRLEAD_BPFFS",
        default_value = "/sys/fs/bpf",
        value_name = "PATH"
    )]
    bpffs: PathBuf,
    /// The run directory of the agent that must have ended.
    #[arg(
        long,
        env = "FAIRLEAD_RUN_DIR",
        default_value = "/run/fairlead",
        value_name = "PATH"
    )]
    run_dir: PathBuf,
    /// Leave nodes alone on which an agent runs, instead of refusing.
    #[arg(long, env = "FAIRLEAD_DEAD_ONLY")]
    dead_only: bool,
    /// Stay until asked to end where nothing remains: so that a pod which cleans up is
    /// done, and not started again.
    #[arg(long, env = "FAIRLEAD_STAY")]
    stay: bool,
    /// The container runtime's CNI plugins: ours is removed.
    #[arg(long, env = "FAIRLEAD_CNI_BIN_DIR", value_name = "DIR")]
    cni_bin_dir: Option<PathBuf>,
    /// The container runtime's network configurations: the plugin is taken out of them.
    #[arg(long, env = "FAIRLEAD_CNI_CONF_DIR", value_name = "DIR")]
    cni_conf_dir: Option<PathBuf>,
    #[command(flatten)]
    format: FormatFlag,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let scope = if self.dead_only {
            Scope::DeadOnly
        } else {
            Scope::All
        };
        let mut done = app::cleanup(&self.run_dir, &self.bpffs, self.node, scope)?;
        // An agent that still runs would put it back.
        let cni = app::uninstall_cni(self.cni_bin_dir.as_deref(), self.cni_conf_dir.as_deref())?;
        done.removed.extend(cni);
        match self.format.output {
            Format::Table => {
                for path in &done.removed {
                    printer.line(&format!("removed {}", harmless(&path.to_string_lossy())))?;
                }
                for trace in &done.remaining {
                    let text = format!("remains: {}", harmless(trace));
                    printer.painted(Paint::Bad, &text)?;
                }
                if done.remaining.is_empty() {
                    let text = match scope {
                        Scope::All => "Nothing of the mesh is left in the kernel.",
                        Scope::DeadOnly => "Nothing of ended agents is left where none runs.",
                    };
                    printer.painted(Paint::Good, text)?;
                }
            }
            format @ (Format::Json | Format::Yaml) => printer.value(format, &done)?,
        }
        printer.flush()?;
        let clean = done.remaining.is_empty();
        if clean && self.stay {
            app::stay()?;
        }
        Ok(if clean {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }
}
