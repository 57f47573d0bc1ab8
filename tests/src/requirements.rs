//! What a machine must have before a test can say anything.

use std::path::Path;

use crate::agent::binary;
use crate::system::cgroup2_mount;

/// Why the node tier cannot run here, each with its remedy; empty where it can.
pub fn missing_for_node_tier() -> Vec<String> {
    let mut missing = Vec::new();
    if !rustix::process::geteuid().is_root() {
        missing.push("root".to_owned());
    }
    if cgroup2_mount().is_none() {
        missing.push("a mounted cgroup2 file system".to_owned());
    }
    missing.extend(missing_programs(&["ip", "ss", "nsenter", "mount"]));
    if let Err(error) = binary() {
        missing.push(format!("the agent ({error})"));
    }
    missing
}

/// Why the cluster tier cannot run here: it needs what the node tier needs, and Kubernetes.
pub fn missing_for_cluster_tier() -> Vec<String> {
    let mut missing = missing_for_node_tier();
    missing.extend(missing_programs(&["curl"]));
    if let Err(error) = crate::cluster::kubernetes() {
        missing.push(format!("Kubernetes ({error})"));
    }
    missing
}

/// Those of the programs that are not in `PATH`.
pub fn missing_programs(programs: &[&str]) -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<_> = std::env::split_paths(&path).collect();
    programs
        .iter()
        .filter(|&&program| {
            let absolute = Path::new(program);
            !directories.iter().any(|dir| dir.join(absolute).exists())
        })
        .map(|&program| program.to_owned())
        .collect()
}

/// A test that cannot run is a failure: in continuous integration nothing may go missing
/// without notice.
pub fn skips_are_failures() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    set("FAIRLEAD_CI") || set("CI")
}
