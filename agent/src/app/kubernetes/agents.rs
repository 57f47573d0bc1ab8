//! The agents of all nodes, each through the API server.

use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::NAMESPACE;
use crate::admin::{Client, ClientError};
use crate::cluster::kube::{self as api, Access, AgentPod};

/// What runs beside an agent and passes bytes to its socket.
const BRIDGE: [&str; 2] = ["/fairlead", "bridge"];
/// An agent that does not answer for so long is left out.
pub(super) const ANSWER: Duration = Duration::from_secs(15);

/// An agent, and the way to it.
#[derive(Debug)]
pub struct NodeAgent {
    /// Its node.
    pub node: String,
    /// Its pod.
    pub pod: String,
    /// The connection, or why there is none.
    pub client: Result<Client, String>,
}

/// Connects to the agents of all nodes; fails where there is none.
pub async fn agents(access: &Access) -> anyhow::Result<Vec<NodeAgent>> {
    let client = api::client(access).await?;
    let pods = api::agent_pods(&client, NAMESPACE).await?;
    if pods.is_empty() {
        bail!("there is no agent in the namespace {NAMESPACE}: see `fairlead install`");
    }
    Ok(join_all(pods.into_iter().map(|pod| connect(&client, pod))).await)
}

async fn connect(client: &api::Client, pod: AgentPod) -> NodeAgent {
    let connected = async {
        let stream = api::exec(client, NAMESPACE, &pod.name, &BRIDGE).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let connected = Client::over(stream).await;
        connected.map_err(|error: ClientError| error.to_string())
    };
    let connected = timeout(ANSWER, connected).await;
    NodeAgent {
        node: pod.node,
        pod: pod.name,
        client: connected.unwrap_or_else(|_elapsed| Err(format!("no answer within {ANSWER:?}"))),
    }
}
