//! Pinned links: what keeps pods redirected, and so refused, while no agent runs.
//!
//! Only links are pinned. They keep their programs, and these their maps. Each
//! instance of the agent has a directory of its own,
//! `<bpffs>/fairlead/<node>/<instance>/`, and adopts nothing of another's: it
//! attaches its own, enrols every pod, and only then drops what was before. It
//! holds a lock on its directory, which the kernel releases when the process ends,
//! however it ends: so that everybody can tell whose pins are a living agent's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock, statfs};

use super::cgroup::file;
use super::{RedirectError, sys};
use crate::model::NodeName;

/// `BPF_FS_MAGIC`.
const BPFFS: rustix::fs::FsWord = 0xcafe_4a11;

/// Names on a bpffs may have no dots; names of nodes have no underscores.
pub(super) fn escape(name: &str) -> String {
    name.replace('.', "_")
}

/// The directory of all instances of a node.
pub(super) fn node_directory(bpffs: &Path, node: &NodeName) -> PathBuf {
    bpffs.join("fairlead").join(escape(&node.0))
}

/// The directory of this instance, and those that were there before it.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    previous: Vec<PathBuf>,
    /// Locked for as long as this process lives.
    _lock: File,
}

/// An agent that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningAgent {
    /// Its node, as the directory of its pins has it.
    pub node: String,
    /// Its process.
    pub pid: u32,
}

impl Pins {
    /// Makes the directory of a new instance.
    pub(super) fn create(bpffs: &Path, node: &NodeName) -> Result<Self, RedirectError> {
        require_bpffs(bpffs)?;
        let parent = node_directory(bpffs, node);
        let previous = drop_superfluous(instances(&parent)?)?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH);
        let started = started.map_or(0, |since| since.as_nanos());
        let directory = parent.join(format!("{started:x}-{}", std::process::id()));
        fs::create_dir_all(&directory).map_err(|source| file("create", &directory, source))?;
        let lock = File::open(&directory)
            .and_then(|lock| Ok(flock(&lock, FlockOperation::LockExclusive).map(|()| lock)?))
            .map_err(|source| file("lock", &directory, source))?;
        Ok(Self {
            directory,
            previous,
            _lock: lock,
        })
    }

    /// Where a link of this instance is pinned.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory of this instance.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Directories of earlier instances.
    pub(super) fn previous(&self) -> &[PathBuf] {
        &self.previous
    }

    /// Removes what earlier instances pinned. What can't be removed is kept for
    /// the next call.
    pub(super) fn drop_previous(&mut self) -> Result<(), RedirectError> {
        while let Some(directory) = self.previous.last() {
            detach(directory);
            drop(remove_directory(directory)?);
            drop(self.previous.pop());
        }
        Ok(())
    }
}

/// The agent whose instance this is, if it has not ended.
pub(super) fn running(instance: &Path) -> Result<Option<RunningAgent>, RedirectError> {
    let opened = match File::open(instance) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|source| file("open", instance, source))?,
    };
    match flock(&opened, FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        Err(error) => return Err(file("lock", instance, error.into())),
    }
    let text = |path: Option<&Path>| {
        let name = path.and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let name = text(Some(instance));
    let pid = name.rsplit('-').next().and_then(|pid| pid.parse().ok());
    Ok(Some(RunningAgent {
        node: text(instance.parent()),
        pid: pid.unwrap_or(0),
    }))
}

/// Removes instances that have ended and guard nobody, and returns the others: an
/// agent that is started again and again, and fails each time before it takes over,
/// would come to the kernel's limit of 64 programs for one cgroup. `found` has the
/// oldest last.
fn drop_superfluous(found: Vec<PathBuf>) -> Result<Vec<PathBuf>, RedirectError> {
    /// With so many, what an older one guards as well counts as guarded.
    const MANY: usize = 16;
    let many = found.len() >= MANY;
    let mut guarded = BTreeSet::new();
    let mut kept = Vec::new();
    for instance in found.into_iter().rev() {
        let own = lookups(&instance);
        let needed = if many {
            !own.is_subset(&guarded)
        } else {
            !own.is_empty()
        };
        if needed || running(&instance)?.is_some() {
            guarded.extend(own);
            kept.push(instance);
        } else {
            drop(remove_directory(&instance)?);
        }
    }
    kept.reverse();
    Ok(kept)
}

/// The pins on namespaces of pods: a pod is guarded from its pin on.
fn lookups(instance: &Path) -> BTreeSet<std::ffi::OsString> {
    let entries = fs::read_dir(instance).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with("lookup-"))
        .collect()
}

/// Takes an earlier instance's way in and out of force at once. One that still runs
/// holds its links open, so that without their pins they would stay until it ends,
/// and new connections would fail in the moment of its end. Its hooks on what was
/// connected already stay.
fn detach(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str());
        let redirects =
            name.is_some_and(|name| name.starts_with("connect") || name.starts_with("lookup"));
        // Before Linux 5.9 links can't be detached; they go with their owner then.
        if redirects && let Err(error) = sys::detach_link(&path) {
            tracing::debug!(path = %path.display(), %error, "cannot detach an earlier link");
        }
    }
}

/// Fails where the path is on no bpffs.
pub(super) fn require_bpffs(path: &Path) -> Result<(), RedirectError> {
    let status = statfs(path).map_err(|error| file("open", path, error.into()))?;
    if status.f_type == BPFFS {
        Ok(())
    } else {
        Err(RedirectError::NoBpffs {
            path: path.to_owned(),
        })
    }
}

/// The directories below `parent`, the oldest last.
pub(super) fn instances(parent: &Path) -> Result<Vec<PathBuf>, RedirectError> {
    let entries = match fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| file("read", parent, source))?,
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    found.reverse();
    Ok(found)
}

/// Removes a directory of pins. The link that redirects outbound connections goes
/// last: what is half removed still refuses.
pub(super) fn remove_directory(directory: &Path) -> Result<Vec<PathBuf>, RedirectError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| file("read", directory, source))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort_by_key(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("connect"))
    });
    for path in &paths {
        remove(path)?;
    }
    fs::remove_dir(directory).map_err(|source| file("remove", directory, source))?;
    paths.push(directory.to_owned());
    Ok(paths)
}

/// Removes one pin; one that is gone is as good.
pub(super) fn remove(path: &Path) -> Result<(), RedirectError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_nodes_lose_their_dots() {
        let node = NodeName("ip-10-0-0-1.ec2.internal".into());
        assert_eq!(
            node_directory(Path::new("/sys/fs/bpf"), &node),
            Path::new("/sys/fs/bpf/fairlead/ip-10-0-0-1_ec2_internal")
        );
    }

    #[test]
    fn an_ordinary_directory_is_no_bpffs() {
        let error = require_bpffs(Path::new("/proc")).unwrap_err();
        assert!(matches!(error, RedirectError::NoBpffs { .. }), "{error}");
    }
}
