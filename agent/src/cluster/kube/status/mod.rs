//! The status of our kinds' objects, written by one agent for all.
//!
//! ```text
//! Snapshot ─► verdicts ─┐ differ from what was said
//!                       ├──────────────────────────► read the object ─► apply its status
//! Lease ─► leading ─────┘
//! ```
//!
//! Few agents run for the Lease, however many there are. Whoever leads says each verdict
//! once, and again only where it changed or where a look at all objects, every few
//! minutes, finds that somebody else has written there.
//!
//! Of a route it is said for each parent that is a Service. What others say of their
//! parents stays.

mod candidates;
mod routes;
#[cfg(test)]
mod tests;
mod verdict;
mod word;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, DynamicObject, ListParams};
use ::kube::core::ApiResource;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::failure::{ApiFailure, within};
use super::lease::{Leader, LeaseConfig, elect};
use crate::model::{NamespacedName, NodeName};
use crate::state::{ObjectKey, ObjectKind, ROOT_NAMESPACE, Snapshot};
use word::{Word, resources, words};

/// The Lease of who writes.
const LEASE: &str = "fairlead-status";
/// Who writes, for the API server.
const FIELD_MANAGER: &str = "fairlead.dev/mesh";
/// Changes of the state are waited for so long, to be answered together.
const QUIET: Duration = Duration::from_secs(1);
/// Between two requests that write.
const PACE: Duration = Duration::from_millis(50);
/// Between two looks at who is to run for the Lease.
const LOOK: Duration = Duration::from_secs(10);
/// Between two looks at all objects.
const REFRESH: Duration = Duration::from_mins(10);
/// After a failure, twice as long at each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Writes of a pass that may fail: where most do, it is for all to wait.
const MOST_FAILED: usize = 16;
/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects in one answer.
const PAGE: u32 = 500;

/// Writes the status of policies while this agent is the one to do it. Ends where there are
/// no more snapshots.
pub async fn keep_status(client: Client, node: NodeName, mut snapshots: watch::Receiver<Snapshot>) {
    let known = snapshots.wait_for(|snapshot| snapshot.revision > 0).await;
    drop(known);
    while snapshots.has_changed().is_ok() {
        if !candidates::runs(&snapshots.borrow(), &node) {
            sleep(LOOK).await;
            continue;
        }
        let lease = LeaseConfig {
            namespace: ROOT_NAMESPACE.to_owned(),
            name: LEASE.to_owned(),
            holder: node.to_string(),
        };
        let (leader, election) = elect(client.clone(), lease);
        let writer = Writer::new(client.clone());
        let term = async {
            serve(writer, leader.clone(), &node, &mut snapshots).await;
            leader.resign().await;
        };
        tokio::join!(election, term);
    }
}

/// Writes while this agent leads. Returns once it is not to run for the Lease any more.
async fn serve(
    mut writer: Writer,
    mut leader: Leader,
    node: &NodeName,
    snapshots: &mut watch::Receiver<Snapshot>,
) {
    let mut due: Option<Instant> = None;
    let mut look = Instant::now() + LOOK;
    loop {
        tokio::select! {
            () = leader.changed() => {
                writer.forget();
                due = leader.is_leader().then(Instant::now);
            }
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                if let Some(due) = &mut due {
                    *due = writer.after_change(*due);
                }
            }
            () = sleep_until(due.unwrap_or(look)), if due.is_some() => {
                let snapshot = snapshots.borrow_and_update().clone();
                due = Some(writer.pass(&snapshot, &leader).await);
            }
            () = sleep_until(look) => {
                look = Instant::now() + LOOK;
                if !candidates::runs(&snapshots.borrow(), node) {
                    return;
                }
            }
        }
    }
}

/// What the leader knows of what was said.
struct Writer {
    client: Client,
    /// What stands in the API server, as far as it was written or read by this writer.
    said: HashMap<ObjectKey, Word>,
    /// What could not be written, and when that was tried.
    failed: HashMap<ObjectKey, Instant>,
    /// When all objects were last looked at.
    listed: Option<Instant>,
    pace: Interval,
    /// In a row.
    failures: u32,
}

impl Writer {
    fn new(client: Client) -> Self {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            client,
            said: HashMap::new(),
            failed: HashMap::new(),
            listed: None,
            pace,
            failures: 0,
        }
    }

    /// Somebody else led meanwhile.
    fn forget(&mut self) {
        self.said.clear();
        self.failed.clear();
        self.listed = None;
    }

    /// The state changed: when to answer, where it would be at `due` so far. What failed is
    /// not tried earlier for that.
    fn after_change(&self, due: Instant) -> Instant {
        match self.failures {
            0 => due.min(Instant::now() + QUIET),
            _ => due,
        }
    }

    /// Says whatever is new. Returns when to do it again, unless something changes before.
    async fn pass(&mut self, snapshot: &Snapshot, leader: &Leader) -> Instant {
        let wait = match self.say(snapshot, leader).await {
            Ok(All::Said) => {
                self.failures = 0;
                REFRESH
            }
            Ok(All::Later) => {
                self.failures = 0;
                FIRST_WAIT
            }
            Err(error) => {
                self.failures += 1;
                if self.failures.is_power_of_two() {
                    let attempts = self.failures;
                    tracing::warn!(%error, attempts, "can't write the status of objects");
                }
                FIRST_WAIT
                    .saturating_mul(1 << self.failures.min(16))
                    .min(LONGEST_WAIT)
            }
        };
        Instant::now() + wait.mul_f64(rand::random_range(0.8..=1.0))
    }

    async fn say(&mut self, snapshot: &Snapshot, leader: &Leader) -> Result<All, ApiFailure> {
        if snapshot.revision == 0 {
            return Ok(All::Later);
        }
        let words = words(snapshot);
        let now = Instant::now();
        if self.listed.is_none_or(|listed| now - listed >= REFRESH / 2) {
            self.said = self.list(&words).await?;
            self.listed = Some(now);
        }
        self.said.retain(|key, _| words.contains_key(key));
        self.failed.retain(|key, _| words.contains_key(key));
        // Those that failed go last, the last to fail behind the others: they are in nobody's
        // way.
        let mut words: Vec<(ObjectKey, Word)> = words.into_iter().collect();
        words.sort_by_key(|(key, _)| self.failed.get(key).copied());
        let (mut all, mut failures) = (All::Said, Vec::new());
        for (key, word) in words {
            if self.said.get(&key) == Some(&word) {
                continue;
            }
            if !leader.is_leader() {
                return Ok(All::Later);
            }
            self.pace.tick().await;
            match self.write(&key, &word).await {
                Ok(()) => {
                    self.failed.remove(&key);
                    self.said.insert(key, word);
                }
                // It is gone or has another spec: the state will say so.
                Err(Unsaid::Outdated | Unsaid::Failed(ApiFailure::NotFound { .. })) => {}
                Err(Unsaid::Failed(ApiFailure::Conflict { .. })) => all = All::Later,
                Err(Unsaid::Failed(error @ ApiFailure::Refused { .. })) => {
                    tracing::warn!(object = %key, %error, "can't write the status of an object");
                    self.said.insert(key, word);
                }
                Err(Unsaid::Failed(error)) => {
                    let answers = matches!(
                        error,
                        ApiFailure::Forbidden { .. } | ApiFailure::Overloaded { .. }
                    );
                    self.failed.insert(key, Instant::now());
                    failures.push(error);
                    if !answers || failures.len() == MOST_FAILED {
                        break;
                    }
                }
            }
        }
        failures.pop().map_or(Ok(all), Err)
    }

    /// Which words stand in the API server already.
    async fn list(
        &self,
        words: &BTreeMap<ObjectKey, Word>,
    ) -> Result<HashMap<ObjectKey, Word>, ApiFailure> {
        let mut said = HashMap::new();
        for kind in KINDS {
            for resource in resources(kind) {
                let objects = match self.list_in(&resource).await {
                    // Its definition is not installed, or not in this version.
                    Err(ApiFailure::NotFound { .. }) => continue,
                    objects => objects?,
                };
                let found = objects.iter().filter_map(|object| {
                    let key = key(kind, object);
                    let word = words.get(&key)?;
                    word.is_said_by(object).then(|| (key, word.clone()))
                });
                said.extend(found);
                break;
            }
        }
        Ok(said)
    }

    /// All objects of a kind in a version.
    async fn list_in(&self, resource: &ApiResource) -> Result<Vec<DynamicObject>, ApiFailure> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let mut params = ListParams::default().limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = within(REQUEST_TIMEOUT, api.list(&params)).await?;
            objects.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    async fn write(&self, key: &ObjectKey, word: &Word) -> Result<(), Unsaid> {
        let (namespace, name) = (&key.name.namespace, &key.name.name);
        let mut missing = None;
        for resource in resources(key.kind) {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), namespace, &resource);
            // The whole object, too; but it takes no more rights than to write it does.
            let object = match within(REQUEST_TIMEOUT, api.get_status(name)).await {
                Err(failure @ ApiFailure::NotFound { .. }) => {
                    missing = Some(failure);
                    continue;
                }
                object => object?,
            };
            if object.metadata.generation != Some(word.generation()) {
                return Err(Unsaid::Outdated);
            }
            if !word.is_said_by(&object) {
                let (params, patch) = word.patch((&resource, &object), now());
                let written = api.patch_status(name, &params, &patch);
                let _object = within(REQUEST_TIMEOUT, written).await?;
            }
            return Ok(());
        }
        Err(missing.map_or(Unsaid::Outdated, Unsaid::Failed))
    }
}

/// How far a pass came.
enum All {
    Said,
    /// There is more to say.
    Later,
}

/// Why something was not said.
enum Unsaid {
    /// The state is behind, or ahead of, the object.
    Outdated,
    Failed(ApiFailure),
}

impl From<ApiFailure> for Unsaid {
    fn from(failure: ApiFailure) -> Self {
        Self::Failed(failure)
    }
}

/// The kinds that have a status.
const KINDS: [ObjectKind; 7] = [
    ObjectKind::AuthorizationPolicy,
    ObjectKind::MeshPolicy,
    ObjectKind::TrafficPolicy,
    ObjectKind::GrpcRoute,
    ObjectKind::HttpRoute,
    ObjectKind::TlsRoute,
    ObjectKind::TcpRoute,
];

fn key(kind: ObjectKind, object: &DynamicObject) -> ObjectKey {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let name = NamespacedName::new(namespace, name);
    ObjectKey { kind, name }
}

/// In whole seconds, as times of Kubernetes are.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
