//! What the plugin and the agent say to each other: one line of JSON each way. The
//! descriptor of the pod's network namespace travels beside the request, so that the
//! agent need not see the path that the runtime gave it.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The socket's name in the run directory.
pub(super) const SOCKET: &str = "cni.sock";
/// The longest line.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;

/// What the runtime wants of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// A sandbox is being made.
    Add,
    /// A sandbox goes.
    Del,
    /// Is all as it was made?
    Check,
    /// These are all the sandboxes that there are.
    Gc,
}

/// The pod of a sandbox, as the runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What the kubelet calls it; older runtimes don't tell.
    #[serde(default)]
    pub uid: Option<String>,
}

/// What the plugin asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What.
    pub command: Command,
    /// The sandbox's id.
    #[serde(default)]
    pub container: String,
    /// Whose it is; none for [`Command::Gc`].
    #[serde(default)]
    pub pod: Option<PodRef>,
    /// Where the runtime says that the network namespace is.
    #[serde(default)]
    pub netns: String,
    /// The addresses that the plugins before gave it.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Of [`Command::Gc`]: the ids of all sandboxes.
    #[serde(default)]
    pub valid: Vec<String>,
    /// How long the plugin waits for the answer.
    pub patience_ms: u64,
}

impl Request {
    /// How long the plugin waits for the answer.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The pod's connections are the agent's.
    Enrolled,
    /// It is none of the mesh's business.
    NotMeshed,
    /// It must not run now.
    Refused,
    /// It is to be meshed; another answer follows.
    Wait,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// How it went.
    pub verdict: Verdict,
    /// Why, for people.
    #[serde(default)]
    pub message: String,
}

impl Reply {
    /// The pod's connections are the agent's.
    pub fn enrolled() -> Self {
        Self {
            verdict: Verdict::Enrolled,
            message: String::new(),
        }
    }

    /// It is none of the mesh's business.
    pub fn not_meshed() -> Self {
        Self {
            verdict: Verdict::NotMeshed,
            message: String::new(),
        }
    }

    /// It is to be meshed; another answer follows.
    pub fn wait() -> Self {
        Self {
            verdict: Verdict::Wait,
            message: String::new(),
        }
    }

    /// It must not run now.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Refused,
            message: message.into(),
        }
    }
}
