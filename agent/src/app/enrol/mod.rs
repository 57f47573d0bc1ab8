//! The pods of this node go under the kernel's programs and to the proxy.
//!
//! ```text
//! Table ─► desired pods ─► Roster::steps ─┬─ Leave: redirect, then proxy with grace
//!                                         └─ Enrol: redirect ─► listeners ─► proxy
//! ```
//!
//! A pod that can't be enrolled is blocked by the kernel side, reported and tried
//! again. What an earlier agent left in force goes once all pods had their turn.

mod roster;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::network::Adaptor;
use crate::admin::{PodState, PodStatus};
use crate::identity::Identities;
use crate::model::{NamespacedName, NodeName};
use crate::policy::Table;
use crate::proxy::{EnrolledPod, Listeners, PodKey, Proxy};
use crate::redirect::{self, Redirector};
use crate::state::{Pod, Snapshot};
use roster::{Member, Roster, State, Step};

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
    roster: Roster,
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
        identities: Identities,
    ) -> (Self, watch::Receiver<Enrolment>) {
        let (board, view) = watch::channel(Enrolment::default());
        let enroller = Self {
            config,
            redirector,
            proxy,
            identities,
            roster: Roster::default(),
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
            let retry = sleep_until(self.roster.next_retry().unwrap_or(far));
            tokio::select! {
                changed = tables.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = retry => {}
                _ = look.tick() => {}
                _ = tidy.tick() => tokio::task::block_in_place(|| self.tidy()),
            }
        }
    }

    /// One look at everything.
    fn pass(&mut self, snapshot: &Snapshot) {
        if snapshot.revision == 0 || self.redirector.tenure().is_over() {
            // Nothing is known yet, and nobody may be let go for that; or the pods are
            // another agent's, and only their open connections are still this one's.
            return;
        }
        self.forget_vanished();
        self.redirector.forget_ended();
        self.follow_kubelet();
        let desired = self.desired(snapshot);
        let wanted: BTreeSet<_> = desired.iter().map(|pod| pod.identity.clone()).collect();
        self.identities.set_wanted(wanted);
        let steps = self.roster.steps(&desired, now());
        let returning: BTreeSet<_> = steps.iter().filter_map(Step::enrols).cloned().collect();
        for step in steps {
            match step {
                Step::Leave(pod) if returning.contains(&pod.name) => self.hold(&pod),
                Step::Leave(pod) => self.leave(&pod),
                Step::Enrol(pod) => self.enrol(&pod),
                Step::Update(pod) => self.update(&pod),
            }
        }
        let error = self.take_over().or_else(|| self.kubelet_problem.clone());
        self.publish(error);
    }

    fn desired(&self, snapshot: &Snapshot) -> Vec<Arc<Pod>> {
        let pods = snapshot.pods_of_node(&self.config.node).iter();
        pods.filter(|pod| pod.enrolled).cloned().collect()
    }

    fn enrol(&mut self, pod: &Arc<Pod>) {
        match self.try_enrol(pod) {
            Ok(()) => self.roster.enrolled(pod, Timestamp::now()),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(pod = %pod.name, error, "cannot enrol the pod; trying again");
                self.roster.failed(&pod.name, error, now());
            }
        }
    }

    fn try_enrol(&mut self, pod: &Arc<Pod>) -> anyhow::Result<()> {
        let enrolled = self.redirector.enrol(pod)?;
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
        if !enrolled.unseen.is_empty() {
            tracing::warn!(
                pod = %pod.name,
                processes = ?enrolled.unseen,
                "processes in the pod's network namespace are not below --cgroup: what they dial \
                 bypasses the mesh"
            );
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

    fn leave(&mut self, pod: &Arc<Pod>) {
        if let Err(error) = self.redirector.unenrol(&pod.name) {
            let error = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(pod = %pod.name, error, "cannot take the pod out of the kernel");
        }
        self.proxy.remove_pod(&PodKey::of(pod), self.config.grace);
        tracing::info!(pod = %pod.name, "let the pod go");
    }

    /// The pod is to be enrolled in another way at once: it is not open in between.
    fn hold(&mut self, pod: &Arc<Pod>) {
        self.redirector.hold(&pod.name);
        self.proxy.remove_pod(&PodKey::of(pod), self.config.grace);
    }

    fn tidy(&mut self) {
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
            Ok(true) => self.roster.enrolled(pod, Timestamp::now()),
            Ok(false) => {
                self.hold(pod);
                self.enrol(pod);
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                self.roster.failed(&pod.name, error, now());
                self.hold(pod);
            }
        }
    }

    /// Pods whose namespace has gone while the state still has them.
    fn forget_vanished(&mut self) {
        let vanished: BTreeSet<NamespacedName> = self.redirector.vanished().into_iter().collect();
        let members = self.roster.members();
        let pods: Vec<Arc<Pod>> = members
            .filter(|member| vanished.contains(&member.pod.name))
            .map(|member| Arc::clone(&member.pod))
            .collect();
        for pod in pods {
            self.leave(&pod);
            let error = "its network namespace has gone".to_owned();
            self.roster.failed(&pod.name, error, now());
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

    /// Every pod had its turn, so that what the last agent left is not needed any more.
    fn take_over(&mut self) -> Option<String> {
        if self.taken_over {
            return None;
        }
        match self.redirector.take_over() {
            Ok(()) => {
                self.taken_over = true;
                None
            }
            Err(error) => Some(format!(
                "what the last agent left is still in force: {:#}",
                anyhow::Error::from(error)
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
            status(member, bypassing.collect())
        });
        let _old = self.board.send_replace(Enrolment {
            complete: true,
            pods: pods.collect(),
            counters: self.redirector.counters(),
            error,
        });
    }
}

fn status(member: &Member, bypassing: Vec<String>) -> PodStatus {
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
        error,
    }
}

fn now() -> (Instant, Timestamp) {
    (Instant::now(), Timestamp::now())
}
