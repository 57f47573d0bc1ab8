//! The topology of a bench: two nodes, pods, servers, proxies.
//!
//! ```text
//!  node a: client, server-local ── link ── node b: server
//! ```
//! Each pod exists twice, once in the mesh and once not, so that nothing has to be switched between
//! two measurements: `plain` serves direct and Envoy, `meshed` serves Fairlead.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_tests::{Agent, AgentOptions, Place, Pod, PodSpec, Process, World, WorldOptions};
use serde_json::json;

use super::contender::Contender;
use super::envoy::{Ends, Envoy, Pair};

/// The namespaces of the pods, by whether they are in the mesh.
pub(super) const PLAIN: &str = "plain";
pub(super) const MESHED: &str = "meshed";

/// The ports of a server: nginx, then streams up and down.
const PORTS: [u16; 3] = [8080, 8081, 8082];

/// Limit for a server's start and for a proxy's first connection.
pub(super) const START: Duration = Duration::from_secs(20);

/// Tells the result of `wrk` as one JSON line.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    '{"requests":%d,"microseconds":%d,"p50_microseconds":%d,"p99_microseconds":%d,"errors":%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// Where a client connects to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint {
    pub(super) http: SocketAddr,
    pub(super) upload: SocketAddr,
    pub(super) download: SocketAddr,
}

/// Which contenders a lab is built for, and how.
#[derive(Debug)]
pub(super) struct LabOptions<'a> {
    pub(super) contenders: &'a [Contender],
    pub(super) envoy: Option<&'a Envoy>,
    pub(super) concurrency: u32,
    pub(super) agent_arguments: &'a [String],
}

/// The running topology. Fields are dropped in order: proxies, servers, then the world around them.
#[derive(Debug)]
pub(super) struct Lab {
    agents: Vec<Agent>,
    envoys: Option<Pair>,
    _servers: Vec<Server>,
    plain: Pods,
    meshed: Pods,
    wrk_script: PathBuf,
    program: PathBuf,
    world: World,
}

/// The pods of one namespace.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) client: Pod,
    pub(super) server: Pod,
    pub(super) server_local: Pod,
}

/// What serves in one pod.
#[derive(Debug)]
struct Server {
    _http: Process,
    _streams: Process,
}

impl Lab {
    /// Builds everything, and returns once each contender has served a request.
    pub(super) fn build(options: &LabOptions<'_>) -> Result<Self> {
        let mut shape = WorldOptions::nodes(&["a", "b"]);
        shape.cubic = true;
        let world = World::create(&shape)?;
        let program = std::env::current_exe()?;
        world.manifests().namespace(PLAIN, false)?;
        world.manifests().namespace(MESHED, true)?;
        protect(&world)?;
        let plain = Pods::create(&world, PLAIN)?;
        let meshed = Pods::create(&world, MESHED)?;
        let wrk_script = world.directory().join("wrk.lua");
        fs::write(&wrk_script, WRK_SCRIPT)?;
        let files = files(&world)?;
        let servers = [
            &plain.server,
            &plain.server_local,
            &meshed.server,
            &meshed.server_local,
        ]
        .into_iter()
        .map(|pod| Server::start(pod, &files, &program))
        .collect::<Result<_>>()?;
        let mut lab = Self {
            agents: Vec::new(),
            envoys: None,
            _servers: servers,
            plain,
            meshed,
            wrk_script,
            program,
            world,
        };
        lab.start_proxies(options)?;
        for &contender in options.contenders {
            lab.wait_served(contender)?;
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
    pub(super) fn endpoint(&self, contender: Contender) -> Endpoint {
        let server = match contender {
            Contender::Envoy => return Endpoint::new(Pair::endpoints()),
            Contender::Direct => &self.plain.server,
            Contender::DirectLocal => &self.plain.server_local,
            Contender::Fairlead => &self.meshed.server,
            Contender::FairleadLocal => &self.meshed.server_local,
        };
        Endpoint::new(PORTS.map(|port| SocketAddr::new(server.ip4.into(), port)))
    }

    /// The processes that carry the contender's bytes.
    pub(super) fn proxies(&self, contender: Contender) -> Vec<u32> {
        let agents = |count: usize| {
            self.agents
                .iter()
                .take(count)
                .map(|agent| agent.process.pid())
        };
        match contender {
            Contender::Direct | Contender::DirectLocal => Vec::new(),
            Contender::Envoy => self.envoys.as_ref().map(Pair::pids).unwrap_or_default(),
            Contender::Fairlead => agents(2).collect(),
            Contender::FairleadLocal => agents(1).collect(),
        }
    }

    /// The cgroups that hold all processes of the topology.
    pub(super) fn cgroups(&self) -> impl Iterator<Item = &Path> {
        self.world.nodes().iter().map(|node| node.cgroup.as_path())
    }

    /// The script that makes `wrk` print JSON.
    pub(super) fn wrk_script(&self) -> &Path {
        &self.wrk_script
    }

    /// The start of a command that plays a role of [`super::peer`].
    pub(super) fn peer(&self, role: &str) -> Vec<String> {
        peer(&self.program, role)
    }

    fn start_proxies(&mut self, options: &LabOptions<'_>) -> Result<()> {
        if options
            .contenders
            .iter()
            .any(|contender| contender.is_fairlead())
        {
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
            let ends = Ends {
                client: &self.plain.client,
                server: &self.plain.server,
                server_ip: self.plain.server.ip4.into(),
                server_ports: PORTS,
            };
            let directory = self.world.directory().join("envoy");
            self.envoys = Some(envoy.start(ends, options.concurrency, &directory)?);
        }
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

    fn wait_served(&self, contender: Contender) -> Result<()> {
        let url = format!("http://{}/1k", self.endpoint(contender).http);
        let client = self.client(contender);
        fairlead_tests::until_ok("the first answer", START, || {
            client
                .run(&["curl", "-sSf", "-m", "2", "-o", "/dev/null", &url])?
                .ok()
        })
        .with_context(|| self.agents_say(contender))
        .with_context(|| format!("{} does not serve {url}", contender.title()))?;
        Ok(())
    }
}

impl Endpoint {
    fn new([http, upload, download]: [SocketAddr; 3]) -> Self {
        Self {
            http,
            upload,
            download,
        }
    }
}

impl Pods {
    /// The client on one node, a server on each.
    pub(super) fn create(world: &World, namespace: &str) -> Result<Self> {
        let pod = |node: &str, name: &str| {
            let spec = PodSpec::new(node, namespace, name);
            // These are measured as bytes, whatever they look like.
            world.pod(&spec.annotation("fairlead.dev/opaque-ports", "8080,8081,8082"))
        };
        Ok(Self {
            client: pod("a", "client")?,
            server: pod("b", "server")?,
            server_local: pod("a", "server-local")?,
        })
    }
}

impl Server {
    fn start(pod: &Pod, files: &Path, program: &Path) -> Result<Self> {
        let directory = files.join(pod.full_name().replace('/', "."));
        fs::create_dir_all(&directory)?;
        let config = directory.join("nginx.conf");
        fs::write(&config, nginx_config(&directory, files))?;
        let config = config.display().to_string();
        let http = pod.spawn("nginx", &["nginx", "-e", "stderr", "-c", &config])?;
        let [http_port, upload, download] = PORTS;
        let mut arguments = peer(program, "serve");
        arguments.extend(
            [upload, download].map(|port| SocketAddr::new(IpAddr::from([0; 4]), port).to_string()),
        );
        let streams = pod.spawn("streams", &arguments)?;
        for port in [http_port, upload, download] {
            pod.wait_listening(port, START).with_context(|| {
                format!("{}: {}{}", pod.full_name(), http.output(), streams.output())
            })?;
        }
        Ok(Self {
            _http: http,
            _streams: streams,
        })
    }
}

pub(super) fn peer(program: &Path, role: &str) -> Vec<String> {
    vec![
        program.display().to_string(),
        "bench-peer".to_owned(),
        role.to_owned(),
    ]
}

/// The files that all servers serve.
fn files(world: &World) -> Result<PathBuf> {
    let directory = world.directory().join("files");
    fs::create_dir_all(&directory)?;
    for (name, size) in [("1k", 1024), ("64k", 64 * 1024)] {
        fs::write(directory.join(name), vec![b'x'; size])?;
    }
    Ok(directory)
}

/// The meshed servers accept mTLS from the client's identity only, as the Envoys do.
pub(super) fn protect(world: &World) -> Result<()> {
    world.manifests().mtls(MESHED, None, "STRICT")?;
    let principal = format!("cluster.local/ns/{MESHED}/sa/client");
    for server in ["server", "server-local"] {
        let rules = json!([{"from": [{"source": {"principals": [principal]}}]}]);
        world
            .manifests()
            .authorization((MESHED, server), server, "ALLOW", &rules)?;
    }
    Ok(())
}

fn nginx_config(directory: &Path, files: &Path) -> String {
    let directory = directory.display();
    let files = files.display();
    let http_port = PORTS[0];
    format!(
        "daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  open_file_cache max=16;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  server {{
    listen {http_port} backlog=4096;
    root {files};
  }}
}}
"
    )
}
