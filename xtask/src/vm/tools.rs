//! The programs of this machine that the guest needs: found, else installed, else named.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::setup;

/// Where the needed programs are.
#[derive(Debug)]
pub(super) struct Tools {
    /// The emulator.
    pub(super) qemu: PathBuf,
    /// A statically linked busybox: the only program in the initramfs.
    pub(super) busybox: PathBuf,
}

/// Finds the programs, after installing what is missing.
pub(super) fn find() -> Result<Tools> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "kernels in QEMU are supported on x86-64 hosts only"
    );
    setup::packages(missing())?;
    Ok(Tools {
        qemu: program("qemu-system-x86_64").context("qemu-system-x86_64 is not on the PATH")?,
        busybox: static_busybox().context("no statically linked busybox is on the PATH")?,
    })
}

/// Debian packages whose programs are not here.
fn missing() -> Vec<&'static str> {
    let needed = [
        ("qemu-system-x86", program("qemu-system-x86_64").is_some()),
        ("busybox-static", static_busybox().is_some()),
        ("xz-utils", program("xz").is_some()),
    ];
    needed
        .into_iter()
        .filter_map(|(package, present)| (!present).then_some(package))
        .collect()
}

/// The program on the PATH, or in root's usual directories.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

fn static_busybox() -> Option<PathBuf> {
    program("busybox").filter(|path| is_static(path).unwrap_or(false))
}

/// A dynamic executable names its loader (`PT_INTERP`) in its first page.
pub(crate) fn is_static(path: &Path) -> Result<bool> {
    let mut page = Vec::new();
    let _read: usize = File::open(path)?.take(4096).read_to_end(&mut page)?;
    Ok(!page.windows(6).any(|bytes| bytes == b"/ld-li"))
}
