//! Which MeshPolicy decides on plaintext, for each port of one pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::state::{MeshPolicy, MtlsMode, PolicyScope};

/// What a port takes, and the policy that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mode {
    pub(super) mode: MtlsMode,
    /// `namespace/name`; `None` where no policy speaks of it.
    pub(super) policy: Option<Arc<str>>,
}

/// The mTLS modes of one pod, worked out for all ports.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mtls {
    ports: BTreeMap<u16, Mode>,
    other: Mode,
}

/// How narrowly a policy selects; the narrowest that says something decides.
pub(super) const LEVELS: [fn(&PolicyScope) -> bool; 3] = [
    |scope| match scope {
        PolicyScope::Pods(selector) => !selector.0.is_empty(),
        PolicyScope::Services(_) => true,
        PolicyScope::Mesh => false,
    },
    |scope| matches!(scope, PolicyScope::Pods(selector) if selector.0.is_empty()),
    |scope| matches!(scope, PolicyScope::Mesh),
];

impl Mtls {
    /// From the policies that select the pod.
    pub(super) fn new(policies: &[Arc<MeshPolicy>]) -> Self {
        let ports: BTreeSet<u16> = policies
            .iter()
            .flat_map(|policy| policy.port_mtls.keys().copied())
            .collect();
        Self {
            ports: ports
                .into_iter()
                .map(|port| (port, mode(policies, Some(port))))
                .collect(),
            other: mode(policies, None),
        }
    }

    /// Of a pod that nothing is known of.
    pub(super) fn strict() -> Self {
        Self {
            ports: BTreeMap::new(),
            other: Mode {
                mode: MtlsMode::Strict,
                policy: None,
            },
        }
    }

    pub(super) fn port(&self, port: u16) -> &Mode {
        self.ports.get(&port).unwrap_or(&self.other)
    }
}

fn mode(policies: &[Arc<MeshPolicy>], port: Option<u16>) -> Mode {
    if let Some(invalid) = policies.iter().find(|policy| policy.invalid.is_some()) {
        return said(MtlsMode::Strict, invalid);
    }
    let level = |is_level: fn(&PolicyScope) -> bool| {
        let level: Vec<_> = policies.iter().filter(|p| is_level(&p.scope)).collect();
        let of_port = |policy: &MeshPolicy| policy.port_mtls.get(&port?).copied();
        strictest(&level, of_port).or_else(|| strictest(&level, |policy| policy.mtls))
    };
    LEVELS.into_iter().find_map(level).unwrap_or(Mode {
        mode: MtlsMode::default(),
        policy: None,
    })
}

/// STRICT where any policy of the same level says so.
fn strictest(
    level: &[&Arc<MeshPolicy>],
    says: impl Fn(&MeshPolicy) -> Option<MtlsMode>,
) -> Option<Mode> {
    let with = |mode| {
        let policy = level.iter().find(|policy| says(policy) == Some(mode))?;
        Some(said(mode, policy))
    };
    with(MtlsMode::Strict).or_else(|| with(MtlsMode::Permissive))
}

fn said(mode: MtlsMode, policy: &MeshPolicy) -> Mode {
    Mode {
        mode,
        policy: Some(policy.name.to_string().into()),
    }
}
