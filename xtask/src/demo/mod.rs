//! `cargo xtask demo`: two meshed nodes with real traffic, shown step by step.
//!
//! The demo itself runs in a child process; this one only waits, so that whatever
//! happens (an interrupt, a failure, a panic) somebody is left to remove everything.

mod scenes;
mod show;
mod stage;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use fairlead_tests::remove_world;
use tokio::signal::unix::{SignalKind, signal};

use crate::{build, setup, ui, workspace};

/// The name of the demo's world; there is one at a time.
const WORLD: &str = "demo";

/// How to show it.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave everything up at the end, to play with.
    #[arg(long, conflicts_with = "stop")]
    keep: bool,
    /// Remove a demo that was left up.
    #[arg(long)]
    stop: bool,
    /// Run the demo itself; the supervisor says this to its child.
    #[arg(long, hide = true)]
    act: bool,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo makes network namespaces and loads eBPF programs: run it as root");
    }
    if options.act {
        return scenes::run(options.keep);
    }
    if options.stop {
        remove_world(WORLD)?;
        ui::already("the demo is stopped, and everything of it removed");
        return Ok(());
    }
    setup::for_running()?;
    build::run()?;
    let ended = supervise(options.keep)?;
    if !(options.keep && ended.is_some_and(|status| status.success())) {
        remove_world(WORLD)?;
        ui::already("everything of the demo is removed");
    }
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(_) => bail!("the demo did not hold"),
        None => bail!("interrupted"),
    }
}

/// Runs the demo in a child; none where a signal came first.
fn supervise(keep: bool) -> Result<Option<ExitStatus>> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["demo", "--act"])
        .args(keep.then_some("--keep"))
        .env("FAIRLEAD_BIN", workspace::agent())
        // Its own group: an interrupt from the terminal is for the supervisor.
        .process_group(0);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the demo")?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        tokio::select! {
            status = child.wait() => Ok(Some(status?)),
            _ = interrupt.recv() => stop(&mut child).await,
            _ = terminate.recv() => stop(&mut child).await,
            _ = hangup.recv() => stop(&mut child).await,
        }
    })
}

async fn stop(child: &mut tokio::process::Child) -> Result<Option<ExitStatus>> {
    ui::line("\nstopping ...");
    child.kill().await?;
    Ok(None)
}
