//! `fairlead cni`

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;

use crate::app;

const HELP: &str = "\
Reads the environment and the standard input as the Container Network Interface (CNI) has
them: ADD, DEL, CHECK, STATUS, GC and VERSION. The agent installs it on its node as
`fairlead-cni` (--cni-bin-dir, --cni-conf-dir); under that name it needs no subcommand.

A pod that is to be meshed is started when the agent has enrolled it, and not without the
agent. Every other pod does not wait.";

/// Be the chained CNI plugin that a container runtime calls
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {}

/// Answers one call of a container runtime.
pub fn run_plugin() -> ExitCode {
    let (answer, done) = app::cni_plugin(io::stdin().lock());
    let written = match &*answer {
        "" => Ok(()),
        answer => writeln!(io::stdout(), "{answer}"),
    };
    if done && written.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
