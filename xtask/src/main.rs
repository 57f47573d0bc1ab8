//! Tasks of the project: `cargo xtask <task>`.

mod bench;
mod bpf;
mod build;
mod codegen;
mod demo;
mod fuzz;
mod image;
mod kubernetes;
mod lint;
mod setup;
mod test;
mod tidy;
mod ui;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests, lints, shows and measures Fairlead.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install everything that building, testing and the demo need.
    Setup(setup::Options),
    /// Generate Rust from the protobuf definitions, and the definitions of our kinds.
    Codegen {
        /// Only tell whether what is committed is up to date.
        #[arg(long)]
        check: bool,
    },
    /// Build the kernel's programs alone.
    Bpf,
    /// Build the kernel's programs and the release agent.
    Build,
    /// Run the tests: of every crate, then of the whole on this machine's kernel.
    Test(test::Options),
    /// Check formatting, lints, module edges, owners, words and licences.
    Lint,
    /// Feed the parsers of network bytes with what breaks them, by libFuzzer.
    Fuzz(fuzz::Options),
    /// Two meshed nodes with real traffic, step by step.
    Demo(demo::Options),
    /// Measure the mesh beside no proxy and a pair of Envoys.
    Bench(Box<bench::Options>),
    /// The agent as a static program in an image with nothing else.
    Image(image::Options),
    /// What a bench runs inside pods.
    #[command(hide = true, subcommand)]
    BenchPeer(bench::Role),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::line(format_args!("{} {error:#}", ui::red("error:")));
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup(options) => setup::run(&options),
        Task::Codegen { check } => codegen::run(check),
        Task::Bpf => bpf::run(),
        Task::Build => setup::for_building().and_then(|()| build::run()),
        Task::Test(options) => test::run(&options),
        Task::Lint => lint::run(),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Image(options) => image::run(&options),
        Task::BenchPeer(role) => bench::play(role),
    }
}
