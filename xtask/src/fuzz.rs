//! `cargo xtask fuzz`: the agent's parsers of bytes from the network under libFuzzer.
//!
//! Only the crates of this workspace are built for it, by a wrapper around their compiler:
//! all others are those that `cargo test` uses, so that this takes no longer than building
//! the agent. No nightly compiler is needed.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{ui, workspace};

/// The flags of cargo-fuzz, and the configuration that has the targets.
const FLAGS: [&str; 7] = [
    "--cfg fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// What one input may take.
const SECONDS_OF_INPUT: u64 = 30;

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which targets, by the names of the folders in fuzz/seeds. Default: all of them, one
    /// after the other.
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, default_value_t = 60, conflicts_with = "input")]
    seconds: u64,
    /// Processes of one target at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), conflicts_with = "input")]
    jobs: u32,
    /// Run one target over the bytes of this file alone.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    let known = known()?;
    for target in &options.targets {
        let all = known.join(", ");
        ensure!(known.contains(target), "{target} is none of {all}");
    }
    let chosen = if options.targets.is_empty() {
        &known
    } else {
        &options.targets
    };
    let program = build()?;
    if let Some(input) = &options.input {
        ensure!(chosen.len() == 1, "--input is for one target");
        let input = input.canonicalize().context(input.display().to_string())?;
        return ui::step(&chosen[0], program.on(&chosen[0]).arg(input));
    }
    let mut failed = Vec::new();
    for target in chosen {
        if let Err(error) = program.search(target, options) {
            ui::line(format_args!("{} {target}: {error:#}", ui::red("✗")));
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("broken: {}", failed.join(", "))
}

/// The targets.
fn known() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for folder in fs::read_dir(seeds())? {
        names.extend(folder?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

fn seeds() -> PathBuf {
    workspace::root().join("fuzz/seeds")
}

fn own() -> PathBuf {
    workspace::target().join("fuzz")
}

/// The program with all targets.
struct Program(PathBuf);

fn build() -> Result<Program> {
    fs::create_dir_all(own())?;
    let mut command = workspace::cargo();
    let command = command
        .args(["build", "--package", "fairlead-fuzz"])
        .args(["--features", "libfuzzer", "--quiet"])
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper()?);
    ui::step("the agent for libFuzzer", command)?;
    Ok(Program(workspace::target().join("debug/fairlead-fuzz")))
}

/// Compiles a crate of this workspace with the flags. Cargo knows it by its path, which is
/// another one where the flags are others.
fn wrapper() -> Result<PathBuf> {
    let flags = FLAGS.join(" ");
    // A build script runs without libFuzzer.
    let text = format!(
        "#!/bin/sh\ncase \" $* \" in *\" --crate-name build_script_\"*) exec \"$@\" ;; esac\n\
         exec \"$@\" {flags}\n"
    );
    let mut hash = DefaultHasher::new();
    text.hash(&mut hash);
    let path = own().join(format!("rustc-{:016x}", hash.finish()));
    // Cargo looks at its time, too.
    if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(path)
}

impl Program {
    fn on(&self, target: &str) -> Command {
        let mut command = Command::new(&self.0);
        command
            .current_dir(own())
            .env("FAIRLEAD_FUZZ_TARGET", target)
            .arg(format!("-timeout={SECONDS_OF_INPUT}"));
        command
    }

    /// Runs a target for its time. What it learns stays for the next run.
    fn search(&self, target: &str, options: &Options) -> Result<()> {
        let learned = own().join("corpus").join(target);
        let broken = own().join("broken").join(target);
        for folder in [&learned, &broken] {
            fs::create_dir_all(folder)?;
        }
        let mut command = self.on(target);
        command
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/", broken.display()))
            .arg("-print_final_stats=1");
        if options.jobs > 1 {
            command.arg(format!("-fork={}", options.jobs));
        }
        command.arg(&learned).arg(seeds().join(target));
        let done = ui::step(target, &mut command);
        done.with_context(|| format!("its inputs are in {}", shown(&broken)))
    }
}

fn shown(path: &Path) -> String {
    let inner = path.strip_prefix(workspace::root()).unwrap_or(path);
    inner.display().to_string()
}
