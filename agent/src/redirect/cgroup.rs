//! The cgroup that the hooks are attached to, and the agent's own, by which the
//! hooks know it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::RedirectError;
use super::pins::escape;
use crate::model::NodeName;

/// The name of cgroups that agents make for themselves.
const PREFIX: &str = "fairlead-agent-";

/// Where the hierarchy of version 2 is mounted.
pub(super) fn mount() -> Result<PathBuf, RedirectError> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(path).map_err(|source| file("read", path, source))?;
    find_mount(&mounts).ok_or_else(|| {
        let reason = io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup2 is mounted; run `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`",
        );
        file("find", Path::new("/sys/fs/cgroup"), reason)
    })
}

/// The mount point of cgroup2: of the first whose whole hierarchy is there, else of the
/// first. A container has its own part of it, and where it was given one the machine's.
fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (fields, filesystem) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_cgroup2 = filesystem.split(' ').next()? == "cgroup2";
        is_cgroup2.then(|| (root == "/", PathBuf::from(unescape(point))))
    });
    let mounts: Vec<(bool, PathBuf)> = mounts.collect();
    let whole = mounts.iter().find(|(whole, _)| *whole);
    whole.or(mounts.first()).map(|(_, point)| point.clone())
}

/// Mount points have spaces and the like as octal escapes.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).map(|octal| u8::from_str_radix(octal, 8)) {
            Some(Ok(byte)) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            _ => plain.push_str(part),
        }
    }
    plain
}

/// The cgroup above every pod: the kubelet's where there is one, else the root.
pub fn default_attach_point() -> Result<PathBuf, RedirectError> {
    let mount = mount()?;
    let kubepods = ["kubepods.slice", "kubepods", "kubelet.slice", "kubelet"];
    let found = kubepods.iter().map(|name| mount.join(name));
    Ok(found
        .into_iter()
        .find(|path| path.is_dir())
        .unwrap_or(mount))
}

/// The agent's own cgroup.
#[derive(Clone, Debug)]
pub(super) struct AgentCgroup {
    /// What the hooks compare: the number that `bpf_get_current_cgroup_id` gives.
    pub(super) id: u64,
    /// Where it is.
    pub(super) path: PathBuf,
}

/// Makes sure that nobody shares the agent's cgroup, since whoever does is exempt
/// from the mesh: moves the process into one of its own where it must.
pub(super) fn isolate(node: &NodeName) -> Result<AgentCgroup, RedirectError> {
    let mount = mount()?;
    let current = current(&mount)?;
    if is_alone(&current)? {
        return describe(current);
    }
    let name = format!("{PREFIX}{}", escape(&node.0));
    // Below the present one first: it stays under the same limits, and goes when
    // that goes. A cgroup that hands controllers down takes no processes of its
    // own beside such a child, and then the child goes to the root.
    let candidates = [current.join(&name), mount.join(&name)];
    let mut failure = None;
    for path in candidates {
        match enter(&path) {
            Ok(()) => return describe(path),
            Err(source) => failure = Some(file("move the agent into", &path, source)),
        }
    }
    Err(failure.unwrap_or(RedirectError::NoBpffs { path: mount }))
}

fn enter(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(path.join("cgroup.procs"), "0")
}

/// The cgroup of this process below the mount.
fn current(mount: &Path) -> Result<PathBuf, RedirectError> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).map_err(|source| file("read", path, source))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    Ok(mount.join(own.unwrap_or_default()))
}

fn is_alone(cgroup: &Path) -> Result<bool, RedirectError> {
    let path = cgroup.join("cgroup.procs");
    let processes = fs::read_to_string(&path).map_err(|source| file("read", &path, source))?;
    let own = std::process::id().to_string();
    Ok(processes.lines().all(|process| process == own))
}

/// The id of the cgroup that a process is in; `None` where it can't be told for sure, such
/// as that of a process which this one numbers otherwise.
pub(super) fn of_process(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let path = mount().ok()?.join(own);
    let id = fs::metadata(&path).ok()?.ino();
    has_member(&path, process).then_some(id)
}

/// The process is in the cgroup itself.
pub(super) fn has_member(cgroup: &Path, process: u32) -> bool {
    let process = process.to_string();
    let members = fs::read_to_string(cgroup.join("cgroup.procs"));
    members.is_ok_and(|members| members.lines().any(|member| member == process))
}

fn describe(path: PathBuf) -> Result<AgentCgroup, RedirectError> {
    // The inode number of a cgroup's directory is its id.
    let data = fs::metadata(&path).map_err(|source| file("read", &path, source))?;
    Ok(AgentCgroup {
        id: data.ino(),
        path,
    })
}

/// Opens a cgroup to attach to.
pub(super) fn open(path: &Path) -> Result<File, RedirectError> {
    let opened = File::open(path).map_err(|source| file("open the cgroup", path, source))?;
    if path.join("cgroup.procs").exists() {
        Ok(opened)
    } else {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, "not a cgroup of version 2");
        Err(file("attach to", path, reason))
    }
}

/// `inner` is `outer` or below it.
pub(super) fn is_within(inner: &Path, outer: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical(inner).starts_with(canonical(outer))
}

/// The hooks on the cgroup `point` see the sockets of this process, or it has ended.
/// `mount` is where the hierarchy of version 2 is.
pub(super) fn sees(mount: &Path, point: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
    own.is_none_or(|own| is_within(&mount.join(own), point))
}

/// Cgroups that agents of the node (of any, where none is given) made and left.
pub(super) fn abandoned(node: Option<&NodeName>) -> Result<Vec<PathBuf>, RedirectError> {
    let mut found = Vec::new();
    let mut pending = vec![mount()?];
    while let Some(directory) = pending.pop() {
        // Cgroups go while they are walked.
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let of = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            if of.is_some_and(|of| node.is_none_or(|node| escape(&node.0) == of)) {
                found.push(entry.path());
            } else {
                pending.push(entry.path());
            }
        }
    }
    Ok(found)
}

pub(super) fn file(step: &'static str, path: &Path, source: io::Error) -> RedirectError {
    RedirectError::File {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{find_mount, unescape};

    #[test]
    fn finds_cgroup2_in_both_layouts() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      40 30 0:36 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_mount(hybrid).as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find_mount(unified).as_deref(),
            Some(Path::new("/sys/fs/cgroup"))
        );
        assert_eq!(find_mount("30 24 0:26 / /proc rw - proc proc rw\n"), None);
    }

    #[test]
    fn the_whole_hierarchy_goes_before_a_part_of_it() {
        let part = "50 49 0:27 /kubepods.slice/p /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let whole = "60 49 0:27 / /host/sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let found = find_mount(&format!("{part}{whole}"));
        assert_eq!(found.as_deref(), Some(Path::new("/host/sys/fs/cgroup")));
        let found = find_mount(part);
        assert_eq!(found.as_deref(), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
    }
}
