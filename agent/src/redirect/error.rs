//! What can go wrong with the kernel.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;

use super::pins::RunningAgent;
use crate::model::NamespacedName;

/// Why the kernel does not redirect as it should.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// This binary was built without the kernel's programs.
    #[error(
        "this build has no programs for the kernel, because {reason}; run `cargo xtask build` and use that binary"
    )]
    NotBuilt {
        /// What was missing at build time.
        reason: &'static str,
    },
    /// The kernel did not take the object: maps, types, sizes.
    #[error("cannot create the maps; `fairlead check` says what the kernel lacks")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel did not take a program, or not its attachment.
    #[error(
        "cannot {step} the program {program}{}; `fairlead check` says what the kernel lacks",
        hint(.source)
    )]
    Program {
        /// The program.
        program: &'static str,
        /// `load` or `attach`.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot access the map {map}")]
    Map {
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<MapError>,
    },
    /// A link could not be pinned.
    #[error("cannot pin {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Box<PinError>,
    },
    /// The path for pins is not on a bpffs.
    #[error("{path} is not a bpffs; run `mount -t bpf bpf {path}`")]
    NoBpffs {
        /// The path.
        path: PathBuf,
    },
    /// A file, directory or cgroup could not be used.
    #[error("cannot {step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pod has no network namespace that is its own.
    #[error("the pod {pod} can't be enrolled: {reason}")]
    NotEnrollable {
        /// The pod.
        pod: NamespacedName,
        /// What stands against it.
        reason: &'static str,
    },
    /// The namespace or an address of a pod is in use by another pod.
    #[error("the pod {pod} can't be enrolled: its {what} belongs to {owner}")]
    Conflict {
        /// The pod.
        pod: NamespacedName,
        /// The namespace or the address.
        what: String,
        /// The pod that has it.
        owner: NamespacedName,
    },
    /// A socket or a call inside a pod's namespace failed.
    #[error("cannot {step} in the network namespace of {pod}")]
    Network {
        /// The pod.
        pod: NamespacedName,
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// What is to be removed is in use.
    #[error("{}", running(.agents))]
    Running {
        /// Who uses it.
        agents: Vec<RunningAgent>,
    },
    /// The earlier instance can't be dropped yet.
    #[error("these pods would be left unguarded: {}", list(.pods))]
    Unguarded {
        /// Pods that are neither enrolled nor blocked.
        pods: Vec<NamespacedName>,
    },
}

impl RedirectError {
    /// The node ran out of something (descriptors, memory, map entries), so that
    /// trying again later makes sense.
    pub fn is_exhaustion(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let number = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::raw_os_error);
            if let Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::E2BIG) =
                number
            {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// What a denied attachment usually means.
fn hint(error: &ProgramError) -> &'static str {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let number = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        match number {
            Some(libc::EPERM) => {
                return " (denied: CAP_BPF and CAP_NET_ADMIN are needed, and no other program may \
                        be attached exclusively at or above the cgroup: `bpftool cgroup tree`)";
            }
            Some(libc::ENOLINK) => return " (the cgroup is gone)",
            _ => cause = error.source(),
        }
    }
    ""
}

fn running(agents: &[RunningAgent]) -> String {
    let one = |agent: &RunningAgent| format!("process {} on node {}", agent.pid, agent.node);
    let who: Vec<String> = agents.iter().map(one).collect();
    let pids: Vec<String> = agents.iter().map(|agent| agent.pid.to_string()).collect();
    format!(
        "an agent runs: {}; stop it first (`kill {}`, or the service or pod that it is), else its \
         pods would be open as soon as it ends; --dead-only removes only what ended agents left",
        who.join(", "),
        pids.join(" ")
    )
}

fn list(pods: &[NamespacedName]) -> String {
    let names: Vec<String> = pods.iter().map(ToString::to_string).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(number: i32) -> RedirectError {
        RedirectError::Network {
            pod: NamespacedName::new("shop", "web"),
            step: "listen",
            source: io::Error::from_raw_os_error(number),
        }
    }

    #[test]
    fn what_the_node_ran_out_of_is_tried_again() {
        for number in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::E2BIG,
        ] {
            assert!(socket(number).is_exhaustion(), "{number}");
        }
        for number in [libc::EPERM, libc::ENOENT, libc::EADDRINUSE] {
            assert!(!socket(number).is_exhaustion(), "{number}");
        }
    }
}
