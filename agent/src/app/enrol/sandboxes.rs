//! What the container runtime told of pods' sandboxes, and who waits for an answer.
//!
//! ```text
//!   ADD ─► waits ─► its pod is known ─► Here ─► enrolled: answered
//!            │        └ not to be meshed: answered
//!            └ in time nothing of it: refused
//!   DEL, GC ─────────────────────────► Gone, until its pod is
//! ```
//!
//! The runtime tells before the API does: of the network namespace, and of the addresses
//! of a pod whose object has none yet. What it told stays in force as long as the pod's
//! object does, so that nothing is enrolled again when the object has them too.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::roster::{Roster, State, Wanted};
use crate::cni::{Decision, Decisions, PodRef, Reply};
use crate::model::{NamespacedName, NodeName};
use crate::redirect::Netns;
use crate::state::{Pod, Snapshot};

/// The plugin is told before it gives up by itself.
const EARLY: Duration = Duration::from_secs(2);
/// How long the object of a pod may be behind the runtime, where nothing says that it is
/// to be meshed, and nothing that the agent's knowledge is old.
const BEHIND: Duration = Duration::from_secs(1);

/// What the answers go by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Of which namespaces pods have asked for the mesh by themselves.
    pub(super) decisions: &'a Decisions,
    /// The snapshot is not old.
    pub(super) current: bool,
}

/// The sandboxes of this node's pods that are, or were, to be meshed.
#[derive(Debug, Default)]
pub(super) struct Sandboxes {
    /// By the pod's name: a pod has one at a time.
    known: BTreeMap<NamespacedName, Sandbox>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Sandbox {
    container: String,
    uid: Option<String>,
    state: Told,
}

#[derive(Clone, Debug)]
enum Told {
    Here { netns: Arc<Netns>, ips: Vec<IpAddr> },
    Gone,
}

/// An ADD that is not answered yet.
#[derive(Debug)]
struct Waiting {
    name: NamespacedName,
    uid: Option<String>,
    container: String,
    netns: Arc<Netns>,
    ips: Vec<IpAddr>,
    since: Instant,
    until: Instant,
    reply: mpsc::Sender<Reply>,
    /// Its pod is known and is to be meshed.
    wanted: bool,
}

/// A new sandbox.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) pod: PodRef,
    pub(super) container: String,
    pub(super) netns: Arc<Netns>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) patience: Duration,
    pub(super) reply: mpsc::Sender<Reply>,
}

impl Sandboxes {
    /// A sandbox is being made.
    pub(super) fn add(&mut self, arrival: Arrival, now: Instant) {
        self.waiting.push(Waiting {
            name: name_of(&arrival.pod),
            uid: arrival.pod.uid,
            container: arrival.container,
            netns: arrival.netns,
            ips: arrival.ips,
            since: now,
            until: now
                + arrival
                    .patience
                    .saturating_sub(EARLY)
                    .max(arrival.patience / 2),
            reply: arrival.reply,
            wanted: false,
        });
    }

    /// A sandbox goes. Where it is not one of those that were told of, `empty` says whether
    /// the pod's namespace has no process any more: else it is an older one.
    pub(super) fn remove(&mut self, pod: &PodRef, container: &str, empty: impl FnOnce() -> bool) {
        self.waiting
            .retain(|waiting| waiting.container != container);
        let name = name_of(pod);
        let gone = match self.known.get(&name) {
            Some(sandbox) => sandbox.container == container,
            None => empty(),
        };
        if gone {
            let sandbox = Sandbox {
                container: container.to_owned(),
                uid: pod.uid.clone(),
                state: Told::Gone,
            };
            drop(self.known.insert(name, sandbox));
        }
    }

    /// These are all that there are.
    pub(super) fn keep(&mut self, valid: &[String]) {
        for sandbox in self.known.values_mut() {
            if !valid.contains(&sandbox.container) {
                sandbox.state = Told::Gone;
            }
        }
    }

    /// What the state says of those that wait. Forgets whose pods are gone.
    pub(super) fn look(&mut self, known: &Known<'_>, node: &NodeName, now: Instant) {
        let snapshot = known.snapshot;
        self.known.retain(|name, sandbox| {
            let pod = snapshot.pods.get(name);
            pod.is_some_and(|pod| is_of(sandbox.uid.as_deref(), pod))
        });
        let waiting = std::mem::take(&mut self.waiting);
        for mut waiting in waiting.into_iter().filter(|it| !it.reply.is_closed()) {
            let pod = snapshot.pods.get(&waiting.name);
            let pod = pod.filter(|pod| {
                is_of(waiting.uid.as_deref(), pod) && pod.node.as_ref() == Some(node)
            });
            match pod {
                Some(pod) if snapshot.wants(pod) => {
                    if !waiting.wanted {
                        waiting.wanted = true;
                        answer(&waiting.reply, Reply::wait());
                        self.adopt(&waiting);
                    }
                    self.waiting.push(waiting);
                }
                Some(_) => answer(&waiting.reply, Reply::not_meshed()),
                None if now >= waiting.since + BEHIND && known.is_free(&waiting.name) => {
                    answer(&waiting.reply, Reply::not_meshed());
                }
                None if now >= waiting.until => {
                    answer(&waiting.reply, Reply::refused(known.lack()));
                }
                None => self.waiting.push(waiting),
            }
        }
    }

    fn adopt(&mut self, waiting: &Waiting) {
        let sandbox = Sandbox {
            container: waiting.container.clone(),
            uid: waiting.uid.clone(),
            state: Told::Here {
                netns: Arc::clone(&waiting.netns),
                ips: waiting.ips.clone(),
            },
        };
        drop(self.known.insert(waiting.name.clone(), sandbox));
    }

    /// The pod as it is to be enrolled, and the namespace if it was told; `None` where there
    /// is nothing to enrol: its sandbox has gone, or is still to come.
    pub(super) fn place(&self, pod: &Arc<Pod>) -> Option<(Wanted, Option<Arc<Netns>>)> {
        let sandbox = self.known.get(&pod.name);
        let sandbox = sandbox.filter(|sandbox| is_of(sandbox.uid.as_deref(), pod));
        match sandbox.map(|sandbox| &sandbox.state) {
            Some(Told::Gone) => None,
            Some(Told::Here { netns, ips }) => {
                let wanted = Wanted {
                    pod: with_addresses(pod, ips),
                    netns: Some(netns.cookie()),
                };
                Some((wanted, Some(Arc::clone(netns))))
            }
            None if pod.ips.is_empty() && pod.netns.is_none() => None,
            None => {
                let wanted = Wanted {
                    pod: Arc::clone(pod),
                    netns: None,
                };
                Some((wanted, None))
            }
        }
    }

    /// The runtime has said that the pod's sandbox went.
    pub(super) fn has_gone(&self, pod: &Pod) -> bool {
        let sandbox = self.known.get(&pod.name);
        sandbox.is_some_and(|sandbox| {
            matches!(sandbox.state, Told::Gone) && is_of(sandbox.uid.as_deref(), pod)
        })
    }

    /// Answers those whose pods are enrolled by now, and those whose time is up.
    pub(super) fn answer(&mut self, roster: &Roster, now: Instant) {
        self.waiting.retain(|waiting| {
            if !waiting.wanted {
                return true;
            }
            let member = roster.member(&waiting.name);
            let error = match member.map(|member| &member.state) {
                Some(State::Enrolled)
                    if member.and_then(|it| it.netns) == Some(waiting.netns.cookie()) =>
                {
                    answer(&waiting.reply, Reply::enrolled());
                    return false;
                }
                Some(State::Failed { error, .. }) => error.as_str(),
                Some(State::Enrolled | State::Pending) | None => "it is not enrolled yet",
            };
            if now >= waiting.until {
                answer(&waiting.reply, Reply::refused(error));
                return false;
            }
            true
        });
    }

    /// When somebody waits for no longer.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| {
            let behind = waiting.since + BEHIND;
            if waiting.wanted || behind <= now {
                waiting.until
            } else {
                waiting.until.min(behind)
            }
        });
        deadlines.min()
    }
}

fn name_of(pod: &PodRef) -> NamespacedName {
    NamespacedName::new(&*pod.namespace, &*pod.name)
}

/// The kubelet's UID is this pod's. Where it is not told, the name has to do.
pub(super) fn is_of(uid: Option<&str>, pod: &Pod) -> bool {
    let known = [Some(&pod.uid), pod.static_uid.as_ref()];
    uid.is_none_or(|uid| known.into_iter().flatten().any(|known| **known == *uid))
}

impl Known<'_> {
    /// Nothing says of the pods of this namespace that they are to be meshed, and what does
    /// would be known.
    fn is_free(&self, name: &NamespacedName) -> bool {
        let namespace = &*name.namespace;
        self.current
            && self.snapshot.namespaces.contains_key(namespace)
            && !self.snapshot.is_meshed(namespace)
            && self.decisions.namespaces.get(namespace) != Some(&Decision::Mixed)
    }

    /// Why a pod can't be told.
    fn lack(&self) -> &'static str {
        if self.snapshot.revision == 0 {
            "the agent has not read the cluster's objects yet"
        } else {
            "the agent has not seen its object in the API, and so can't tell who it is"
        }
    }
}

/// The pod with the addresses that its sandbox was given, unless its object has others.
fn with_addresses(pod: &Arc<Pod>, told: &[IpAddr]) -> Arc<Pod> {
    let same = pod.ips.len() == told.len() && pod.ips.iter().all(|ip| told.contains(ip));
    let differs = !pod.ips.is_empty() && !same;
    if differs || pod.ips == told {
        return Arc::clone(pod);
    }
    Arc::new(Pod {
        ips: told.to_vec(),
        enrolled: true,
        ..Pod::clone(pod)
    })
}

/// Whoever does not wait any more needs no answer.
fn answer(reply: &mpsc::Sender<Reply>, text: Reply) {
    reply.try_send(text).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::Verdict;
    use crate::state::fixtures::{World, ip, name, namespace, pod};
    use crate::state::{Object, ObjectKind};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Sandboxes, of a node `n` in a cluster with the namespaces `shop`, which is meshed,
    /// and `guest`.
    struct Scene {
        sandboxes: Sandboxes,
        world: World,
        snapshot: Snapshot,
        decisions: Decisions,
        current: bool,
        start: Instant,
    }

    impl Scene {
        fn new(pods: impl IntoIterator<Item = Pod>) -> Self {
            let mut world = World::new([namespace("shop", "enabled"), namespace("guest", "")]);
            for pod in pods {
                world.put(Object::Pod(pod));
            }
            Self {
                sandboxes: Sandboxes::default(),
                snapshot: world.now(),
                world,
                decisions: Decisions::default(),
                current: true,
                start: Instant::now(),
            }
        }

        fn put(&mut self, pod: Pod) {
            self.world.put(Object::Pod(pod));
            self.snapshot = self.world.now();
        }

        fn add(&mut self, pod: &str, container: &str) -> mpsc::Receiver<Reply> {
            let (reply, answers) = mpsc::channel(4);
            let arrival = Arrival {
                pod: reference(pod),
                container: container.to_owned(),
                netns: Arc::new(Netns::current().unwrap()),
                ips: vec![ip("10.0.0.1")],
                patience: PATIENCE,
                reply,
            };
            self.sandboxes.add(arrival, self.start);
            answers
        }

        fn look(&mut self, after: Duration) {
            let node = NodeName("n".into());
            let now = self.start + after;
            let known = Known {
                snapshot: &self.snapshot,
                decisions: &self.decisions,
                current: self.current,
            };
            self.sandboxes.look(&known, &node, now);
        }

        fn place(&self, pod: &str) -> Option<Wanted> {
            let pod = &self.snapshot.pods[&name(pod)];
            self.sandboxes.place(pod).map(|(wanted, _)| wanted)
        }
    }

    fn reference(pod: &str) -> PodRef {
        let name = name(pod);
        PodRef {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            uid: Some("u1".to_owned()),
        }
    }

    fn here(text: &str, ips: &[&str]) -> Pod {
        Pod {
            uid: "u1".into(),
            node: Some(NodeName("n".into())),
            ..pod(text, ips)
        }
    }

    fn verdicts(answers: &mut mpsc::Receiver<Reply>) -> Vec<Verdict> {
        std::iter::from_fn(|| answers.try_recv().ok())
            .map(|reply| reply.verdict)
            .collect()
    }

    fn enrolled(scene: &mut Scene, pod: &str) -> Roster {
        let wanted = scene.place(pod).unwrap();
        let mut roster = Roster::default();
        let now = (scene.start, jiff::Timestamp::UNIX_EPOCH);
        let _steps = roster.steps(std::slice::from_ref(&wanted), now);
        roster.enrolled(&wanted.pod, wanted.netns.unwrap(), now.1);
        roster
    }

    #[test]
    fn a_pod_is_enrolled_with_what_the_runtime_told_and_then_answered() {
        let mut scene = Scene::new([here("shop/web", &[])]);
        let mut answers = scene.add("shop/web", "c1");
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut answers), [Verdict::Wait]);
        let wanted = scene.place("shop/web").unwrap();
        assert_eq!(wanted.pod.ips, [ip("10.0.0.1")]);
        assert!(wanted.pod.enrolled && wanted.netns.is_some());
        let roster = enrolled(&mut scene, "shop/web");
        scene.sandboxes.answer(&roster, scene.start);
        assert_eq!(verdicts(&mut answers), [Verdict::Enrolled]);
        // The object has the address later: the pod is the same.
        scene.put(here("shop/web", &["10.0.0.1"]));
        scene.look(Duration::ZERO);
        let later = scene.place("shop/web").unwrap();
        assert_eq!(
            (&later.pod.ips, later.netns),
            (&wanted.pod.ips, wanted.netns)
        );
        // It has another: the object is right.
        scene.put(here("shop/web", &["10.0.0.9"]));
        assert_eq!(scene.place("shop/web").unwrap().pod.ips, [ip("10.0.0.9")]);
    }

    #[test]
    fn who_is_not_to_be_meshed_does_not_wait() {
        let mut scene = Scene::new([here("guest/visitor", &[])]);
        let mut known = scene.add("guest/visitor", "c1");
        let mut behind = scene.add("guest/new", "c2");
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut known), [Verdict::NotMeshed]);
        assert_eq!(verdicts(&mut behind), []);
        let next = |scene: &Scene| scene.sandboxes.next_deadline(scene.start);
        assert_eq!(next(&scene), Some(scene.start + BEHIND));
        scene.look(BEHIND);
        assert_eq!(verdicts(&mut behind), [Verdict::NotMeshed]);
        assert_eq!(next(&scene), None);
    }

    #[test]
    fn who_may_be_meshed_waits_for_an_agent_that_is_behind() {
        let mut scene = Scene::new([]);
        let deadline = PATIENCE.saturating_sub(EARLY);
        let mut behind = scene.add("guest/new", "c1");
        scene.current = false;
        scene.look(BEHIND);
        assert_eq!(verdicts(&mut behind), []);
        let now = scene.start + BEHIND;
        let next = scene.sandboxes.next_deadline(now);
        assert_eq!(next, Some(scene.start + deadline), "it does not spin");
        scene.current = true;
        scene.look(BEHIND);
        assert_eq!(verdicts(&mut behind), [Verdict::NotMeshed]);
        // Others of its namespace have asked for the mesh by themselves.
        let mixed = ("guest".to_owned(), Decision::Mixed);
        scene.decisions.namespaces = [mixed].into();
        let mut mixed = scene.add("guest/new", "c2");
        scene.look(BEHIND);
        assert_eq!(verdicts(&mut mixed), []);
        scene.look(deadline);
        assert_eq!(verdicts(&mut mixed), [Verdict::Refused]);
    }

    #[test]
    fn who_may_be_meshed_and_is_not_known_is_refused_in_time() {
        let mut scene = Scene::new([]);
        let mut answers = scene.add("shop/web", "c1");
        let mut nowhere = scene.add("unknown/web", "c2");
        scene.look(BEHIND);
        assert_eq!(verdicts(&mut answers), []);
        scene.look(PATIENCE.saturating_sub(EARLY));
        assert_eq!(verdicts(&mut answers), [Verdict::Refused]);
        assert_eq!(verdicts(&mut nowhere), [Verdict::Refused]);
        // Its object comes while it waits.
        let mut answers = scene.add("shop/web", "c1");
        scene.look(Duration::ZERO);
        scene.put(here("shop/web", &[]));
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut answers), [Verdict::Wait]);
    }

    #[test]
    fn a_pod_of_the_same_name_before_it_is_not_taken_for_it() {
        let older = Pod {
            uid: "u0".into(),
            ..here("shop/web", &["10.0.0.7"])
        };
        let mut scene = Scene::new([older]);
        let mut answers = scene.add("shop/web", "c1");
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut answers), []);
        let fixed = Pod {
            uid: "mirror".into(),
            static_uid: Some("u1".into()),
            ..here("shop/web", &[])
        };
        scene.put(fixed);
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut answers), [Verdict::Wait]);
    }

    #[test]
    fn a_sandbox_that_went_is_not_looked_for_until_there_is_another() {
        let mut scene = Scene::new([here("shop/web", &["10.0.0.1"])]);
        let _answers = scene.add("shop/web", "c1");
        scene.look(Duration::ZERO);
        let pod = reference("shop/web");
        scene
            .sandboxes
            .remove(&pod, "older", || unreachable!("it is known"));
        assert!(scene.place("shop/web").is_some());
        scene
            .sandboxes
            .remove(&pod, "c1", || unreachable!("it is known"));
        assert!(scene.place("shop/web").is_none());
        let _answers = scene.add("shop/web", "c2");
        scene.look(Duration::ZERO);
        assert!(scene.place("shop/web").is_some());
        scene.sandboxes.keep(&["c1".to_owned()]);
        assert!(scene.place("shop/web").is_none());
        // Its object goes, and so what was told of it.
        scene.world.remove(ObjectKind::Pod, "shop/web");
        scene.snapshot = scene.world.now();
        scene.look(Duration::ZERO);
        scene.put(here("shop/web", &["10.0.0.1"]));
        assert!(scene.place("shop/web").is_some());
    }

    #[test]
    fn the_end_of_a_sandbox_of_before_counts_only_when_nothing_runs() {
        let mut scene = Scene::new([here("shop/web", &["10.0.0.1"])]);
        let pod = reference("shop/web");
        scene.sandboxes.remove(&pod, "c1", || false);
        assert!(scene.place("shop/web").is_some());
        scene.sandboxes.remove(&pod, "c1", || true);
        assert!(scene.place("shop/web").is_none());
    }

    #[test]
    fn a_pod_that_has_not_been_started_is_nowhere() {
        let scene = Scene::new([here("shop/web", &[])]);
        assert!(scene.place("shop/web").is_none());
    }

    #[test]
    fn why_it_was_not_enrolled_is_told_in_time() {
        let mut scene = Scene::new([here("shop/web", &[])]);
        let mut answers = scene.add("shop/web", "c1");
        scene.look(Duration::ZERO);
        assert_eq!(verdicts(&mut answers), [Verdict::Wait]);
        let mut roster = enrolled(&mut scene, "shop/web");
        let now = (scene.start, jiff::Timestamp::UNIX_EPOCH);
        roster.failed(&name("shop/web"), "no memory".to_owned(), now);
        scene.sandboxes.answer(&roster, scene.start);
        assert!(answers.try_recv().is_err());
        scene.sandboxes.answer(&roster, scene.start + PATIENCE);
        assert_eq!(answers.try_recv().unwrap(), Reply::refused("no memory"));
    }
}
