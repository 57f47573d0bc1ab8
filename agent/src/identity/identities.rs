//! The handle through which the agent asks for certificates.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::authority::timestamp;
use super::clock::Clock;
use super::credentials::Credentials;
use super::error::{FetchError, IdentityError};
use crate::model::SpiffeId;

/// How long a connection waits for the first certificate of its workload.
const FIRST_WAIT: Duration = Duration::from_secs(10);

/// Hands out the certificates in force. A clone is a handle to the same ones.
#[derive(Clone, Debug)]
pub struct Identities {
    pub(super) wanted: watch::Sender<BTreeSet<SpiffeId>>,
    pub(super) view: watch::Receiver<OrdMap<SpiffeId, Entry>>,
    pub(super) clock: Arc<dyn Clock>,
}

/// What the manager knows of one identity.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The last certificate; it may have expired.
    pub(super) credentials: Option<Arc<Credentials>>,
    /// When the next one is to be asked for, if nothing fails.
    pub(super) renew_at: std::time::SystemTime,
    /// The last attempt, where it failed.
    pub(super) failure: Option<Failure>,
    /// An attempt is under way.
    pub(super) fetching: bool,
}

/// Attempts that failed, with no success since.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: Arc<FetchError>,
    pub(super) count: u32,
    pub(super) failed_at: Instant,
    pub(super) retry_at: Instant,
    /// It would have failed for any identity, and is over for all of them at once.
    pub(super) of_all: bool,
}

impl Entry {
    /// The certificate, if it is valid at this moment.
    pub(super) fn usable(&self, now: std::time::SystemTime) -> Option<&Arc<Credentials>> {
        self.credentials
            .as_ref()
            .filter(|credentials| credentials.leaf().valid_at(now))
    }
}

/// How a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateState {
    /// In force.
    Active,
    /// In force, but the last attempt to renew it failed.
    Stale,
    /// There is none yet; the first is being fetched.
    Fetching,
    /// There is none that is valid, and getting one failed.
    Failed,
}

/// One certificate, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateStatus {
    /// Whose it is.
    pub id: SpiffeId,
    /// How it is.
    pub state: CertificateState,
    /// The serial number in hexadecimal, empty where there is no certificate.
    pub serial: String,
    /// The issuer's name, empty where there is no certificate.
    pub issuer: String,
    /// Valid from.
    pub not_before: Option<jiff::Timestamp>,
    /// Valid until.
    pub not_after: Option<jiff::Timestamp>,
    /// When it is renewed.
    pub renew_at: Option<jiff::Timestamp>,
    /// Why the last attempt failed, where it did.
    pub last_error: Option<String>,
}

impl Identities {
    /// Says which identities the enrolled pods of this node have. New ones are fetched
    /// at once, those that are absent are forgotten with their keys.
    pub fn set_wanted(&self, ids: BTreeSet<SpiffeId>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != ids;
            *wanted = ids;
            changed
        });
    }

    /// The certificate in force. Where there is none it is waited for, up to 10 s, and
    /// not at all when the next attempt is later than that. Cancel safe.
    pub async fn credentials(&self, id: &SpiffeId) -> Result<Arc<Credentials>, IdentityError> {
        let deadline = Instant::now() + FIRST_WAIT;
        let mut view = self.view.clone();
        loop {
            let error = match self.look(&mut view, id)? {
                Look::Usable(credentials) => return Ok(credentials),
                Look::Failed { error, retry_at } if retry_at > deadline => return Err(error),
                Look::Failed { error, .. } => error,
                Look::Pending => IdentityError::Pending { id: id.clone() },
            };
            match timeout_at(deadline, view.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(IdentityError::Stopped),
                Err(_) => return Err(error),
            }
        }
    }

    /// The certificate in force, if there is one, without waiting.
    pub fn in_force(&self, id: &SpiffeId) -> Option<Arc<Credentials>> {
        let view = self.view.borrow();
        view.get(id)?.usable(self.clock.now()).cloned()
    }

    fn look(
        &self,
        view: &mut watch::Receiver<OrdMap<SpiffeId, Entry>>,
        id: &SpiffeId,
    ) -> Result<Look, IdentityError> {
        let view = view.borrow_and_update();
        let Some(entry) = view.get(id) else {
            // The manager may not have seen yet what was asked for just now.
            return if self.wanted.borrow().contains(id) {
                Ok(Look::Pending)
            } else {
                Err(IdentityError::NotWanted { id: id.clone() })
            };
        };
        if let Some(credentials) = entry.usable(self.clock.now()) {
            return Ok(Look::Usable(Arc::clone(credentials)));
        }
        Ok(entry
            .failure
            .as_ref()
            .map_or(Look::Pending, |failure| Look::Failed {
                error: IdentityError::Failed {
                    id: id.clone(),
                    source: Arc::clone(&failure.error),
                },
                retry_at: failure.retry_at,
            }))
    }

    /// All certificates, sorted by identity.
    pub fn certificates(&self) -> Vec<CertificateStatus> {
        let now = self.clock.now();
        let view = self.view.borrow();
        let status = |(id, entry): (&SpiffeId, &Entry)| CertificateStatus::new(id, entry, now);
        view.iter().map(status).collect()
    }
}

enum Look {
    Usable(Arc<Credentials>),
    Pending,
    Failed {
        error: IdentityError,
        retry_at: Instant,
    },
}

impl CertificateStatus {
    fn new(id: &SpiffeId, entry: &Entry, now: std::time::SystemTime) -> Self {
        let leaf = entry
            .credentials
            .as_ref()
            .map(|credentials| credentials.leaf());
        let state = match (entry.usable(now), &entry.failure) {
            (Some(_), None) => CertificateState::Active,
            (Some(_), Some(_)) => CertificateState::Stale,
            (None, None) => CertificateState::Fetching,
            (None, Some(_)) => CertificateState::Failed,
        };
        Self {
            id: id.clone(),
            state,
            serial: leaf.map(|leaf| leaf.serial.clone()).unwrap_or_default(),
            issuer: leaf.map(|leaf| leaf.issuer.clone()).unwrap_or_default(),
            not_before: leaf.map(|leaf| timestamp(leaf.not_before)),
            not_after: leaf.map(|leaf| timestamp(leaf.not_after)),
            renew_at: leaf.map(|_| timestamp(entry.renew_at)),
            last_error: entry
                .failure
                .as_ref()
                .map(|failure| failure.error.to_string()),
        }
    }
}
