//! The one task that owns all certificates: what is due, what is being fetched, what failed.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use imbl::OrdMap;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::authority::timestamp;
use super::bundle::Bundle;
use super::client::{Ca, Change, LocalCa};
use super::credentials::{Credentials, TlsSettings};
use super::error::{FetchError, StartError};
use super::fetch::{Fetched, fetch};
use super::follow::AuthorityDir;
use super::identities::{Entry, Failure, Identities};
use super::remote::{RemoteCa, RemoteConfig};
use super::trust::Trust;
use super::{CaAddress, Config};
use crate::model::SpiffeId;

/// So many requests to the CA are under way at once.
const CONCURRENCY: usize = 8;
/// At least so often the wall clock is compared anew with every certificate, and the
/// CA's files are looked at: the clock steps, and machines are suspended.
const TICK: Duration = Duration::from_secs(5);
/// The first retry of an identity, and the slowest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(150));
/// While the CA is away one identity asks at least so often, for all of them.
const PROBE: Duration = Duration::from_secs(5);
/// When the roots change, the node's certificates are renewed within this.
const ROLLOVER: Duration = Duration::from_secs(5);
/// Answers that contradict each other about the roots cause no more than one renewal of
/// everything in this time.
const ROLLOVER_PAUSE: Duration = Duration::from_mins(1);

/// One request to the CA, under way.
type Attempt = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// How an attempt ended.
struct Outcome {
    id: SpiffeId,
    /// Of the manager, when the attempt began.
    epoch: u64,
    result: Result<Fetched, FetchError>,
}

/// Owns the certificates of the node.
#[derive(Debug)]
pub(super) struct Manager {
    ca: Arc<dyn Ca>,
    tls: TlsSettings,
    ttl: Duration,
    wanted: watch::Receiver<BTreeSet<SpiffeId>>,
    view: watch::Sender<OrdMap<SpiffeId, Entry>>,
    entries: OrdMap<SpiffeId, Entry>,
    bundle: Bundle,
    attempts: FuturesUnordered<Attempt>,
    generation: u64,
    /// Counts the changes of the CA's files: an answer from before one is out of date.
    epoch: u64,
    /// Since the last answer of any kind nobody answered: when to ask again.
    probe_at: Option<Instant>,
    /// When an answer last brought other roots.
    rolled_over: Option<Instant>,
    /// When the CA last signed.
    signed_at: Option<Instant>,
}

impl Manager {
    /// Opens the CA that the configuration names.
    pub(super) fn new(config: Config) -> Result<(Identities, Self), StartError> {
        let clock = Arc::clone(&config.clock);
        let ca: Arc<dyn Ca> = match &config.ca {
            CaAddress::Dir(dir) => {
                let authority = AuthorityDir::open(dir.clone(), clock)?;
                Arc::new(LocalCa::new(authority))
            }
            CaAddress::Url(url) => {
                let flag = |flag| StartError::MissingFlag {
                    url: url.clone(),
                    flag,
                };
                let remote = RemoteConfig {
                    url: url.clone(),
                    token_file: config.token_file.clone().ok_or(flag("--ca-token-file"))?,
                    root_file: config.ca_root.clone().ok_or(flag("--ca-root"))?,
                    cluster_id: config.cluster_id.clone(),
                };
                Arc::new(RemoteCa::new(remote, clock)?)
            }
        };
        Ok(Self::with_ca(config, ca))
    }

    /// With a CA that was opened before.
    pub(super) fn with_ca(config: Config, ca: Arc<dyn Ca>) -> (Identities, Self) {
        let (wanted_sender, wanted) = watch::channel(BTreeSet::new());
        let (view, view_receiver) = watch::channel(OrdMap::new());
        let identities = Identities {
            wanted: wanted_sender,
            view: view_receiver,
            clock: Arc::clone(&config.clock),
        };
        let manager = Self {
            ca,
            tls: TlsSettings {
                trust_domain: config.trust_domain,
                trust: Trust::nobody(),
                clock: config.clock,
            },
            ttl: config.ttl,
            wanted,
            view,
            entries: OrdMap::new(),
            bundle: Bundle::default(),
            attempts: FuturesUnordered::new(),
            generation: 0,
            epoch: 0,
            probe_at: None,
            rolled_over: None,
            signed_at: None,
        };
        (identities, manager)
    }

    /// Runs until every [`Identities`] is dropped.
    pub(super) async fn run(mut self) {
        let mut next_look = Instant::now();
        loop {
            if Instant::now() >= next_look {
                self.look();
                next_look = Instant::now() + TICK;
            }
            self.start_due();
            self.publish();
            let wake = self.next_due().min(next_look);
            tokio::select! {
                changed = self.wanted.changed() => match changed {
                    Ok(()) => self.reconcile(),
                    Err(_) => return,
                },
                Some(outcome) = self.attempts.next() => self.finish(outcome),
                () = sleep_until(wake) => {}
            }
        }
    }

    fn now(&self) -> SystemTime {
        self.tls.clock.now()
    }

    /// Only one writer, and readers take whole maps.
    fn publish(&self) {
        self.view.send_if_modified(|view| {
            let changed = !view.ptr_eq(&self.entries);
            view.clone_from(&self.entries);
            changed
        });
    }

    /// Adds what is wanted now, forgets what is not. An attempt that is under way for a
    /// forgotten identity runs to its end; its answer finds no entry.
    fn reconcile(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let forgotten: Vec<_> = self
            .entries
            .keys()
            .filter(|id| !wanted.contains(*id))
            .cloned()
            .collect();
        for id in forgotten {
            self.entries.remove(&id);
            tracing::debug!(%id, "certificate forgotten: no pod of this node has the identity");
        }
        let now = self.now();
        for id in wanted {
            self.entries.entry(id).or_insert_with(|| Entry {
                credentials: None,
                renew_at: now,
                failure: None,
                fetching: false,
            });
        }
    }

    /// Looks at the CA's files. What changed counts for peers at once, and for our own
    /// certificates soon after.
    fn look(&mut self) {
        match self.ca.look() {
            Change::Unchanged => {}
            Change::Authority(roots) => {
                let roots = self.bundle.answered(roots);
                self.tls.trust.replace(roots);
                self.epoch += 1;
                self.renew_all();
            }
            Change::RootFile(roots) => {
                let roots = self.bundle.read(roots);
                if self.tls.trust.replace(roots) {
                    tracing::info!("the roots of the mesh changed: --ca-root was read again");
                    self.renew_untrusted();
                }
                // What failed may have failed because of the old file.
                if self.probe_at.is_some() {
                    self.probe_at = Some(Instant::now());
                }
            }
        }
        if self.attempts.is_empty() {
            self.ca.idle();
        }
    }

    /// Renews everything, spread over a moment.
    fn renew_all(&mut self) {
        self.renew(|_| true);
    }

    /// Renews what this node itself would refuse from a peer: other nodes will too, or do
    /// already. A root that is added leaves all certificates as good as they are.
    fn renew_untrusted(&mut self) {
        let now = self.now();
        self.renew(|entry| {
            let credentials = entry.credentials.as_ref();
            credentials.is_some_and(|credentials| !credentials.is_trusted(now))
        });
    }

    fn renew(&mut self, concerned: impl Fn(&Entry) -> bool) {
        let now = self.now();
        self.for_each(|entry| {
            if !concerned(entry) {
                return;
            }
            let soon = now + ROLLOVER.mul_f64(rand::random());
            entry.renew_at = entry.renew_at.min(soon);
            entry.failure = None;
        });
    }

    fn for_each(&mut self, mut change: impl FnMut(&mut Entry)) {
        let ids: Vec<_> = self.entries.keys().cloned().collect();
        for id in ids {
            if let Some(entry) = self.entries.get_mut(&id) {
                change(entry);
            }
        }
    }

    /// How many more attempts may begin. While nobody answers one asks for all, and the
    /// rest follows when there is an answer.
    fn free(&self) -> usize {
        let limit = if self.probe_at.is_some() {
            1
        } else {
            CONCURRENCY
        };
        limit.saturating_sub(self.attempts.len())
    }

    /// When an identity is to be asked for; `None` while it is.
    fn due_at(&self, entry: &Entry, wall: SystemTime, now: Instant) -> Option<Instant> {
        if entry.fetching {
            return None;
        }
        Some(match &entry.failure {
            Some(failure) if failure.of_all => self.probe_at.unwrap_or(now),
            Some(failure) => failure.retry_at,
            None if entry.usable(wall).is_none() => now,
            None => now + entry.renew_at.duration_since(wall).unwrap_or_default(),
        })
    }

    /// Starts attempts: those first whose workload has no valid certificate. Where one asks for
    /// all, each does in its turn: it may be that the CA refuses one alone.
    fn start_due(&mut self) {
        let (wall, now) = (self.now(), Instant::now());
        let due = |(id, entry): (&SpiffeId, &Entry)| {
            let due = self.due_at(entry, wall, now).is_some_and(|at| at <= now);
            let failed_at = entry.failure.as_ref().map(|failure| failure.failed_at);
            let asked_at = failed_at.filter(|_| self.probe_at.is_some());
            due.then(|| (asked_at, entry.usable(wall).is_some(), id.clone()))
        };
        let mut due: Vec<_> = self.entries.iter().filter_map(due).collect();
        due.sort();
        for (.., id) in due.into_iter().take(self.free()) {
            self.start(id);
        }
    }

    fn start(&mut self, id: SpiffeId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.fetching = true;
        }
        let epoch = self.epoch;
        let attempt = fetch(
            Arc::clone(&self.ca),
            Arc::clone(&self.tls.clock),
            id.clone(),
            self.ttl,
        );
        self.attempts.push(Box::pin(async move {
            let result = attempt.await;
            Outcome { id, epoch, result }
        }));
    }

    /// When something can be started, as far as is known now.
    fn next_due(&self) -> Instant {
        let (wall, now) = (self.now(), Instant::now());
        let far = now + TICK;
        if self.free() == 0 {
            return far;
        }
        let due = |entry: &Entry| self.due_at(entry, wall, now);
        self.entries
            .values()
            .filter_map(due)
            .fold(far, Instant::min)
    }

    fn finish(&mut self, outcome: Outcome) {
        let Outcome { id, epoch, result } = outcome;
        let of_all = result
            .as_ref()
            .is_err_and(|error| self.is_of_all(&id, error));
        let now = Instant::now();
        if of_all {
            self.probe_at = Some(match self.probe_at {
                None => now + jitter(BACKOFF.0),
                // One of several that failed together.
                Some(at) if at > now => at,
                Some(_) => now + jitter(PROBE),
            });
        } else if !matches!(&result, Err(error) if error.is_of_caller()) {
            self.answered();
        }
        if result.is_ok() {
            self.signed_at = Some(now);
        }
        if epoch != self.epoch {
            // The CA is another one since: this answer would bring the old roots back.
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.fetching = false;
            }
            return;
        }
        let result = result.and_then(|fetched| self.accept(fetched));
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.fetching = false;
        match result {
            Ok((credentials, renew_at)) => {
                tracing::info!(
                    %id,
                    serial = credentials.leaf().serial,
                    not_after = %timestamp(credentials.not_after()),
                    renew_at = %timestamp(renew_at),
                    "certificate in force"
                );
                entry.credentials = Some(Arc::new(credentials));
                entry.renew_at = renew_at;
                entry.failure = None;
            }
            Err(error) => {
                let count = entry.failure.as_ref().map_or(0, |failure| failure.count);
                let delay = match self.probe_at {
                    Some(at) if of_all => at.saturating_duration_since(now),
                    _ => backoff(count),
                };
                let in_force = entry.usable(self.tls.clock.now()).is_some();
                // An outage of hours is not told every five seconds.
                if count.saturating_add(1).is_power_of_two() {
                    tracing::warn!(%id, %error, in_force, attempts = count + 1, retry_in = ?delay, "no new certificate");
                }
                entry.failure = Some(Failure {
                    error: Arc::new(error),
                    count: count.saturating_add(1),
                    failed_at: now,
                    retry_at: now + delay,
                    of_all,
                });
            }
        }
    }

    /// It would have failed for any identity. A CA says that it does not know the caller also
    /// where it does not let it have this one identity, as istiod does: then it has signed
    /// for others since, and this one alone waits, ever longer.
    fn is_of_all(&self, id: &SpiffeId, error: &FetchError) -> bool {
        let failure = self
            .entries
            .get(id)
            .and_then(|entry| entry.failure.as_ref());
        let of_itself = failure.is_some_and(|failure| {
            !failure.of_all || self.signed_at.is_some_and(|at| at >= failure.failed_at)
        });
        error.is_outage() || error.is_of_caller() && !of_itself
    }

    /// The CA is there: whoever failed because it was not is due now.
    fn answered(&mut self) {
        if self.probe_at.take().is_some() {
            tracing::info!("the CA answers again");
        }
    }

    /// The other certificates of the node may lead to roots that peers trust no more.
    fn roots_changed(&mut self) {
        let now = Instant::now();
        let paused = self.rolled_over.is_some_and(|at| now < at + ROLLOVER_PAUSE);
        if self.generation > 0 && !paused {
            tracing::info!("the CA's roots changed");
            self.rolled_over = Some(now);
            self.renew_untrusted();
        }
    }

    /// Makes credentials of what was fetched, and takes over the roots that came with it.
    fn accept(&mut self, fetched: Fetched) -> Result<(Credentials, SystemTime), FetchError> {
        let Fetched {
            leaf,
            chain,
            roots,
            key,
        } = fetched;
        let roots = self.bundle.answered(roots);
        if self.tls.trust.replace(roots) {
            self.roots_changed();
        }
        self.generation += 1;
        let now = self.now();
        let left = leaf.not_after.duration_since(now).unwrap_or_default();
        let renew_at = now + left.mul_f64(rand::random_range(0.45..0.55));
        let credentials = Credentials::new(&self.tls, leaf, chain, &key, self.generation)
            .map_err(FetchError::Chain)?;
        Ok((credentials, renew_at))
    }
}

/// Grows from 1 s to 150 s, and differs between nodes.
fn backoff(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.min(16));
    jitter(BACKOFF.0.saturating_mul(factor).min(BACKOFF.1))
}

fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.8..=1.0))
}
