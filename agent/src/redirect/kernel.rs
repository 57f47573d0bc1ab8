//! The loaded programs and their maps, typed: the only file that names them.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf, SockHash};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader};
use fairlead_common::abi::{CidrKey, Counter, Endpoint, Ip, ListenerKey, Pod, PortKey};

use super::RedirectError;
use super::handover::AGENTS;
use super::object::object;
use super::sys::Abi;

/// Hooks that are attached to a cgroup by address family and call.
pub(super) const CONNECT_PROGRAMS: [&str; 4] =
    ["fl_connect4", "fl_connect6", "fl_getpeer4", "fl_getpeer6"];
/// The hook on operations of TCP sockets.
pub(super) const SOCK_OPS_PROGRAM: &str = "fl_sockops";
/// The hook on new connections into a namespace.
pub(super) const LOOKUP_PROGRAM: &str = "fl_lookup";

/// Everything that one instance of the agent has in the kernel.
pub(super) struct Kernel {
    ebpf: Ebpf,
    /// Enrolled namespaces.
    pub(super) pods: HashMap<MapData, u64, Abi<Pod>>,
    /// Which namespace has an address.
    pub(super) addresses: HashMap<MapData, Abi<Ip>, u64>,
    /// The agent's listeners.
    pub(super) listeners: SockHash<MapData, Abi<ListenerKey>>,
    /// Ports that are listened on, counted by the hooks.
    pub(super) listening: HashMap<MapData, Abi<PortKey>, u64>,
    /// Ports that bypass the mesh.
    pub(super) exclude_ports: HashMap<MapData, Abi<PortKey>, u32>,
    /// Blocks that bypass the mesh.
    pub(super) exclude_cidrs: LpmTrie<MapData, Abi<CidrKey>, u32>,
    kubelets: HashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
    /// Maps that connections use side by side.
    pub(super) shared: Arc<SharedMaps>,
}

/// Maps that are used by many tasks at once, through `sys`.
#[derive(Debug)]
pub(super) struct SharedMaps {
    endpoints: OwnedFd,
    seeded: OwnedFd,
    listening: OwnedFd,
}

impl SharedMaps {
    /// Socket storage: descriptor of a socket to [`Endpoint`].
    pub(super) fn endpoints(&self) -> BorrowedFd<'_> {
        self.endpoints.as_fd()
    }

    /// [`PortKey`] to `u32`.
    pub(super) fn seeded(&self) -> BorrowedFd<'_> {
        self.seeded.as_fd()
    }

    /// [`PortKey`] to a count, a `u64`.
    pub(super) fn listening(&self) -> BorrowedFd<'_> {
        self.listening.as_fd()
    }
}

impl Kernel {
    /// Creates the maps and loads the programs; nothing is attached yet.
    pub(super) fn load(debug: bool) -> Result<Self, RedirectError> {
        // Statements above the level are constants to the verifier, which removes
        // them.
        let level = if debug { u8::MAX } else { 0 };
        let mut ebpf = EbpfLoader::new()
            .override_global("AYA_LOG_LEVEL", &level, false)
            .load(object()?)
            .map_err(|error| RedirectError::Load(Box::new(error)))?;
        for name in CONNECT_PROGRAMS {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            program.load().map_err(failed(name, "load"))?;
        }
        let sock_ops: &mut SockOps = program(&mut ebpf, SOCK_OPS_PROGRAM)?;
        sock_ops.load().map_err(failed(SOCK_OPS_PROGRAM, "load"))?;
        let lookup: &mut SkLookup = program(&mut ebpf, LOOKUP_PROGRAM)?;
        lookup.load().map_err(failed(LOOKUP_PROGRAM, "load"))?;
        let shared = SharedMaps {
            endpoints: descriptor::<i32, Abi<Endpoint>>(&ebpf, "ENDPOINTS")?,
            seeded: descriptor::<Abi<PortKey>, u64>(&ebpf, "SEEDED")?,
            listening: descriptor::<Abi<PortKey>, u64>(&ebpf, "LISTENING")?,
        };
        Ok(Self {
            pods: map(&mut ebpf, "PODS")?,
            addresses: map(&mut ebpf, "ADDRESSES")?,
            listeners: map(&mut ebpf, "LISTENERS")?,
            listening: map(&mut ebpf, "LISTENING")?,
            exclude_ports: map(&mut ebpf, "EXCLUDE_PORTS")?,
            exclude_cidrs: map(&mut ebpf, "EXCLUDE_CIDRS")?,
            kubelets: map(&mut ebpf, "KUBELETS")?,
            counters: map(&mut ebpf, "COUNTERS")?,
            shared: Arc::new(shared),
            ebpf,
        })
    }

    /// Exempts processes of cgroups from redirection. Once.
    pub(super) fn exempt(&mut self, cgroups: &BTreeSet<u64>) -> Result<(), RedirectError> {
        let mut agents: HashMap<MapData, u64, u32> = map(&mut self.ebpf, AGENTS)?;
        cgroups
            .iter()
            .try_for_each(|cgroup| agents.insert(cgroup, 1, 0))
            .map_err(in_map(AGENTS))
    }

    /// Processes of a cgroup are kubelet, where they dial pods from that namespace.
    pub(super) fn trust_kubelet(&mut self, cgroup: u64, netns: u64) -> Result<(), RedirectError> {
        self.kubelets
            .insert(cgroup, netns, 0)
            .map_err(in_map("KUBELETS"))
    }

    /// They are not any more. What is gone is as good.
    pub(super) fn distrust_kubelet(&mut self, cgroup: u64) {
        drop(self.kubelets.remove(&cgroup));
    }

    /// Attaches one of [`CONNECT_PROGRAMS`] to a cgroup and pins its link.
    pub(super) fn attach_connect(
        &mut self,
        name: &'static str,
        cgroup: &File,
        pin: &Path,
    ) -> Result<PinnedLink, RedirectError> {
        let program: &mut CgroupSockAddr = program(&mut self.ebpf, name)?;
        let link = program
            .attach(cgroup, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(failed(name, "attach"))?;
        pin_link(name, link.try_into(), pin)
    }

    /// Attaches the hook on socket operations to a cgroup and pins its link.
    pub(super) fn attach_sock_ops(
        &mut self,
        cgroup: &File,
        pin: &Path,
    ) -> Result<PinnedLink, RedirectError> {
        let program: &mut SockOps = program(&mut self.ebpf, SOCK_OPS_PROGRAM)?;
        let link = program
            .attach(cgroup, CgroupAttachMode::Single)
            .and_then(|id| program.take_link(id))
            .map_err(failed(SOCK_OPS_PROGRAM, "attach"))?;
        pin_link(SOCK_OPS_PROGRAM, link.try_into(), pin)
    }

    /// Attaches the hook on new connections to a namespace and pins its link.
    pub(super) fn attach_lookup(
        &mut self,
        netns: BorrowedFd<'_>,
        pin: &Path,
    ) -> Result<PinnedLink, RedirectError> {
        let program: &mut SkLookup = program(&mut self.ebpf, LOOKUP_PROGRAM)?;
        let link = program
            .attach(netns)
            .and_then(|id| program.take_link(id))
            .map_err(failed(LOOKUP_PROGRAM, "attach"))?;
        pin_link(LOOKUP_PROGRAM, Ok(link.into()), pin)
    }

    /// The ring buffer of events; `None` once it was taken.
    pub(super) fn take_events(&mut self) -> Option<Result<RingBuf<MapData>, RedirectError>> {
        let map = self.ebpf.take_map("EVENTS")?;
        Some(RingBuf::try_from(map).map_err(in_map("EVENTS")))
    }

    /// The loader's object, for its log lines.
    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// A count, summed over all CPUs.
    pub(super) fn count(&self, counter: Counter) -> Result<u64, RedirectError> {
        let values = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(in_map("COUNTERS"))?;
        Ok(values.iter().sum())
    }

    /// The key of a block of addresses.
    pub(super) fn cidr_key(bits: u32, key: CidrKey) -> Key<Abi<CidrKey>> {
        Key::new(bits, Abi(key))
    }
}

// The library's map types have no `Debug`.
impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

fn program<'ebpf, P>(
    ebpf: &'ebpf mut Ebpf,
    name: &'static str,
) -> Result<&'ebpf mut P, RedirectError>
where
    &'ebpf mut P: TryFrom<&'ebpf mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded);
    program
        .and_then(TryInto::try_into)
        .map_err(failed(name, "find"))
}

fn map<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, RedirectError> {
    take(ebpf, name)?.try_into().map_err(in_map(name))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, RedirectError> {
    let missing = || MapError::InvalidName { name: name.into() };
    ebpf.take_map(name)
        .ok_or_else(missing)
        .map_err(in_map(name))
}

/// The descriptor of a map whose sizes have been checked.
fn descriptor<K, V>(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, RedirectError> {
    let map = ebpf.map(name);
    let Some(Map::SkStorage(data) | Map::HashMap(data)) = map else {
        return Err(in_map(name)(MapError::InvalidName { name: name.into() }));
    };
    let info = data.info().map_err(in_map(name))?;
    let expected = (size_of::<K>(), size_of::<V>());
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    if key != expected.0 {
        return Err(in_map(name)(MapError::InvalidKeySize {
            size: key,
            expected: expected.0,
        }));
    }
    if value != expected.1 {
        return Err(in_map(name)(MapError::InvalidValueSize {
            size: value,
            expected: expected.1,
        }));
    }
    data.fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| RedirectError::File {
            step: "duplicate the descriptor of the map",
            path: name.into(),
            source,
        })
}

fn pin_link(
    name: &'static str,
    link: Result<FdLink, LinkError>,
    pin: &Path,
) -> Result<PinnedLink, RedirectError> {
    // Before Linux 5.7 there are no links; the probes find that first.
    let no_link = |source: LinkError| RedirectError::File {
        step: "get a link for",
        path: name.into(),
        source: std::io::Error::other(source),
    };
    let link = link.map_err(no_link)?;
    link.pin(pin).map_err(|source| RedirectError::Pin {
        path: pin.to_owned(),
        source: Box::new(source),
    })
}

fn failed(program: &'static str, step: &'static str) -> impl Fn(ProgramError) -> RedirectError {
    move |source| RedirectError::Program {
        program,
        step,
        source: Box::new(source),
    }
}

/// Turns an error of a map's library type into this module's.
pub(super) fn in_map(map: &'static str) -> impl Fn(MapError) -> RedirectError {
    move |source| RedirectError::Map {
        map,
        source: Box::new(source),
    }
}
