//! Two agents of one node at once, as during an upgrade: each lets the other's own
//! connections pass.
//!
//! Until the new one has taken over, the programs of both run on each connection of a
//! pod. A connection that one agent makes in a pod's namespace must not be redirected to
//! the other, which would take it for the pod's.

use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;

use super::RedirectError;
use super::kernel::{CONNECT_PROGRAMS, Kernel, in_map};
use super::pins;

/// The map of cgroups whose sockets pass.
pub(super) const AGENTS: &str = "AGENTS";

/// Makes the cgroup `own` known to the programs of the agents that still run, and
/// returns theirs.
pub(super) fn introduce(previous: &[PathBuf], own: u64) -> Result<Vec<u64>, RedirectError> {
    let mut theirs = Vec::new();
    for instance in previous {
        if pins::running(instance)?.is_none() {
            continue;
        }
        let Some(mut agents) = agents_of(instance)? else {
            // It had not attached anything yet.
            continue;
        };
        theirs.extend(agents.keys().flatten().filter(|&cgroup| cgroup != own));
        agents.insert(own, 1, 0).map_err(in_map(AGENTS))?;
    }
    Ok(theirs)
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
    cgroups.push(own);
    kernel.exempt(&cgroups)
}
