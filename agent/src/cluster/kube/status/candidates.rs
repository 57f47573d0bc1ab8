//! Who runs for the Lease: few, however many agents there are. Pure.

use crate::model::NodeName;
use crate::state::{PodPhase, ROOT_NAMESPACE, Snapshot};

/// The `DaemonSet` of the agents.
const AGENTS: &str = "fairlead-agent";
/// With one of them away for an upgrade there is still one that waits.
const CANDIDATES: usize = 3;

/// Whether the agent of this node is one that runs. So is an agent that is no pod of the
/// cluster, such as one that was started by hand.
pub(super) fn runs(snapshot: &Snapshot, node: &NodeName) -> bool {
    let pods = Snapshot::in_namespace(&snapshot.pods, ROOT_NAMESPACE).map(|(_, pod)| pod);
    let agents = pods.filter(|pod| &*pod.workload == AGENTS && pod.phase == PodPhase::Running);
    let agents: Vec<_> = agents.collect();
    if !agents.iter().any(|pod| pod.node.as_ref() == Some(node)) {
        return snapshot.revision > 0;
    }
    let ready = agents.iter().filter(|pod| pod.ready);
    let mut nodes: Vec<&NodeName> = ready.filter_map(|pod| pod.node.as_ref()).collect();
    nodes.sort_unstable();
    nodes.iter().take(CANDIDATES).any(|one| *one == node)
}
