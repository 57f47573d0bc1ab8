//! The world that most tests want: two nodes, an agent on each, one meshed namespace.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{
    Agent, AgentOptions, Authority, Capture, Output, Pod, PodSpec, Process, World, WorldOptions,
};

/// A start or a change is through by then, on a slow and busy machine too.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// The limit of commands that move much.
pub(crate) const LONG: Duration = Duration::from_mins(3);
/// Port of the encrypted tunnels between nodes.
pub(crate) const TUNNEL: u16 = 15008;

/// Two meshed nodes. The order of the fields is the order in which they end.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) agents: Vec<Agent>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) world: World,
}

impl Mesh {
    /// Makes the pods, starts the agents of the nodes `a` and `b`, and waits until they
    /// carry the pods' traffic.
    pub(crate) fn up(pods: &[PodSpec]) -> Result<Self> {
        let mut mesh = Self::down(pods)?;
        for name in ["a", "b"] {
            let agent = mesh.start(name)?;
            mesh.agents.push(agent);
        }
        mesh.wait_enrolled()?;
        Ok(mesh)
    }

    /// The same with certificates of `fairlead ca` on node a, and more arguments for
    /// the agents.
    pub(crate) fn up_with_authority(
        pods: &[PodSpec],
        arguments: &[&str],
    ) -> Result<(Self, Authority)> {
        let mut mesh = Self::down(pods)?;
        let authority = Authority::start(&mesh.world, mesh.world.node("a"))?;
        for node in mesh.world.nodes() {
            let mut options = authority.options_for(node);
            options.arguments = arguments.iter().map(|&text| text.to_owned()).collect();
            mesh.agents.push(Agent::start(&mesh.world, node, &options)?);
        }
        mesh.wait_enrolled()?;
        Ok((mesh, authority))
    }

    /// The same without agents.
    pub(crate) fn down(pods: &[PodSpec]) -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a", "b"]))?;
        world.manifests().namespace("shop", true)?;
        world.manifests().namespace("guest", false)?;
        let pods = pods
            .iter()
            .map(|spec| world.pod(spec))
            .collect::<Result<_>>()?;
        Ok(Self {
            agents: Vec::new(),
            pods,
            world,
        })
    }

    /// Starts the agent of a node.
    pub(crate) fn start(&self, node: &str) -> Result<Agent> {
        Agent::start(&self.world, self.world.node(node), &AgentOptions::default())
    }

    /// The pods of the meshed namespace that are meant to be in the mesh, by node.
    pub(crate) fn wait_enrolled(&self) -> Result<()> {
        for (agent, node) in self.agents.iter().zip(self.world.nodes()) {
            let pods: Vec<&Pod> = self
                .pods
                .iter()
                .filter(|pod| pod.node == node.name && pod.namespace == "shop")
                .collect();
            agent.wait_enrolled(&pods)?;
        }
        Ok(())
    }

    /// A pod by its name.
    #[track_caller]
    pub(crate) fn pod(&self, name: &str) -> &Pod {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.unwrap_or_else(|| panic!("the mesh has no pod {name}"))
    }

    /// The agent of the node `a` or `b`.
    pub(crate) fn agent(&self, node: &str) -> &Agent {
        &self.agents[usize::from(node == "b")]
    }

    /// Watches the link between the nodes.
    pub(crate) fn capture(&self, name: &str) -> Result<Capture> {
        let (node, device) = self.world.link("a", "b");
        Capture::start(&self.world, node, &device, name)
    }

    /// A directory for a server's data.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.world.directory().join("data").join(name)
    }
}

/// A client on node a, a server on node b, and one of each on the other's node.
pub(crate) fn client_and_server() -> [PodSpec; 2] {
    [
        PodSpec::new("a", "shop", "client"),
        PodSpec::new("b", "shop", "server"),
    ]
}

/// A Python script that is run in a pod, with the packages that the setup installed.
pub(crate) fn python(pod: &Pod, script: &str, arguments: &[&str]) -> Command {
    let mut command = pod.command("python3");
    command.args(["-u", "-c", script]).args(arguments);
    if let Some(packages) = std::env::var_os("FAIRLEAD_PYTHON") {
        command.env("PYTHONPATH", packages);
    }
    command
}

/// Runs such a script to its end.
pub(crate) fn run_python(pod: &Pod, script: &str, arguments: &[&str]) -> Result<Output> {
    fairlead_tests::run(&mut python(pod, script, arguments), LONG)?.ok()
}

/// Starts such a script as a server, and waits until it listens.
pub(crate) fn serve_python(pod: &Pod, script: &str, port: u16, more: &[&str]) -> Result<Process> {
    let text = port.to_string();
    let arguments = [&["serve", text.as_str()], more].concat();
    let process = pod.start(
        &format!("server-{port}"),
        &mut python(pod, script, &arguments),
    )?;
    let listening = pod.wait_listening(port, SOON);
    ensure!(listening.is_ok(), "{}", process.output());
    Ok(process)
}

/// curl, quiet, for ten seconds at most; fails where the answer is an error.
pub(crate) fn curl(pod: &Pod, url: &str) -> Result<Output> {
    let limit = fairlead_tests::patient(Duration::from_secs(10))
        .as_secs()
        .to_string();
    pod.run(&["curl", "-fsS", "--max-time", &limit, url])
}
