//! The agents of a cluster, and a way to each that opens no port.
//!
//! A command runs in the agent's container and passes bytes between the API server and
//! the agent's own socket. A forwarded port would do the same for everybody on the node:
//! what listens in the node's network can be dialled by each process and pod in it. So
//! who may ask is decided by the API server (`pods/exec`), and on the node by the
//! socket's mode.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::kube::Client;
use ::kube::api::{Api, AttachParams, AttachedProcess};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::objects::{Place, RequestError, list};

/// How much is kept on the way in each direction.
const BUFFER: usize = 64 << 10;

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its node.
    pub node: String,
    /// Its name.
    pub name: String,
    /// It is ready.
    pub ready: bool,
    created: String,
}

/// The agents' pods in `namespace`, one for each node, by node.
pub async fn agent_pods(client: &Client, namespace: &str) -> Result<Vec<AgentPod>, RequestError> {
    let place = Place::new("v1", "Pod", Some(namespace), "");
    let pods = list(client, &place).await?;
    Ok(one_of_each_node(
        pods.iter().filter_map(agent_pod).collect(),
    ))
}

/// During an upgrade a node has two: the ready one answers, the newer of two such.
fn one_of_each_node(mut pods: Vec<AgentPod>) -> Vec<AgentPod> {
    pods.sort_by(|a, b| {
        let rank = |pod: &AgentPod| (pod.ready, pod.created.clone());
        a.node.cmp(&b.node).then_with(|| rank(b).cmp(&rank(a)))
    });
    pods.dedup_by(|later, first| later.node == first.node);
    pods
}

fn agent_pod(pod: &Value) -> Option<AgentPod> {
    let labels = pod.pointer("/metadata/labels")?;
    let is_agent = labels["app.kubernetes.io/name"] == "fairlead"
        && labels["app.kubernetes.io/component"] == "agent";
    let ends = pod.pointer("/metadata/deletionTimestamp").is_some();
    if !is_agent || ends {
        return None;
    }
    let text = |pointer: &str| Some(pod.pointer(pointer)?.as_str()?.to_owned());
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let is_ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
    Some(AgentPod {
        node: text("/spec/nodeName")?,
        name: text("/metadata/name")?,
        ready: conditions.is_some_and(|all| all.iter().any(is_ready)),
        created: text("/metadata/creationTimestamp").unwrap_or_default(),
    })
}

/// The input and output of a command in a pod. Its drop ends the command.
pub struct Command {
    io: Pin<Box<dyn Duplex>>,
    _process: AttachedProcess,
}

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").finish_non_exhaustive()
    }
}

/// Runs a command in the container `agent` of a pod.
pub async fn exec(
    client: &Client,
    namespace: &str,
    pod: &str,
    command: &[&str],
) -> io::Result<Command> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let how = AttachParams::default()
        .container("agent")
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(BUFFER)
        .max_stdout_buf_size(BUFFER);
    let mut process = pods
        .exec(pod, command.iter().copied(), &how)
        .await
        .map_err(|error| io::Error::other(explain(&error)))?;
    let (Some(input), Some(output)) = (process.stdin(), process.stdout()) else {
        return Err(io::Error::other("the API server gave no input and output"));
    };
    Ok(Command {
        io: Box::pin(tokio::io::join(output, input)),
        _process: process,
    })
}

fn explain(error: &::kube::Error) -> String {
    let text = error.to_string();
    match error {
        ::kube::Error::Api(status) => status.message.clone(),
        // Of the upgrade to WebSocket, only the code is told.
        _ if text.contains("403") => {
            "forbidden: this user may not create and get pods/exec in the agents' namespace"
                .to_owned()
        }
        _ => text,
    }
}

impl AsyncRead for Command {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Command {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{agent_pod, one_of_each_node};

    fn pod(name: &str, node: &str, ready: bool, created: &str) -> Value {
        json!({
            "metadata": {
                "name": name, "creationTimestamp": created,
                "labels": {
                    "app.kubernetes.io/name": "fairlead", "app.kubernetes.io/component": "agent",
                },
            },
            "spec": { "nodeName": node },
            "status": { "conditions": [
                { "type": "Ready", "status": if ready { "True" } else { "False" } },
            ] },
        })
    }

    #[test]
    fn the_ready_and_newest_agent_of_a_node_answers() {
        let mut ending = pod("ending", "a", true, "4");
        ending["metadata"]["deletionTimestamp"] = "now".into();
        let mut authority = pod("ca", "a", true, "5");
        authority["metadata"]["labels"]["app.kubernetes.io/component"] = "ca".into();
        let pods = [
            pod("starting", "a", false, "3"),
            pod("old", "a", true, "1"),
            pod("new", "a", true, "2"),
            ending,
            authority,
            pod("other", "b", false, "1"),
        ];
        let chosen = one_of_each_node(pods.iter().filter_map(agent_pod).collect());
        let names: Vec<_> = chosen.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["new", "other"]);
    }
}
