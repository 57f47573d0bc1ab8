//! `fairlead uninstall`: nothing is left in the cluster and on its nodes.
//!
//! The order: agents end, and their pods are refused; the cleanup of each node lets its
//! pods go, removes pins, the CNI plugin and what the agent kept; then the objects go, and
//! the namespace with what was made in it. Kinds go only where no policy would go with
//! them.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::install::{ReportedObject, live};
use super::manifests::{Settings, cleanup, render};
use super::rollout::{self, Rollout};
use super::{AGENT, NAMESPACE, Progress};
use crate::cluster::kube::{self as api, Access, Change, Client, Place};

/// For pods to end that let their connections end first.
const ENDING: Duration = Duration::from_mins(2);

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// The cleanup of the nodes; `None` where no agent had been installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Rollout>,
    /// Nodes on which something may be left, and why.
    pub not_cleaned: Vec<String>,
    /// Each object.
    pub objects: Vec<ReportedObject>,
    /// What was left there, and why.
    pub kept: Vec<String>,
}

impl Removal {
    /// Nothing is left but what was asked to be.
    pub fn is_complete(&self) -> bool {
        self.not_cleaned.is_empty()
    }
}

/// Takes the mesh out of the cluster. Policies stay, and with them their kinds, unless
/// `with_policies` says otherwise.
pub async fn uninstall(
    access: &Access,
    with_policies: bool,
    patience: Duration,
    progress: Progress<'_>,
) -> anyhow::Result<Removal> {
    let client = api::client(access).await?;
    let installed = live(&client).await?;
    let mut removal = Removal {
        nodes: None,
        not_cleaned: Vec::new(),
        objects: Vec::new(),
        kept: Vec::new(),
    };
    let settings = match installed {
        Some(installed) => {
            clean_nodes(&client, &installed, patience, progress, &mut removal).await?;
            installed
        }
        None => Settings::default(),
    };
    let manifests = render(&settings)?;
    // The namespace last but for the kinds: its deletion takes what was made in it.
    let mut places = Vec::new();
    for manifest in manifests.iter().rev() {
        places.push((manifest["kind"] == "CustomResourceDefinition", manifest));
    }
    places.sort_by_key(|(is_kind, _)| *is_kind);
    for (is_kind, manifest) in places {
        let place = Place::of(manifest)?;
        if is_kind
            && !with_policies
            && let Some(reason) = in_use(&client, manifest).await?
        {
            removal.kept.push(format!("{place}: {reason}"));
            continue;
        }
        let change = api::delete(&client, &place).await?;
        if change == Change::Deleted {
            progress(&format!("{place}: deleted"));
        }
        removal.objects.push(ReportedObject::new(&place, change));
        if place.kind() == "Namespace" {
            rollout::wait_gone(&client, &place, None, ENDING).await?;
        }
    }
    Ok(removal)
}

async fn clean_nodes(
    client: &Client,
    settings: &Settings,
    patience: Duration,
    progress: Progress<'_>,
    removal: &mut Removal,
) -> anyhow::Result<()> {
    let agents = Place::new("apps/v1", "DaemonSet", Some(NAMESPACE), AGENT);
    progress("ending the agents; meshed pods are refused until their node is cleaned up");
    let change = api::delete(client, &agents).await?;
    rollout::wait_gone(client, &agents, Some("agent"), ENDING).await?;
    removal.objects.push(ReportedObject::new(&agents, change));
    for manifest in cleanup(settings)? {
        let place = Place::of(&manifest)?;
        let _change = api::apply(client, &manifest).await?;
        let rollout = rollout::wait(client, &place, patience, progress).await?;
        if !rollout.complete {
            let reasons = rollout::reasons(client, NAMESPACE, "cleanup").await?;
            removal.not_cleaned.extend(reasons);
            if removal.not_cleaned.is_empty() {
                removal.not_cleaned.push(format!(
                    "{} of {} nodes were not cleaned up in time",
                    rollout.wanted - rollout.ready.min(rollout.wanted),
                    rollout.wanted
                ));
            }
        }
        removal.nodes = Some(rollout);
        let _change = api::delete(client, &place).await?;
        rollout::wait_gone(client, &place, Some("cleanup"), ENDING).await?;
    }
    Ok(())
}

/// Why a kind is to stay.
async fn in_use(client: &Client, definition: &Value) -> anyhow::Result<Option<String>> {
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str);
    let (Some(group), Some(version), Some(kind)) = (
        text("/spec/group"),
        text("/spec/versions/0/name"),
        text("/spec/names/kind"),
    ) else {
        return Ok(None);
    };
    let place = Place::new(&format!("{group}/{version}"), kind, None, "");
    let objects = api::list(client, &place).await?.len();
    Ok((objects > 0).then(|| {
        format!("there are {objects} of it, which would go too; --delete-policies removes them")
    }))
}
