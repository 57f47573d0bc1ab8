//! `cargo xtask bench l7`: what requests cost, by protocol, size and number of routes.
//!
//! The topology and the contenders are those of the comparison of connections, but each
//! proxy routes requests: Fairlead by routes of the Gateway API, the Envoys by those of
//! their configuration.

mod case;
pub(super) mod envoy;
mod lab;
mod load;
mod routes;
mod server;

use anyhow::{Result, bail};

use super::interrupt::Interrupt;
use super::lab::LabOptions;
use super::process::{self, Work};
use super::report::{Metric, Report};
use super::{Plan, RunOptions, execute, finish, note_noise, prepare, setting};
use case::Case;
use lab::Lab;

pub(super) use lab::{HTTP, build_program, program, serve as serve_in};
pub(crate) use load::{LoadOptions, load};
pub(super) use load::{Protocol, Requests};
pub(crate) use server::{ServerOptions, serve};

/// What this comparison does not show.
const CAVEATS: [&str; 4] = [
    "The Envoys are dialled explicitly on their listeners: they pay nothing for redirection and know no policy but the peer's name. Fairlead redirects, authorizes and records every request.",
    "The Envoys keep their statistics and write an access log, to /dev/null: Fairlead keeps metrics and a record of every request on both nodes.",
    "Routes are matched at the client's side: with 1,000 of them, paths go through all in turn.",
    "Envoy: TLS 1.3, P-256, X25519, one TLS connection per request at a time with HTTP/1.1. Fairlead: TLS 1.3, P-256, X25519MLKEM768, requests of one pod share connections between nodes.",
];

/// Measure requests.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only cases whose names contain this, such as `grpc`, `-c16-` or `r1000`; may be given
    /// more than once.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    #[command(flatten)]
    run: RunOptions,
}

/// The task.
pub(super) fn run(options: &Options) -> Result<()> {
    let wanted = |case: &Case| {
        let key = case.key();
        options.only.is_empty() || options.only.iter().any(|text| key.contains(text))
    };
    let cases: Vec<Case> = Case::all().into_iter().filter(wanted).collect();
    if cases.is_empty() {
        let keys: Vec<String> = Case::all().iter().map(Case::key).collect();
        bail!("no such case; there are {}", keys.join(", "));
    }
    let plan = Plan::new(&options.run);
    prepare(&plan, options.run.no_build)?;
    if !options.run.no_build {
        build_program()?;
    }
    let envoy = plan.find_envoy(&options.run)?;
    let mut report = Report::new(setting(&options.run, &plan, envoy.as_ref())?, &CAVEATS);
    let interrupt = Interrupt::listen()?;
    fairlead_tests::sweep()?;
    let lab = Lab::build(&LabOptions {
        contenders: &plan.contenders,
        envoy: envoy.as_ref(),
        concurrency: options.run.concurrency,
        agent_arguments: &options.run.agent_argument,
    })?;
    let work = Work::now(lab.cgroups())?;
    idle(&plan, &lab, &mut report)?;
    let steps = plan.steps(&cases);
    let name = |case: &Case| (case.key(), case.title());
    execute(
        &mut report,
        &steps,
        (name, &interrupt),
        |case, contender| case.measure(&lab, contender, plan.length),
    )?;
    note_noise(&mut report, Work::now(lab.cgroups())?.others_since(work));
    finish(&options.run, "l7", &report)
}

/// Memory before any load.
fn idle(plan: &Plan, lab: &Lab, report: &mut Report) -> Result<()> {
    for &contender in &plan.contenders {
        if contender == contender.base() {
            continue;
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "memory is far less than 2^52 bytes"
        )]
        let bytes = process::resident_bytes(&lab.proxies(contender))? as f64;
        report.record(("idle", "memory"), Metric::IdleBytes, contender, bytes);
    }
    Ok(())
}
