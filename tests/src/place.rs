//! Where a process runs: a network namespace and a cgroup.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{self, Output, Process};

/// Joins the cgroup and the namespace, then becomes the program: one process, one pid.
const JOIN: &str = r#"echo $$ >"$1" && n="$2" && shift 2 && exec nsenter --net="$n" -- "$@""#;

/// Default limit of a command that is run to its end.
const LIMIT: Duration = Duration::from_secs(30);

/// A network namespace and a cgroup.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) logs: PathBuf,
}

impl Place {
    /// The namespace's file.
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The same namespace, with a cgroup of its own below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        let cgroup = self.cgroup.join(name);
        std::fs::create_dir_all(&cgroup)
            .with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        Ok(Self {
            cgroup,
            ..self.clone()
        })
    }

    /// A command that will run here. Add arguments and environment as usual.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("sh");
        let _: &mut Command = command
            .args(["-c", JOIN, "join"])
            .arg(self.cgroup.join("cgroup.procs"))
            .arg(self.netns())
            .arg(program);
        process::without_own_variables(&mut command);
        command
    }

    /// Runs a program to its end, for 30 seconds at most.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Output> {
        self.run_for(LIMIT, arguments)
    }

    /// Runs a program to its end.
    pub fn run_for<S: AsRef<OsStr>>(&self, limit: Duration, arguments: &[S]) -> Result<Output> {
        let (program, rest) = arguments.split_first().context("no program to run")?;
        process::run(self.command(program).args(rest), limit)
    }

    /// Runs a shell script to its end.
    pub fn shell(&self, limit: Duration, script: &str) -> Result<Output> {
        self.run_for(limit, &["sh", "-c", script])
    }

    /// Starts a program that goes on until the [`Process`] is dropped.
    pub fn spawn<S: AsRef<OsStr>>(&self, name: &str, arguments: &[S]) -> Result<Process> {
        let (program, rest) = arguments.split_first().context("no program to start")?;
        self.start(name, self.command(program).args(rest))
    }

    /// Starts a command made by [`Place::command`].
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        let log = self.logs.join(format!("{}-{name}.log", self.netns));
        Process::start(name, command, &log)
    }

    /// The TCP ports that something listens on here.
    pub fn listening(&self) -> Result<Vec<u16>> {
        let output = self.run(&["ss", "-Hltn"])?.ok()?;
        let port = |line: &str| -> Option<u16> {
            line.split_whitespace()
                .nth(3)?
                .rsplit(':')
                .next()?
                .parse()
                .ok()
        };
        Ok(output.stdout.lines().filter_map(port).collect())
    }

    /// Waits until something listens on a TCP port here.
    pub fn wait_listening(&self, port: u16, limit: Duration) -> Result<()> {
        crate::until(&format!("a listener on port {port}"), limit, || {
            self.listening().ok()?.contains(&port).then_some(())
        })
    }
}
