//! `fairlead install` and `fairlead upgrade`.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::check::{Outcome, preflight_with};
use super::manifests::{Settings, render};
use super::rollout::{self, Rollout};
use super::{AGENT, CA, NAMESPACE, Progress};
use crate::cluster::kube::{self as api, Access, Change, Client, Place};

/// How long the API server may take to serve a new kind.
const KINDS: Duration = Duration::from_secs(30);

/// An object and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReportedObject {
    /// Such as `ClusterRole`.
    pub kind: String,
    /// Its namespace, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub change: Change,
}

impl ReportedObject {
    pub(super) fn new(place: &Place, change: Change) -> Self {
        Self {
            kind: place.kind().to_owned(),
            namespace: place.namespace().map(str::to_owned),
            name: place.name().to_owned(),
            change,
        }
    }
}

/// What was installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The image that ran before, where one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_before: Option<String>,
    /// The image that runs now.
    pub image: String,
    /// Each object.
    pub objects: Vec<ReportedObject>,
    /// How far the pods are.
    pub rollouts: Vec<Rollout>,
    /// Why pods are not ready, a line each.
    pub not_ready: Vec<String>,
}

impl Report {
    /// All pods run.
    pub fn is_complete(&self) -> bool {
        self.rollouts.iter().all(|rollout| rollout.complete)
    }
}

/// Puts the mesh into the cluster and waits until it runs, for as long as `patience`.
pub async fn install(
    access: &Access,
    settings: Settings,
    patience: Duration,
    progress: Progress<'_>,
) -> anyhow::Result<Report> {
    let client = api::client(access).await?;
    refuse_where_it_cannot_run(&client).await?;
    let before = live(&client).await?.unwrap_or_default();
    put(&client, settings, before, patience, progress).await
}

/// As [`install()`], where there is an installation already.
pub async fn upgrade(
    access: &Access,
    settings: Settings,
    patience: Duration,
    progress: Progress<'_>,
) -> anyhow::Result<Report> {
    let client = api::client(access).await?;
    let Some(before) = live(&client).await? else {
        bail!(
            "Fairlead is not installed here: there is no DaemonSet {NAMESPACE}/{AGENT}; see `fairlead install`"
        );
    };
    refuse_where_it_cannot_run(&client).await?;
    put(&client, settings, before, patience, progress).await
}

/// The settings of what is installed, if anything is.
pub(super) async fn live(client: &Client) -> anyhow::Result<Option<Settings>> {
    let place = Place::new("apps/v1", "DaemonSet", Some(NAMESPACE), AGENT);
    let found = api::find(client, &place).await?;
    Ok(found.as_ref().map(Settings::of_live))
}

async fn refuse_where_it_cannot_run(client: &Client) -> anyhow::Result<()> {
    let findings = preflight_with(client).await;
    let errors: Vec<String> = findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Error)
        .map(|finding| format!("{}: {}", finding.name, finding.detail))
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    bail!(
        "nothing was changed: {}; `fairlead check --pre` tells what to do",
        errors.join("; ")
    )
}

/// Applies everything; what `settings` leave open stays as it was before.
async fn put(
    client: &Client,
    settings: Settings,
    mut before: Settings,
    patience: Duration,
    progress: Progress<'_>,
) -> anyhow::Result<Report> {
    // An image that was chosen once must not hold a later version back.
    let image_before = before.image.take();
    let manifests = render(&settings.or(before))?;
    let mut objects = Vec::new();
    let (kinds, others): (Vec<&Value>, Vec<&Value>) = manifests
        .iter()
        .partition(|it| it["kind"] == "CustomResourceDefinition");
    for manifest in &kinds {
        objects.push(apply(client, manifest, progress).await?);
    }
    for manifest in &kinds {
        wait_served(client, manifest).await?;
    }
    for manifest in others {
        objects.push(apply(client, manifest, progress).await?);
    }
    let mut rollouts = Vec::new();
    let mut not_ready = Vec::new();
    let end = Instant::now() + patience;
    for (kind, name, component) in [("Deployment", CA, "ca"), ("DaemonSet", AGENT, "agent")] {
        let place = Place::new("apps/v1", kind, Some(NAMESPACE), name);
        let left = end.saturating_duration_since(Instant::now());
        let rollout = rollout::wait(client, &place, left, progress).await?;
        if !rollout.complete {
            not_ready.extend(rollout::reasons(client, NAMESPACE, component).await?);
        }
        rollouts.push(rollout);
    }
    let live = live(client)
        .await?
        .context("the agents were deleted meanwhile")?;
    Ok(Report {
        image_before,
        image: live.image.unwrap_or_default(),
        objects,
        rollouts,
        not_ready,
    })
}

async fn apply(
    client: &Client,
    manifest: &Value,
    progress: Progress<'_>,
) -> anyhow::Result<ReportedObject> {
    let place = Place::of(manifest)?;
    let change = api::apply(client, manifest).await?;
    if change != Change::Unchanged {
        let word = if change == Change::Created {
            "created"
        } else {
            "configured"
        };
        progress(&format!("{place}: {word}"));
    }
    Ok(ReportedObject::new(&place, change))
}

/// Objects of a kind can be made only once the API server serves it.
async fn wait_served(client: &Client, manifest: &Value) -> anyhow::Result<()> {
    let place = Place::of(manifest)?;
    let end = Instant::now() + KINDS;
    loop {
        let object = api::find(client, &place).await?.unwrap_or_default();
        let conditions = object
            .pointer("/status/conditions")
            .and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        if conditions.any(|it| it["type"] == "Established" && it["status"] == "True") {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!(
                "{place} is not served after {KINDS:?}: {}",
                object["status"]
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
}
