//! `fairlead agent`

use clap::Args;

use super::Outcome;
use crate::app::{self, AgentArgs};

const HELP: &str = "\
Examples:
  fairlead agent --node n1 --source dir:/etc/mesh --ca dir:/var/lib/fairlead/ca
  fairlead agent --node n1 --source dir:/etc/mesh --ca https://10.0.0.1:15012 \\
      --ca-token-file /etc/fairlead/n1.token --ca-root /etc/fairlead/root-cert.pem

Needs root and a kernel of 5.15 or newer: `fairlead check` tells. Which pods are meshed:
those of namespaces with the label `fairlead.dev/mesh: enabled`.

When the agent stops, by whatever cause, meshed pods do not fall back to plaintext: their
connections are refused until an agent runs again or `fairlead cleanup` takes them out.";

/// Mesh the pods of this node
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    #[command(flatten)]
    args: AgentArgs,
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        app::run_agent(self.args)?;
        Ok(Outcome::Done)
    }
}
