//! What the command line does without a running agent.

use std::io;
use std::path::Path;

use super::args::KernelArgs;
use super::config::redirect_config;
use crate::admin::{self, KernelFeature};
use crate::cluster::{self, Finding, LintOptions};
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
    Ok(redirect::cleanup(bpffs, node.as_ref(), scope)?)
}
