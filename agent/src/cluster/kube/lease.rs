//! One leader among several processes, by a Lease of the API server.
//!
//! ```text
//!               the Lease is free, or did not change for its life
//!   Candidate ────────────────────────────────────────────────────► Leader
//!       ▲   not renewed for RENEW_DEADLINE, or somebody else's        │ renews
//!       └─────────────────────────────────────────────────────────────┘
//! ```
//!
//! Clocks of machines are never compared. A candidate measures by its own clock how long
//! the Lease has not changed; a leader steps back, by its own, well before that life is
//! over, counted from when it sent the last renewal that succeeded. What a leader writes
//! must all the same be guarded by resource versions: it may be stopped by the system for
//! a minute and not know it.

use std::fmt;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, ObjectMeta};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::failure::{ApiFailure, post, within};

/// Others wait for so long after the last change of the Lease. Whole seconds.
const LIFE: Duration = Duration::from_secs(15);
/// Whatever a Lease says of its life, it is waited for no longer.
const LONGEST_LIFE: Duration = Duration::from_mins(1);
/// A leader that could not renew for so long leads no more.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two renewals, and between two looks of a candidate.
const PERIOD: Duration = Duration::from_secs(4);
/// After a request that failed.
const RETRY: Duration = Duration::from_secs(1);
/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Which Lease, and who asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// What people read in `spec.holderIdentity`, such as the pod's name. A random part
    /// is added: a process that starts again is another one.
    pub holder: String,
}

/// Whether this process leads. A clone shows the same.
#[derive(Clone)]
pub struct Leader {
    leading: watch::Receiver<bool>,
    stop: CancellationToken,
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader")
            .field("leads", &self.is_leader())
            .finish_non_exhaustive()
    }
}

impl Leader {
    /// This process leads now.
    pub fn is_leader(&self) -> bool {
        // The task is gone: nobody renews any more.
        *self.leading.borrow() && self.leading.has_changed().is_ok()
    }

    /// Waits until this process leads or leads no more, compared with when it was last
    /// waited for; for ever once it resigned. Cancel safe.
    pub async fn changed(&mut self) {
        if self.leading.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets another process lead at once, and waits until it may. For a process that
    /// stops: it does not run for leader again.
    pub async fn resign(mut self) {
        self.stop.cancel();
        while self.leading.changed().await.is_ok() {}
    }
}

/// Runs for leader: the handle, and the task that asks for the Lease and renews it until
/// the handle resigns. Nobody leads where the task does not run.
pub fn elect(
    client: Client,
    config: LeaseConfig,
) -> (Leader, impl Future<Output = ()> + Send + use<>) {
    let (leading, receiver) = watch::channel(false);
    let stop = CancellationToken::new();
    let leader = Leader {
        leading: receiver,
        stop: stop.clone(),
    };
    let suffix: u32 = rand::random();
    let candidate = Candidate {
        api: Api::namespaced(client, &config.namespace),
        holder: format!("{}_{suffix:08x}", config.holder),
        config,
        observed: None,
        lead_until: None,
        leading,
        failures: 0,
    };
    (leader, candidate.run(stop))
}

/// The Lease as it was last read or written.
#[derive(Clone, Debug)]
struct Observed {
    lease: Lease,
    /// When it was first seen in this version.
    since: Instant,
}

impl Observed {
    fn spec(&self) -> Option<&LeaseSpec> {
        self.lease.spec.as_ref()
    }

    fn holder(&self) -> &str {
        let holder = self.spec().and_then(|spec| spec.holder_identity.as_deref());
        holder.unwrap_or_default()
    }

    /// From when on anybody may take it.
    fn free_at(&self) -> Instant {
        if self.holder().is_empty() {
            return self.since;
        }
        let seconds = self.spec().and_then(|spec| spec.lease_duration_seconds);
        let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
        self.since + seconds.map_or(LIFE, Duration::from_secs).min(LONGEST_LIFE)
    }
}

struct Candidate {
    api: Api<Lease>,
    config: LeaseConfig,
    holder: String,
    observed: Option<Observed>,
    /// While it leads: until when, where it is not renewed.
    lead_until: Option<Instant>,
    leading: watch::Sender<bool>,
    /// In a row.
    failures: u32,
}

impl Candidate {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let wake = self.turn().await;
            tokio::select! {
                () = sleep_until(wake) => {}
                () = stop.cancelled() => {}
            }
        }
        if self.lead_until.is_some() {
            self.release().await;
        }
    }

    /// When the Lease of somebody else ends, where that is still to come.
    fn freed_after(&self, now: Instant) -> Option<Instant> {
        let free = self.observed.as_ref().map(Observed::free_at);
        free.filter(|free| *free > now)
    }

    /// One attempt. Returns when the next one is due.
    async fn turn(&mut self) -> Instant {
        let sent = Instant::now();
        let left = self
            .lead_until
            .map_or(REQUEST_TIMEOUT, |until| until - sent);
        let outcome = self.attempt(left.min(REQUEST_TIMEOUT)).await;
        let wait = match outcome {
            Ok(true) => {
                self.failures = 0;
                self.lead_until = Some(sent + RENEW_DEADLINE);
                PERIOD
            }
            Ok(false) => {
                self.failures = 0;
                // Whoever led may lead again, such as after an answer that was lost.
                match self.lead_until.take() {
                    Some(_) => RETRY,
                    None => PERIOD,
                }
            }
            Err(error) => {
                self.failures += 1;
                self.say(&error);
                RETRY
            }
        };
        let now = Instant::now();
        if self.lead_until.is_some_and(|until| until <= now) {
            self.lead_until = None;
        }
        self.publish();
        let wake = now + wait.mul_f64(rand::random_range(0.8..=1.0));
        let change = self.lead_until.or_else(|| self.freed_after(now));
        change.map_or(wake, |change| wake.min(change))
    }

    /// Takes or renews the Lease where that is due. Tells whether it is ours.
    async fn attempt(&mut self, timeout: Duration) -> Result<bool, ApiFailure> {
        if self.lead_until.is_none() {
            self.read(timeout).await?;
        }
        let now = Instant::now();
        let wanted = match &self.observed {
            None => self.claim(None),
            Some(observed) if observed.holder() == self.holder || observed.free_at() <= now => {
                self.claim(Some(observed))
            }
            Some(_) => return Ok(false),
        };
        let written = self.write(&wanted, timeout).await;
        match written {
            Ok(lease) => {
                self.observe(lease);
                Ok(true)
            }
            // Somebody was faster, or deleted it: to be read anew.
            Err(ApiFailure::Conflict { .. }) => Ok(false),
            Err(ApiFailure::NotFound { .. }) if wanted.metadata.resource_version.is_some() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&mut self, timeout: Duration) -> Result<(), ApiFailure> {
        match within(timeout, self.api.get_opt(&self.config.name)).await? {
            Some(lease) => self.observe(lease),
            None => self.observed = None,
        }
        Ok(())
    }

    async fn write(&self, lease: &Lease, timeout: Duration) -> Result<Lease, ApiFailure> {
        let params = post();
        if lease.metadata.resource_version.is_none() {
            within(timeout, self.api.create(&params, lease)).await
        } else {
            let replacing = self.api.replace(&self.config.name, &params, lease);
            within(timeout, replacing).await
        }
    }

    fn observe(&mut self, lease: Lease) {
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        let same = |observed: &Observed| version(&observed.lease) == version(&lease);
        if !self.observed.as_ref().is_some_and(same) {
            self.observed = Some(Observed {
                lease,
                since: Instant::now(),
            });
        }
    }

    /// The Lease as this process wants it, over what is there.
    fn claim(&self, observed: Option<&Observed>) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let mut lease = observed.map_or_else(Lease::default, |observed| observed.lease.clone());
        if observed.is_none() {
            lease.metadata = ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.config.namespace.clone()),
                ..ObjectMeta::default()
            };
        }
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.holder) {
            let transitions = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(transitions + i32::from(observed.is_some()));
            spec.acquire_time.clone_from(&now);
            spec.holder_identity = Some(self.holder.clone());
        }
        spec.lease_duration_seconds = i32::try_from(LIFE.as_secs()).ok();
        spec.renew_time = now;
        lease
    }

    /// Gives the Lease back, so that nobody has to wait for its end.
    async fn release(&mut self) {
        self.lead_until = None;
        self.publish();
        let Some(observed) = &self.observed else {
            return;
        };
        let mut lease = observed.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        if let Err(error) = self.write(&lease, REQUEST_TIMEOUT).await {
            self.say(&error);
        }
    }

    fn publish(&self) {
        let leads = self.lead_until.is_some();
        let changed = self.leading.send_if_modified(|leading| {
            let changed = *leading != leads;
            *leading = leads;
            changed
        });
        if changed {
            let LeaseConfig {
                namespace, name, ..
            } = &self.config;
            tracing::info!(
                namespace,
                lease = name,
                holder = self.holder,
                leads,
                "leader election"
            );
        }
    }

    /// An outage of hours is not told every second.
    fn say(&self, error: &ApiFailure) {
        if self.failures <= 1 || self.failures.is_power_of_two() {
            let LeaseConfig {
                namespace, name, ..
            } = &self.config;
            tracing::warn!(namespace, lease = name, %error, attempts = self.failures, "leader election");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::cluster::kube::fake::FakeApi;

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/fairlead-system/leases/fairlead-ca";

    fn start(api: &FakeApi, holder: &str) -> Leader {
        let config = LeaseConfig {
            namespace: "fairlead-system".to_owned(),
            name: "fairlead-ca".to_owned(),
            holder: holder.to_owned(),
        };
        let (leader, task) = elect(api.client(), config);
        tokio::spawn(task);
        leader
    }

    async fn leads(leader: &mut Leader, within: Duration) -> Duration {
        let start = Instant::now();
        let lead = async {
            while !leader.is_leader() {
                leader.changed().await;
            }
        };
        timeout(within, lead).await.expect("does not lead in time");
        start.elapsed()
    }

    fn holder(api: &FakeApi) -> String {
        let lease = api.get(PATH).unwrap();
        lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_candidates_one_leads() {
        let api = FakeApi::new();
        let (mut one, mut other) = (start(&api, "one"), start(&api, "other"));
        tokio::select! {
            () = async { leads(&mut one, LIFE).await; } => {}
            () = async { leads(&mut other, LIFE).await; } => {}
        }
        for _ in 0..200 {
            sleep(Duration::from_millis(500)).await;
            assert!(one.is_leader() != other.is_leader());
        }
        assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_resigns_is_followed_at_the_next_look() {
        let api = FakeApi::new();
        let mut one = start(&api, "one");
        leads(&mut one, LIFE).await;
        let mut other = start(&api, "other");
        sleep(Duration::from_mins(1)).await;
        assert!(!other.is_leader());
        assert!(holder(&api).starts_with("one_"));

        let seen = one.clone();
        one.resign().await;
        assert!(!seen.is_leader());
        assert_eq!(holder(&api), "");
        assert!(leads(&mut other, LIFE).await <= PERIOD + RETRY);
        assert!(holder(&api).starts_with("other_"));
        assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_cut_off_steps_back_before_another_leads() {
        let api = FakeApi::new();
        let cut_off = api.another_way();
        let mut one = start(&cut_off, "one");
        leads(&mut one, LIFE).await;
        let mut other = start(&api, "other");
        sleep(Duration::from_secs(20)).await;
        cut_off.set_away(true);
        let start = Instant::now();
        while one.is_leader() {
            assert!(!other.is_leader());
            sleep(Duration::from_millis(50)).await;
        }
        assert!(start.elapsed() <= RENEW_DEADLINE + Duration::from_millis(100));
        assert!(!other.is_leader());
        leads(&mut other, LIFE + PERIOD).await;

        cut_off.set_away(false);
        sleep(Duration::from_mins(1)).await;
        assert!(other.is_leader() && !one.is_leader());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_requests_hang_steps_back() {
        let api = FakeApi::new();
        let mut one = start(&api, "one");
        leads(&mut one, LIFE).await;
        api.set_hanging(true);
        sleep(RENEW_DEADLINE + Duration::from_millis(100)).await;
        assert!(!one.is_leader());
        api.set_hanging(false);
        leads(&mut one, LIFE + PERIOD).await;
    }

    /// The times in a Lease are of another machine's clock, and say nothing.
    #[tokio::test(start_paused = true)]
    async fn the_clocks_of_others_do_not_matter() {
        for renewed in ["1999-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
            let api = FakeApi::new();
            api.put(
                PATH,
                serde_json::json!({
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": "fairlead-ca", "namespace": "fairlead-system"},
                    "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 15, "renewTime": renewed},
                }),
            );
            let mut one = start(&api, "one");
            let took = leads(&mut one, LIFE * 2).await;
            assert!(took >= LIFE && took <= LIFE + PERIOD, "{took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_taken_away_is_lost_at_once() {
        let api = FakeApi::new();
        let mut one = start(&api, "one");
        leads(&mut one, LIFE).await;
        let mut lease = api.get(PATH).unwrap();
        lease["spec"]["holderIdentity"] = "thief".into();
        api.put(PATH, lease);
        // Its next renewal is within the period.
        sleep(PERIOD + Duration::from_millis(100)).await;
        assert!(!one.is_leader());
        assert_eq!(holder(&api), "thief");
        leads(&mut one, LIFE + PERIOD * 2).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_is_deleted_is_made_again() {
        let api = FakeApi::new();
        let mut one = start(&api, "one");
        leads(&mut one, LIFE).await;
        api.delete(PATH);
        sleep(PERIOD * 3).await;
        assert!(one.is_leader());
        assert!(holder(&api).starts_with("one_"));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_leads_where_no_lease_can_be_made() {
        let api = FakeApi::new();
        api.forbid(Some(PATH.trim_end_matches("/fairlead-ca")));
        let one = start(&api, "one");
        sleep(LIFE * 4).await;
        assert!(!one.is_leader());
        api.forbid(None);
        sleep(PERIOD).await;
        assert!(one.is_leader());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_leads_without_a_task() {
        let api = FakeApi::new();
        let config = LeaseConfig {
            namespace: "fairlead-system".to_owned(),
            name: "fairlead-ca".to_owned(),
            holder: "one".to_owned(),
        };
        let (mut leader, task) = elect(api.client(), config);
        let task = tokio::spawn(task);
        leads(&mut leader, LIFE).await;
        task.abort();
        task.await.unwrap_err();
        assert!(!leader.is_leader());
    }
}
