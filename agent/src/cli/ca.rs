//! `fairlead ca`

use clap::Args;

use super::Outcome;
use crate::app::{self, CaArgs};

const HELP: &str = "\
Example:
  fairlead ca --source dir:/etc/mesh --root dir:/var/lib/fairlead/ca \\
      --listen 10.0.0.1:15012 --node-tokens /etc/fairlead/tokens

The directory of --root has ca-cert.pem, ca-key.pem, root-cert.pem and, for an
intermediate, cert-chain.pem, as Istio names them; a root is made where it is empty.
The directory of --node-tokens has one file for each node, named as the node, with its
token. A node gets certificates only for the service accounts that its own pods use.";

/// Sign the certificates of workloads
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    #[command(flatten)]
    args: CaArgs,
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        app::run_ca(self.args)?;
        Ok(Outcome::Done)
    }
}
