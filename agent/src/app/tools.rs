//! What the command line does without a running agent.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;

use super::args::KernelArgs;
use super::config::redirect_config;
use super::tasks::StopSignals;
use crate::admin::{self, KernelFeature};
use crate::cluster::{self, Finding, LintOptions};
use crate::cni;
use crate::model::NodeName;
use crate::redirect::{self, Cleanup, Outcome, Scope};

/// What this machine has of what the agent needs, found by trying.
pub fn check(args: &KernelArgs) -> anyhow::Result<Vec<KernelFeature>> {
    let config = redirect_config(args, NodeName("check".into()))?;
    Ok(features(&config))
}

/// The checks of the kernel side.
pub(super) fn features(config: &redirect::Config) -> Vec<KernelFeature> {
    let feature = |check: redirect::Check| KernelFeature {
        name: check.name.to_owned(),
        available: !matches!(check.outcome, Outcome::Failed),
        detail: check.detail,
        remedy: (!check.remedy.is_empty()).then(|| check.remedy.to_owned()),
    };
    redirect::probe(config).into_iter().map(feature).collect()
}

/// Everything that is to be said of manifests.
pub fn lint(options: &LintOptions) -> Vec<Finding> {
    cluster::lint(options, io::stdin().lock())
}

/// Answers one call of a container runtime: what to print, and whether it is an answer of
/// success.
pub fn cni_plugin(input: impl io::Read) -> (String, bool) {
    cni::run(|name| std::env::var(name).ok(), input)
}

/// Takes the CNI plugin off this node: out of the network configurations of `conf_dir`,
/// and its program out of `bin_dir`. Returns what was removed or changed.
pub fn uninstall_cni(
    bin_dir: Option<&Path>,
    conf_dir: Option<&Path>,
) -> anyhow::Result<Vec<PathBuf>> {
    Ok(cni::uninstall(bin_dir, conf_dir)?)
}

/// Removes every trace of the agents of a node, or of all of this machine's, from the
/// kernel. Refuses, unless `scope` says otherwise, while one of them runs or answers in
/// `run_dir`: its pods would be open as soon as it ends.
pub fn cleanup(
    run_dir: &Path,
    bpffs: &Path,
    node: Option<String>,
    scope: Scope,
) -> anyhow::Result<Cleanup> {
    let node = node.map(|name| NodeName(name.into()));
    // One that has just been started may answer and have no pins yet.
    let known = redirect::running_agents(bpffs, node.as_ref())?;
    if scope == Scope::All && known.is_empty() && admin::is_served(run_dir) {
        anyhow::bail!(
            "an agent runs, it answers in {}: stop it first, else its pods would be open as soon \
             as it ends",
            run_dir.display()
        );
    }
    let mut done = redirect::cleanup(bpffs, node.as_ref(), scope)?;
    if scope == Scope::All && done.remaining.is_empty() {
        done.removed.extend(remove_run_dir(run_dir)?);
    }
    Ok(done)
}

/// Removes the files that ended agents left, and the directory where it has nothing else.
fn remove_run_dir(run_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", run_dir.display()))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_socket() || entry.file_name() == cni::DECISIONS {
            fs::remove_file(entry.path())?;
            removed.push(entry.path());
        }
    }
    // What else is there is not the agent's, and stays.
    if fs::remove_dir(run_dir).is_ok() {
        removed.push(run_dir.to_owned());
    }
    Ok(removed)
}

/// Returns when the process is asked to end.
pub fn stay() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let _signal = StopSignals::listen()?.next().await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::remove_run_dir;

    #[test]
    fn sockets_go_and_with_the_last_the_directory() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = parent.path().join("fairlead");
        assert_eq!(remove_run_dir(&run_dir).unwrap().len(), 0);
        fs::create_dir(&run_dir).unwrap();
        let socket = run_dir.join("agent.sock");
        drop(UnixListener::bind(&socket).unwrap());
        assert_eq!(remove_run_dir(&run_dir).unwrap(), [socket, run_dir.clone()]);
        assert!(!run_dir.exists());
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        let run_dir = tempfile::tempdir().unwrap();
        let file = run_dir.path().join("notes");
        fs::write(&file, "mine").unwrap();
        assert_eq!(remove_run_dir(run_dir.path()).unwrap().len(), 0);
        assert!(file.exists());
    }
}
