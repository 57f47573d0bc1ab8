//! How far the pods of a DaemonSet or Deployment are.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::Progress;
use crate::cluster::kube::{Client, Place, find, list};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// How many pods of what is wanted are as they should be.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rollout {
    /// Such as `DaemonSet fairlead-system/fairlead-agent`.
    pub of: String,
    /// So many pods there should be.
    pub wanted: u64,
    /// So many are of the newest version.
    pub updated: u64,
    /// So many of all are ready.
    pub ready: u64,
    /// All that should be are, and are ready.
    pub complete: bool,
}

/// Reads the status that the object's controller writes.
pub(super) fn of(place: &Place, object: &Value) -> Rollout {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64);
    let counted = |field: &str| number(&format!("/status/{field}")).unwrap_or(0);
    let (wanted, updated, ready) = if place.kind() == "DaemonSet" {
        (
            counted("desiredNumberScheduled"),
            counted("updatedNumberScheduled"),
            counted("numberAvailable"),
        )
    } else {
        (
            number("/spec/replicas").unwrap_or(1),
            counted("updatedReplicas"),
            counted("availableReplicas"),
        )
    };
    // Until the controller has seen the object, its numbers are of another one.
    let seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let complete = seen && updated >= wanted && ready >= wanted;
    Rollout {
        of: place.to_string(),
        wanted,
        updated,
        ready,
        complete,
    }
}

/// Waits until all pods are as they should be; the last count where `patience` ends first.
pub(super) async fn wait(
    client: &Client,
    place: &Place,
    patience: Duration,
    progress: Progress<'_>,
) -> anyhow::Result<Rollout> {
    let end = Instant::now() + patience;
    let mut said = None;
    loop {
        let object = find(client, place).await?;
        let object = object.with_context(|| format!("{place} has been deleted meanwhile"))?;
        let now = of(place, &object);
        if said.as_ref() != Some(&now) {
            progress(&format!(
                "{}: {} of {} pods ready, {} of this version",
                now.of, now.ready, now.wanted, now.updated
            ));
            said = Some(now.clone());
        }
        if now.complete || Instant::now() >= end {
            return Ok(now);
        }
        sleep(LOOK).await;
    }
}

/// Why pods with the label `component` are not ready, a line each.
pub(super) async fn reasons(
    client: &Client,
    namespace: &str,
    component: &str,
) -> anyhow::Result<Vec<String>> {
    let pods = list(client, &Place::new("v1", "Pod", Some(namespace), "")).await?;
    let of_it = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/component"] == component);
    Ok(of_it.filter_map(reason).collect())
}

fn reason(pod: &Value) -> Option<String> {
    let name = pod.pointer("/metadata/name")?.as_str()?;
    let node = pod
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or("no node yet");
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let conditions = || conditions.into_iter().flatten();
    if conditions().any(|it| it["type"] == "Ready" && it["status"] == "True") {
        return None;
    }
    let statuses = ["initContainerStatuses", "containerStatuses"].map(|field| {
        let list = pod["status"][field].as_array();
        list.into_iter().flatten()
    });
    let waiting = statuses.into_iter().flatten().find_map(|container| {
        let waiting = container.pointer("/state/waiting")?;
        let reason = waiting["reason"].as_str()?;
        let ended = container
            .pointer("/lastState/terminated/message")
            .or_else(|| waiting.get("message"));
        let message = ended.and_then(Value::as_str).unwrap_or_default();
        Some(format!("{reason} {message}"))
    });
    let unscheduled = || {
        let failed =
            conditions().find(|it| it["status"] == "False" && it["message"].is_string())?;
        Some(failed["message"].as_str()?.to_owned())
    };
    let why = waiting.or_else(unscheduled);
    let why = why.unwrap_or_else(|| "it is starting".to_owned());
    Some(format!("{name} on {node}: {}", why.trim()))
}

/// Waits until the object and the pods with the label `component` have gone.
pub(super) async fn wait_gone(
    client: &Client,
    place: &Place,
    component: Option<&str>,
    patience: Duration,
) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    loop {
        let mut remaining = usize::from(find(client, place).await?.is_some());
        if let (Some(component), Some(namespace)) = (component, place.namespace()) {
            remaining += pods_left(client, namespace, component).await?;
        }
        if remaining == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{place} is still there after {patience:?}; see `kubectl describe` for why");
        }
        sleep(LOOK).await;
    }
}

async fn pods_left(client: &Client, namespace: &str, component: &str) -> anyhow::Result<usize> {
    let pods = list(client, &Place::new("v1", "Pod", Some(namespace), "")).await?;
    let labels = pods.iter().map(|pod| &pod["metadata"]["labels"]);
    Ok(labels
        .filter(|it| it["app.kubernetes.io/component"] == component)
        .count())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{of, reason};
    use crate::cluster::kube::Place;

    #[test]
    fn numbers_of_an_older_object_do_not_count() {
        let place = Place::new("apps/v1", "DaemonSet", Some("n"), "x");
        let mut object = json!({
            "metadata": { "generation": 2 },
            "status": {
                "observedGeneration": 1, "desiredNumberScheduled": 3,
                "updatedNumberScheduled": 3, "numberAvailable": 3,
            },
        });
        assert!(!of(&place, &object).complete);
        object["status"]["observedGeneration"] = 2.into();
        assert!(of(&place, &object).complete);
        object["status"]["numberAvailable"] = 2.into();
        assert!(!of(&place, &object).complete);
    }

    #[test]
    fn a_deployment_waits_for_its_replicas() {
        let place = Place::new("apps/v1", "Deployment", Some("n"), "x");
        let object = json!({
            "metadata": { "generation": 1 }, "spec": { "replicas": 2 },
            "status": { "observedGeneration": 1, "updatedReplicas": 2, "availableReplicas": 1 },
        });
        let found = of(&place, &object);
        assert_eq!((found.wanted, found.ready, found.complete), (2, 1, false));
    }

    #[test]
    fn a_pod_tells_why_it_is_not_ready() {
        let pod = json!({
            "metadata": { "name": "a-1" }, "spec": { "nodeName": "n1" },
            "status": { "containerStatuses": [
                { "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such tag" } } },
            ] },
        });
        let expected = "a-1 on n1: ImagePullBackOff no such tag";
        assert_eq!(reason(&pod).as_deref(), Some(expected));
        let pending = json!({
            "metadata": { "name": "a-1" }, "spec": {},
            "status": { "conditions": [
                { "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" },
            ] },
        });
        let expected = "a-1 on no node yet: 0/3 nodes are available";
        assert_eq!(reason(&pending).as_deref(), Some(expected));
        let ready = json!({
            "metadata": { "name": "a-1" }, "spec": {},
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        assert_eq!(reason(&ready), None);
    }
}
