//! The one binary.

use std::process::ExitCode;

use clap::Parser as _;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if name.to_string_lossy().ends_with(fairlead::cni::PLUGIN) {
        return fairlead::cli::run_plugin();
    }
    fairlead::cli::run(fairlead::cli::Cli::parse())
}
