//! Debian's kernel packages: found by name, downloaded and unpacked, never installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::ui;

/// A kernel series: `6.1`, `6.12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Series {
    major: u32,
    minor: u32,
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (major, minor) = text
            .split_once('.')
            .context("expected a kernel series such as 6.1")?;
        Ok(Self {
            major: major
                .parse()
                .context("expected a kernel series such as 6.1")?,
            minor: minor
                .parse()
                .context("expected a kernel series such as 6.1")?,
        })
    }
}

impl fmt::Display for Series {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// A kernel on disk.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` says.
    pub(super) release: String,
    /// The bootable image.
    pub(super) vmlinuz: PathBuf,
    /// `lib/modules/<release>` of the package.
    pub(super) modules: PathBuf,
}

/// The newest kernel of `series`: downloaded into `directory` if it is not there yet.
/// When the package lists know none, what an earlier run left in `directory` is used.
pub(super) fn obtain(directory: &Path, series: &Series) -> Result<Kernel> {
    let package = choose(directory, series)?;
    let unpacked = directory.join(&package);
    if !unpacked.is_dir() {
        download(directory, &package, &unpacked)?;
    }
    locate(&unpacked)
}

/// The package to run: apt's newest, else the newest that is unpacked, else apt's newest after an update.
fn choose(directory: &Path, series: &Series) -> Result<String> {
    if let Some(package) = newest(&known_packages(series)) {
        return Ok(package.to_owned());
    }
    if let Some(package) = newest(&unpacked_packages(directory, series)?) {
        return Ok(package.to_owned());
    }
    if rustix::process::geteuid().is_root() {
        ui::step(
            "Debian's package lists",
            Command::new("apt-get").arg("update"),
        )?;
    }
    let known = known_packages(series);
    let Some(package) = newest(&known) else {
        bail!(
            "apt knows no linux-image-{series}.*-amd64-unsigned: its lists are old (run as root: \
             apt-get update), or another release of Debian has that kernel"
        );
    };
    Ok(package.to_owned())
}

/// Names of Debian's ordinary (neither cloud nor real-time) kernels of the series, from apt's lists.
fn known_packages(series: &Series) -> Vec<String> {
    let output = Command::new("apt-cache")
        .args(["pkgnames", &format!("linux-image-{series}.")])
        .output();
    // Without apt there may still be an unpacked kernel.
    let Ok(output) = output else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|name| is_ordinary(name))
        .map(str::to_owned)
        .collect()
}

fn unpacked_packages(directory: &Path, series: &Series) -> Result<Vec<String>> {
    let prefix = format!("linux-image-{series}.");
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&prefix) && is_ordinary(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn is_ordinary(package: &str) -> bool {
    package
        .strip_suffix("-amd64-unsigned")
        .is_some_and(|rest| !rest.ends_with("-cloud") && !rest.ends_with("-rt"))
}

fn newest(packages: &[String]) -> Option<&str> {
    packages
        .iter()
        .max_by_key(|name| numbers(name))
        .map(String::as_str)
}

/// The numbers in a package's name, in order: they sort as the versions do.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Downloads and unpacks into `unpacked`, which appears only when it is complete.
fn download(directory: &Path, package: &str, unpacked: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("download-")
        .tempdir_in(directory)?;
    ui::step(
        &format!("download {package} (about 100 MB)"),
        Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(scratch.path()),
    )?;
    let archive = fs::read_dir(scratch.path())?
        .next()
        .context("apt-get downloaded nothing")??
        .path();
    let content = scratch.path().join("content");
    ui::step(
        &format!("unpack {package}"),
        Command::new("dpkg-deb")
            .arg("-x")
            .args([&archive, &content]),
    )?;
    fs::rename(&content, unpacked).with_context(|| format!("cannot create {}", unpacked.display()))
}

fn locate(unpacked: &Path) -> Result<Kernel> {
    // Debian 12's packages have /lib/modules, later ones /usr/lib/modules.
    for parent in ["lib/modules", "usr/lib/modules"] {
        let Ok(mut entries) = fs::read_dir(unpacked.join(parent)) else {
            continue;
        };
        let Some(entry) = entries.next() else {
            continue;
        };
        let modules = entry?.path();
        let release = modules
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let vmlinuz = unpacked.join("boot").join(format!("vmlinuz-{release}"));
        return Ok(Kernel {
            release,
            vmlinuz,
            modules,
        });
    }
    bail!("{} holds no kernel modules", unpacked.display())
}

#[cfg(test)]
mod tests {
    use super::{Series, is_ordinary, newest};

    #[test]
    fn series_is_read_and_written() {
        let series: Series = "6.12".parse().unwrap();
        assert_eq!(series.to_string(), "6.12");
        assert!("6".parse::<Series>().is_err());
        assert!("6.x".parse::<Series>().is_err());
    }

    #[test]
    fn newest_compares_numbers() {
        let names = [
            "linux-image-6.1.0-9-amd64-unsigned",
            "linux-image-6.1.0-56-amd64-unsigned",
        ];
        assert_eq!(newest(&names.map(str::to_owned)), Some(names[1]));
    }

    #[test]
    fn cloud_and_real_time_are_not_ordinary() {
        assert!(is_ordinary("linux-image-6.12.117+deb12-amd64-unsigned"));
        assert!(!is_ordinary(
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned"
        ));
        assert!(!is_ordinary("linux-image-6.1.0-56-rt-amd64-unsigned"));
        assert!(!is_ordinary("linux-image-6.1.0-56-amd64-dbg"));
    }
}
