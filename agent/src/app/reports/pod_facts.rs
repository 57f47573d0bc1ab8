//! What holds for the pods of this node, for the Events that tell of it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::admin::PodState;
use crate::app::enrol::Enrolment;
use crate::cluster::kube::{PodFact, PodFactReason};
use crate::model::NodeName;
use crate::state::{Pod, Snapshot};

/// All that holds on a node now; `None` while not every pod had its turn.
pub(super) fn of(
    own_node: &NodeName,
    enrolment: &Enrolment,
    snapshot: &Snapshot,
) -> Option<Vec<PodFact>> {
    if !enrolment.complete || snapshot.revision == 0 {
        return None;
    }
    let pods = snapshot.pods_of_node(own_node).iter();
    let pods: HashMap<String, &Arc<Pod>> = pods.map(|pod| (pod.name.to_string(), pod)).collect();
    let enrolled = enrolment.pods.iter().filter_map(|row| {
        let pod = pods.get(&format!("{}/{}", row.namespace, row.name))?;
        let (reason, note) = match (row.state, &row.error) {
            (PodState::Enrolled, _) => (
                PodFactReason::Meshed,
                format!("in the mesh as {}", row.identity),
            ),
            (PodState::Failed, Some(error)) => (
                PodFactReason::MeshEnrolFailed,
                format!(
                    "{error}; tried again and again; `fairlead status` on node {own_node} tells more"
                ),
            ),
            (PodState::Failed | PodState::Pending | PodState::Leaving, _) => return None,
        };
        Some(fact(pod, reason, note))
    });
    // What the pod's author wrote, not what the cluster made of it.
    let written = |field: &str| field.starts_with("spec") || field.starts_with("metadata");
    let problems = snapshot.problems.iter();
    let problems = problems.filter(|it| it.kind == "Pod" && written(&it.field));
    let misconfigured = problems.filter_map(|problem| {
        let pod = pods.get(&problem.object)?;
        let reason = if pod.enrolled {
            PodFactReason::MeshMisconfigured
        } else {
            PodFactReason::NotMeshed
        };
        let note = format!("{}: {}", problem.field, problem.message);
        Some(fact(pod, reason, note))
    });
    Some(enrolled.chain(misconfigured).collect())
}

fn fact(pod: &Pod, reason: PodFactReason, note: String) -> PodFact {
    PodFact {
        pod: pod.name.clone(),
        uid: Arc::clone(&pod.uid),
        reason,
        note,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::PodStatus;
    use crate::admin::tests::{pod, status};
    use crate::state::{Change, Object, Origin, Problem, Writer};

    const NODE: &str = "n1";

    fn web(name: &str, mesh: &str) -> Pod {
        let labels = [("fairlead.dev/mesh".to_owned(), mesh.to_owned())];
        Pod {
            node: Some(NodeName(NODE.into())),
            labels: labels.into_iter().collect(),
            uid: "7".into(),
            ..pod("shop", name, "10.1.0.5")
        }
    }

    fn snapshot(pod: Pod, problem: Option<Problem>) -> Snapshot {
        let mut writer = Writer::new();
        writer.apply(Change::Upsert(Object::Pod(pod), Origin::default()));
        writer.apply(Change::Problems {
            owner: "test".into(),
            problems: problem.into_iter().collect(),
        });
        writer.publish().unwrap()
    }

    fn problem(field: &str) -> Problem {
        Problem {
            kind: "Pod".to_owned(),
            object: "shop/web-1".to_owned(),
            field: field.to_owned(),
            message: "is wrong".to_owned(),
            ..Problem::default()
        }
    }

    fn enrolment(state: Option<PodState>, error: Option<&str>) -> Enrolment {
        let row = state.map(|state| PodStatus {
            state,
            error: error.map(str::to_owned),
            ..status().pods.remove(0)
        });
        Enrolment {
            complete: true,
            pods: row.into_iter().collect(),
            ..Enrolment::default()
        }
    }

    #[track_caller]
    fn check(enrolment: &Enrolment, snapshot: &Snapshot, expected: &[(PodFactReason, &str)]) {
        let facts = of(&NodeName(NODE.into()), enrolment, snapshot).unwrap();
        let fact = |(reason, note): &(PodFactReason, &str)| PodFact {
            pod: crate::model::NamespacedName::new("shop", "web-1"),
            uid: "7".into(),
            reason: *reason,
            note: (*note).to_owned(),
        };
        assert_eq!(facts, expected.iter().map(fact).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_holds_before_every_pod_had_its_turn() {
        let node = NodeName(NODE.into());
        let (pod, row) = (web("web-1", "enabled"), Some(PodState::Enrolled));
        let snapshot = snapshot(pod, None);
        let early = Enrolment {
            complete: false,
            ..enrolment(row, None)
        };
        assert_eq!(of(&node, &early, &snapshot), None);
        let late = enrolment(row, None);
        assert_eq!(of(&node, &late, &Snapshot::default()), None);
    }

    #[test]
    fn pods_are_meshed_or_not() {
        let snapshot = snapshot(web("web-1", "enabled"), None);
        let identity = "in the mesh as spiffe://cluster.local/ns/shop/sa/web";
        let meshed = enrolment(Some(PodState::Enrolled), None);
        check(&meshed, &snapshot, &[(PodFactReason::Meshed, identity)]);
        let failed = enrolment(Some(PodState::Failed), Some("no namespace"));
        let note = "no namespace; tried again and again; `fairlead status` on node n1 tells more";
        check(
            &failed,
            &snapshot,
            &[(PodFactReason::MeshEnrolFailed, note)],
        );
        check(&enrolment(Some(PodState::Pending), None), &snapshot, &[]);
    }

    #[test]
    fn pods_of_other_nodes_are_not_told_of() {
        let elsewhere = Pod {
            node: Some(NodeName("n2".into())),
            ..web("web-1", "enabled")
        };
        let snapshot = snapshot(elsewhere, Some(problem("spec.x")));
        check(&enrolment(Some(PodState::Enrolled), None), &snapshot, &[]);
    }

    #[test]
    fn what_is_wrong_with_a_pod_is_told_on_it() {
        let field = "metadata.annotations.x";
        let note = "metadata.annotations.x: is wrong";
        let meshed = snapshot(web("web-1", "enabled"), Some(problem(field)));
        let expected = [(PodFactReason::MeshMisconfigured, note)];
        check(&enrolment(None, None), &meshed, &expected);
        let outside = snapshot(web("web-1", "yes"), Some(problem(field)));
        check(
            &enrolment(None, None),
            &outside,
            &[(PodFactReason::NotMeshed, note)],
        );
        let of_status = snapshot(web("web-1", "yes"), Some(problem("status.podIPs")));
        check(&enrolment(None, None), &of_status, &[]);
    }
}
