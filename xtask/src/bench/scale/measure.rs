//! One agent at one size of the cluster.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_tests::{Agent, AgentOptions, World, WorldOptions};

use super::cluster::{CLIENT, Cluster, NODE, PROBE};
use super::report::Row;
use super::server::{Cost, Server};
use crate::bench::interrupt::Interrupt;
use crate::bench::process;
use crate::ui;

/// The longest that a first sync may take.
const SYNC: Duration = Duration::from_mins(5);
/// Memory that was only needed for the sync is given back within this time.
const SETTLE: Duration = Duration::from_secs(5);
/// The longest that one change may take to its effect.
const EFFECT: Duration = Duration::from_mins(2);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Endpoint changes a second.
    pub(super) rate: u32,
    /// How long they go on.
    pub(super) churn: Duration,
    /// How often the effect of one is waited for, without and with the others.
    pub(super) probes: usize,
}

/// Builds the cluster, starts the agent, and measures.
pub(super) fn measure(pods: usize, plan: Plan, interrupt: &Interrupt) -> Result<Row> {
    let world = World::create(&WorldOptions::nodes(&[NODE]))?;
    let node = world.node(NODE);
    let kubeconfig = world.directory().join("kubeconfig");
    let cluster = Cluster::new(pods);
    ui::line(ui::dim(format_args!(
        "{pods} pods: building the cluster of the API server"
    )));
    let mut server = Server::start(&node.host, pods, &kubeconfig)?;
    interrupt.check()?;
    let options = AgentOptions {
        arguments: vec![
            "--source".to_owned(),
            "kube".to_owned(),
            "--kubeconfig".to_owned(),
            kubeconfig.display().to_string(),
        ],
        ..AgentOptions::default()
    };
    let start = Instant::now();
    let agent = Agent::spawn(&world, node, &options)?;
    let pid = agent.process.pid();
    wait_synced(&agent, start)?;
    let sync = start.elapsed();
    let sync_cpu = process::cpu_time(&[pid])?;
    let sync_cost = server.report()?;
    let peak = peak_bytes(pid)?;
    std::thread::sleep(SETTLE);
    let settled = process::resident_bytes(&[pid])?;
    interrupt.check()?;
    let quiet = effects(&mut server, &agent, plan.probes)?;
    let probed = server.report()?;
    server.churn(plan.rate)?;
    let churned = churn(&mut server, pid, plan.churn)?;
    let loaded = effects(&mut server, &agent, plan.probes)?;
    server.churn(0)?;
    interrupt.check()?;
    std::thread::sleep(SETTLE);
    Ok(Row {
        pods,
        services: cluster.services(),
        nodes: cluster.nodes(),
        sync_seconds: sync.as_secs_f64(),
        sync_cpu_seconds: sync_cpu.as_secs_f64(),
        sync_bytes: sync_cost.bytes,
        sync_requests: sync_cost.requests.values().sum(),
        watches: probed.watches,
        rss_peak_bytes: peak,
        rss_synced_bytes: settled,
        rss_churned_bytes: process::resident_bytes(&[pid])?,
        rss_churned_peak_bytes: peak_bytes(pid)?,
        changes_per_second: churned.changes_per_second,
        cpu_seconds_per_change: churned.cpu_per_change,
        bytes_per_change: churned.bytes_per_change,
        effect_p50_seconds: percentile(&quiet, 50),
        effect_p99_seconds: percentile(&quiet, 99),
        loaded_effect_p50_seconds: percentile(&loaded, 50),
        loaded_effect_p99_seconds: percentile(&loaded, 99),
    })
}

fn wait_synced(agent: &Agent, start: Instant) -> Result<()> {
    loop {
        let status = agent.status();
        if status.is_ok_and(|status| status["source"]["synced"] == true) {
            return Ok(());
        }
        if start.elapsed() > SYNC {
            bail!(
                "no state after {SYNC:?}; its log:\n{}",
                agent.process.output()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// From the order for a change to the first answer of the agent's table that has it. The
/// answer is a process of the command line, whose start is in the time.
fn effects(server: &mut Server, agent: &Agent, probes: usize) -> Result<Vec<f64>> {
    let (source, destination) = (
        format!("{}/{CLIENT}", PROBE.0),
        format!("{}/{}:80", PROBE.0, PROBE.1),
    );
    let mut times = Vec::new();
    for number in 0..probes {
        let ready = number % 2 == 0;
        let start = Instant::now();
        server.probe(ready)?;
        loop {
            let answer = agent.cli.run(&["explain", &source, &destination])?;
            if (answer.code() == 0) == ready {
                break;
            }
            if start.elapsed() > EFFECT {
                bail!("a change had no effect after {EFFECT:?}: {}", answer.stdout);
            }
        }
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

struct Churned {
    changes_per_second: f64,
    cpu_per_change: f64,
    bytes_per_change: f64,
}

/// What the agent spends while everything changes, with nobody asking it anything.
fn churn(server: &mut Server, pid: u32, length: Duration) -> Result<Churned> {
    // What was not yet under way is not to be counted.
    std::thread::sleep(Duration::from_secs(1));
    let _before: Cost = server.report()?;
    let (start, cpu) = (Instant::now(), process::cpu_time(&[pid])?);
    std::thread::sleep(length);
    let cost = server.report()?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = process::cpu_time(&[pid])?.saturating_sub(cpu);
    let changes = u32::try_from(cost.changes).unwrap_or(u32::MAX);
    if changes == 0 {
        bail!("the API server made no change");
    }
    let bytes = u32::try_from(cost.bytes).unwrap_or(u32::MAX);
    Ok(Churned {
        changes_per_second: f64::from(changes) / seconds,
        cpu_per_change: cpu.as_secs_f64() / f64::from(changes),
        bytes_per_change: f64::from(bytes) / f64::from(changes),
    })
}

/// The most memory that the process ever had.
fn peak_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    peak.map(|kib| kib * 1024)
        .with_context(|| format!("process {pid} has no VmHWM"))
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}
