//! Child processes: bounded, captured, and gone with their owner.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::wait;

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Output {
    /// The exit code; a signal counts as 128 and its number, as in a shell.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// It ended with 0.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The output of a command that had to succeed.
    pub fn ok(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        Err(anyhow!(
            "exit code {}\n{}{}",
            self.code(),
            tail(&self.stdout),
            tail(&self.stderr)
        ))
    }
}

/// Takes the variables of the tests, such as `FAIRLEAD_BIN`, away from a command: the
/// agent refuses those that it does not know.
pub fn without_own_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FAIRLEAD_") {
            let _: &mut Command = command.env_remove(name);
        }
    }
}

/// Runs a command to its end, at most for `limit`; then it is killed, which is an error.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let mut child = Killed(child);
    let ended = child.wait(limit)?;
    let elapsed = start.elapsed();
    let (stdout, stderr) = (text(out)?, text(err)?);
    match ended {
        Some(status) => Ok(Output {
            status,
            stdout,
            stderr,
            elapsed,
        }),
        None => bail!(
            "{command:?}: still running after {limit:?}\n{}{}",
            tail(&stdout),
            tail(&stderr)
        ),
    }
}

/// A process that runs until it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Killed,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts it; standard output and error go to the file `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let mut file =
            File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        file.flush()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            child: Killed(child),
            name: name.to_owned(),
            log: log.to_owned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.0.try_wait()?)
    }

    /// Waits until the output contains `text`. An early end of the process is an error.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let found = wait::until(&format!("\"{text}\" from {}", self.name), limit, || {
            if self.output().contains(text) {
                return Some(Ok(()));
            }
            match self.ended() {
                Ok(None) => None,
                Ok(Some(status)) => Some(Err(anyhow!("{} ended early: {status}", self.name))),
                Err(error) => Some(Err(error)),
            }
        });
        found
            .and_then(|inner| inner)
            .with_context(|| format!("output of {}:\n{}", self.name, tail(&self.output())))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.child
            .wait(limit)?
            .ok_or_else(|| anyhow!("{}: still running after {limit:?}", self.name))
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.child.pid()?, signal)?;
        Ok(())
    }

    /// SIGTERM, then waits for the end.
    pub fn terminate(mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(limit)
    }

    /// SIGKILL to it and its process group, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill();
    }
}

/// A child whose process group is killed with it.
#[derive(Debug)]
struct Killed(Child);

impl Killed {
    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.0.id().cast_signed()).context("a child has a process id")
    }

    fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.0.try_wait()? {
            return Ok(Some(status));
        }
        let handle = pidfd_open(self.pid()?, PidfdFlags::empty())?;
        let timeout = Timespec::try_from(wait::patient(limit))?;
        // The caller may handle signals.
        retry_on_intr(|| poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)))?;
        Ok(self.0.try_wait()?)
    }

    fn kill(&mut self) {
        // A child that has been waited for has no process id of its own any more.
        if let (Ok(None), Ok(pid)) = (self.0.try_wait(), self.pid()) {
            // The group is gone already if this fails, and so is the child.
            let _: Result<(), _> = kill_process_group(pid, Signal::KILL);
        }
        drop(self.0.wait());
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines, which say what went wrong.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(40);
    lines[from..].iter().flat_map(|line| [line, "\n"]).collect()
}
