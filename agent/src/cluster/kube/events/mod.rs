//! Events of Kubernetes on the pods of this node: what `kubectl describe pod` tells of the
//! mesh.
//!
//! ```text
//! facts that hold now ─► Journal: new? back? due again? ─► create an Event, or count it up
//! ```
//!
//! Events are of `events.k8s.io/v1`, which API servers have since 1.19.

mod journal;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use ::kube::api::{Api, Patch, PatchParams, PostParams};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::failure::{ApiFailure, within};
use crate::model::{NamespacedName, NodeName};
use journal::{Journal, Telling};

/// How often the facts are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// After a failure nothing is told for so long.
const REST: Duration = Duration::from_mins(1);
/// For one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Who tells, for the API server.
const CONTROLLER: &str = "fairlead.dev/agent";
/// The longest note and the longest name of an instance that an API server takes, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;
/// Of the pod's name, in the Event's.
const LONGEST_PREFIX: usize = 200;

/// Something that holds for a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodFact {
    /// The pod.
    pub pod: NamespacedName,
    /// Which pod of that name.
    pub uid: Arc<str>,
    /// What it is.
    pub reason: PodFactReason,
    /// Details, and what to do.
    pub note: String,
}

/// What can hold for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodFactReason {
    /// Its connections are carried.
    Meshed,
    /// It is to be in the mesh, and can't be taken in.
    MeshEnrolFailed,
    /// It is to be in the mesh, and never will be as it is.
    NotMeshed,
    /// It is in the mesh, and something of what it asks for is not understood.
    MeshMisconfigured,
}

impl PodFactReason {
    fn is_warning(self) -> bool {
        match self {
            Self::Meshed => false,
            Self::MeshEnrolFailed | Self::NotMeshed | Self::MeshMisconfigured => true,
        }
    }
}

impl fmt::Display for PodFactReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Tells of what holds for the pods of this node. `facts` gives all that holds at the
/// moment, `None` while nobody knows. Never ends.
pub async fn keep_events(
    client: Client,
    node: NodeName,
    facts: impl Fn() -> Option<Vec<PodFact>> + Send,
) {
    let teller = Teller { client, node };
    let mut journal = Journal::new(Instant::now());
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rest_until = Instant::now();
    let mut failures = 0_u32;
    loop {
        look.tick().await;
        let now = Instant::now();
        let Some(facts) = facts().filter(|_| now >= rest_until) else {
            continue;
        };
        for telling in journal.look(&facts, now) {
            match teller.tell(&telling).await {
                Ok(name) => {
                    failures = 0;
                    journal.told(telling, name, now);
                }
                Err(error @ ApiFailure::Refused { .. }) => {
                    tracing::warn!(pod = %telling.fact.pod, %error, "can't tell of the pod");
                    journal.told(telling, None, now);
                }
                // The pod's namespace is about to go.
                Err(ApiFailure::NotFound { .. }) => journal.told(telling, None, now),
                Err(error) => {
                    failures += 1;
                    if failures.is_power_of_two() {
                        tracing::warn!(%error, attempts = failures, "can't write Events");
                    }
                    rest_until = now + REST.mul_f64(rand::random_range(0.8..=1.2));
                    break;
                }
            }
        }
    }
}

struct Teller {
    client: Client,
    node: NodeName,
}

impl Teller {
    /// Creates the Event or counts it up. Returns its name.
    async fn tell(&self, telling: &Telling) -> Result<Option<String>, ApiFailure> {
        let fact = &telling.fact;
        let api: Api<Event> = Api::namespaced(self.client.clone(), &fact.pod.namespace);
        let now = MicroTime(Timestamp::now());
        if let Some(name) = &telling.event {
            let series = EventSeries {
                count: telling.count,
                last_observed_time: now.clone(),
            };
            let (params, body) = (PatchParams::default(), json!({"series": series}));
            let body = Patch::Merge(&body);
            let counted = within(REQUEST_TIMEOUT, api.patch(name, &params, &body));
            match counted.await {
                Ok(_event) => return Ok(Some(name.clone())),
                // Events do not live long.
                Err(ApiFailure::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (params, event) = (PostParams::default(), self.event(fact, now));
        let created = within(REQUEST_TIMEOUT, api.create(&params, &event)).await?;
        Ok(created.metadata.name)
    }

    fn event(&self, fact: &PodFact, now: MicroTime) -> Event {
        let PodFact {
            pod,
            uid,
            reason,
            note,
        } = fact;
        let suffix: u64 = rand::random();
        let prefix = start(&pod.name, LONGEST_PREFIX).trim_end_matches(['.', '-']);
        let kind = if reason.is_warning() {
            "Warning"
        } else {
            "Normal"
        };
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}.{suffix:016x}")),
                namespace: Some(pod.namespace.to_string()),
                ..ObjectMeta::default()
            },
            action: Some("Enrol".to_owned()),
            event_time: Some(now),
            note: Some(start(note, LONGEST_NOTE).to_owned()),
            reason: Some(reason.to_string()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.name.to_string()),
                namespace: Some(pod.namespace.to_string()),
                uid: Some(uid.to_string()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(start(&self.node.0, LONGEST_INSTANCE).to_owned()),
            type_: Some(kind.to_owned()),
            ..Event::default()
        }
    }
}

/// At most so many bytes of it.
fn start(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
