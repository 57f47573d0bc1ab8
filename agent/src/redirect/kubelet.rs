//! Kubelet: its connections to this node's pods are probes, and are told from everybody
//! else's by the cgroup and the network namespace of the process that makes them.
//!
//! A cgroup is given by the kernel and inherited, so that no process of a pod is in
//! kubelet's. Whatever kubelet itself starts is, until it is put elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::links::PinnedLink;
use tokio::time::Instant;

use super::cgroup::{self, file};
use super::{RedirectError, Redirector, pins};

/// Where kubelet's connections come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// From the cgroup of the process that is named so.
    Find,
    /// From this cgroup; those below it are not meant.
    At(PathBuf),
    /// Nobody's are believed to be probes.
    Nowhere,
}

/// What the process is called: kubelet itself, and programs of which it is a part.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];

/// What its program's file is called; that of k3s, which is many programs, is named
/// containerd in older ones.
const PROGRAMS: [&str; 6] = [
    "kubelet",
    "kubelite",
    "k3s",
    "k3s-server",
    "k3s-agent",
    "containerd",
];

/// Between two looks at every process of the machine, at first and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is known of kubelet.
#[derive(Debug)]
pub(super) struct Watch {
    trusted: Vec<Trusted>,
    next_look: Option<Instant>,
    wait: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            trusted: Vec::new(),
            next_look: None,
            wait: FIRST_WAIT,
        }
    }
}

/// A cgroup whose processes are kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// What the programs compare.
    id: u64,
    path: PathBuf,
    /// The process that was found there.
    process: Option<u32>,
}

#[derive(Debug)]
struct Trusted {
    found: Found,
    /// Each with its link, which is open for as long as it is meant.
    pins: Vec<(PathBuf, PinnedLink)>,
}

impl Watch {
    /// The cgroups that are believed.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        let paths = self.trusted.iter().map(|it| it.found.path.clone());
        paths.collect()
    }
}

impl Redirector {
    /// Looks where kubelet is, which may have been started again in another cgroup, and
    /// believes its connections. Call it about once a second: that is little work unless
    /// kubelet has gone, and then it looks at all processes ever less often. `None` where
    /// it did not look.
    pub fn follow_kubelet(&mut self) -> Option<Result<(), RedirectError>> {
        if self.config.kubelet == Kubelet::Nowhere || self.is_where_it_was() {
            return None;
        }
        let now = Instant::now();
        if self.kubelet.next_look.is_some_and(|next| now < next) {
            return None;
        }
        let found = match &self.config.kubelet {
            Kubelet::Nowhere => Ok(Vec::new()),
            Kubelet::At(path) => at(path).map(|found| vec![found]),
            Kubelet::Find => find(self.home.identity(), &self.agent.path),
        };
        let looked = found.and_then(|found| self.believe(found));
        self.kubelet.next_look = Some(now + self.kubelet.wait);
        self.kubelet.wait = (self.kubelet.wait * 2).min(LONGEST_WAIT);
        Some(looked)
    }

    /// Nothing has changed since the last look. What has gone is not believed any more.
    fn is_where_it_was(&mut self) -> bool {
        let home = self.home.identity();
        let gone: Vec<Found> = self
            .kubelet
            .trusted
            .iter()
            .map(|trusted| &trusted.found)
            .filter(|found| !found.is_still_there(home))
            .cloned()
            .collect();
        for found in &gone {
            self.forget_kubelet(found);
            // It comes back soon, as a rule.
            self.kubelet.wait = FIRST_WAIT;
            self.kubelet.next_look = None;
        }
        gone.is_empty() && !self.kubelet.trusted.is_empty()
    }

    fn believe(&mut self, found: Vec<Found>) -> Result<(), RedirectError> {
        for found in found {
            if !self
                .kubelet
                .trusted
                .iter()
                .any(|it| it.found.id == found.id)
            {
                self.trust(found)?;
            }
        }
        Ok(())
    }

    fn trust(&mut self, found: Found) -> Result<(), RedirectError> {
        let pins = self.attach_to(&found)?;
        // Last, so that what is marked is carried over too.
        self.kernel.trust_kubelet(found.id, self.home.cookie())?;
        tracing::info!(
            cgroup = %found.path.display(),
            process = found.process,
            "connections of this cgroup to pods are kubelet's probes"
        );
        self.kubelet.trusted.push(Trusted { found, pins });
        Ok(())
    }

    /// Attaches what marks its connections, unless the pods' cgroup has it already and is
    /// above.
    fn attach_to(&mut self, found: &Found) -> Result<Vec<(PathBuf, PinnedLink)>, RedirectError> {
        let mut attached = Vec::new();
        if cgroup::is_within(&found.path, &self.config.cgroup) {
            return Ok(attached);
        }
        let point = cgroup::open(&found.path)?;
        let pin = |name| self.pins.path(&format!("{name}-kubelet-{}", found.id));
        let names = ["sockops", "connect4", "connect6"].map(|name| (name, pin(name)));
        for (name, pin) in names {
            // One that an attempt which failed has left.
            pins::remove(&pin)?;
            let link = match name {
                "sockops" => self.kernel.attach_sock_ops(&point, &pin),
                "connect4" => self.kernel.attach_connect("fl_connect4", &point, &pin),
                _ => self.kernel.attach_connect("fl_connect6", &point, &pin),
            };
            match link {
                Ok(link) => attached.push((pin, link)),
                Err(error) => {
                    detach(attached);
                    return Err(error);
                }
            }
        }
        Ok(attached)
    }

    fn forget_kubelet(&mut self, found: &Found) {
        self.kernel.distrust_kubelet(found.id);
        let at = self
            .kubelet
            .trusted
            .iter()
            .position(|it| it.found == *found);
        if let Some(at) = at {
            detach(self.kubelet.trusted.swap_remove(at).pins);
        }
        tracing::info!(cgroup = %found.path.display(), "kubelet is not there any more");
    }
}

fn detach(attached: Vec<(PathBuf, PinnedLink)>) {
    for (pin, link) in attached {
        drop(link);
        if let Err(error) = pins::remove(&pin) {
            tracing::warn!(%error, "a pin is left over");
        }
    }
}

impl Found {
    /// The cgroup is the same, and kubelet is in it where it was found by its process.
    fn is_still_there(&self, home: (u64, u64)) -> bool {
        let same = fs::metadata(&self.path).is_ok_and(|data| data.ino() == self.id);
        let is_in_it = |process| {
            is_kubelet(process, home).unwrap_or(false) && cgroup::has_member(&self.path, process)
        };
        same && self.process.is_none_or(is_in_it)
    }
}

/// The cgroup that was named.
fn at(path: &Path) -> Result<Found, RedirectError> {
    drop(cgroup::open(path)?);
    let refused = |reason: &str| {
        let reason = io::Error::new(io::ErrorKind::InvalidInput, reason);
        file("take --kubelet-cgroup", path, reason)
    };
    let canonical = path
        .canonicalize()
        .map_err(|source| file("find", path, source))?;
    if canonical == cgroup::mount()? {
        return Err(refused(
            "every process of the machine is below the root: it proves nothing",
        ));
    }
    let data = fs::metadata(path).map_err(|source| file("read", path, source))?;
    Ok(Found {
        id: data.ino(),
        path: path.to_owned(),
        process: None,
    })
}

/// The cgroups of processes that are kubelet, by their name, in the network namespace
/// `home`. `own` is the agent's. An error: there is one, and it can't be told by that.
fn find(home: (u64, u64), own: &Path) -> Result<Vec<Found>, RedirectError> {
    let mount = cgroup::mount()?;
    let path = Path::new("/proc");
    let entries = fs::read_dir(path).map_err(|source| file("read", path, source))?;
    let processes = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<Found> = Vec::new();
    let mut failure = None;
    for process in processes {
        match look_at(process, home, &mount) {
            Ok(Some(one)) if one.path != own && found.iter().all(|it| it.id != one.id) => {
                found.push(one);
            }
            Err(error) if Path::new(&format!("/proc/{process}")).exists() => {
                failure = Some(error);
            }
            // Of one that has ended meanwhile nothing is to be told.
            Ok(_) | Err(_) => {}
        }
    }
    match failure {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// The cgroup of a process that is kubelet.
fn look_at(process: u32, home: (u64, u64), mount: &Path) -> Result<Option<Found>, RedirectError> {
    if !is_kubelet(process, home)? {
        return Ok(None);
    }
    let path = PathBuf::from(format!("/proc/{process}/cgroup"));
    let text = fs::read_to_string(&path).map_err(|source| file("read", &path, source))?;
    if text.lines().any(|line| line.contains("kubepods")) {
        return Ok(None);
    }
    if is_of_a_session(&text) {
        return Ok(None);
    }
    let unknown = |reason: &str| {
        let reason = io::Error::new(io::ErrorKind::NotFound, reason);
        file("tell kubelet from others by", &path, reason)
    };
    let relative = of_its_own(&text)
        .ok_or_else(|| unknown("it has no cgroup of version 2 but the root, where everybody is"))?;
    let cgroup = mount.join(relative);
    match fs::metadata(&cgroup) {
        Ok(data) if cgroup::has_member(&cgroup, process) => Ok(Some(Found {
            id: data.ino(),
            path: cgroup,
            process: Some(process),
        })),
        _ => Err(unknown(
            "its cgroup is not below the mount; name it with --kubelet-cgroup",
        )),
    }
}

/// It has one of the names, which anybody can give himself, and runs a program that only
/// root can have put there, as root in the network namespace, the process namespace and the
/// user namespace of the agent, which no pod is that is not trusted with the node.
fn is_kubelet(process: u32, home: (u64, u64)) -> Result<bool, RedirectError> {
    let directory = PathBuf::from(format!("/proc/{process}"));
    let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
    let status = || fs::read_to_string(directory.join("status")).unwrap_or_default();
    if !NAMES.contains(&name.trim_end()) || !is_root(&status()) {
        return Ok(false);
    }
    if !is_kubelets_program(&directory.join("exe"))? {
        return Ok(false);
    }
    let namespace = |directory: &Path, name: &str| {
        // Of a process with privileges that this one has not: needs CAP_SYS_PTRACE.
        let path = directory.join("ns").join(name);
        let data = fs::metadata(&path).map_err(|source| file("look at", &path, source))?;
        Ok((data.dev(), data.ino()))
    };
    let own = Path::new("/proc/self");
    Ok(namespace(&directory, "net")? == home
        && namespace(&directory, "pid")? == namespace(own, "pid")?
        && namespace(&directory, "user")? == namespace(own, "user")?)
}

/// The program of a process is kubelet's, and not one that users start as root under a name
/// that they chose, such as sudo by a link.
fn is_kubelets_program(link: &Path) -> Result<bool, RedirectError> {
    let failed = |source| file("look at", link, source);
    let path = fs::read_link(link).map_err(failed)?;
    let data = fs::metadata(link).map_err(failed)?;
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.is_some_and(is_program) && is_roots_own(data.uid(), data.gid(), data.mode()))
}

fn is_program(name: &str) -> bool {
    // One that an upgrade of the node has replaced runs on.
    let name = name.strip_suffix(" (deleted)").unwrap_or(name);
    PROGRAMS.contains(&name)
}

/// Root alone can write the file, and only root is root who starts it.
fn is_roots_own(owner: u32, group: u32, mode: u32) -> bool {
    const SET_IDS: u32 = 0o6000;
    let group_writes = mode & 0o020 != 0 && group != 0;
    owner == 0 && !group_writes && mode & 0o002 == 0 && mode & SET_IDS == 0
}

/// The cgroup, of any version, is below those of users that have logged in.
fn is_of_a_session(text: &str) -> bool {
    let parts = text.lines().flat_map(|line| line.split(['/', ':']));
    parts.into_iter().any(|part| part == "user.slice")
}

/// All of the user ids in a process's `status` are root's.
fn is_root(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.is_some_and(|ids| ids.split_whitespace().all(|id| id == "0"))
}

/// The cgroup in a process's `cgroup` file, from the mount: `None` where it is the root.
fn of_its_own(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // Seen from a cgroup namespace of the agent's own.
    let path = path.trim_start_matches("../");
    (!path.is_empty() && path != "..").then_some(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{
        is_kubelet, is_kubelets_program, is_of_a_session, is_program, is_root, is_roots_own,
        of_its_own,
    };

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(of_its_own(text), expected, "{text}");
    }

    #[test]
    fn the_root_is_nobodys_own() {
        let own = Some("system.slice/kubelet.service");
        check("0::/system.slice/kubelet.service\n", own);
        check("4:cpu:/x\n0::/system.slice/kubelet.service\n", own);
        check("0::/../../../system.slice/kubelet.service\n", own);
        for text in [
            "0::/\n",
            "0::/..\n",
            "0::/../..\n",
            "",
            "4:cpu:/system.slice\n",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn only_root_is_kubelet() {
        assert!(is_root("Name:\tkubelet\nUid:\t0\t0\t0\t0\n"));
        assert!(!is_root("Name:\tkubelet\nUid:\t1000\t0\t0\t0\n"));
        assert!(!is_root("Name:\tkubelet\n"));
    }

    #[test]
    fn a_name_that_a_user_chose_makes_no_kubelet() {
        for name in ["kubelet", "k3s", "kubelite", "kubelet (deleted)"] {
            assert!(is_program(name), "{name}");
        }
        for name in ["sudo", "", "kubelets", "sudo (deleted)"] {
            assert!(!is_program(name), "{name}");
        }
        // The link of a process that was started by a link named kubelet.
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("exe");
        symlink("/proc/self/exe", directory.path().join("kubelet")).unwrap();
        symlink(std::env::current_exe().unwrap(), &link).unwrap();
        assert!(!is_kubelets_program(&link).unwrap());
        assert!(is_kubelets_program(Path::new("/proc/0/exe")).is_err());
    }

    #[test]
    fn a_program_that_others_can_write_or_start_as_root_is_not_kubelet() {
        assert!(is_roots_own(0, 0, 0o100_755));
        assert!(is_roots_own(0, 0, 0o100_775));
        assert!(!is_roots_own(1000, 0, 0o100_755));
        assert!(!is_roots_own(0, 100, 0o100_775));
        assert!(!is_roots_own(0, 0, 0o100_757));
        assert!(!is_roots_own(0, 0, 0o104_755));
        assert!(!is_roots_own(0, 0, 0o102_755));
    }

    #[test]
    fn no_session_of_a_user_is_kubelets() {
        assert!(is_of_a_session(
            "0::/user.slice/user-1000.slice/session-4.scope\n"
        ));
        assert!(is_of_a_session("0::/../../user.slice/user-0.slice\n"));
        assert!(!is_of_a_session(
            "0::/system.slice/user.slice-like.service\n"
        ));
        assert!(!is_of_a_session("0::/system.slice/kubelet.service\n"));
    }

    #[test]
    fn this_process_is_not_kubelet() {
        assert!(!is_kubelet(std::process::id(), (0, 0)).unwrap());
    }
}
