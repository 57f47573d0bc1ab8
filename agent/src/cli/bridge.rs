//! `fairlead bridge`

use clap::Args;

use super::{AgentAddress, Outcome};
use crate::admin;

/// Pass bytes between standard input and output and the agent's socket
///
/// What `-A` of other commands runs in each agent's container, through the API server.
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    agent: AgentAddress,
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let ended = runtime.block_on(admin::bridge(&self.agent.run_dir));
        // A thread may wait for input that never comes.
        runtime.shutdown_background();
        ended?;
        Ok(Outcome::Done)
    }
}
