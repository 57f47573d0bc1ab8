//! Builds the kernel's programs: `<target>/bpf/fairlead.bpf.o`.
//!
//! They are Rust for the target `bpfel-unknown-none`, linked by bpf-linker. A
//! compiler for it needs a `core` library for that target, which Rust's stable
//! toolchains do not carry. Either of two does, and the first one found is used:
//!
//! - Debian's `rustc-web` with `libstd-rust-web-dev-bpf`: `core` ready built;
//! - rustup's nightly with `rust-src`: cargo builds `core` first.
//!
//! `core` lacks nothing else, but aya's library and inline assembly want a
//! compiler that permits unstable features: `RUSTC_BOOTSTRAP=1` does, in a build
//! of exactly pinned sources.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use crate::{ui, workspace};

#[path = "../../agent/source_hash.rs"]
mod source_hash;

const TARGET: &str = "bpfel-unknown-none";

/// What `build` made, or found to be up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Built {
    /// The object.
    pub(crate) object: PathBuf,
    /// It was there already, of the same sources.
    pub(crate) fresh: bool,
}

/// The task.
pub(crate) fn run() -> Result<()> {
    let built = build(workspace::root(), &workspace::target())?;
    let state = if built.fresh { "up to date" } else { "built" };
    ui::line(format_args!("{}: {state}", built.object.display()));
    Ok(())
}

/// Compiles the kernel's programs unless an object of the same sources is there.
///
/// `root` is the repository's root, `target` cargo's target directory. Output of
/// the compiler goes to standard error.
pub(crate) fn build(root: &Path, target: &Path) -> Result<Built> {
    let directory = target.join("bpf");
    let object = directory.join("fairlead.bpf.o");
    let record = directory.join("fairlead.bpf.o.sources");
    let hash = source_hash::source_hash(root).context("cannot read the programs' sources")?;
    let recorded = fs::read_to_string(&record).unwrap_or_default();
    if object.is_file() && recorded.trim() == hash {
        return Ok(Built {
            object,
            fresh: true,
        });
    }
    let toolchain = Toolchain::find()?;
    let scratch = directory.join("build");
    compile(root, &scratch, &toolchain)?;
    // The hash goes last: an interrupted build leaves none that is wrong.
    match fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("cannot remove the record of the last build");
        }
        _ => {}
    }
    let linked = scratch.join(TARGET).join("release/fairlead");
    fs::copy(&linked, &object).with_context(|| format!("cannot copy {}", linked.display()))?;
    fs::write(&record, &hash).with_context(|| format!("cannot write {}", record.display()))?;
    Ok(Built {
        object,
        fresh: false,
    })
}

fn compile(root: &Path, scratch: &Path, toolchain: &Toolchain) -> Result<()> {
    let linker = find_program("bpf-linker").context(
        "bpf-linker is missing: run `cargo xtask setup`, or see CONTRIBUTING.md for how to get it",
    )?;
    // Separated by 0x1f, so that the linker's path may have spaces. `--btf` keeps
    // the types that the loader and `bpftool` show.
    let flags = format!(
        "-Cdebuginfo=2\u{1f}-Clinker={}\u{1f}-Clink-arg=--btf",
        linker.display()
    );
    let mut command = toolchain.command();
    let _ = command
        .current_dir(root.join("ebpf"))
        .args(["build", "--release", "--locked", "--target", TARGET])
        .args(toolchain.arguments())
        .env("CARGO_TARGET_DIR", scratch)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("RUSTC_BOOTSTRAP", "1")
        // Those of the cargo that runs this task.
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTDOC");
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", toolchain.describe()))?;
    if !status.success() {
        bail!(
            "{} could not build the kernel's programs",
            toolchain.describe()
        );
    }
    Ok(())
}

/// A compiler for the kernel's virtual machine.
#[derive(Debug)]
enum Toolchain {
    /// Debian's.
    Distribution,
    /// rustup's.
    Nightly,
}

impl Toolchain {
    /// The first one that is there.
    fn find() -> Result<Self> {
        let core = Path::new("/usr/lib/rustlib").join(TARGET);
        if core.is_dir() && Path::new("/usr/bin/rustc").exists() {
            return Ok(Self::Distribution);
        }
        if nightly_has_source() {
            return Ok(Self::Nightly);
        }
        bail!(
            "no compiler for the kernel's programs: run `cargo xtask setup`, or install either\n  \
             apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf     (Debian)\n  \
             rustup toolchain install nightly --component rust-src           (elsewhere)"
        )
    }

    fn describe(&self) -> &'static str {
        match self {
            Self::Distribution => "Debian's rustc-web",
            Self::Nightly => "rustup's nightly",
        }
    }

    fn command(&self) -> Command {
        match self {
            Self::Distribution => {
                let mut command = Command::new("/usr/bin/cargo");
                let _ = command
                    .env("RUSTC", "/usr/bin/rustc")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                let _ = command
                    .args(["run", "nightly", "cargo"])
                    .env_remove("RUSTC")
                    .env_remove("RUSTUP_TOOLCHAIN");
                command
            }
        }
    }

    fn arguments(&self) -> &'static [&'static str] {
        match self {
            Self::Distribution => &[],
            Self::Nightly => &["-Zbuild-std=core"],
        }
    }
}

fn nightly_has_source() -> bool {
    Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .is_ok_and(|output| {
            let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            output.status.success()
                && Path::new(&sysroot)
                    .join("lib/rustlib/src/rust/library/core")
                    .is_dir()
        })
}

/// In PATH, or where `cargo install` puts programs.
fn find_program(name: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| {
        let home: OsString = env::var_os("HOME")?;
        Some(Path::new(&home).join(".cargo"))
    });
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}
