//! Removing every trace, and verifying it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::links::PinnedLink;
use aya::programs::{loaded_links, loaded_programs};

use super::RedirectError;
use super::cgroup::{abandoned, file};
use super::kernel::{CONNECT_PROGRAMS, LOOKUP_PROGRAM, SOCK_OPS_PROGRAM};
use super::pins::{
    RunningAgent, instances, node_directory, remove_directory, require_bpffs, running,
};
use crate::model::NodeName;

/// What was removed, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Cleanup {
    /// Pins, directories and cgroups that are gone.
    pub removed: Vec<PathBuf>,
    /// What is still there, and why. Empty: no trace is left.
    pub remaining: Vec<String>,
}

/// Whose traces [`cleanup`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All; fails with [`RedirectError::Running`], and changes nothing, where an agent
    /// has not ended: its pods would be open as soon as it does.
    All,
    /// Those on nodes where no agent runs. One that runs removes by itself what was
    /// before it, once it guards every pod.
    DeadOnly,
}

/// Removes what agents of `node`, or of every node of this machine where it is
/// `None`, left: pinned links, and with them programs and maps, and cgroups. Pods
/// are un-meshed by it.
pub fn cleanup(
    bpffs: &Path,
    node: Option<&NodeName>,
    scope: Scope,
) -> Result<Cleanup, RedirectError> {
    let mut done = Cleanup::default();
    require_bpffs(bpffs)?;
    let root = bpffs.join("fairlead");
    let mut nodes = node_directories(bpffs, node)?;
    let alive = living(&mut nodes)?;
    if scope == Scope::All && !alive.is_empty() {
        return Err(RedirectError::Running { agents: alive });
    }
    let mut links = BTreeSet::new();
    for directory in nodes {
        for instance in instances(&directory)? {
            links.extend(link_ids(&instance));
            done.removed.extend(remove_directory(&instance)?);
        }
        remove_empty(&directory, &mut done)?;
    }
    remove_empty(&root, &mut done)?;
    for cgroup in abandoned(node)? {
        match fs::remove_dir(&cgroup) {
            Ok(()) => done.removed.push(cgroup),
            // An agent runs in it.
            Err(_) if scope == Scope::DeadOnly => {}
            Err(error) => {
                let path = cgroup.display();
                done.remaining
                    .push(format!("cgroup {path}: {error} (an agent runs in it)"));
            }
        }
    }
    // The kernel lets go of links a moment after their last reference has gone.
    for _ in 0..100 {
        if held(&links).is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = held(&links);
    let open = held.iter().map(|id| {
        format!("link {id}: a running agent holds it open; stop it (`bpftool link show id {id}`)")
    });
    done.remaining.extend(open);
    if node.is_none() && scope == Scope::All && done.remaining.is_empty() {
        done.remaining.extend(programs());
    }
    Ok(done)
}

/// The agents of `node`, or of every node of this machine, that have not ended.
pub fn running_agents(
    bpffs: &Path,
    node: Option<&NodeName>,
) -> Result<Vec<RunningAgent>, RedirectError> {
    living(&mut node_directories(bpffs, node)?)
}

fn node_directories(bpffs: &Path, node: Option<&NodeName>) -> Result<Vec<PathBuf>, RedirectError> {
    match node {
        Some(node) => Ok(vec![node_directory(bpffs, node)]),
        None => instances(&bpffs.join("fairlead")),
    }
}

/// The agents of these nodes that have not ended; their nodes are taken off the list.
fn living(nodes: &mut Vec<PathBuf>) -> Result<Vec<RunningAgent>, RedirectError> {
    let mut alive = Vec::new();
    let mut idle = Vec::new();
    for node in nodes.drain(..) {
        let before = alive.len();
        for instance in instances(&node)? {
            alive.extend(running(&instance)?);
        }
        if alive.len() == before {
            idle.push(node);
        }
    }
    *nodes = idle;
    Ok(alive)
}

/// The links that a directory's pins keep.
fn link_ids(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| PinnedLink::from_pin(entry.path()).ok())
        .filter_map(|link| aya::programs::links::FdLink::from(link).info().ok())
        .map(|info| info.id())
        .collect()
}

/// Those of `ids` that the kernel still has.
fn held(ids: &BTreeSet<u32>) -> Vec<u32> {
    if ids.is_empty() {
        return Vec::new();
    }
    loaded_links()
        .flatten()
        .map(|info| info.id())
        .filter(|id| ids.contains(id))
        .collect()
}

/// Programs of ours that the kernel still has.
fn programs() -> Vec<String> {
    let names: BTreeSet<&str> = CONNECT_PROGRAMS
        .into_iter()
        .chain([SOCK_OPS_PROGRAM, LOOKUP_PROGRAM])
        .collect();
    loaded_programs()
        .flatten()
        .filter(|info| info.name_as_str().is_some_and(|name| names.contains(name)))
        .map(|info| {
            let id = info.id();
            format!("program {id}: a running agent holds it (`bpftool prog show id {id}`)")
        })
        .collect()
}

fn remove_empty(directory: &Path, done: &mut Cleanup) -> Result<(), RedirectError> {
    match fs::remove_dir(directory) {
        Ok(()) => done.removed.push(directory.to_owned()),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
            ) => {}
        Err(error) => return Err(file("remove", directory, error)),
    }
    Ok(())
}
