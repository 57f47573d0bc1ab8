//! The feed against an API server that says what the test tells it to.

mod api;
mod faults;
mod kinds;
mod reflector;

use std::sync::Arc;

use http::Request;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

use super::{Config, start};
use crate::cluster::{Health, Source};
use crate::model::TrustDomain;
use crate::state::{ObjectKind, Snapshot};
use api::Api;

/// A feed that runs.
struct World {
    api: Arc<Api>,
    source: Source,
    _task: JoinSet<()>,
}

impl World {
    /// Reads these kinds from an API server that does not answer yet.
    fn new(kinds: &'static [ObjectKind]) -> Self {
        let api = Arc::new(Api::default());
        let server = Arc::clone(&api);
        let service = tower::service_fn(move |request: Request<::kube::client::Body>| {
            let (api, uri) = (Arc::clone(&server), request.uri().clone());
            async move { api.answer(&uri).await }
        });
        let config = Config {
            name: "kube:https://api".to_owned(),
            trust_domain: TrustDomain("cluster.local".into()),
            kinds,
            external_ips: Vec::new(),
        };
        let (source, run) = start(&::kube::Client::new(service, "default"), config);
        let mut task = JoinSet::new();
        let _handle = task.spawn(run);
        Self {
            api,
            source,
            _task: task,
        }
    }

    /// The state, as soon as it is so.
    async fn state(&mut self, wanted: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        wait(&mut self.source.snapshots, wanted).await
    }

    /// The health, as soon as it is so.
    async fn health(&mut self, wanted: impl FnMut(&Health) -> bool) -> Health {
        wait(&mut self.source.health, wanted).await
    }

    /// What the only watch that fails says, as soon as there is one.
    async fn complaint(&mut self) -> String {
        let health = self
            .health(|health| health.kinds.iter().any(|kind| kind.behind.is_some()))
            .await;
        let mut behind = health.kinds.into_iter().filter_map(|kind| kind.behind);
        behind.next().unwrap().message
    }
}

async fn wait<T: Clone>(receiver: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    // The clock is paused: a day passes at once where nothing else happens.
    let found = tokio::time::timeout(Duration::from_hours(24), receiver.wait_for(wanted));
    found.await.expect("it never came to this").unwrap().clone()
}

/// The names of the pods with their addresses.
fn pods(snapshot: &Snapshot) -> Vec<String> {
    let text = |pod: &crate::state::Pod| format!("{} {}", pod.name, pod.ips[0]);
    snapshot.pods.values().map(|pod| text(pod)).collect()
}

/// A pod in JSON.
fn pod(name: &str, ip: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"Pod","metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"{version}","managedFields":[{{"x":[1]}}]}},"spec":{{"nodeName":"one","serviceAccountName":"web"}},"status":{{"phase":"Running","podIP":"{ip}"}}}}"#
    )
}

fn added(object: &str) -> String {
    event("ADDED", object)
}

fn event(kind: &str, object: &str) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn bookmark(version: u64) -> String {
    event(
        "BOOKMARK",
        &format!(r#"{{"metadata":{{"resourceVersion":"{version}"}}}}"#),
    )
}

fn end_of_list(version: u64) -> String {
    event(
        "BOOKMARK",
        &format!(
            r#"{{"metadata":{{"resourceVersion":"{version}","annotations":{{"k8s.io/initial-events-end":"true"}}}}}}"#
        ),
    )
}

fn page(items: &[String], version: u64, next: &str) -> String {
    let items = items.join(",");
    format!(
        r#"{{"kind":"PodList","metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{items}]}}"#
    )
}

fn elapsed_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
