//! An authority that somebody else replaces, such as cert-manager, from one moment to the
//! next: the one before goes on signing until every agent knows the new root, and is
//! trusted until what it signed is over. Pure.
//!
//! This is kept in memory alone: the Secret is not ours to write. A process that starts
//! takes what is there as it is, which is also how an owner makes it forget at once.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::Times;
use crate::identity::Authority;

/// A root, and since when it was seen.
#[derive(Debug)]
struct Known {
    root: CertificateDer<'static>,
    /// `None`: since before this process.
    since: Option<Instant>,
    /// When the Secret had it no more.
    gone: Option<Instant>,
}

/// The roots of the Secret over time, and who signs.
#[derive(Debug, Default)]
pub(super) struct Overlap {
    known: Vec<Known>,
    signer: Option<Arc<Authority>>,
}

impl Overlap {
    /// An authority of our own signs: its Secret says what is trusted, and when.
    pub(super) fn take(&mut self, authority: &Arc<Authority>) {
        self.known = authority
            .roots()
            .iter()
            .map(|root| Known {
                root: root.clone(),
                since: None,
                gone: None,
            })
            .collect();
        self.signer = Some(Arc::clone(authority));
    }

    /// What signs now, and with which roots, where the Secret has `authority`. The same
    /// one again, as long as nothing changes.
    pub(super) fn follow(
        &mut self,
        authority: &Arc<Authority>,
        (wall, now): (SystemTime, Instant),
        times: Times,
    ) -> Arc<Authority> {
        let Some(signer) = self.signer.clone() else {
            self.take(authority);
            return Arc::clone(authority);
        };
        self.see(authority.roots(), now, times);
        let known = self
            .known
            .iter()
            .find(|known| known.root == *authority.anchor());
        let spread =
            known.is_none_or(|known| known.since.is_none_or(|since| now >= since + times.overlap));
        let chosen = if spread || wall >= signer.not_after() {
            authority
        } else {
            &signer
        };
        let roots: Vec<_> = self.known.iter().map(|known| known.root.clone()).collect();
        if !(signer.same_signer(chosen) && signer.roots() == roots) {
            self.signer = Some(Arc::new(chosen.with_roots(roots)));
        }
        self.signer.clone().unwrap_or(signer)
    }

    fn see(&mut self, roots: &[CertificateDer<'static>], now: Instant, times: Times) {
        for known in &mut self.known {
            if roots.contains(&known.root) {
                known.gone = None;
            } else {
                known.gone.get_or_insert(now);
            }
        }
        let kept = times.life + times.overlap;
        let signing = self.signer.as_ref().map(|signer| signer.anchor().clone());
        self.known.retain(|known| {
            known.gone.is_none_or(|gone| now < gone + kept) || signing.as_ref() == Some(&known.root)
        });
        for root in roots {
            if !self.known.iter().any(|known| known.root == *root) {
                self.known.push(Known {
                    root: root.clone(),
                    since: Some(now),
                    gone: None,
                });
            }
        }
    }
}
