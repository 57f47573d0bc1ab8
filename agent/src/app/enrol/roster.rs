//! Who is to be enrolled, who is, and what to do next. Pure: time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::model::NamespacedName;
use crate::state::Pod;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The pods of this node, by name.
#[derive(Debug, Default)]
pub(super) struct Roster {
    members: BTreeMap<NamespacedName, Member>,
    enrolments: u64,
}

/// A pod that is to be enrolled.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) pod: Arc<Pod>,
    /// The cookie of the namespace that the runtime gave it, where it told.
    pub(super) netns: Option<u64>,
}

/// One pod.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// As it was when it was enrolled, or tried to be.
    pub(super) pod: Arc<Pod>,
    /// The cookie of the namespace that it was enrolled in last.
    pub(super) netns: Option<u64>,
    pub(super) state: State,
    /// When it came into this state.
    pub(super) since: Timestamp,
}

/// How far a pod is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// To be enrolled now.
    Pending,
    /// Its traffic comes to the agent.
    Enrolled,
    /// The last attempt failed.
    Failed {
        error: String,
        attempts: u32,
        retry_at: Instant,
    },
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take it in.
    Enrol(Arc<Pod>),
    /// Its bypass lists changed.
    Update(Arc<Pod>),
    /// Let it go.
    Leave(Arc<Pod>),
}

impl Step {
    /// The pod that it enrols.
    pub(super) fn enrols(&self) -> Option<&NamespacedName> {
        match self {
            Self::Enrol(pod) => Some(&pod.name),
            Self::Update(_) | Self::Leave(_) => None,
        }
    }
}

impl Roster {
    /// Takes over which pods there are to be, and says what follows from that and from
    /// the time: first who goes, since a successor may have the same namespace, then who
    /// comes.
    pub(super) fn steps(&mut self, desired: &[Wanted], now: (Instant, Timestamp)) -> Vec<Step> {
        let wanted: BTreeMap<&NamespacedName, &Wanted> =
            desired.iter().map(|it| (&it.pod.name, it)).collect();
        let mut steps = Vec::new();
        self.members.retain(|name, member| {
            let stays = wanted.get(name).is_some_and(|it| member.is_same(it));
            // One that failed may be blocked, so it has to leave too.
            if !stays && member.state != State::Pending {
                steps.push(Step::Leave(Arc::clone(&member.pod)));
            }
            stays
        });
        for Wanted { pod, .. } in desired {
            let member = self
                .members
                .entry(pod.name.clone())
                .or_insert_with(|| Member {
                    pod: Arc::clone(pod),
                    netns: None,
                    state: State::Pending,
                    since: now.1,
                });
            if member.is_due(now.0) {
                steps.push(Step::Enrol(Arc::clone(pod)));
            } else if member.state == State::Enrolled && !same_bypass(&member.pod, pod) {
                steps.push(Step::Update(Arc::clone(pod)));
            }
        }
        steps
    }

    /// The pod is enrolled in the namespace with this cookie.
    pub(super) fn enrolled(&mut self, pod: &Arc<Pod>, netns: u64, now: Timestamp) {
        if let Some(member) = self.members.get_mut(&pod.name) {
            if member.state != State::Enrolled {
                member.since = now;
            }
            self.enrolments += 1;
            member.netns = Some(netns);
            member.pod = Arc::clone(pod);
            member.state = State::Enrolled;
        }
    }

    /// What was enrolled is served as the pod's object says now.
    pub(super) fn updated(&mut self, pod: &Arc<Pod>) {
        if let Some(member) = self.members.get_mut(&pod.name) {
            member.pod = Arc::clone(pod);
        }
    }

    /// The pod could not be enrolled; it is tried again, later at each time.
    pub(super) fn failed(
        &mut self,
        name: &NamespacedName,
        error: String,
        now: (Instant, Timestamp),
    ) {
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        let attempts = match member.state {
            State::Failed { attempts, .. } => attempts.saturating_add(1),
            State::Pending | State::Enrolled => {
                member.since = now.1;
                1
            }
        };
        let wait = FIRST_WAIT.saturating_mul(1 << (attempts - 1).min(16));
        member.state = State::Failed {
            error,
            attempts,
            retry_at: now.0 + wait.min(LONGEST_WAIT),
        };
    }

    /// When the next retry is due.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let retries = self
            .members
            .values()
            .filter_map(|member| match member.state {
                State::Failed { retry_at, .. } => Some(retry_at),
                State::Pending | State::Enrolled => None,
            });
        retries.min()
    }

    /// How often a pod was enrolled.
    pub(super) fn enrolments(&self) -> u64 {
        self.enrolments
    }

    /// One of them.
    pub(super) fn member(&self, name: &NamespacedName) -> Option<&Member> {
        self.members.get(name)
    }

    /// All, in the order of their names.
    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }
}

impl Member {
    /// It is the same pod, at the same place.
    fn is_same(&self, wanted: &Wanted) -> bool {
        let moved = |(told, enrolled)| told != enrolled;
        same(&self.pod, &wanted.pod) && !wanted.netns.zip(self.netns).is_some_and(moved)
    }

    fn is_due(&self, now: Instant) -> bool {
        match self.state {
            State::Pending => true,
            State::Enrolled => false,
            State::Failed { retry_at, .. } => retry_at <= now,
        }
    }
}

/// The pod is the same one, at the same place.
fn same(old: &Pod, new: &Pod) -> bool {
    old.uid == new.uid
        && old.netns == new.netns
        && old.ips == new.ips
        && old.identity == new.identity
}

/// The same connections bypass the mesh.
fn same_bypass(old: &Pod, new: &Pod) -> bool {
    old.exclude_outbound_ports == new.exclude_outbound_ports
        && old.exclude_outbound_cidrs == new.exclude_outbound_cidrs
        && old.exclude_inbound_ports == new.exclude_inbound_ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::pod;

    fn web() -> Arc<Pod> {
        Arc::new(pod("shop", "web-1", "10.1.0.5"))
    }

    fn wanted(pod: &Arc<Pod>) -> Wanted {
        Wanted {
            pod: Arc::clone(pod),
            netns: None,
        }
    }

    fn clock() -> (Instant, Timestamp) {
        (Instant::now(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pod_is_enrolled_once_and_leaves_once() {
        let (mut roster, now, web) = (Roster::default(), clock(), web());
        let desired = [wanted(&web)];
        assert_eq!(roster.steps(&desired, now), [Step::Enrol(Arc::clone(&web))]);
        roster.enrolled(&web, 7, now.1);
        assert_eq!(roster.steps(&desired, now), []);
        assert_eq!(roster.steps(&[], now), [Step::Leave(web)]);
        assert_eq!(roster.steps(&[], now), []);
    }

    #[test]
    fn a_failure_is_tried_again_later_at_each_time() {
        let (mut roster, (start, wall), web) = (Roster::default(), clock(), web());
        let desired = [wanted(&web)];
        let mut waits = Vec::new();
        let mut now = start;
        for _ in 0..12 {
            assert_eq!(roster.steps(&desired, (now, wall)).len(), 1);
            roster.failed(&web.name, "no netns".to_owned(), (now, wall));
            assert_eq!(roster.steps(&desired, (now, wall)), []);
            let retry = roster.next_retry().unwrap();
            waits.push(retry - now);
            now = retry;
        }
        assert_eq!(waits[..2], [FIRST_WAIT, FIRST_WAIT * 2]);
        assert_eq!(waits[11], LONGEST_WAIT);
        roster.enrolled(&web, 7, wall);
        assert_eq!(roster.next_retry(), None);
    }

    #[test]
    fn a_successor_of_the_same_name_replaces_it() {
        let (mut roster, now, old) = (Roster::default(), clock(), web());
        let _steps = roster.steps(&[wanted(&old)], now);
        roster.enrolled(&old, 7, now.1);
        let new = Arc::new(Pod {
            uid: "2".into(),
            ..Pod::clone(&old)
        });
        let steps = roster.steps(&[wanted(&new)], now);
        assert_eq!(steps, [Step::Leave(old), Step::Enrol(new)]);
    }

    #[test]
    fn a_label_changes_nothing() {
        let (mut roster, now, old) = (Roster::default(), clock(), web());
        let _steps = roster.steps(&[wanted(&old)], now);
        roster.enrolled(&old, 7, now.1);
        let new = Arc::new(Pod {
            labels: [("version", "2")].into_iter().collect(),
            ..Pod::clone(&old)
        });
        assert_eq!(roster.steps(&[wanted(&new)], now), []);
    }

    #[test]
    fn changed_bypass_lists_update_it_once() {
        let (mut roster, now, old) = (Roster::default(), clock(), web());
        let _steps = roster.steps(&[wanted(&old)], now);
        roster.enrolled(&old, 7, now.1);
        let new = Arc::new(Pod {
            exclude_outbound_ports: Box::new([5432]),
            ..Pod::clone(&old)
        });
        let desired = [wanted(&new)];
        assert_eq!(
            roster.steps(&desired, now),
            [Step::Update(Arc::clone(&new))]
        );
        roster.updated(&new);
        assert_eq!(roster.steps(&desired, now), []);
    }

    #[test]
    fn a_new_sandbox_of_the_same_pod_replaces_the_old_one() {
        let (mut roster, now, web) = (Roster::default(), clock(), web());
        let told = |netns| Wanted {
            netns: Some(netns),
            ..wanted(&web)
        };
        let _steps = roster.steps(&[told(7)], now);
        roster.enrolled(&web, 7, now.1);
        assert_eq!(roster.steps(&[told(7)], now), []);
        // Who does not tell says nothing against it.
        assert_eq!(roster.steps(&[wanted(&web)], now), []);
        let steps = roster.steps(&[told(8)], now);
        let (leave, enrol) = (Step::Leave(Arc::clone(&web)), Step::Enrol(Arc::clone(&web)));
        assert_eq!(steps, [leave, enrol]);
    }

    #[test]
    fn one_that_failed_leaves_since_it_may_be_blocked() {
        let (mut roster, now, web) = (Roster::default(), clock(), web());
        let _steps = roster.steps(&[wanted(&web)], now);
        roster.failed(&web.name, "no listener".to_owned(), now);
        assert_eq!(roster.steps(&[], now), [Step::Leave(web)]);
    }
}
