//! `-A`: real agents on two nodes, asked through the API server.
//!
//! The API server here knows the agents' pods and does what `pods/exec` does: it runs the
//! command, as it would run in the pod's container, and passes bytes over a WebSocket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Output, run, until};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server;

use crate::Test;
use crate::mesh::{LONG, Mesh, SOON, client_and_server, curl, serve_python};

pub(crate) const TESTS: &[Test] = &[Test::node(
    "all_nodes::are_asked_through_the_api_server",
    through_the_api_server,
)
.with(&["curl", "python3"])];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");
/// A node whose agent may not be asked.
const CLOSED: &str = "closed";

/// Where the run directories of the nodes' agents are.
type Nodes = Vec<(String, PathBuf)>;

struct Gateway {
    address: SocketAddr,
    _runtime: Runtime,
}

impl Gateway {
    fn start(nodes: Nodes) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        let nodes = Arc::new(nodes);
        drop(runtime.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _handle = connections.spawn(answer(stream, Arc::clone(&nodes)));
            }
        }));
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }

    fn kubeconfig(&self, directory: &std::path::Path) -> Result<PathBuf> {
        let path = directory.join("kubeconfig");
        let server = format!("http://{}", self.address);
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": server}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        std::fs::write(&path, text.to_string())?;
        Ok(path)
    }
}

async fn answer(stream: TcpStream, nodes: Arc<Nodes>) -> Result<()> {
    let mut head = vec![0; 4096];
    let head = loop {
        let length = stream.peek(&mut head).await?;
        let text = String::from_utf8_lossy(&head[..length]).into_owned();
        if text.contains("\r\n\r\n") || length == 0 {
            break text;
        }
    };
    let path = head.split(' ').nth(1).unwrap_or_default();
    let pod = path
        .split_once("/pods/")
        .and_then(|(_, rest)| rest.split_once("/exec?"));
    match pod {
        None => reply(stream, "200 OK", &pods(&nodes)).await,
        Some((CLOSED, _)) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "pods/exec is forbidden",
            });
            reply(stream, "403 Forbidden", &status).await
        }
        Some((pod, query)) => {
            let expected = "container=agent&command=%2Ffairlead&command=bridge";
            ensure!(query.ends_with(expected), "{query}");
            let node = nodes.iter().find(|(node, _)| node == pod);
            exec(stream, &node.context("no such pod")?.1).await
        }
    }
}

async fn reply(mut stream: TcpStream, status: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let mut request = vec![0; 4096];
    let _length = stream.read(&mut request).await?;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// The agents' pods, each named as its node, and one of another application.
fn pods(nodes: &Nodes) -> Value {
    let pod = |node: &str, component: &str| {
        json!({
            "metadata": {
                "name": node, "namespace": "fairlead-system",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "app.kubernetes.io/name": "fairlead",
                    "app.kubernetes.io/component": component,
                },
            },
            "spec": {"nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        })
    };
    let names = nodes.iter().map(|(node, _)| node.as_str());
    let mut items: Vec<Value> = names.map(|node| pod(node, "agent")).collect();
    items.push(pod("authority", "ca"));
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Channel 0 is the command's input, 1 its output.
async fn exec(stream: TcpStream, run_dir: &std::path::Path) -> Result<()> {
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let protocol = |_: &server::Request, mut response: server::Response| {
        let name = "v5.channel.k8s.io".parse().expect("it is plain text");
        drop(
            response
                .headers_mut()
                .insert("sec-websocket-protocol", name),
        );
        Ok(response)
    };
    let socket = accept_hdr_async(stream, protocol).await?;
    let mut command = tokio::process::Command::new(fairlead_tests::binary()?);
    let mut child = command
        .arg("bridge")
        .arg("--run-dir")
        .arg(run_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let mut output = child.stdout.take().context("no output")?;
    let (mut to_client, mut from_client) = socket.split();
    let inward = async {
        while let Some(message) = from_client.next().await {
            if let Message::Binary(bytes) = message?
                && let Some((0, bytes)) = bytes.split_first()
            {
                input.write_all(bytes).await?;
            }
        }
        anyhow::Ok(())
    };
    let outward = async {
        let mut buffer = vec![1; 32 << 10];
        loop {
            let length = output.read(&mut buffer[1..]).await?;
            if length == 0 {
                return anyhow::Ok(());
            }
            let message = Message::binary(buffer[..=length].to_vec());
            to_client.send(message).await?;
        }
    };
    tokio::select! {
        done = inward => done,
        done = outward => done,
    }
}

fn through_the_api_server() -> Result<()> {
    let mesh = Mesh::up(&client_and_server())?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = serve_python(server, WEB, 8080, &[])?;
    let url = format!("http://{}:8080/", server.ip4);
    until("traffic", SOON, || {
        curl(client, &url)
            .is_ok_and(|it| it.success())
            .then_some(())
    })?;
    let run_dir = |node: &str| mesh.world.directory().join("run").join(node);
    let node = |name: &str| (name.to_owned(), run_dir(name));
    let open = Gateway::start(vec![node("a"), node("b")])?;
    let kubeconfig = open.kubeconfig(mesh.world.directory())?;
    let ask = |arguments: &[&str]| -> Result<Output> {
        let mut command = Command::new(fairlead_tests::binary()?);
        let command = command.args(arguments).args(["-A", "--kubeconfig"]);
        run(command.arg(&kubeconfig), LONG)
    };

    let status = ask(&["status", "-o", "json"])?;
    let answers: Value =
        serde_json::from_str(&status.stdout).with_context(|| format!("{status:?}"))?;
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        ensure!(
            answers[index]["node"] == name && answers[index]["status"]["node"] == name,
            "{answers}"
        );
    }
    ensure!(status.success(), "{answers}");

    // One connection has two records: of where it left, and of where it arrived.
    let seen = until("the records of both ends", SOON, || {
        let flows = ask(&["flows", "--port", "8080", "--last", "50", "-o", "json"]).ok()?;
        let lines = flows.stdout.lines();
        let events: Vec<Value> = lines
            .filter_map(|it| serde_json::from_str(it).ok())
            .collect();
        let of = |node: &str| events.iter().any(|it| it["node"] == node);
        (of("a") && of("b")).then_some(events)
    })?;
    let times: Vec<&str> = seen.iter().filter_map(|it| it["time"].as_str()).collect();
    ensure!(times.is_sorted(), "{times:?}");

    let certificates = ask(&["get", "certificates"])?.ok()?.stdout;
    for account in ["sa/client", "sa/server"] {
        ensure!(certificates.contains(account), "{certificates}");
    }

    let partly = Gateway::start(vec![node("a"), node(CLOSED)])?;
    drop(partly.kubeconfig(mesh.world.directory())?);
    let status = ask(&["status"])?;
    ensure!(
        status.code() == 1
            && status.stdout.lines().any(|line| line.starts_with("a "))
            && status.stdout.contains("closed: no answer")
            && status.stdout.contains("pods/exec"),
        "{status:?}"
    );
    Ok(())
}
