//! What the demo stands on: nodes, pods, servers, and later the mesh.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use fairlead_tests::{Agent, Authority, Pod, PodSpec, Process, World, WorldOptions, servers};

use super::WORLD;

/// What travels from nginx to the client, and must not be seen between the nodes.
pub(super) const MARKER: &str = "the-price-list-is-secret";
/// Addresses of the Services.
pub(super) const WEB: &str = "10.96.0.10";
pub(super) const DATABASE: &str = "10.96.0.11";
pub(super) const CACHE: &str = "10.96.0.12";

/// Two nodes, their pods and what runs in them. The order of the fields is the order
/// in which they end.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) agents: Vec<Agent>,
    pub(super) authority: Option<Authority>,
    pub(super) servers: Vec<Process>,
    pub(super) client: Pod,
    pub(super) batch: Pod,
    pub(super) visitor: Pod,
    pub(super) web: Pod,
    pub(super) database: Pod,
    pub(super) cache: Pod,
    pub(super) world: World,
}

impl Stage {
    /// Two nodes with three pods each; nothing is meshed yet.
    pub(super) fn set() -> Result<Self> {
        let mut options = WorldOptions::nodes(&["node-a", "node-b"]);
        options.id = Some(WORLD.to_owned());
        let world = World::create(&options)?;
        let manifests = world.manifests();
        manifests.namespace("shop", false)?;
        manifests.namespace("guest", false)?;
        manifests.service(("shop", "web"), &[WEB, "fd00:96::10"], 80)?;
        manifests.service(("shop", "db"), &[DATABASE, "fd00:96::11"], 5432)?;
        manifests.service(("shop", "cache"), &[CACHE, "fd00:96::12"], 6379)?;
        let pod = |node, namespace, name| world.pod(&PodSpec::new(node, namespace, name));
        let mut stage = Self {
            agents: Vec::new(),
            authority: None,
            servers: Vec::new(),
            client: pod("node-a", "shop", "client")?,
            batch: pod("node-a", "shop", "batch")?,
            visitor: pod("node-a", "guest", "visitor")?,
            web: pod("node-b", "shop", "web")?,
            database: pod("node-b", "shop", "db")?,
            cache: pod("node-b", "shop", "cache")?,
            world,
        };
        stage.start_servers()?;
        Ok(stage)
    }

    fn start_servers(&mut self) -> Result<()> {
        let data = |name: &str| self.world.directory().join("data").join(name);
        let www = data("web").join("www");
        fs::create_dir_all(&www)?;
        fs::write(
            www.join("index.html"),
            format!("hello from nginx: {MARKER}\n"),
        )?;
        self.servers = vec![
            servers::nginx(&self.web, &data("web"))?,
            servers::postgres(&self.database, &data("db"))?,
            servers::redis(&self.cache, &data("cache"))?,
        ];
        Ok(())
    }

    /// The authority on the first node and an agent on each.
    pub(super) fn start_mesh(&mut self) -> Result<()> {
        let [first, ..] = self.world.nodes() else {
            anyhow::bail!("a stage has nodes");
        };
        let authority = Authority::start(&self.world, first)?;
        for node in self.world.nodes() {
            let options = authority.options_for(node);
            self.agents.push(Agent::start(&self.world, node, &options)?);
        }
        self.authority = Some(authority);
        Ok(())
    }

    /// Starts the agent of the second node again.
    pub(super) fn restart_second_agent(&mut self) -> Result<()> {
        let authority = self.authority.as_ref().context("the authority runs")?;
        let node = self.world.node("node-b");
        let agent = Agent::start(&self.world, node, &authority.options_for(node))?;
        agent.wait_enrolled(&[&self.web, &self.database, &self.cache])?;
        agent.wait_serving()?;
        self.agents.push(agent);
        Ok(())
    }

    /// The pods of the mesh on each node, with their agents.
    pub(super) fn wait_enrolled(&self) -> Result<()> {
        let pods: [&[&Pod]; 2] = [
            &[&self.client, &self.batch],
            &[&self.web, &self.database, &self.cache],
        ];
        for (agent, pods) in self.agents.iter().zip(pods) {
            agent.wait_enrolled(pods)?;
            agent.wait_serving()?;
        }
        Ok(())
    }

    /// Small programs that run a command in a pod, or ask an agent, for a person to play.
    pub(super) fn write_commands(&self) -> Result<PathBuf> {
        let directory = self.world.directory().join("bin");
        fs::create_dir_all(&directory)?;
        let pods = [
            &self.client,
            &self.batch,
            &self.visitor,
            &self.web,
            &self.database,
            &self.cache,
        ];
        for pod in pods {
            let script = format!(
                "#!/bin/sh\necho $$ >{}/cgroup.procs && exec nsenter --net={} -- \"$@\"\n",
                pod.cgroup().display(),
                pod.netns().display()
            );
            write_program(&directory.join(&pod.name), &script)?;
        }
        for (agent, node) in self.agents.iter().zip(self.world.nodes()) {
            let script = format!("#!/bin/sh\nexec {}\n", agent.cli.line("\"$@\""));
            write_program(&directory.join(&node.name), &script)?;
        }
        Ok(directory)
    }
}

fn write_program(path: &std::path::Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
