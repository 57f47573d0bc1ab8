//! What this agent tells the API server, where objects come from one: the status of
//! policies, which one agent writes for all, and Events on its own pods.

mod pod_facts;

use tokio::sync::watch;

use super::enrol::Enrolment;
use super::tasks::Tasks;
use crate::cluster;
use crate::cluster::kube::{client, keep_events, keep_status};
use crate::model::NodeName;
use crate::state::Snapshot;

/// Starts to tell, where there is somebody to tell it to.
pub(super) async fn start(
    tasks: &mut Tasks,
    source: &cluster::Config,
    node: &NodeName,
    (snapshots, enrolment): (watch::Receiver<Snapshot>, watch::Receiver<Enrolment>),
) -> anyhow::Result<()> {
    let cluster::Config::Kube { access, .. } = source else {
        return Ok(());
    };
    let client = client(access).await?;
    let status = keep_status(client.clone(), node.clone(), snapshots.clone());
    tasks.keep("status of policies", status);
    let of = node.clone();
    let facts = move || {
        let (enrolment, snapshot) = (enrolment.borrow().clone(), snapshots.borrow().clone());
        pod_facts::of(&of, &enrolment, &snapshot)
    };
    tasks.keep("events on pods", keep_events(client, node.clone(), facts));
    Ok(())
}
