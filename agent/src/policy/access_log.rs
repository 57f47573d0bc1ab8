//! Which records of one pod are written to the access log.

use std::sync::Arc;

use super::explain_traffic::percent;
use super::explanation::AccessLogStep;
use super::mtls::LEVELS;
use crate::state::traffic::Share;
use crate::state::{self, AccessLogMode, MeshPolicy};

/// What the policies that select one pod say of its access log: those of the narrowest level
/// at which one says anything. Something is written where any of them wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLog(Vec<Said>);

/// What one policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    /// `namespace/name`.
    policy: Arc<str>,
    log: state::AccessLog,
}

/// How a request or a connection has ended, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// It was carried: nothing refused it, and it did not break off.
    pub forwarded: bool,
    /// Of a request: the status of its answer, 0 where there was none.
    pub status: Option<u16>,
    /// Of a call of gRPC.
    pub grpc_status: Option<u16>,
}

impl AccessLog {
    /// From the policies that select the pod.
    pub(super) fn new(policies: &[Arc<MeshPolicy>]) -> Self {
        let levels = LEVELS.into_iter().map(|is_level| {
            let level = policies.iter().filter(|policy| is_level(&policy.scope));
            let said = level.filter_map(|policy| {
                let log = policy.access_log?;
                let policy = policy.name.to_string().into();
                Some(Said { policy, log })
            });
            said.collect()
        });
        let said = levels.into_iter().find(|level: &Vec<_>| !level.is_empty());
        Self(said.unwrap_or_default())
    }

    /// It is to be written. `random` is another number for each.
    pub fn wants(&self, ended: &Ended, random: u64) -> bool {
        self.0.iter().any(|Said { log, .. }| {
            let is_meant = match log.mode {
                AccessLogMode::All => true,
                AccessLogMode::Errors { min_status } => ended.is_error(min_status),
                AccessLogMode::None => false,
            };
            is_meant && log.share.hits(random)
        })
    }

    /// What is written, in words, and which policy says so.
    pub(super) fn explain(&self) -> Vec<AccessLogStep> {
        let steps = self.0.iter().map(|Said { policy, log }| {
            let what = match log.mode {
                AccessLogMode::All => "everything".to_owned(),
                AccessLogMode::Errors { min_status } => {
                    format!("what fails, or is answered with {min_status} or more")
                }
                AccessLogMode::None => "nothing".to_owned(),
            };
            let sampled = log.share != Share::ALL && log.mode != AccessLogMode::None;
            AccessLogStep {
                policy: Arc::clone(policy),
                writes: if sampled {
                    format!("{} of {what}, drawn for each", percent(log.share))
                } else {
                    what
                },
            }
        });
        steps.collect()
    }
}

impl Ended {
    fn is_error(&self, min_status: u16) -> bool {
        let status = self.status.is_some_and(|it| it == 0 || it >= min_status);
        !self.forwarded || status || self.grpc_status.is_some_and(|it| it != 0)
    }
}
