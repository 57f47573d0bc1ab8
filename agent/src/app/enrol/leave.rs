//! Pods that leave, and those whose namespace has gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::roster::State;
use super::{Enroller, in_one_line, now};
use crate::model::NamespacedName;
use crate::proxy::PodKey;
use crate::state::{Pod, PodPhase, Snapshot};

impl Enroller {
    /// Lets a pod go. One that has ended by the state, while processes of it go on, is refused
    /// until these have ended too: nothing says that it may talk plaintext.
    pub(super) fn leave(&mut self, pod: &Arc<Pod>, snapshot: &Snapshot) {
        self.proxy.remove_pod(&PodKey::of(pod), self.config.grace);
        if has_ended(pod, snapshot) && self.redirector.is_inhabited(&pod.name) {
            self.redirector.hold(&pod.name);
            self.departures.when_empty(&pod.name);
            tracing::info!(pod = %pod.name, "the pod has ended and still runs; it is refused");
        } else {
            self.departures.at_once(&pod.name);
        }
    }

    /// Takes out of the kernel whoever has left.
    pub(super) fn depart(&mut self) {
        let roster = &self.roster;
        self.departures.retain(|name| roster.member(name).is_none());
        for name in self
            .departures
            .due(|name| self.redirector.is_inhabited(name))
        {
            match self.redirector.unenrol(&name) {
                Ok(()) => {
                    self.departures.done(&name);
                    tracing::info!(pod = %name, "let the pod go");
                }
                Err(error) => {
                    let error = in_one_line(error);
                    if self.departures.failed(&name, &error) {
                        let text = "cannot take the pod out of the kernel; trying again";
                        tracing::warn!(pod = %name, error, "{text}");
                    }
                }
            }
        }
    }

    /// Pods whose namespace has gone while the state still has them. It may be back at any
    /// time: a runtime that keeps no process for the sandbox (CRI-O) holds it while all
    /// containers of the pod have crashed. So it stays refused until the pod is enrolled
    /// again, there or elsewhere, or leaves.
    pub(super) fn forget_vanished(&mut self) {
        let vanished: BTreeSet<NamespacedName> = self.redirector.vanished().into_iter().collect();
        let members = self.roster.members();
        let members: Vec<(Arc<Pod>, State)> = members
            .filter(|member| vanished.contains(&member.pod.name))
            .map(|member| (Arc::clone(&member.pod), member.state.clone()))
            .collect();
        for (pod, state) in members {
            self.proxy.remove_pod(&PodKey::of(&pod), self.config.grace);
            if let Err(error) = self.redirector.let_end(&pod.name) {
                let error = in_one_line(error);
                tracing::warn!(pod = %pod.name, error, "cannot take the pod out of the kernel");
            }
            // One that failed is due for another attempt already.
            if state == State::Enrolled {
                let error = "its network namespace has gone".to_owned();
                self.roster.failed(&pod.name, error, now());
            }
        }
    }
}

/// By the state there is no such pod any more, or none that runs. Where its node is lost the
/// phase is not the kubelet's word: its containers may go on.
fn has_ended(pod: &Pod, snapshot: &Snapshot) -> bool {
    let known = snapshot.pods.get(&pod.name);
    known.is_none_or(|known| known.uid != pod.uid || known.phase == PodPhase::Finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::fixtures::{World, labels, namespace, pod};
    use crate::state::{MESH_LABEL, Object, ObjectKind};

    #[test]
    fn a_pod_without_its_label_goes_on_and_one_that_finished_or_was_deleted_has_ended() {
        let running = pod("shop/web", &["10.0.0.1"]);
        let mut world = World::new([namespace("shop", "enabled"), Object::Pod(running.clone())]);
        assert!(!has_ended(&running, &world.now()));
        world.put(Object::Pod(Pod {
            labels: labels(&[(MESH_LABEL, "disabled")]),
            ..running.clone()
        }));
        assert!(!has_ended(&running, &world.now()));
        world.put(Object::Pod(Pod {
            phase: PodPhase::Finished,
            ..running.clone()
        }));
        assert!(has_ended(&running, &world.now()));
        world.put(Object::Pod(Pod {
            uid: "successor".into(),
            ..running.clone()
        }));
        assert!(has_ended(&running, &world.now()));
        world.remove(ObjectKind::Pod, "shop/web");
        assert!(has_ended(&running, &world.now()));
    }
}
