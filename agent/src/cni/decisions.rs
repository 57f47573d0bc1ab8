//! Which pods wait for the agent, kept on disk for when it is away.
//!
//! The agent knows; while it does not answer, the plugin reads what it last wrote. After
//! a reboot nobody else could tell, so that the file is where a reboot leaves it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::install::write_atomically;
use super::protocol::PodRef;

/// The mesh's own namespace: it must start for the rest to start.
const OWN_NAMESPACE: &str = "fairlead-system";
/// The cluster's own: it must start while nothing is known yet.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// What becomes of the pods of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It is labelled for the mesh.
    Meshed,
    /// It is not, but pods of it have been here that asked for the mesh themselves.
    Mixed,
    /// It is not.
    Free,
}

/// What the agent knew last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// Every namespace.
    pub namespaces: BTreeMap<String, Decision>,
    /// Pods of this node by the kubelet's name for them, and whether they are to be meshed.
    pub pods: BTreeMap<String, bool>,
}

impl Decisions {
    /// What was written; nothing is known where that can't be read.
    pub fn read(path: &Path) -> Self {
        let text = fs::read(path).ok();
        text.and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Replaces the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        write_atomically(path, &serde_json::to_vec(self)?, 0o600)
    }

    /// Why a pod may not start without the agent; `None` where it may.
    pub(super) fn must_wait(&self, pod: &PodRef) -> Option<&'static str> {
        if pod.namespace == OWN_NAMESPACE {
            return None;
        }
        let known = pod.uid.as_ref().and_then(|uid| self.pods.get(uid));
        match (known, self.namespaces.get(&pod.namespace)) {
            (Some(false), _) | (None, Some(Decision::Free)) => None,
            (Some(true), _) => Some("it is to be meshed"),
            (None, Some(Decision::Meshed)) => Some("its namespace is to be meshed"),
            (None, Some(Decision::Mixed)) => {
                Some("pods of its namespace have asked to be meshed, and so may this one")
            }
            (None, None) if pod.namespace == SYSTEM_NAMESPACE => None,
            (None, None) => Some("nothing is known of its namespace yet, so that it may be meshed"),
        }
    }
}
