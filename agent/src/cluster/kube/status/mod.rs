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
//! Routes of the Gateway API get no condition: an implementation writes only of parents
//! that it serves, and the mesh does not serve routes.

mod candidates;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use ::kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use ::kube::core::ApiResource;
use ::kube::{Client, CustomResourceExt as _};
use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::failure::{ApiFailure, within};
use super::lease::{Leader, LeaseConfig, elect};
use crate::cluster::api::{self, PolicyStatus};
use crate::model::{NamespacedName, NodeName};
use crate::state::{ObjectKey, ObjectKind, ROOT_NAMESPACE, Snapshot};
use verdict::Verdict;

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
    said: HashMap<ObjectKey, Verdict>,
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
            listed: None,
            pace,
            failures: 0,
        }
    }

    /// Somebody else led meanwhile.
    fn forget(&mut self) {
        self.said.clear();
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
                    tracing::warn!(%error, attempts, "can't write the status of policies");
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
        let verdicts = verdict::verdicts(snapshot);
        let now = Instant::now();
        if self.listed.is_none_or(|listed| now - listed >= REFRESH / 2) {
            self.said = self.list(&verdicts).await?;
            self.listed = Some(now);
        }
        self.said.retain(|key, _| verdicts.contains_key(key));
        let mut all = All::Said;
        for (key, verdict) in verdicts {
            if self.said.get(&key) == Some(&verdict) {
                continue;
            }
            if !leader.is_leader() {
                return Ok(All::Later);
            }
            self.pace.tick().await;
            match self.write(&key, &verdict).await {
                Ok(()) => drop(self.said.insert(key, verdict)),
                // It is gone or has another spec: the state will say so.
                Err(Unsaid::Outdated | Unsaid::Failed(ApiFailure::NotFound { .. })) => {}
                Err(Unsaid::Failed(ApiFailure::Conflict { .. })) => all = All::Later,
                Err(Unsaid::Failed(error @ ApiFailure::Refused { .. })) => {
                    tracing::warn!(object = %key, %error, "can't write the status of a policy");
                    self.said.insert(key, verdict);
                }
                Err(Unsaid::Failed(error)) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Which verdicts stand in the API server already.
    async fn list(
        &self,
        verdicts: &BTreeMap<ObjectKey, Verdict>,
    ) -> Result<HashMap<ObjectKey, Verdict>, ApiFailure> {
        let mut said = HashMap::new();
        for kind in KINDS {
            let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource(kind));
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let page = match within(REQUEST_TIMEOUT, api.list(&params)).await {
                    // Its definition is not installed.
                    Err(ApiFailure::NotFound { .. }) => break,
                    page => page?,
                };
                let found = page.items.iter().filter_map(|object| {
                    let key = key(kind, object);
                    let verdict = verdicts.get(&key)?;
                    let is_said = verdict.is_said_by(&status(object));
                    is_said.then(|| (key, verdict.clone()))
                });
                said.extend(found);
                match page.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => params = params.continue_token(&token),
                    None => break,
                }
            }
        }
        Ok(said)
    }

    async fn write(&self, key: &ObjectKey, verdict: &Verdict) -> Result<(), Unsaid> {
        let resource = resource(key.kind);
        let (namespace, name) = (&key.name.namespace, &key.name.name);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        // The whole object, too; but it takes no more rights than to write it does.
        let object = within(REQUEST_TIMEOUT, api.get_status(name)).await?;
        if object.metadata.generation != Some(verdict.generation) {
            return Err(Unsaid::Outdated);
        }
        let current = status(&object);
        if verdict.is_said_by(&current) {
            return Ok(());
        }
        // By uid and version, so that a writer that leads no more and does not know it
        // changes nothing.
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {
                "namespace": namespace,
                "name": name,
                "uid": object.metadata.uid,
                "resourceVersion": object.metadata.resource_version,
            },
            "status": verdict.status(&current, now()),
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let body = Patch::Apply(&body);
        let written = api.patch_status(name, &params, &body);
        let _object = within(REQUEST_TIMEOUT, written).await?;
        Ok(())
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
const KINDS: [ObjectKind; 2] = [ObjectKind::AuthorizationPolicy, ObjectKind::MeshPolicy];

fn resource(kind: ObjectKind) -> ApiResource {
    match kind {
        ObjectKind::MeshPolicy => api::MeshPolicy::api_resource(),
        _ => api::AuthorizationPolicy::api_resource(),
    }
}

fn key(kind: ObjectKind, object: &DynamicObject) -> ObjectKey {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let name = NamespacedName::new(namespace, name);
    ObjectKey { kind, name }
}

/// What an object's status says; nothing where that is not of the form that we write.
fn status(object: &DynamicObject) -> PolicyStatus {
    let status = object.data.get("status");
    let status = status.and_then(|status| PolicyStatus::deserialize(status).ok());
    status.unwrap_or_default()
}

/// In whole seconds, as times of Kubernetes are.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
