//! `fairlead completions`

use std::io::Write;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::output::Printer;
use super::{Cli, Outcome};

const HELP: &str = "\
Examples:
  source <(fairlead completions bash)
  fairlead completions zsh > \"${fpath[1]}/_fairlead\"
  fairlead completions fish > ~/.config/fish/completions/fairlead.fish";

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// The shell.
    shell: Shell,
}

impl Command {
    pub(super) fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "fairlead", &mut script);
        printer.line(String::from_utf8(script)?.trim_end())?;
        Ok(Outcome::Done)
    }
}
