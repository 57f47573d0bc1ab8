//! What a world leaves in the system, by name, so that anyone can remove it.
//!
//! A world's identifier is in the name of its namespaces, its cgroup and its
//! directory. It starts with the process id of the creator, so that the next run
//! can tell the worlds of the dead.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait;

/// What every name begins with.
const PREFIX: &str = "fairlead-test-";

/// The namespace of one member of a world.
pub(crate) fn netns_name(world: &str, member: &str) -> String {
    format!("{PREFIX}{world}.{member}")
}

/// The cgroup of a world.
pub(crate) fn cgroup_of(world: &str) -> Result<PathBuf> {
    let mount = cgroup2_mount().context("no cgroup2 file system is mounted")?;
    Ok(mount.join(format!("{PREFIX}{world}")))
}

/// The directory of a world: manifests, logs, data of servers.
pub(crate) fn directory_of(world: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{PREFIX}{world}"))
}

/// Where the cgroup2 file system is mounted.
pub(crate) fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// Runs `ip` commands, one a line, in a namespace.
pub(crate) fn ip_batch(netns: &str, commands: &[String]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip (package iproute2)")?;
    let mut input = child.stdin.take().context("stdin was piped")?;
    input.write_all(commands.join("\n").as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip in {netns}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            commands.join("\n")
        );
    }
    Ok(())
}

/// Runs a system tool that has to succeed.
pub(crate) fn tool<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    let mut command = Command::new(program);
    let output = crate::process::run(command.args(arguments), Duration::from_mins(1))?
        .ok()
        .with_context(|| format!("{command:?}"))?;
    Ok(output.stdout)
}

/// Removes the worlds whose creator is dead.
pub fn sweep() -> Result<()> {
    let mut worlds: Vec<String> = entries(Path::new("/run/netns"))
        .into_iter()
        .chain(entries(&std::env::temp_dir()))
        .chain(
            cgroup2_mount()
                .map(|mount| entries(&mount))
                .unwrap_or_default(),
        )
        .filter_map(|name| world_in(&name))
        .collect();
    worlds.sort_unstable();
    worlds.dedup();
    for world in worlds.iter().filter(|world| creator_is_dead(world)) {
        remove_world(world)?;
    }
    Ok(())
}

/// Kills every process of a world and removes all that it made. A world that
/// does not exist is removed already.
pub fn remove_world(world: &str) -> Result<()> {
    let cgroup = cgroup_of(world)?;
    if cgroup.exists() {
        kill_cgroup(&cgroup)?;
        remove_cgroup(&cgroup)?;
    }
    let prefix = netns_name(world, "");
    for name in entries(Path::new("/run/netns")) {
        if name.starts_with(&prefix) {
            drop(tool("ip", &["netns", "del", &name])?);
        }
    }
    let directory = directory_of(world);
    unmount_below(&directory)?;
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Removes a network namespace.
pub(crate) fn remove_netns(name: &str) -> Result<()> {
    tool("ip", &["netns", "del", name]).map(drop)
}

/// Kills every process in a cgroup and below, and waits until they are gone.
pub(crate) fn kill_cgroup(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("cannot kill {}", cgroup.display()))?;
    wait::until(
        "the end of a cgroup's processes",
        Duration::from_secs(30),
        || {
            let events = fs::read_to_string(cgroup.join("cgroup.events")).ok()?;
            events.contains("populated 0").then_some(())
        },
    )
}

/// Removes a cgroup with all below it; no process may be left there.
pub(crate) fn remove_cgroup(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup).with_context(|| format!("cannot remove {}", cgroup.display()))
}

fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(directory));
    for path in below {
        drop(tool("umount", &["--lazy", path])?);
    }
    Ok(())
}

fn entries(directory: &Path) -> Vec<String> {
    let Ok(read) = fs::read_dir(directory) else {
        return Vec::new();
    };
    read.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn world_in(name: &str) -> Option<String> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.split('.').next().map(str::to_owned)
}

/// Worlds with a fixed name, such as the demo's, have no creator to look at.
fn creator_is_dead(world: &str) -> bool {
    let Some(pid) = world.split('-').next().and_then(|p| p.parse::<u32>().ok()) else {
        return false;
    };
    !Path::new("/proc").join(pid.to_string()).exists()
}
