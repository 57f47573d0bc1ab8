//! Packages of one Debian release, under an apt state of its own: the system's lists,
//! sources and installed packages stay as they are, and root is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Recipe;
use crate::ui;

/// The keys that sign Debian's releases.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian is, unless the system has a mirror of the release.
const ARCHIVE: &str = "http://deb.debian.org/debian";

/// An apt that reads nothing of the system but its proxy settings and keys.
#[derive(Debug)]
pub(super) struct Apt {
    configuration: PathBuf,
}

impl Apt {
    /// Writes its configuration into `directory` and reads the package lists.
    pub(super) fn prepare(directory: &Path, release: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(part))?;
        }
        let archive = mirror(release).unwrap_or_else(|| ARCHIVE.to_owned());
        let line = |kind| format!("{kind} [signed-by={KEYRING}] {archive} {release} main\n");
        fs::write(
            directory.join("sources.list"),
            line("deb") + &line("deb-src"),
        )?;
        fs::write(directory.join("status"), "")?;
        let at = directory
            .to_str()
            .context("apt's configuration is UTF-8, and so must its path be")?;
        let configuration = directory.join("apt.conf");
        let text = format!(
            "Dir::Etc::SourceList \"{at}/sources.list\";\n\
             Dir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\n\
             Dir::Etc::PreferencesParts \"/dev/null\";\n\
             Dir::State::Lists \"{at}/lists\";\n\
             Dir::State::Status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\";\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::Retries \"3\";\n"
        );
        fs::write(&configuration, text)?;
        let apt = Self { configuration };
        ui::step(
            &format!("package lists of Debian {release}, apart from the system's"),
            apt.command().arg("update"),
        )?;
        Ok(apt)
    }

    /// Downloads the packages of a recipe and the archives of its source.
    pub(super) fn download(&self, into: &Path, recipe: &Recipe) -> Result<()> {
        fs::create_dir_all(into)?;
        ui::step(
            "download Go, etcd and kubectl (about 100 MB)",
            self.command()
                .arg("download")
                .args(recipe.packages)
                .current_dir(into),
        )?;
        ui::step(
            "download the source of Kubernetes (about 35 MB)",
            self.command()
                .args(["source", "--download-only", recipe.source])
                .current_dir(into),
        )
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        let _: &mut Command = command.env("APT_CONFIG", &self.configuration);
        command
    }
}

/// Where the system itself gets the release from, if it does.
fn mirror(release: &str) -> Option<String> {
    let format = "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .output()
        .ok()?;
    let wanted = format!("Debian main {release} ");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix(&wanted).map(str::to_owned))
}
