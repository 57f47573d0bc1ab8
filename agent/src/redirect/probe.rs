//! What the kernel and the privileges permit, for `fairlead check`.
//!
//! By trying, not by version: distributions carry features back, and containers
//! take privileges away.

use std::os::fd::AsFd;
use std::path::Path;

use aya::EbpfLoader;
use aya::programs::{CgroupSockAddr, Program, SkLookup, SockOps};

use super::cgroup::{self, file};
use super::kernel::{CONNECT_PROGRAMS, LOOKUP_PROGRAM, SOCK_OPS_PROGRAM};
use super::netns::Netns;
use super::object::object;
use super::pins::require_bpffs;
use super::{Config, RedirectError, sock_diag, sys};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// The agent can't run.
    Failed,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// What was found, or the kernel's answer.
    pub detail: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: &'static str,
}

/// Tries everything that [`super::Redirector::start`] needs, and leaves nothing
/// behind.
pub fn probe(config: &Config) -> Vec<Check> {
    let mut checks = vec![
        capabilities(),
        check("programs in this build", object(), "", |object| {
            format!("{} KiB", object.len() / 1024)
        }),
        check(
            "cgroup version 2",
            cgroup::open(&config.cgroup),
            "mount it: `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`, or name it with --cgroup",
            |_| config.cgroup.display().to_string(),
        ),
        check(
            "bpffs",
            require_bpffs(&config.bpffs),
            "mount it: `mount -t bpf bpf /sys/fs/bpf`, or name it with --bpffs",
            |()| config.bpffs.display().to_string(),
        ),
        check(
            "network namespace cookies",
            cookie(),
            "needs Linux 5.14 or later",
            |_| "SO_NETNS_COOKIE".to_owned(),
        ),
        check(
            "entering network namespaces",
            enter(),
            "needs CAP_SYS_ADMIN",
            |()| "setns".to_owned(),
        ),
        check(
            "listing sockets",
            sock_diag::listening()
                .map_err(|source| file("use", "NETLINK_SOCK_DIAG".as_ref(), source)),
            "needs CONFIG_INET_DIAG (`modprobe tcp_diag`)",
            |_| "NETLINK_SOCK_DIAG".to_owned(),
        ),
    ];
    checks.extend(programs());
    checks
}

fn check<T>(
    name: &'static str,
    tried: Result<T, RedirectError>,
    remedy: &'static str,
    describe: impl FnOnce(T) -> String,
) -> Check {
    match tried {
        Ok(found) => Check {
            name,
            outcome: Outcome::Passed,
            detail: describe(found),
            remedy: "",
        },
        Err(error) => Check {
            name,
            outcome: Outcome::Failed,
            detail: chain(&error),
            remedy,
        },
    }
}

/// An error and its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The verifier's log has many lines; its last ones say what is wrong.
        let message = error.to_string();
        let lines: Vec<&str> = message.lines().collect();
        let tail = lines.len().saturating_sub(3);
        text.push_str(": ");
        text.push_str(&lines.get(tail..).unwrap_or_default().join(" | "));
        cause = error.source();
    }
    text
}

fn capabilities() -> Check {
    use rustix::thread::{CapabilitySet, capabilities};
    let name = "privileges";
    // CAP_BPF is a part of the first, without which no pod's namespace can be entered.
    let needed = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    ];
    let missing: Vec<&str> = match capabilities(None) {
        Ok(sets) => needed
            .iter()
            .filter(|(capability, _)| !sets.effective.contains(*capability))
            .map(|(_, name)| *name)
            .collect(),
        Err(_) => Vec::new(),
    };
    if missing.is_empty() {
        return Check {
            name,
            outcome: Outcome::Passed,
            detail: needed.map(|(_, name)| name).join(", "),
            remedy: "",
        };
    }
    Check {
        name,
        outcome: Outcome::Failed,
        detail: format!("missing: {}", missing.join(", ")),
        remedy: "run as root, in a container with the capabilities of deploy/base/agent.yaml",
    }
}

fn cookie() -> Result<u64, RedirectError> {
    let path = Path::new("SO_NETNS_COOKIE");
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .map_err(|source| file("open a socket for", path, source))?;
    sys::netns_cookie(socket.as_fd()).map_err(|source| file("read", path, source))
}

fn enter() -> Result<(), RedirectError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let home = Netns::current().map_err(|source| file("open", path, source))?;
    Netns::open(path, &std::sync::Arc::new(home))
        .map(drop)
        .map_err(|source| file("enter", path, source))
}

/// Loads each program by itself, so that each answer is its own.
fn programs() -> Vec<Check> {
    const REMEDY: &str = "needs Linux 5.15 or later with CONFIG_CGROUP_BPF, and CAP_BPF";
    let loaded = object().and_then(|object| {
        EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &0_u8, false)
            .load(object)
            .map_err(|error| RedirectError::Load(Box::new(error)))
    });
    let mut ebpf = match loaded {
        Ok(ebpf) => ebpf,
        Err(error) => {
            return vec![check("eBPF maps", Err::<(), _>(error), REMEDY, |()| {
                String::new()
            })];
        }
    };
    let names = CONNECT_PROGRAMS
        .into_iter()
        .chain([SOCK_OPS_PROGRAM, LOOKUP_PROGRAM]);
    let mut checks = Vec::new();
    for name in names {
        let result = match ebpf.program_mut(name) {
            Some(program) => load(program),
            None => Err(aya::programs::ProgramError::NotLoaded),
        };
        let result = result.map_err(|source| RedirectError::Program {
            program: name,
            step: "load",
            source: Box::new(source),
        });
        checks.push(check(name, result, REMEDY, |count| match count {
            Some(count) => format!("{count} instructions verified"),
            None => "loaded".to_owned(),
        }));
    }
    checks
}

fn load(program: &mut Program) -> Result<Option<u32>, aya::programs::ProgramError> {
    if let Ok(program) = <&mut CgroupSockAddr>::try_from(&mut *program) {
        program.load()?;
    } else if let Ok(program) = <&mut SockOps>::try_from(&mut *program) {
        program.load()?;
    } else {
        let program: &mut SkLookup = program.try_into()?;
        program.load()?;
    }
    Ok(program.info()?.verified_instruction_count())
}
