//! A real Kubernetes API server, for the tests that need one.
//!
//! Out: a directory with `kube-apiserver`, `etcd` and `kubectl`, below
//! `target/kubernetes` under the hash of its recipe. etcd and kubectl are Debian's
//! binaries; the API server is compiled from Debian's source package, which ships the
//! code but not the binary. Nothing is installed and no root is needed: everything is
//! downloaded under an apt state of its own and unpacked.
//!
//! ```text
//! apt        package lists -> packages, source archive   (signatures checked by apt)
//! unpack     Go, etcd, kubectl, reflect2, the source     (dpkg-deb, tar)
//! compile    openapi-gen -> its Go file -> kube-apiserver
//! ```

mod apt;
mod compile;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fairlead_tests::missing_programs;
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::{ui, workspace};

/// Names a directory with the programs, for systems that have their own.
pub(crate) const VARIABLE: &str = "FAIRLEAD_KUBERNETES";

/// What a complete directory holds.
const PROGRAMS: [&str; 3] = ["kube-apiserver", "etcd", "kubectl"];

/// Everything that decides what comes out: its hash names the result.
#[derive(Debug)]
struct Recipe {
    /// Debian's release. Later ones have no source package of Kubernetes.
    release: &'static str,
    /// The source package.
    source: &'static str,
    /// The version of Kubernetes in it.
    version: [&'static str; 3],
    /// The package with Go's compiler; the newest of the release that compiles it.
    go: &'static str,
    /// Binary packages that are unpacked.
    packages: &'static [&'static str],
    /// The library under `vendor/` that is replaced by the packaged one: the vendored
    /// version reads the runtime's tables as they were before Go 1.18, and crashes the
    /// server on the first object of a custom resource.
    replaced: &'static str,
}

/// Raised when the steps change in a way that the recipe does not tell.
const REVISION: u32 = 1;

const RECIPE: Recipe = Recipe {
    release: "bookworm",
    source: "kubernetes",
    version: ["1", "20", "2"],
    go: "go-1.19",
    packages: &[
        "etcd-server",
        "golang-1.19-go",
        "golang-1.19-src",
        "golang-github-modern-go-reflect2-dev",
        "kubernetes-client",
    ],
    replaced: "github.com/modern-go/reflect2",
};

/// Says what is missing, if something is.
pub(crate) fn missing() -> Option<String> {
    let there = std::env::var_os(VARIABLE).is_some() || is_complete(&built());
    (!there).then(|| format!("{} (about five minutes)", title()))
}

/// The directory with the programs; builds it if it is not there yet.
pub(crate) fn obtain() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        if is_complete(&given) {
            return Ok(given);
        }
        bail!(
            "{VARIABLE} names {}, which has not all of: {}",
            given.display(),
            PROGRAMS.join(", ")
        );
    }
    let directory = built();
    if is_complete(&directory) {
        return Ok(directory);
    }
    refuse_where_impossible()?;
    build(&directory)?;
    Ok(directory)
}

fn title() -> String {
    format!("kube-apiserver {}", RECIPE.version.join("."))
}

fn home() -> PathBuf {
    workspace::target().join("kubernetes")
}

fn built() -> PathBuf {
    let text = format!("{REVISION} {RECIPE:?} {}", std::env::consts::ARCH);
    let hash = Sha256::digest(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    home().join(format!("{:012x}", u64::from_be_bytes(first) >> 16))
}

fn is_complete(directory: &Path) -> bool {
    PROGRAMS
        .iter()
        .all(|program| directory.join(program).exists())
}

fn refuse_where_impossible() -> Result<()> {
    let mut missing = missing_programs(&["apt-get", "dpkg-deb", "tar"]);
    if !Path::new(apt::KEYRING).exists() {
        missing.push("debian-archive-keyring".to_owned());
    }
    if missing.is_empty() {
        return Ok(());
    }
    ui::line(format_args!(
        "{} is built from Debian's source, for which this system lacks: {}.\nOn Debian and \
         its kin:\n\n  sudo apt-get install --no-install-recommends dpkg tar debian-archive-keyring\n\n\
         Elsewhere put {} of any release into a directory, and run:\n\n  export {VARIABLE}=DIRECTORY\n",
        title(),
        missing.join(", "),
        PROGRAMS.join(", "),
    ));
    bail!("no Kubernetes API server for the tests of the tier `cluster`");
}

/// Builds into a directory beside, which is renamed when it is complete. What an
/// interrupted run compiled is used again.
fn build(directory: &Path) -> Result<()> {
    let home = home();
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let lock = File::create(home.join("lock"))?;
    // Another run may be building the same.
    flock(&lock, FlockOperation::LockExclusive)?;
    if is_complete(directory) {
        return Ok(());
    }
    let (work, cache) = (home.join("work"), home.join("go-cache"));
    remove(&work)?;
    let output = work.join("output");
    fs::create_dir_all(&output)?;

    let apt = apt::Apt::prepare(&work.join("apt"), RECIPE.release)?;
    let downloads = work.join("downloads");
    apt.download(&downloads, &RECIPE)?;
    let tree = unpack(&work, &downloads)?;
    for program in ["etcd", "kubectl"] {
        fs::copy(
            tree.system.join("usr/bin").join(program),
            output.join(program),
        )
        .with_context(|| format!("Debian's package has no {program}"))?;
    }
    compile::run(&tree, &cache, &output.join("kube-apiserver"), &RECIPE)?;
    fs::rename(&output, directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    remove(&work)?;
    remove(&cache)
}

/// What is unpacked.
#[derive(Debug)]
struct Tree {
    /// Debian's packages, as if their root were here.
    system: PathBuf,
    /// A Go workspace.
    go: PathBuf,
    /// The source of Kubernetes, in that workspace.
    source: PathBuf,
}

fn unpack(work: &Path, downloads: &Path) -> Result<Tree> {
    let go = work.join("go");
    let tree = Tree {
        system: work.join("system"),
        source: go.join("src/k8s.io/kubernetes"),
        go,
    };
    fs::create_dir_all(&tree.system)?;
    fs::create_dir_all(&tree.source)?;
    for archive in files(downloads)? {
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        let mut command = if archive.extension() == Some(OsStr::new("deb")) {
            let mut command = std::process::Command::new("dpkg-deb");
            let _: &mut _ = command.arg("-x").args([&archive, &tree.system]);
            command
        } else if name.contains(".orig.tar.") {
            let mut command = std::process::Command::new("tar");
            let _: &mut _ = command
                .args(["--strip-components=1", "-xf"])
                .arg(&archive)
                .arg("-C")
                .arg(&tree.source);
            command
        } else {
            // The packaging of the source, which changes kubectl alone.
            continue;
        };
        let package = name.split('_').next().unwrap_or(&name);
        ui::step(&format!("unpack {package}"), &mut command)?;
    }
    Ok(tree)
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort_unstable();
    Ok(paths)
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
