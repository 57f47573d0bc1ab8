//! Runs a command of this machine under another Linux kernel: Debian's, in QEMU.
//!
//! In: a kernel series such as `6.1` and a [`Job`]. Out: the job's output, line by line as it comes, and its exit code.
//! Nothing is installed: Debian's kernel package is downloaded by name and unpacked below `target/vm`.
//! The guest's root file system *is* the host's, read-only over 9p with a RAM disk on top, so every program and
//! library of the host is there under its own path, and nothing that the job writes outlives it.
//! The processor is emulated (TCG): no `/dev/kvm` and no root are needed.
//!
//! ```text
//! kernel   package -> vmlinuz + modules      (apt-get download, dpkg-deb -x)
//! modules  names   -> files in load order    (decompressed)
//! initramfs: busybox, modules, init.sh, guest.sh, job.sh
//! machine  boots it; ttyS0 -> target/vm/console-*.log, ttyS1 -> our output and the exit code
//! ```

mod initramfs;
mod kernel;
mod machine;
mod modules;
pub(crate) mod tools;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{ui, workspace};

pub(crate) use kernel::Series;

/// What runs in the guest.
#[derive(Debug)]
pub(crate) struct Job {
    /// The program, by its path on this machine, and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Variables added to a minimal environment (`PATH`, `HOME`).
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The working directory.
    pub(crate) directory: PathBuf,
    /// How long the job may take; the guest kills it then.
    pub(crate) timeout: Duration,
}

/// Runs `job` under the newest kernel of `series` that Debian has, hands each line of its output to `each`,
/// and returns its exit code. Fails when the guest dies or does not end in time.
pub(crate) fn run(series: &Series, job: &Job, each: &mut dyn FnMut(&str)) -> Result<i32> {
    let tools = tools::find()?;
    let directory = workspace::target().join("vm");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;

    let kernel = kernel::obtain(&directory, series)?;
    let image = initramfs::build(&tools.busybox, &kernel, job)?;
    let initramfs = directory.join(format!("initramfs-{series}.cpio"));
    fs::write(&initramfs, image)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;

    let boot = machine::Boot {
        qemu: &tools.qemu,
        vmlinuz: &kernel.vmlinuz,
        initramfs: &initramfs,
        console: &directory.join(format!("console-{series}.log")),
    };
    ui::line(format_args!("Booting Linux {} in QEMU", kernel.release));
    machine::run(&boot, job.timeout, each)
}
