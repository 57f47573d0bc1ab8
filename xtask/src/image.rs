//! `cargo xtask image`: the agent as one static program, in an image with nothing else.
//!
//! The program is linked against glibc's static library. Its resolver reads
//! `/etc/resolv.conf` and asks name servers by itself: since glibc 2.34 that needs no
//! shared library at run time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::vm::tools::{is_static, program};
use crate::{bpf, setup, ui, workspace};

/// Which image.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The image's name and tag.
    #[arg(long, default_value = concat!("ghcr.io/fairlead/fairlead:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// Only build the static program, for another builder of images.
    #[arg(long)]
    program_only: bool,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::for_building()?;
    let directory = workspace::target().join("image");
    fs::create_dir_all(&directory)?;
    let architecture = architecture()?;
    build(&directory.join(format!("fairlead-{architecture}")))?;
    let licence = workspace::root().join("LICENSE");
    let _bytes = fs::copy(licence, directory.join("LICENSE"))?;
    if options.program_only {
        return Ok(());
    }
    if program("buildah").is_none() {
        setup::packages(vec!["buildah"])?;
    }
    let buildah = Buildah::new(&directory);
    buildah.build(options, architecture)?;
    buildah.try_out(options)?;
    buildah.export(options)
}

/// As images name it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("there is no image for {other}"),
    }
}

/// Links the release build again, with everything in it. Its dependencies are those of
/// the usual build.
fn build(to: &Path) -> Result<()> {
    let _built = bpf::build(workspace::root(), &workspace::target())?;
    let mut command = workspace::cargo();
    let command = command
        .args([
            "rustc",
            "--release",
            "--package",
            "fairlead",
            "--bin",
            "fairlead",
        ])
        .args(["--", "-Ctarget-feature=+crt-static", "-Cstrip=debuginfo"]);
    ui::step("the agent (release, static)", command)?;
    let built = workspace::agent();
    ensure!(is_static(&built)?, "{} asks for a loader", built.display());
    let _bytes = fs::copy(&built, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// buildah with its storage below the target directory. It runs in containers, too: files
/// are copied instead of overlaid, and what it starts is only chrooted.
struct Buildah {
    directory: PathBuf,
}

impl Buildah {
    fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("buildah");
        let _: &mut Command = command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(self.directory.join("storage"))
            .arg("--runroot")
            .arg(self.directory.join("run"));
        command
    }

    fn build(&self, options: &Options, architecture: &str) -> Result<()> {
        let mut command = self.command();
        let command = command
            .args(["build", "--isolation", "chroot", "--layers=false"])
            .args(["--arch", architecture, "--tag", &options.tag])
            .arg("--build-arg")
            .arg(format!("TARGETARCH={architecture}"))
            .arg("--file")
            .arg(workspace::root().join("deploy/Dockerfile"))
            .arg(&self.directory);
        ui::step("the image", command)
    }

    /// The program starts with nothing beside it.
    fn try_out(&self, options: &Options) -> Result<()> {
        let made = self.command().args(["from", &options.tag]).output()?;
        ensure!(
            made.status.success(),
            "buildah from: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let container = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        let mut command = self.command();
        let command = command
            .args(["run", "--isolation", "chroot", &container, "--"])
            .args(["/fairlead", "--version"]);
        let ran = ui::step("the image's program", command);
        let _removed = self.command().args(["rm", &container]).output()?;
        ran
    }

    fn export(&self, options: &Options) -> Result<()> {
        let archive = self.directory.join("fairlead.tar");
        let mut command = self.command();
        let command = command
            .args(["push", "--quiet", &options.tag])
            .arg(format!("oci-archive:{}", archive.display()));
        ui::step("the archive", command)?;
        let size = fs::metadata(&archive)?.len() >> 20;
        ui::line(format_args!(
            "{}: {size} MiB, {}; on a node: ctr --namespace k8s.io images import {}",
            archive.display(),
            options.tag,
            archive.display()
        ));
        Ok(())
    }
}
