//! Which node may have which identity. Pure.

use crate::model::{NodeName, SpiffeId};
use crate::state::{Pod, PodPhase, Snapshot};

/// Some pod that runs on `node` has the identity, and a network namespace of its own: a
/// pod of the host's network is never meshed, and no agent needs its certificate.
pub(super) fn may_have(snapshot: &Snapshot, node: &NodeName, id: &SpiffeId) -> bool {
    let proves =
        |pod: &Pod| pod.identity == *id && pod.phase == PodPhase::Running && !pod.host_network;
    snapshot.pods_of_node(node).iter().any(|pod| proves(pod))
}
