//! The network namespaces of pods that already run: by UID, through `/proc`.
//!
//! One walk over all processes serves every pod that is looked for. A pod's namespace
//! is the one of its oldest process that is not the node's own and has the pod's
//! addresses. The oldest process is the sandbox's, which the runtime started before any
//! other; where the runtime keeps none (CRI-O can do without), it is the first
//! container's. A later process that moved to a namespace of its own, as any may with
//! `unshare`, is never older, so that it can't take the pod out of the mesh.

mod path;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::enrol::network_error;
use super::netns::Netns;
use super::{RedirectError, Redirector};
use crate::model::NamespacedName;
use crate::state::Pod;
use path::membership;

/// A process of a pod. Its directory is held, so that another process of the same
/// number is not taken for it.
#[derive(Debug)]
struct Process {
    pid: u32,
    /// In clock ticks since the machine started.
    started: u64,
    directory: OwnedFd,
}

impl Redirector {
    /// The network namespace that a runtime has handed over with a new pod. Whoever did
    /// says when it ends; `path` is only shown.
    pub fn take_in(
        &self,
        pod: &NamespacedName,
        file: OwnedFd,
        path: PathBuf,
    ) -> Result<Arc<Netns>, RedirectError> {
        let netns =
            Netns::from_file(file.into(), path, &self.home).map_err(network_error(pod, "enter"))?;
        self.of_a_pod(pod, netns.held())
    }

    /// The namespace at a path.
    fn open(&self, pod: &NamespacedName, path: &Path) -> Result<Arc<Netns>, RedirectError> {
        let netns = Netns::open(path, &self.home).map_err(network_error(pod, "enter"))?;
        self.of_a_pod(pod, netns)
    }

    /// Refuses the node's own namespace.
    fn of_a_pod(&self, pod: &NamespacedName, netns: Netns) -> Result<Arc<Netns>, RedirectError> {
        if self.hosts.contains(&netns.cookie()) {
            return Err(RedirectError::NotEnrollable {
                pod: pod.clone(),
                reason: "its network namespace is the node's own",
            });
        }
        Ok(Arc::new(netns))
    }

    /// The network namespaces of pods: at the path that the pod's object names, which only
    /// manifests on this machine may, else that of the pod's processes.
    pub fn locate<'pod>(
        &mut self,
        pods: impl IntoIterator<Item = &'pod Arc<Pod>>,
    ) -> BTreeMap<NamespacedName, Result<Arc<Netns>, RedirectError>> {
        let mut found = BTreeMap::new();
        let mut sought: Vec<&Pod> = Vec::new();
        for pod in pods {
            match &pod.netns {
                Some(path) => {
                    let opened = self.open(&pod.name, path);
                    self.remember_exhaustion(&pod.name, opened.as_ref().err());
                    drop(found.insert(pod.name.clone(), opened));
                }
                None => sought.push(pod),
            }
        }
        if sought.is_empty() {
            return found;
        }
        let mut processes = processes_of(&sought);
        for pod in sought {
            let mut own = processes.remove(&pod.name).unwrap_or_default();
            own.sort_by_key(|process| (process.started, process.pid));
            let chosen = self.choose(pod, &own);
            self.remember_exhaustion(&pod.name, chosen.as_ref().err());
            drop(found.insert(pod.name.clone(), chosen));
        }
        found
    }

    /// The namespace of the oldest process that can be the pod's.
    fn choose(&self, pod: &Pod, processes: &[Process]) -> Result<Arc<Netns>, RedirectError> {
        let refuse = |reason| RedirectError::NotEnrollable {
            pod: pod.name.clone(),
            reason,
        };
        let mut answer = refuse("its network namespace is unknown: no process of it runs");
        let mut seen = Vec::new();
        for process in processes {
            // It may have ended meanwhile.
            let Ok(file) = open_in(&process.directory, "ns/net") else {
                continue;
            };
            let identity = file.metadata().map(|data| (data.dev(), data.ino()));
            let Ok(identity) = identity else { continue };
            if seen.contains(&identity) {
                continue;
            }
            seen.push(identity);
            let path = PathBuf::from(format!("/proc/{}/ns/net", process.pid));
            let netns = Netns::from_file(file, path, &self.home)
                .map_err(network_error(&pod.name, "enter"))?;
            if self.hosts.contains(&netns.cookie()) {
                answer = refuse("its processes are in the node's own network namespace");
            } else if !has_addresses(&netns, pod) {
                answer = refuse("no network namespace of its processes has its addresses");
            } else {
                return Ok(Arc::new(netns));
            }
        }
        Err(answer)
    }
}

/// Lets the calling thread, and those that it starts, see cgroups as the machine's first
/// process does: paths in `/proc` then begin at the root of all. Call it before there
/// are other threads. Does nothing where that is so already, or is not permitted.
pub fn enter_host_cgroups() -> io::Result<()> {
    let identity = |path: &str| fs::metadata(path).map(|data| (data.dev(), data.ino()));
    let first = "/proc/1/ns/cgroup";
    if identity(first)? == identity("/proc/thread-self/ns/cgroup")? {
        return Ok(());
    }
    let namespace = File::open(first)?;
    Ok(move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&namespace),
        Some(LinkNameSpaceType::ControlGroup),
    )?)
}

/// The processes of each pod.
fn processes_of(pods: &[&Pod]) -> BTreeMap<NamespacedName, Vec<Process>> {
    let mut by_uid: BTreeMap<&str, &NamespacedName> = BTreeMap::new();
    // Anybody may write an annotation: a pod's own UID comes before it.
    for pod in pods {
        by_uid.extend(pod.static_uid.iter().map(|uid| (&**uid, &pod.name)));
    }
    by_uid.extend(pods.iter().map(|pod| (&*pod.uid, &pod.name)));
    let mut found: BTreeMap<NamespacedName, Vec<Process>> = BTreeMap::new();
    for pid in pids() {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let of = |text: &str| by_uid.get(&*membership(text)?.uid).copied();
        // Most processes are no pod's: one read tells.
        let Some(name) = fs::read_to_string(path.join("cgroup"))
            .ok()
            .and_then(|it| of(&it))
        else {
            continue;
        };
        let Some((process, cgroup)) = hold(pid, &path) else {
            continue;
        };
        if of(&cgroup) == Some(name) {
            found.entry(name.clone()).or_default().push(process);
        }
    }
    found
}

/// Every process that there is.
pub(super) fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Holds a process's directory and reads what it says of itself there.
fn hold(pid: u32, path: &Path) -> Option<(Process, String)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let read = |name: &str| {
        let mut text = String::new();
        let _length = open_in(&directory, name)
            .ok()?
            .read_to_string(&mut text)
            .ok()?;
        Some(text)
    };
    let (cgroup, started) = (read("cgroup")?, start_time(&read("stat")?)?);
    let process = Process {
        pid,
        started,
        directory,
    };
    Some((process, cgroup))
}

fn open_in(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?.into())
}

/// The 22nd field of `/proc/PID/stat`. The second is a name that may hold anything.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// The pod's addresses can be bound there.
fn has_addresses(netns: &Netns, pod: &Pod) -> bool {
    let bind = || {
        let mut sockets = pod.ips.iter().map(|&ip| UdpSocket::bind((ip, 0)));
        sockets.try_for_each(|socket| socket.map(drop))
    };
    netns.run(bind).is_ok()
}

#[cfg(test)]
mod tests {
    use super::start_time;

    #[test]
    fn names_with_brackets_do_not_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11";
        assert_eq!(start_time(stat), Some(987_654));
        assert_eq!(start_time("42 (a) S 1"), None);
        assert_eq!(start_time(""), None);
    }
}
