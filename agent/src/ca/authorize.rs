//! Which node may have which identity. Pure.

use crate::model::{NodeName, SpiffeId};
use crate::state::{Pod, PodPhase, Snapshot};

/// Some pod that runs on `node` has the identity, and a network namespace of its own: a
/// pod of the host's network is never meshed, and no agent needs its certificate. A pod
/// without a service account proves nothing: its node made it up.
pub(super) fn may_have(snapshot: &Snapshot, node: &NodeName, id: &SpiffeId) -> bool {
    let proves = |pod: &Pod| {
        let meshable = pod.phase == PodPhase::Running && !pod.host_network;
        meshable && pod.has_identity() && pod.identity == *id
    };
    snapshot.pods_of_node(node).iter().any(|pod| proves(pod))
}
