//! The mesh on a cluster: its pods as `deploy/` describes them, two nodes, users' pods.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::{Api, ClusterPod, Lease, kubelet};
use fairlead_tests::{
    Agent, AgentOptions, Node, Pod, PodSpec, Process, World, WorldOptions, binary, until,
};
use serde_json::{Value, json};

use super::manifests::{SYSTEM, arguments_of, install, pod_of};
use crate::mesh::{SOON, curl, serve_python};

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../../scripts/web.py");

/// Becomes a program that sees other names of hosts, as pods and nodes with a
/// cluster's DNS do.
const WITH_HOSTS: &str = r#"mount --bind "$1" /etc/hosts && shift && exec "$@""#;

/// Where the authority's Service is.
const AUTHORITY: &str = "fairlead-ca.fairlead-system.svc";

/// How long the whole may take to start.
const START: Duration = Duration::from_mins(1);

/// A replica of the authority.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) process: Process,
    pub(crate) pod: ClusterPod,
    /// What it was started with.
    arguments: Vec<String>,
    user: String,
}

/// Two nodes of a cluster. The order of the fields is the order in which they end.
#[derive(Debug)]
pub(crate) struct ClusterMesh {
    pub(crate) agents: Vec<Agent>,
    pub(crate) authority: Vec<Replica>,
    pub(crate) pods: Vec<ClusterPod>,
    agent_objects: Vec<Value>,
    pub(crate) world: World,
    pub(crate) plane: Lease,
}

impl ClusterMesh {
    /// The authority, an agent on each node, and pods in the namespaces `shop`, which is
    /// meshed, and `guest`, which is not.
    pub(crate) fn up(pods: &[PodSpec]) -> Result<Self> {
        Self::up_with(pods, &[])
    }

    /// The same with more arguments for the agents.
    pub(crate) fn up_with(pods: &[PodSpec], arguments: &[&str]) -> Result<Self> {
        let mut mesh = Self::down(pods, true)?;
        mesh.start_mesh(arguments)?;
        mesh.wait_enrolled()?;
        Ok(mesh)
    }

    /// Nodes and pods, and nothing of the mesh runs.
    pub(crate) fn down(pods: &[PodSpec], meshed: bool) -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a", "b"]))?;
        let plane = Lease::take(&world, install)?;
        let api = plane.admin();
        kubelet::apply_namespace(api, "shop", meshed)?;
        kubelet::apply_namespace(api, "guest", false)?;
        let pods = pods
            .iter()
            .map(|spec| ClusterPod::run(api, &world, spec))
            .collect::<Result<_>>()?;
        Ok(Self {
            agents: Vec::new(),
            authority: Vec::new(),
            pods,
            agent_objects: Vec::new(),
            world,
            plane,
        })
    }

    /// Starts one replica of the authority and the agents, and waits until they serve.
    pub(crate) fn start_mesh(&mut self, arguments: &[&str]) -> Result<()> {
        self.start_authority("a")?;
        self.serve_authority(0)?;
        for node in ["a", "b"] {
            self.create_agent_pod(node)?;
            let agent = self.start_agent(node, arguments)?;
            self.agents.push(agent);
        }
        for agent in &self.agents {
            agent.wait_serving()?;
        }
        Ok(())
    }

    /// The API server, as one who may do everything.
    pub(crate) fn api(&self) -> &Api {
        self.plane.admin()
    }

    /// Starts a replica of the authority in a pod on a node, as its Deployment has it.
    pub(crate) fn start_authority(&mut self, node: &str) -> Result<()> {
        let deployment = self.controller("deployments", "fairlead-ca")?;
        let name = format!("fairlead-ca-{}", self.authority.len());
        let object = pod_of(&deployment, &name, node);
        let spec = PodSpec::new(node, SYSTEM, &name);
        let pod = ClusterPod::start_object(self.plane.admin(), &self.world, &spec, &object)?;
        pod.report(&pod.status())?;
        let token = self.file(&format!("{name}.token"));
        pod.project_token(None, &token)?;
        let kubeconfig = self.api().with_token(&token).kubeconfig(&name)?;
        let mut arguments = arguments_of(&deployment, &["--log-format"])?;
        let kubeconfig = kubeconfig.display().to_string();
        let own = ["--kubeconfig", &kubeconfig, "--log-format", "text"];
        arguments.extend(own.map(str::to_owned));
        let user = &deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"];
        let user = user.to_string();
        self.authority.push(Replica {
            process: run_authority(&pod, &arguments, &user)?,
            pod,
            arguments,
            user,
        });
        Ok(())
    }

    /// Kills a replica of the authority and starts it again, and does not wait for it.
    pub(crate) fn restart_authority(&mut self, replica: usize) -> Result<()> {
        let old = self.authority.remove(replica);
        old.process.kill();
        let process = run_authority(&old.pod, &old.arguments, &old.user)?;
        self.authority.insert(
            replica,
            Replica {
                process,
                pod: old.pod,
                arguments: old.arguments,
                user: old.user,
            },
        );
        Ok(())
    }

    /// Leads the authority's Service to a replica, once it is ready.
    pub(crate) fn serve_authority(&mut self, replica: usize) -> Result<()> {
        let Replica { process, pod, .. } = &mut self.authority[replica];
        until("a ready authority", START, || {
            let url = "http://127.0.0.1:15020/readyz";
            let ready = pod.run(&["curl", "-sf", "--max-time", "2", url]).ok()?;
            match (ready.success(), process.ended()) {
                (true, _) => Some(Ok(())),
                (false, Ok(Some(status))) => Some(Err(anyhow::anyhow!("it ended: {status}"))),
                _ => None,
            }
        })
        .and_then(|inner| inner)
        .with_context(|| format!("fairlead ca: {}", process.output()))?;
        let path = format!("/api/v1/namespaces/{SYSTEM}/services/fairlead-ca");
        let service = self.plane.admin().get(&path)?;
        let address = service["spec"]["clusterIP"]
            .as_str()
            .context("a Service has an address")?;
        let pod = &self.authority[replica].pod;
        kubelet::route_service(&self.world, address, pod)?;
        let hosts = format!("127.0.0.1 localhost\n{address} {AUTHORITY}\n");
        fs::write(self.file("hosts"), hosts)?;
        let projected = self.project_root()?;
        ensure!(projected, "a ready authority has published no root");
        Ok(())
    }

    /// Brings the `ConfigMap` of the root to where agents read it, as kubelet does.
    pub(crate) fn project_root(&self) -> Result<bool> {
        let name = (SYSTEM, "fairlead-ca-root-cert");
        let file = self.file("root-cert.pem");
        kubelet::project_config_map(self.plane.admin(), name, "root-cert.pem", &file)
    }

    /// The pod of a node's agent, as its `DaemonSet` has it; it runs in the node's own
    /// namespace, so that there is only the object.
    pub(crate) fn create_agent_pod(&mut self, node: &str) -> Result<()> {
        let set = self.controller("daemonsets", "fairlead-agent")?;
        let object = pod_of(&set, &format!("fairlead-agent-{node}"), node);
        let object = self.api().create(&object)?;
        let address = self.world.node(node).ip4;
        let status = json!({
            "phase": "Running", "hostIP": address, "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        });
        drop(self.api().set_status(&object, &status)?);
        self.agent_objects.push(object);
        Ok(())
    }

    /// Starts the agent of a node with the tokens of its pod, and waits until it answers.
    pub(crate) fn start_agent(&self, node: &str, arguments: &[&str]) -> Result<Agent> {
        let options = self.agent_options(self.world.node(node), arguments)?;
        Agent::start(&self.world, self.world.node(node), &options)
    }

    /// How the agent of a node is started.
    pub(crate) fn agent_options(&self, node: &Node, arguments: &[&str]) -> Result<AgentOptions> {
        let set = self.controller("daemonsets", "fairlead-agent")?;
        let (access, proof) = self.agent_tokens(&node.name)?;
        let kubeconfig = self
            .api()
            .with_token(&access)
            .kubeconfig(&format!("agent-{}", node.name))?;
        // Paths are those of this machine; what else the manifest says stays.
        let replaced = [
            "--node",
            "--ca",
            "--ca-token-file",
            "--ca-root",
            "--cni-bin-dir",
            "--cni-conf-dir",
            "--log-format",
            "--drain",
            "--replace",
        ];
        let mut all = arguments_of(&set, &replaced)?;
        all.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
        all.extend(arguments.iter().map(|&text| text.to_owned()));
        let url = format!("https://{AUTHORITY}:15012");
        let ca = [
            ("--ca", url),
            ("--ca-token-file", proof.display().to_string()),
            (
                "--ca-root",
                self.file("root-cert.pem").display().to_string(),
            ),
        ];
        let hosts = self.file("hosts").display().to_string();
        let wrapper = [
            "unshare",
            "--mount",
            "--propagation=slave",
            "sh",
            "-c",
            WITH_HOSTS,
            "hosts",
            &hosts,
        ];
        Ok(AgentOptions {
            ca: ca
                .into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value])
                .collect(),
            arguments: all,
            wrapper: wrapper.map(str::to_owned).into(),
            program: None,
        })
    }

    /// Files with the tokens of a node's agent: for the API server, and for the authority.
    fn agent_tokens(&self, node: &str) -> Result<(PathBuf, PathBuf)> {
        let pod = self
            .agent_objects
            .iter()
            .find(|object| object["spec"]["nodeName"] == node)
            .context("the agent has no pod")?;
        let bound = json!({
            "apiVersion": "v1", "kind": "Pod",
            "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"],
        });
        let files = (
            self.file(&format!("agent-{node}.token")),
            self.file(&format!("agent-{node}.ca-token")),
        );
        let account = (SYSTEM, "fairlead-agent");
        for (audience, file) in [(None, &files.0), (Some("fairlead-ca"), &files.1)] {
            kubelet::request_token(self.api(), account, audience, Some(&bound), file)?;
        }
        Ok(files)
    }

    fn controller(&self, kind: &str, name: &str) -> Result<Value> {
        let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/{kind}/{name}");
        self.plane.admin().get(&path)
    }

    /// A file of this mesh.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.world.directory().join(name)
    }

    /// Waits until the agents carry the pods of `shop`.
    pub(crate) fn wait_enrolled(&self) -> Result<()> {
        for agent in &self.agents {
            let node = agent.status()?["node"].clone();
            let pods: Vec<&Pod> = self
                .pods
                .iter()
                .filter(|pod| pod.namespace == "shop" && node == pod.node.as_str())
                .map(|pod| &**pod)
                .collect();
            agent.wait_enrolled(&pods)?;
        }
        Ok(())
    }

    /// A pod by its name.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> &ClusterPod {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.unwrap_or_else(|| panic!("the mesh has no pod {name}"))
    }

    /// The agent of the node `a` or `b`.
    pub(crate) fn agent(&self, node: &str) -> &Agent {
        &self.agents[usize::from(node == "b")]
    }

    /// Labels the namespace `shop` for the mesh, or takes the label away.
    pub(crate) fn label(&self, value: Option<&str>) -> Result<()> {
        let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        let patch = json!({"metadata": {"labels": {"fairlead.dev/mesh": value}}});
        self.api().merge(&shop, "", &patch).map(drop)
    }
}

/// As the Deployment's user, who has no capability and can't gain one.
fn run_authority(pod: &ClusterPod, arguments: &[String], user: &str) -> Result<Process> {
    let mut command = pod.command("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={user}"))
        .args(["--clear-groups", "--no-new-privs", "--bounding-set=-all"])
        .arg(binary()?)
        .arg("ca")
        .args(arguments)
        .env("POD_NAME", &pod.name);
    pod.start("ca", &mut command)
}

/// A client on node a, a server on node b, and one outside the mesh on node a.
pub(crate) fn usual_pods() -> [PodSpec; 3] {
    [
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
        PodSpec::new("a", "guest", "visitor"),
    ]
}

/// A server in a pod, on port 8080.
pub(crate) fn web(pod: &Pod) -> Result<Process> {
    serve_python(pod, WEB, 8080, &[])
}

/// The address of that server.
pub(crate) fn url(pod: &Pod) -> String {
    format!("http://{}:8080/", pod.ip4)
}

/// Whether a pod gets an answer.
pub(crate) fn works(pod: &Pod, url: &str) -> bool {
    curl(pod, url).is_ok_and(|output| output.success())
}

/// Waits until a pod gets an answer.
pub(crate) fn soon_works(pod: &Pod, url: &str) -> Result<()> {
    until(&format!("{} is answered", pod.name), SOON, || {
        works(pod, url).then_some(())
    })
}

/// Waits until a pod gets none.
pub(crate) fn soon_refused(pod: &Pod, url: &str) -> Result<()> {
    until(&format!("{} is refused", pod.name), SOON, || {
        (!works(pod, url)).then_some(())
    })
}

/// What an agent says needs attention.
pub(crate) fn problems(agent: &Agent) -> Result<String> {
    Ok(agent.status()?["problems"].to_string())
}

/// Waits until an agent names all of these among what needs attention.
pub(crate) fn reported(agent: &Agent, texts: &[&str]) -> Result<()> {
    until(&format!("{texts:?} among the problems"), SOON, || {
        let problems = problems(agent).ok()?;
        texts
            .iter()
            .all(|text| problems.contains(text))
            .then_some(())
    })
    .with_context(|| problems(agent).unwrap_or_default())
}
