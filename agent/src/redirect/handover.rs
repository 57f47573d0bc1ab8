//! Two agents of one node at once, as during an upgrade: each lets the other's own
//! connections pass.
//!
//! Until the new one has taken over, the programs of both run on each connection of a
//! pod. A connection that one agent makes in a pod's namespace must not be redirected to
//! the other, which would take it for the pod's.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;

use super::kernel::{CONNECT_PROGRAMS, Kernel, in_map};
use super::{RedirectError, cgroup, pins};

/// The map of cgroups whose sockets pass.
pub(super) const AGENTS: &str = "AGENTS";

/// Makes the cgroup `own` known to the programs of the agents that still run, which forget
/// those that have ended, and returns theirs.
fn introduce(previous: &[PathBuf], own: u64) -> Result<BTreeSet<u64>, RedirectError> {
    let mut theirs = BTreeSet::new();
    let running = running(previous)?;
    for (instance, its_own) in &running {
        let Some(mut agents) = agents_of(instance)? else {
            // It had not attached anything yet.
            continue;
        };
        let known: BTreeSet<u64> = agents.keys().flatten().collect();
        let ended = ended(&known, *its_own, &running);
        for cgroup in &ended {
            drop(agents.remove(cgroup));
        }
        theirs.extend(known.difference(&ended).filter(|&&cgroup| cgroup != own));
        agents.insert(own, 1, 0).map_err(in_map(AGENTS))?;
    }
    Ok(theirs)
}

/// Takes the cgroup `own` of an agent that does not start back from the others, where it is
/// nobody else's.
pub(super) fn withdraw(previous: &[PathBuf], own: u64) {
    let Ok(running) = running(previous) else {
        return;
    };
    if !running.iter().all(|(_, it)| it.is_some_and(|it| it != own)) {
        return;
    }
    for (instance, _) in running {
        if let Ok(Some(mut agents)) = agents_of(&instance) {
            drop(agents.remove(&own));
        }
    }
}

/// An agent's instance that runs, and its cgroup where that can be told.
type Running = (PathBuf, Option<u64>);

fn running(previous: &[PathBuf]) -> Result<Vec<Running>, RedirectError> {
    let mut running = Vec::new();
    for instance in previous {
        if let Some(agent) = pins::running(instance)? {
            running.push((instance.clone(), cgroup::of_process(agent.pid)));
        }
    }
    Ok(running)
}

/// Those cgroups that an agent knows of which none of the agents that run is in: every
/// attempt to start a later one left one. None where it can't be told for sure: an agent
/// knows the cgroup that is its own, or processes are numbered otherwise here.
fn ended(known: &BTreeSet<u64>, its_own: Option<u64>, running: &[Running]) -> BTreeSet<u64> {
    let living: Option<BTreeSet<u64>> = running.iter().map(|(_, cgroup)| *cgroup).collect();
    match living {
        Some(living) if its_own.is_some_and(|it| known.contains(&it)) => known - &living,
        _ => BTreeSet::new(),
    }
}

/// The map of the programs that an instance's pins keep.
fn agents_of(instance: &Path) -> Result<Option<HashMap<MapData, u64, u32>>, RedirectError> {
    let pin = instance.join(CONNECT_PROGRAMS[0].trim_start_matches("fl_"));
    let Ok(link) = PinnedLink::from_pin(&pin) else {
        return Ok(None);
    };
    let Ok(link) = FdLink::from(link).info() else {
        return Ok(None);
    };
    let mut programs = loaded_programs().flatten();
    let Some(program) = programs.find(|it| it.id() == link.program_id()) else {
        return Ok(None);
    };
    let Ok(Some(maps)) = program.map_ids() else {
        return Ok(None);
    };
    for id in maps {
        let info = MapInfo::from_id(id).map_err(in_map(AGENTS))?;
        if info.name_as_str() == Some(AGENTS) {
            let data = MapData::from_id(id).map_err(in_map(AGENTS))?;
            let map = HashMap::try_from(Map::HashMap(data)).map_err(in_map(AGENTS))?;
            return Ok(Some(map));
        }
    }
    Ok(None)
}

/// Lets this agent's connections and those of the agents that still run pass.
pub(super) fn exempt(
    kernel: &mut Kernel,
    previous: &[PathBuf],
    own: u64,
) -> Result<(), RedirectError> {
    let mut cgroups = introduce(previous, own)?;
    let _new = cgroups.insert(own);
    kernel.exempt(&cgroups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(running: &[Option<u64>], expected: &[u64]) {
        let known = BTreeSet::from([1, 2, 3, 4]);
        let running = running.iter().map(|cgroup| (PathBuf::new(), *cgroup));
        let running: Vec<Running> = running.collect();
        let expected = expected.iter().copied().collect();
        let found = ended(&known, running[0].1, &running);
        assert_eq!(found, expected, "{running:?}");
    }

    #[test]
    fn cgroups_of_agents_that_have_ended_are_forgotten() {
        check(&[Some(1)], &[2, 3, 4]);
        check(&[Some(1), Some(4)], &[2, 3]);
        check(&[Some(1), Some(9)], &[2, 3, 4]);
    }

    #[test]
    fn nothing_is_forgotten_where_it_can_not_be_told_who_runs() {
        check(&[Some(1), None], &[]);
        check(&[None, Some(1)], &[]);
        check(&[Some(9)], &[]);
        check(&[Some(9), Some(1)], &[]);
        check(&[None], &[]);
    }
}
