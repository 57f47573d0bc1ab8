//! Every map: who writes it, who removes entries, how large it gets.
//!
//! No map outlives the agent that loaded it, except through pinned links, which
//! keep the programs and they their maps: so that pods stay redirected to
//! listeners that are gone, which is a refusal, until the next agent is ready.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash};
use fairlead_common::abi::{
    CidrKey, Counter, Endpoint, Flight, Ip, ListenerKey, Pod, PortKey, Told,
};

/// Pods of a node, with room to spare over any kubelet's limit.
const PODS_PER_NODE: u32 = 2048;

/// Enrolled namespaces by cookie. Owner: the agent, which adds an entry when it
/// enrols a pod and removes it when the pod goes.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(PODS_PER_NODE, 0);

/// The namespace that an address belongs to, because `sk_lookup` can't ask for
/// the cookie. Owner: the agent, with `PODS`.
#[map]
pub static ADDRESSES: HashMap<Ip, u64> = HashMap::with_max_entries(4 * PODS_PER_NODE, 0);

/// Cgroups whose processes are agents: one, and two during an upgrade. Those of later
/// agents that failed to start are there until the next one starts. Owner: the agent, and
/// each later one, at their start.
#[map]
pub static AGENTS: HashMap<u64, u32> = HashMap::with_max_entries(1024, 0);

/// Cgroups whose processes are kubelet, each with the namespace that it dials pods from.
/// Owner: the agent, which follows kubelet from one cgroup to the next.
#[map]
pub static KUBELETS: HashMap<u64, u64> = HashMap::with_max_entries(8, 0);

/// What a socket's owner is to see as its peer. Written by the connect hooks on
/// the application's sockets, by the agent on those that it dials applications
/// with, and by `sock_ops` on accepted sockets. Freed with the socket.
#[btf_map]
pub static ENDPOINTS: SkStorage<Endpoint> = SkStorage::new();

/// Marks listening sockets that `LISTENING` counts. Freed with the socket.
#[btf_map]
pub static COUNTED: SkStorage<u32> = SkStorage::new();

/// Connections between connect and accept, microseconds. Written and removed by
/// `sock_ops`; what fails to connect is pushed out by what comes later. What kubelet
/// dials is removed as soon as its socket has ended, however that was: nobody may
/// come by its port and take what was left for it.
#[map]
pub static INFLIGHT: LruHashMap<Flight, Endpoint> = LruHashMap::with_max_entries(32_768, 0);

/// The agent's listeners. Owner: the agent; the kernel removes an entry when its
/// socket closes.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(8 * PODS_PER_NODE, 0);

/// How many sockets listen on a port, as `decide::listener` counts them. Owner:
/// `sock_ops`, which counts and never removes; the agent removes what belongs to
/// pods that went, and zeros when they become many.
#[map]
pub static LISTENING: HashMap<PortKey, u64> = HashMap::with_max_entries(1 << 17, BPF_F_NO_PREALLOC);

/// Ports that were listened on before the namespace was enrolled, counted likewise. Owner: the
/// agent.
#[map]
pub static SEEDED: HashMap<PortKey, u64> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// Ports that bypass the mesh. Owner: the agent, with `PODS`.
#[map]
pub static EXCLUDE_PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(1 << 15, BPF_F_NO_PREALLOC);

/// Address blocks that bypass the mesh. Owner: the agent, with `PODS`.
#[map]
pub static EXCLUDE_CIDRS: LpmTrie<CidrKey, u32> =
    LpmTrie::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);

/// What the agent can't see otherwise. Read by the agent; what finds no room is
/// counted in `EventsLost`.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// How much was told of a namespace lately. Written by whatever tells.
#[map]
pub static TOLD: LruHashMap<u64, Told> = LruHashMap::with_max_entries(2 * PODS_PER_NODE, 0);

/// Counts, by [`Counter`]. Read by the agent.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);
