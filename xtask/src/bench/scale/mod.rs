//! `cargo xtask bench scale`: an agent in clusters of growing size.
//!
//! The API server is that of the tests, in a process of its own, with objects as long as
//! real ones. One agent follows it; what it is measured for is its first sync, its memory,
//! what a change costs it and when it takes effect, and what it costs the API server.

mod cluster;
mod measure;
mod report;
mod server;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::interrupt::Interrupt;
use crate::{build, setup, ui, workspace};
use measure::Plan;
use report::Report;

pub(crate) use server::{ServerOptions, run as serve};

/// The sizes of the cluster where none is given.
const PODS: [usize; 3] = [1_000, 10_000, 100_000];
/// Likewise with `--quick`.
const QUICK_PODS: [usize; 2] = [1_000, 10_000];

/// Measure an agent in large clusters.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// About a minute: smaller clusters, shorter measurements.
    #[arg(long)]
    quick: bool,
    /// A cluster of so many pods; may be given more than once.
    #[arg(long, value_name = "N", value_parser = parse_pods)]
    pods: Vec<usize>,
    /// Endpoint changes a second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Measure the agent that is built already.
    #[arg(long)]
    no_build: bool,
    /// A second copy of the JSON.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn parse_pods(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(pods) if (10..=1_000_000).contains(&pods) => Ok(pods),
        _ => Err("expected a number from 10 to 1000000".to_owned()),
    }
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.no_build {
        setup::for_building()?;
        build::run()?;
    }
    let missing = fairlead_tests::missing_for_node_tier();
    if !missing.is_empty() {
        bail!("a bench needs {}", missing.join(", "));
    }
    let plan = Plan {
        rate: options.rate,
        churn: Duration::from_secs(if options.quick { 5 } else { 20 }),
        probes: if options.quick { 20 } else { 100 },
    };
    let mut sizes = match (options.pods.as_slice(), options.quick) {
        ([], false) => PODS.to_vec(),
        ([], true) => QUICK_PODS.to_vec(),
        (given, _) => given.to_vec(),
    };
    sizes.sort_unstable();
    let interrupt = Interrupt::listen()?;
    fairlead_tests::sweep()?;
    let mut report = setting()?;
    for pods in sizes {
        report.rows.push(measure::measure(pods, plan, &interrupt)?);
    }
    ui::line(report.render());
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    let paths = [Some(directory.join("scale.json")), options.output.clone()];
    for path in paths.into_iter().flatten() {
        report.write_json(&path)?;
    }
    Ok(())
}

fn setting() -> Result<Report> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(Report {
        time: OffsetDateTime::from(SystemTime::now())
            .replace_nanosecond(0)?
            .format(&Rfc3339)?,
        kernel: kernel.trim().to_owned(),
        processor: model.map_or_else(
            || "unknown processor".to_owned(),
            |(_, name)| name.to_owned(),
        ),
        processors: std::thread::available_parallelism()?.get(),
        program: fairlead_tests::binary()?.display().to_string(),
        rows: Vec::new(),
    })
}
