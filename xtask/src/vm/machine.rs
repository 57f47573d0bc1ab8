//! The emulated machine: starts it, shows what it says, ends it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ui;

/// The guest's last line, before the exit code of its job.
const EXIT: &str = "fairlead-vm: exit ";

/// Booting and switching off, beyond the job's own time; the guest keeps the job's limit itself.
const GRACE: Duration = Duration::from_mins(2);

/// What in a kernel's log shows that something went wrong in the kernel itself.
const ALARMS: [&str; 5] = ["WARNING: ", "BUG: ", "Oops", "Kernel panic", "Call Trace"];

/// What to boot.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    /// The emulator.
    pub(super) qemu: &'a Path,
    /// The kernel.
    pub(super) vmlinuz: &'a Path,
    /// Its first file system.
    pub(super) initramfs: &'a Path,
    /// Where the kernel's log goes.
    pub(super) console: &'a Path,
}

/// Ends the emulator when the caller is done with it, however that came.
#[derive(Debug)]
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has usually ended by itself; then both fail and nothing is left to do.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

/// Boots, hands the job's output to `each`, and returns the job's exit code.
pub(super) fn run(
    boot: &Boot<'_>,
    job_timeout: Duration,
    each: &mut dyn FnMut(&str),
) -> Result<i32> {
    let mut machine = Machine(start(boot)?);
    let output = machine
        .0
        .stdout
        .take()
        .context("the emulator has no output")?;
    let lines = lines_of(output);
    let deadline = Instant::now() + job_timeout + GRACE;
    let code = relay(&lines, deadline, each)?;
    drop(machine);
    report_alarms(boot.console)?;
    code.with_context(|| {
        format!(
            "the guest ended before its job did; the kernel's log is {}",
            boot.console.display()
        )
    })
}

fn start(boot: &Boot<'_>) -> Result<Child> {
    Command::new(boot.qemu)
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", "3000", "-smp", "2"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-no-reboot", "-net", "none"])
        .arg("-kernel")
        .arg(boot.vmlinuz)
        .arg("-initrd")
        .arg(boot.initramfs)
        .args(["-append", "console=ttyS0 loglevel=5 panic=-1 oops=panic"])
        .arg("-serial")
        .arg(format!("file:{}", boot.console.display()))
        .args(["-serial", "stdio"])
        .args([
            "-virtfs",
            "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", boot.qemu.display()))
}

/// Reads in a thread of its own, so that waiting for a line can time out.
fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let _reader = thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Hands on the guest's lines until it has ended or told the exit code, which is returned.
fn relay(
    lines: &Receiver<String>,
    deadline: Instant,
    each: &mut dyn FnMut(&str),
) -> Result<Option<i32>> {
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => match line.strip_prefix(EXIT) {
                Some(code) => {
                    return Ok(Some(code.trim().parse().context("unreadable exit code")?));
                }
                None => each(&line),
            },
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("the guest did not end in time"),
        }
    }
}

/// Shows the lines of the kernel's log that mean trouble.
fn report_alarms(console: &Path) -> Result<()> {
    let log = fs::read(console).with_context(|| format!("cannot read {}", console.display()))?;
    let log = String::from_utf8_lossy(&log);
    for line in log
        .lines()
        .filter(|line| ALARMS.iter().any(|alarm| line.contains(alarm)))
    {
        ui::line(format_args!("kernel: {line}"));
    }
    Ok(())
}
