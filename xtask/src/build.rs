//! `cargo xtask build`: the kernel's programs, then the release agent around them.

use std::process::Command;

use anyhow::Result;

use crate::{ui, workspace};

/// The task.
pub(crate) fn run() -> Result<()> {
    // As a process of its own, so that what the compiler says goes to the step's log.
    let programs = &mut Command::new(std::env::current_exe()?);
    ui::step("the kernel's programs", programs.arg("bpf"))?;
    let mut command = workspace::cargo();
    let command = command.args(["build", "--release", "--package", "fairlead"]);
    ui::step("the agent (release)", command)
}
