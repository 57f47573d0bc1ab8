//! The pods of this node go under the kernel's programs and to the proxy.
//!
//! ```text
//! Table ─┬─► desired pods ─► Roster::steps ─┬─ Leave: redirect, then proxy with grace
//! CNI ───┘                                  └─ Enrol: locate ─► redirect ─► listeners ─► proxy
//! ```
//!
//! The network namespace of a pod is the one that the runtime told ([`sandboxes`]), else it
//! is looked for ([`Redirector::locate`]).
//!
//! A pod that can't be enrolled is blocked by the kernel side, reported and tried
//! again. What an earlier agent left in force goes once all pods had their turn.

mod calls;
mod departures;
mod leave;
mod roster;
mod sandboxes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::cni::Desk;
use super::network::Adaptor;
use crate::admin::{PodState, PodStatus};
use crate::cluster::Health;
use crate::identity::Identities;
use crate::model::{NamespacedName, NodeName};
use crate::policy::Table;
use crate::proxy::{EnrolledPod, Listeners, PodKey, Proxy};
use crate::redirect::{self, Netns, RedirectError, Redirector};
use crate::state::{ObjectKind, Pod, Snapshot};
use departures::Departures;
use roster::{Member, Roster, State, Step, Wanted};
use sandboxes::{Known, Sandboxes};

/// How often what only the kernel knows is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the programs' list of ports is rid of what is closed.
const TIDY: Duration = Duration::from_mins(1);

/// The pods of this node and the kernel side, for status.
#[derive(Clone, Debug, Default)]
pub(super) struct Enrolment {
    /// Every pod had its turn at least once.
    pub(super) complete: bool,
    /// By name.
    pub(super) pods: Vec<PodStatus>,
    /// What the kernel's programs counted.
    pub(super) counters: Vec<(&'static str, u64)>,
    /// What went wrong beside single pods.
    pub(super) error: Option<String>,
}

/// Whom the enroller serves, and how.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) node: NodeName,
    /// For the open connections of a pod that leaves.
    pub(super) grace: Duration,
}

/// Owns the kernel side.
#[derive(Debug)]
pub(super) struct Enroller {
    config: Config,
    redirector: Redirector,
    proxy: Proxy,
    identities: Identities,
    /// Of the CNI plugin.
    plugin: Desk,
    sandboxes: Sandboxes,
    roster: Roster,
    departures: Departures,
    /// Processes whose connections no hook sees, by pod.
    unseen: BTreeMap<NamespacedName, Vec<u32>>,
    board: watch::Sender<Enrolment>,
    taken_over: bool,
    kubelet_problem: Option<String>,
}

impl Enroller {
    /// An enroller, and where it tells how far it is.
    pub(super) fn new(
        config: Config,
        redirector: Redirector,
        proxy: Proxy,
        (identities, plugin): (Identities, Desk),
    ) -> (Self, watch::Receiver<Enrolment>) {
        let (board, view) = watch::channel(Enrolment::default());
        let enroller = Self {
            config,
            redirector,
            proxy,
            identities,
            plugin,
            sandboxes: Sandboxes::default(),
            roster: Roster::default(),
            departures: Departures::default(),
            unseen: BTreeMap::new(),
            board,
            taken_over: false,
            kubelet_problem: None,
        };
        (enroller, view)
    }

    /// Follows the tables; ends when there are no more.
    pub(super) async fn run(
        mut self,
        mut tables: watch::Receiver<Arc<Table>>,
    ) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tidy = tokio::time::interval(TIDY);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            // The kernel side makes system calls that may take milliseconds.
            tokio::task::block_in_place(|| self.pass(table.snapshot()));
            let far = Instant::now() + Duration::from_hours(1);
            let deadline = self.sandboxes.next_deadline(Instant::now());
            let due = [self.roster.next_retry(), deadline];
            let due = sleep_until(due.into_iter().flatten().min().unwrap_or(far));
            tokio::select! {
                news = news(&mut tables, table.snapshot(), &self.config.node) => {
                    if news.is_err() {
                        return Ok(());
                    }
                }
                Some(call) = self.plugin.calls.recv() => {
                    let table = Arc::clone(&tables.borrow());
                    tokio::task::block_in_place(|| self.take_call(call, table.snapshot()));
                    while let Ok(call) = self.plugin.calls.try_recv() {
                        tokio::task::block_in_place(|| self.take_call(call, table.snapshot()));
                    }
                }
                () = due => {}
                _ = look.tick() => {}
                _ = tidy.tick() => tokio::task::block_in_place(|| self.tidy()),
            }
        }
    }

    /// One look at everything.
    fn pass(&mut self, snapshot: &Snapshot) {
        if self.redirector.tenure().is_over() {
            // The pods are another agent's, and only their open connections are still this
            // one's. Who waits here asks that one.
            self.sandboxes = Sandboxes::default();
            return;
        }
        self.look_at_sandboxes(snapshot);
        if snapshot.revision == 0 {
            // Nothing is known yet: nobody may be let go for that.
            return;
        }
        self.forget_vanished();
        self.redirector.forget_ended();
        self.follow_kubelet();
        let found = self.desired(snapshot);
        let identities = found.iter().map(|(it, _)| it.pod.identity.clone());
        self.identities.set_wanted(identities.collect());
        let (desired, told): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let steps = self.roster.steps(&desired, now());
        let returning: BTreeSet<_> = steps.iter().filter_map(Step::enrols).cloned().collect();
        let mut places = self.places(&steps, &desired, told);
        let enrolled = self.roster.enrolments();
        for step in steps {
            match step {
                Step::Leave(pod) if returning.contains(&pod.name) => self.hold(&pod),
                Step::Leave(pod) => self.leave(&pod, snapshot),
                Step::Enrol(pod) => self.enrol(&pod, places.remove(&pod.name)),
                Step::Update(pod) => self.update(&pod),
            }
        }
        self.depart();
        self.sandboxes.answer(&self.roster, Instant::now());
        if self.roster.enrolments() > enrolled {
            self.unseen = self.redirector.unseen();
        }
        let lost = self.lost(snapshot);
        let error = self
            .take_over(&lost)
            .or_else(|| self.kubelet_problem.clone());
        self.publish(error);
    }

    fn look_at_sandboxes(&mut self, snapshot: &Snapshot) {
        let decisions = Arc::clone(&self.plugin.decisions.borrow());
        let known = Known {
            snapshot,
            decisions: &decisions,
            current: is_current(&self.plugin.health.borrow()),
        };
        self.sandboxes
            .look(&known, &self.config.node, Instant::now());
    }

    /// The pods that are to be enrolled, each with its namespace if the runtime told.
    fn desired(&self, snapshot: &Snapshot) -> Vec<(Wanted, Option<Arc<Netns>>)> {
        let pods = snapshot.pods_of_node(&self.config.node).iter();
        pods.filter(|pod| snapshot.wants(pod))
            .filter_map(|pod| self.sandboxes.place(pod))
            .collect()
    }

    /// Where the pods are that are to be enrolled now.
    fn places(
        &mut self,
        steps: &[Step],
        desired: &[Wanted],
        told: Vec<Option<Arc<Netns>>>,
    ) -> Places {
        let told = desired.iter().zip(told);
        let told: BTreeMap<&NamespacedName, Arc<Netns>> = told
            .filter_map(|(it, netns)| Some((&it.pod.name, netns?)))
            .collect();
        let entering = steps.iter().filter_map(|step| match step {
            Step::Enrol(pod) => Some(pod),
            Step::Update(_) | Step::Leave(_) => None,
        });
        let sought = entering.filter(|pod| !told.contains_key(&pod.name));
        let mut places = self.redirector.locate(sought);
        let told = told.into_iter();
        places.extend(told.map(|(name, netns)| (name.clone(), Ok(netns))));
        places
    }

    fn enrol(&mut self, pod: &Arc<Pod>, place: Option<Result<Arc<Netns>, RedirectError>>) {
        let Some(place) = place else {
            return;
        };
        let cookie = place
            .as_ref()
            .map(|netns| netns.cookie())
            .unwrap_or_default();
        match place
            .map_err(Into::into)
            .and_then(|netns| self.try_enrol(pod, &netns))
        {
            Ok(()) => self.roster.enrolled(pod, cookie, Timestamp::now()),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(pod = %pod.name, error, "cannot enrol the pod; trying again");
                self.roster.failed(&pod.name, error, now());
            }
        }
    }

    fn try_enrol(&mut self, pod: &Arc<Pod>, netns: &Arc<Netns>) -> anyhow::Result<()> {
        let enrolled = self.redirector.enrol(pod, netns)?;
        let redirect::Listeners {
            outbound,
            inbound,
            tunnel,
        } = enrolled.listeners;
        let served = EnrolledPod {
            pod: Arc::clone(pod),
            listeners: Listeners {
                outbound,
                inbound,
                tunnel,
            },
            network: Arc::new(Adaptor(enrolled.network)),
        };
        if let Err(error) = self.proxy.add_pod(served, self.config.grace) {
            // Nobody listens: its connections are refused until the next attempt.
            self.redirector.hold(&pod.name);
            return Err(error.into());
        }
        tracing::info!(
            pod = %pod.name,
            identity = %pod.identity,
            existing = enrolled.existing.len(),
            closed = enrolled.closed,
            "enrolled the pod"
        );
        Ok(())
    }

    /// The pod is to be enrolled in another way at once: it is not open in between.
    fn hold(&mut self, pod: &Arc<Pod>) {
        self.redirector.hold(&pod.name);
        self.proxy.remove_pod(&PodKey::of(pod), self.config.grace);
    }

    fn tidy(&mut self) {
        self.unseen = self.redirector.unseen();
        match self.redirector.tidy() {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "forgot ports that nobody listens on"),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "cannot tidy the list of ports");
            }
        }
    }

    fn update(&mut self, pod: &Arc<Pod>) {
        match self.redirector.update(pod) {
            Ok(true) => self.roster.updated(pod),
            Ok(false) => {
                self.hold(pod);
                let error = "it has moved".to_owned();
                self.roster.failed(&pod.name, error, now());
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                self.roster.failed(&pod.name, error, now());
                self.hold(pod);
            }
        }
    }

    /// Its probes are told from other connections by where it is.
    fn follow_kubelet(&mut self) {
        let Some(looked) = self.redirector.follow_kubelet() else {
            return;
        };
        let problem = looked.err().map(|error| {
            let error = anyhow::Error::from(error);
            format!("kubelet's probes are refused where plaintext is: {error:#}")
        });
        if let Some(problem) = problem
            .as_deref()
            .filter(|_| problem != self.kubelet_problem)
        {
            tracing::warn!("{problem}");
        }
        self.kubelet_problem = problem;
    }

    /// Pods that are to be meshed, or were until they finished, and have not been found, where
    /// that matters: while an earlier agent's guard is in force, which may be all that they
    /// have.
    fn lost(&self, snapshot: &Snapshot) -> Vec<Arc<Pod>> {
        if self.taken_over && !self.redirector.keeps_any() {
            return Vec::new();
        }
        let pods = snapshot.pods_of_node(&self.config.node).iter();
        pods.filter(|pod| snapshot.meshes(pod) && !self.redirector.is_guarded(&pod.name))
            .filter(|pod| !self.sandboxes.has_gone(pod))
            .cloned()
            .collect()
    }

    /// Every pod had its turn, so that what the last agent left is not needed any more.
    fn take_over(&mut self, lost: &[Arc<Pod>]) -> Option<String> {
        let done = if self.taken_over {
            self.redirector.keep_only(lost)
        } else {
            self.redirector.take_over(lost)
        };
        match done {
            Ok(()) => {
                self.taken_over = true;
                None
            }
            Err(error) => Some(format!(
                "what the last agent left is still in force: {}",
                in_one_line(error)
            )),
        }
    }

    fn publish(&self, error: Option<String>) {
        let existing = self.redirector.bypassing();
        let pods = self.roster.members().map(|member| {
            let bypassing = existing
                .get(&member.pod.name)
                .into_iter()
                .flatten()
                .map(|it| format!("{} -> {}", it.local, it.remote));
            let unseen = self.unseen.get(&member.pod.name).cloned();
            status(member, bypassing.collect(), unseen.unwrap_or_default())
        });
        let error = error.or_else(|| self.departures.error());
        let _old = self.board.send_replace(Enrolment {
            complete: true,
            pods: pods.collect(),
            counters: self.redirector.counters(),
            error,
        });
    }
}

/// Waits for a table that says something else of the node's pods. In a large cluster there
/// are hundreds a second, and hardly any does. Cancel safe.
async fn news(
    tables: &mut watch::Receiver<Arc<Table>>,
    seen: &Snapshot,
    node: &NodeName,
) -> Result<(), watch::error::RecvError> {
    loop {
        tables.changed().await?;
        let table = Arc::clone(&tables.borrow());
        let now = table.snapshot();
        if seen.revision == 0 || !now.same_for_node(seen, node) {
            return Ok(());
        }
    }
}

/// What is known of pods and namespaces is not old.
fn is_current(health: &Health) -> bool {
    if health.kinds.is_empty() {
        return health.healthy;
    }
    let needed = [ObjectKind::Pod, ObjectKind::Namespace].map(ObjectKind::as_str);
    needed.iter().all(|needed| {
        let mut kinds = health.kinds.iter();
        kinds.any(|it| it.kind == *needed && it.installed && it.behind.is_none())
    })
}

fn status(member: &Member, bypassing: Vec<String>, unseen: Vec<u32>) -> PodStatus {
    let (state, error) = match &member.state {
        State::Pending => (PodState::Pending, None),
        State::Enrolled => (PodState::Enrolled, None),
        State::Failed { error, .. } => (PodState::Failed, Some(error.clone())),
    };
    PodStatus {
        namespace: member.pod.name.namespace.to_string(),
        name: member.pod.name.name.to_string(),
        ips: member.pod.ips.clone(),
        identity: member.pod.identity.to_string(),
        state,
        since: member.since,
        open_connections: 0,
        refused_connections: 0,
        bypassing,
        unseen,
        error,
    }
}

/// Where each pod is, or why that can't be told.
type Places = BTreeMap<NamespacedName, Result<Arc<Netns>, RedirectError>>;

fn in_one_line(error: RedirectError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn now() -> (Instant, Timestamp) {
    (Instant::now(), Timestamp::now())
}
