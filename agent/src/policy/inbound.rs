//! Everything that decides on connections to one pod.

use std::sync::Arc;

use super::authorization::{Authorization, Compiled, Decision, DenyReason, Permission, Request};
use super::mtls::{Mode, Mtls};
use crate::state::{MeshPolicy, MtlsMode};

/// What a pod's inbound side needs: the policies that select it and its mTLS modes.
///
/// The [`super::Table`] hands out the same `Arc` for as long as nothing of it
/// changes, so that `Arc::ptr_eq` tells whether open connections must be looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct InboundPolicy {
    known: bool,
    mtls: Mtls,
    authorization: Authorization,
}

impl InboundPolicy {
    pub(super) fn new(policies: Vec<Arc<Compiled>>, mesh: &[Arc<MeshPolicy>]) -> Self {
        Self {
            known: true,
            mtls: Mtls::new(mesh),
            authorization: Authorization::new(policies),
        }
    }

    /// Of a pod that the table does not know: denies everything.
    pub(super) fn unknown() -> Self {
        Self {
            known: false,
            mtls: Mtls::strict(),
            authorization: Authorization::default(),
        }
    }

    /// It is of an enrolled pod of the table, rather than of one that nothing is known of.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether plaintext to this port is taken.
    pub fn mtls(&self, port: u16) -> MtlsMode {
        self.mtls.port(port).mode
    }

    /// The verdict, with the check of the mTLS mode.
    pub fn authorize(&self, request: &Request<'_>) -> Decision {
        let mut decision = self.authorization.decide(request);
        let mode = self.mtls.port(request.port);
        if !self.known {
            decision.verdict = Permission::Denied(DenyReason::NoAllowRule);
        } else if mode.mode == MtlsMode::Strict && !request.encrypted {
            decision.verdict = Permission::Denied(DenyReason::MtlsRequired);
            decision.policy.clone_from(&mode.policy);
        }
        decision
    }

    pub(super) fn mode(&self, port: u16) -> &Mode {
        self.mtls.port(port)
    }
}
