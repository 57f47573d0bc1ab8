//! The node's taint goes when the agent is ready.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::time::sleep;

use super::tasks::Tasks;
use super::view::AgentView;
use crate::admin::View as _;
use crate::cluster::kube::{Access, client, remove_taint};
use crate::model::NodeName;

/// Keeps pods off a node that has no ready agent.
const TAINT: &str = "fairlead.dev/agent-not-ready";
/// Between two looks at whether the agent is ready.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Removes the taint from the agent's own node as soon as the agent is ready, where a way
/// to the API server was given for that.
pub(super) fn start(
    tasks: &mut Tasks,
    access: Option<Access>,
    node: NodeName,
    view: &Arc<AgentView>,
) {
    if let Some(access) = access {
        tasks.keep("taint", remove(access, node, Arc::clone(view)));
    }
}

/// Tries until it is done. Never returns.
async fn remove(access: Access, node: NodeName, view: Arc<AgentView>) {
    while !view.status().not_ready.is_empty() {
        sleep(LOOK).await;
    }
    let mut wait = FIRST_WAIT;
    loop {
        match attempt(&access, &node).await {
            Ok(removed) => {
                tracing::info!(%node, removed, "the node is free of the taint {TAINT}");
                return std::future::pending().await;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(%node, error, "cannot remove the taint {TAINT}; trying again");
            }
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        sleep(wait.mul_f64(jitter)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

async fn attempt(access: &Access, node: &NodeName) -> anyhow::Result<bool> {
    let client = client(access).await?;
    Ok(remove_taint(&client, node, TAINT).await?)
}
