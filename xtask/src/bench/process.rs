//! What the kernel charges to processes: processor time and memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of all threads of the processes, user and system, since they started.
pub(super) fn cpu_time(pids: &[u32]) -> Result<Duration> {
    pids.iter().map(|&pid| cpu_time_of(pid)).sum()
}

/// Resident memory of the processes, in bytes.
pub(super) fn resident_bytes(pids: &[u32]) -> Result<u64> {
    pids.iter().map(|&pid| resident_bytes_of(pid)).sum()
}

/// Processor time since some moment: of the machine, and of the groups of processes that are ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    all: Duration,
    ours: Duration,
    idle: Duration,
}

impl Work {
    /// Up to now.
    pub(super) fn now<'a>(cgroups: impl Iterator<Item = &'a Path>) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let (busy, idle) =
            machine_ticks(&stat).context("cannot read the first line of /proc/stat")?;
        let ours = cgroups.map(cgroup_time).sum::<Result<_>>()?;
        Ok(Self {
            all: duration(busy),
            ours,
            idle: duration(idle),
        })
    }

    /// The part of the machine's processors, from 0 to 1, that others took since `earlier`.
    pub(super) fn others_since(self, earlier: Self) -> f64 {
        let busy = self.all.saturating_sub(earlier.all);
        let idle = self.idle.saturating_sub(earlier.idle);
        let ours = self.ours.saturating_sub(earlier.ours);
        let total = (busy + idle).as_secs_f64();
        if total > 0.0 {
            busy.saturating_sub(ours).as_secs_f64() / total
        } else {
            0.0
        }
    }
}

fn cgroup_time(cgroup: &Path) -> Result<Duration> {
    let path = cgroup.join("cpu.stat");
    let stat =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let usage = stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    let usage = usage.and_then(|usage| usage.parse().ok());
    Ok(Duration::from_micros(usage.with_context(|| {
        format!("no usage in {}", path.display())
    })?))
}

/// Ticks in which the machine worked, and in which it did not.
fn machine_ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let [user, nice, system, idle, wait, irq, softirq, steal, ..] = fields[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq + steal, idle + wait))
}

fn duration(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn cpu_time_of(pid: u32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    let ticks = ticks(&stat).with_context(|| format!("cannot read the times of process {pid}"))?;
    Ok(duration(ticks))
}

/// `utime` + `stime`: fields 14 and 15 of `/proc/PID/stat`, counted after the command's name, which
/// may contain anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn resident_bytes_of(pid: u32) -> Result<u64> {
    // `VmRSS` of `status` may be late by some pages per thread; this is counted on reading.
    let rollup = read(pid, "smaps_rollup")?;
    let kib = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .with_context(|| format!("no Rss in smaps_rollup of process {pid}"))?;
    Ok(kib * 1024)
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has the proxy ended?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_do_not_shift_the_fields() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(300));
    }

    #[test]
    fn others_are_what_is_neither_ours_nor_idle() {
        let work = |all, ours, idle| {
            let [all, ours, idle] = [all, ours, idle].map(Duration::from_secs);
            Work { all, ours, idle }
        };
        let others = work(18, 6, 12).others_since(work(10, 2, 10));
        assert!((others - 0.4).abs() < 1e-9);
    }

    #[test]
    fn machine_ticks_leave_guests_out() {
        assert_eq!(
            machine_ticks("cpu  1 2 4 8 16 32 64 128 256 512\ncpu0 1"),
            Some((231, 24))
        );
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes(&[std::process::id()]).unwrap() > 100_000);
    }
}
