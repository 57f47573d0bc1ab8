//! Flags to configurations, and everything wired in the order in which data flows.

mod args;
mod authority;
mod ca_args;
mod cni;
mod compile;
mod config;
mod desk;
mod enrol;
mod events;
pub mod kubernetes;
mod limits;
mod logging;
mod network;
mod reports;
mod source;
mod stop;
mod taint;
mod tasks;
mod tools;
mod view;

pub use crate::cluster::{Finding, Level, LintOptions};
pub use crate::redirect::Scope;
pub use args::{AgentArgs, KernelArgs, KubeArgs, LogArgs, LogFormat, SourceArg};
pub use authority::run_ca;
pub use ca_args::{AuthenticateArg, BundleArg, CaArgs, RootArg};
pub use tools::{check, cleanup, cni_plugin, lint, stay, uninstall_cni};

use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::runtime::Builder;
use tokio::time::Instant;

use crate::flow::{AccessLog, FlowHub, FlowMetrics, queue};
use crate::proxy::Proxy;
use crate::redirect::{self, Redirector};
use crate::{cluster, identity};
use config::AgentConfig;
use desk::{Desk, Place};
use enrol::Enroller;
use tasks::{StopSignals, Tasks};
use view::{AgentView, KernelSide};

/// Records of connections that may wait for the hub.
const FLOW_QUEUE: usize = 16_384;

/// Runs the agent until it is told to stop.
pub fn run_agent(args: AgentArgs) -> anyhow::Result<()> {
    logging::start(&args.log)?;
    limits::raise();
    if let Err(error) = redirect::enter_host_cgroups() {
        tracing::debug!(%error, "cgroups are seen from this process's own");
    }
    // Connections have threads of their own: see `proxy::Config::workers`.
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let config = AgentConfig::new(args)?;
    runtime.block_on(agent(config))
}

#[expect(
    clippy::too_many_lines,
    reason = "the wiring, in the order of the data"
)]
async fn agent(config: AgentConfig) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let mut tasks = Tasks::default();
    // What another agent may hold comes first: then this one has changed nothing yet.
    let place = Place {
        run_dir: config.run_dir,
        metrics_addr: config.metrics_addr,
    };
    let doors = place.doors(config.replace, &config.redirect).await?;
    let kernel = KernelSide::probe(&config.redirect);
    let mut redirector = Redirector::start(config.redirect)?;
    let kernel_events = redirector.events().transpose()?;
    if let Some(logs) = redirector.logs() {
        tasks.keep("kernel logs", logs);
    }
    let tenure = redirector.tenure();

    // Objects to snapshots to tables.
    let (from, domain) = (config.source.clone(), config.trust_domain.clone());
    let (source, read) = cluster::start(from, domain, config.external_ips).await?;
    tasks.keep("source", read);
    let (tables_in, tables) = compile::tables(config.node.clone());
    tasks.start("policy", compile::run(source.snapshots.clone(), tables_in));

    // Tables to connections.
    let metrics = FlowMetrics::default();
    let (flows_in, records) = queue(FLOW_QUEUE, metrics.clone());
    let (identities, renew) = identity::start(config.identity)?;
    tasks.keep("identity", renew);
    let (proxy, serve) = Proxy::new(
        config.proxy,
        tables.clone(),
        identities.clone(),
        flows_in.clone(),
    )?;
    tasks.keep("proxy", serve);
    let (node, grace) = (config.node.clone(), config.drain);
    let enrol = enrol::Config { node, grace };
    let known = (&tables, &source, &tenure);
    let plugin = cni::start(&mut tasks, &config.cni, &config.node, known)?;
    let wanted = (identities.clone(), plugin.desk);
    let (enroller, enrolment) = Enroller::new(enrol, redirector, proxy.clone(), wanted);
    tasks.start("enrolment", enroller.run(tables.clone()));
    let seen = (source.snapshots, enrolment.clone());
    reports::start(&mut tasks, &config.source, &config.node, seen).await?;

    // Connections to records.
    if let Some(events) = kernel_events {
        let node = config.node.clone();
        let records = events::run(events, node, tables.clone(), flows_in.clone());
        tasks.start("kernel events", records);
    }
    let (hub, flows) = FlowHub::new(records, config.flows_kept);
    let to = &config.access_log;
    let opened = AccessLog::new(tables.clone(), &metrics, to);
    let (access_log, writer) = opened.with_context(|| format!("--access-log {to:?}"))?;
    let name = "access-log".to_owned();
    let _detached = thread::Builder::new().name(name).spawn(|| writer.run())?;
    let hub = hub.redacting(config.redaction).logging(access_log);
    tasks.keep("flows", hub.run());
    tasks.keep("metrics", metrics.clone().forget_idle());

    // Records to people.
    let view = Arc::new(AgentView {
        node: config.node.to_string(),
        trust_domain: config.trust_domain.to_string(),
        started: Timestamp::now(),
        clock: Instant::now(),
        source: source.health,
        tables,
        enrolment,
        identities,
        flows: flows_in.clone(),
        proxy: proxy.clone(),
        kernel,
        plugin: plugin.trouble,
    });
    taint::start(&mut tasks, config.taint, config.node, &view);
    let desk = Desk {
        place,
        view,
        flows,
        metrics,
        tenure,
    };
    tasks.start("admin", desk.run(doors));

    tokio::select! {
        signal = signals.next() => tracing::info!(signal, "stopping"),
        error = tasks.ended() => return Err(error),
    }
    tokio::select! {
        () = stop::drain(&proxy, &flows_in, config.drain) => {}
        signal = signals.next() => tracing::warn!(signal, "not waiting for open connections"),
    }
    Ok(())
}
