//! `fairlead ca`

use clap::Args;

use super::Outcome;
use crate::app::{self, CaArgs};

const HELP: &str = "\
Examples:
  fairlead ca --source dir:/etc/mesh --root dir:/var/lib/fairlead/ca \\
      --listen 10.0.0.1:15012 --node-tokens /etc/fairlead/tokens
  fairlead ca --source kube --root secret:fairlead-system/fairlead-ca \\
      --bundle configmap:fairlead-system/fairlead-ca-root-cert --authenticate kube

--root has ca-cert.pem, ca-key.pem, root-cert.pem and, for an intermediate,
cert-chain.pem, as Istio names them; a Secret may as well have tls.crt, tls.key and
ca.crt, as cert-manager names them. A root is made where there is nothing.
A node gets certificates only for the service accounts that its own pods use. Which node
calls is proved by a token: of --node-tokens, a directory with one file for each node,
named as the node; or of the agents' service account, which the API server reviews.
docs/ca.md tells how a root is replaced, and how to bring one of your own.";

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
