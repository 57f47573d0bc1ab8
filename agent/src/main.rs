//! The one binary.

use std::process::ExitCode;

use clap::Parser as _;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    fairlead::cli::run(fairlead::cli::Cli::parse())
}
