//! The topology of the comparison of connections, with servers of requests, Services and
//! routes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fairlead_tests::{Agent, AgentOptions, Place, Pod, Process, World, WorldOptions, until_ok};

use super::load::Protocol;
use super::{envoy, routes};
use crate::bench::contender::Contender;
use crate::bench::lab::{LabOptions, MESHED, PLAIN, Pods, START, peer, protect};
use crate::{ui, workspace};

/// So many routes are many.
pub(super) const MANY: usize = 1000;

/// The ports of a server.
pub(in crate::bench) const HTTP: u16 = 8090;
pub(super) const GRPC: u16 = 8091;

/// The running topology. Fields are dropped in order: proxies, servers, then the world around them.
#[derive(Debug)]
pub(super) struct Lab {
    agents: Vec<Agent>,
    envoys: Option<[Process; 2]>,
    _servers: Vec<Process>,
    plain: Pods,
    meshed: Pods,
    program: PathBuf,
    world: World,
}

impl Lab {
    /// Builds everything, and returns once each contender has answered.
    pub(super) fn build(options: &LabOptions<'_>) -> Result<Self> {
        let mut shape = WorldOptions::nodes(&["a", "b"]);
        shape.cubic = true;
        let world = World::create(&shape)?;
        let program = program();
        world.manifests().namespace(PLAIN, false)?;
        world.manifests().namespace(MESHED, true)?;
        protect(&world)?;
        routes::apply(world.manifests())?;
        let plain = Pods::create(&world, PLAIN)?;
        let meshed = Pods::create(&world, MESHED)?;
        let servers = [
            &plain.server,
            &plain.server_local,
            &meshed.server,
            &meshed.server_local,
        ];
        let servers = servers
            .into_iter()
            .map(|pod| serve(pod, &program))
            .collect::<Result<_>>()?;
        let mut lab = Self {
            agents: Vec::new(),
            envoys: None,
            _servers: servers,
            plain,
            meshed,
            program,
            world,
        };
        lab.start_proxies(options)?;
        for &contender in options.contenders {
            for routes in [1, MANY] {
                lab.wait_served(contender, routes)?;
            }
        }
        Ok(lab)
    }

    /// Where loads for the contender run.
    pub(super) fn client(&self, contender: Contender) -> &Place {
        if contender.is_fairlead() {
            &self.meshed.client
        } else {
            &self.plain.client
        }
    }

    /// Where they connect to.
    pub(super) fn endpoint(
        &self,
        contender: Contender,
        protocol: Protocol,
        routes: usize,
    ) -> SocketAddr {
        let port = match protocol {
            Protocol::Http1 => HTTP,
            Protocol::Grpc => GRPC,
        };
        let ip = match contender {
            Contender::Direct => self.plain.server.ip4,
            Contender::DirectLocal => self.plain.server_local.ip4,
            Contender::Envoy => {
                let port = envoy::port(protocol, routes);
                return SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            }
            Contender::Fairlead => routes::address("server", routes),
            Contender::FairleadLocal => routes::address("server-local", routes),
        };
        SocketAddr::new(ip.into(), port)
    }

    /// The processes that carry the contender's bytes.
    pub(super) fn proxies(&self, contender: Contender) -> Vec<u32> {
        let agents = |count: usize| self.agents.iter().take(count).map(|it| it.process.pid());
        match contender {
            Contender::Direct | Contender::DirectLocal => Vec::new(),
            Contender::Envoy => self.envoys.iter().flatten().map(Process::pid).collect(),
            Contender::Fairlead => agents(2).collect(),
            Contender::FairleadLocal => agents(1).collect(),
        }
    }

    /// The cgroups that hold all processes of the topology.
    pub(super) fn cgroups(&self) -> impl Iterator<Item = &Path> {
        self.world.nodes().iter().map(|node| node.cgroup.as_path())
    }

    /// The start of a command that plays a role of [`crate::bench::peer`].
    pub(super) fn peer(&self, role: &str) -> Vec<String> {
        peer(&self.program, role)
    }

    fn start_proxies(&mut self, options: &LabOptions<'_>) -> Result<()> {
        if options.contenders.iter().any(|it| it.is_fairlead()) {
            let agent_options = AgentOptions {
                arguments: options.agent_arguments.to_vec(),
                ..AgentOptions::default()
            };
            for node in self.world.nodes() {
                let agent = Agent::start(&self.world, node, &agent_options)
                    .with_context(|| format!("the agent of node {}", node.name))?;
                self.agents.push(agent);
            }
        }
        if let Some(envoy) = options.envoy {
            let directory = self.world.directory().join("envoy");
            let ends: (&Place, _) = (&self.plain.client, &self.plain.server);
            let pair = envoy::start(envoy, ends, options.concurrency, &directory)?;
            self.envoys = Some(pair);
        }
        Ok(())
    }

    /// The last route works too.
    fn wait_served(&self, contender: Contender, routes: usize) -> Result<()> {
        let server = self.endpoint(contender, Protocol::Http1, routes);
        let url = format!("http://{server}/r/{}", routes - 1);
        let client = self.client(contender);
        until_ok("the first answer", START, || {
            let command = ["curl", "-sSf", "-m", "2", "-H", "bench-size: 1", &url];
            client.run(&command)?.ok()
        })
        .with_context(|| self.agents_say(contender))
        .with_context(|| format!("{} does not serve {url}", contender.title()))?;
        Ok(())
    }

    /// What the contender's agents know of the last connections, for the reader of an error.
    fn agents_say(&self, contender: Contender) -> String {
        let agents = self.agents.iter().filter(|_| contender.is_fairlead());
        agents
            .map(|agent| match agent.cli.run(&["flows", "--last", "2"]) {
                Ok(output) => format!("{}{}", output.stdout, output.stderr),
                Err(error) => format!("{error:#}\n"),
            })
            .collect()
    }
}

/// Builds what plays client and server: this binary too, but not as slow as it is for
/// tasks.
pub(in crate::bench) fn build_program() -> Result<()> {
    let mut command = workspace::cargo();
    let command = command.args(["build", "--release", "--package", "xtask"]);
    ui::step("client and server (release)", command)
}

/// What plays client and server.
pub(in crate::bench) fn program() -> PathBuf {
    workspace::target().join("release/xtask")
}

/// Starts a server of requests, and waits until it listens.
pub(in crate::bench) fn serve(pod: &Pod, program: &Path) -> Result<Process> {
    let mut arguments = peer(program, "serve-requests");
    let everywhere = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    arguments.extend([HTTP, GRPC].map(|port| everywhere(port).to_string()));
    let server = pod.spawn("requests", &arguments)?;
    for port in [HTTP, GRPC] {
        pod.wait_listening(port, START)
            .with_context(|| format!("{}: {}", pod.full_name(), server.output()))?;
    }
    Ok(server)
}
