//! The keys of all issuers: fetched once however many pods ask for them, renewed in the
//! background, and kept while their server is away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use http::Uri;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::fetch::{Tls, Via, fetch};
use super::since_1970;
use crate::policy::{Claims, JwtError, KeySet, Token};
use crate::proxy::lock::lock;
use crate::proxy::network::PodKey;
use crate::proxy::tasks::Tasks;
use crate::state::{JwtKeys, JwtProvider};

/// Between two looks at keys that are known.
const RENEWAL: Duration = Duration::from_mins(5);

/// After the first failure; each further one doubles it, up to [`RENEWAL`].
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The longest pause while no token can be valid.
const WITHOUT_KEYS: Duration = Duration::from_secs(30);

/// Tokens that name unknown keys make nobody fetch more often than this.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);

/// Keys that nobody has asked for since are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);

/// How long a request waits for keys.
const PATIENCE: Duration = Duration::from_secs(6);

/// Whose network, and which URI there.
type Place = (Option<PodKey>, Arc<str>);

/// The keys of all issuers. A clone is the same.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: Tasks,
    tls: Tls,
    remote: Mutex<HashMap<Place, Arc<Remote>>>,
    inline: Inline,
}

/// The keys that policies bring with them. Each set is read once, and by nobody while all
/// others wait; one that can't be read stays so.
#[derive(Debug, Default)]
struct Inline(Mutex<HashMap<Arc<str>, Arc<Read>>>);

/// What came of reading a set.
type Read = OnceLock<Option<Arc<KeySet>>>;

/// The keys at one URI.
#[derive(Debug)]
struct Remote {
    known: watch::Sender<Known>,
    look: Notify,
    asked: Mutex<Asked>,
}

/// What was fetched.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last good ones.
    keys: Option<Arc<KeySet>>,
    attempts: u64,
}

/// When somebody wanted something.
#[derive(Clone, Copy, Debug)]
struct Asked {
    keys: Instant,
    /// The last attempt to fetch.
    attempt: Instant,
}

impl Keys {
    pub(in crate::proxy) fn new(tasks: Tasks) -> Self {
        Self(Arc::new(Inner {
            tasks,
            tls: Tls::default(),
            remote: Mutex::default(),
            inline: Inline::default(),
        }))
    }

    /// Verifies a token with the keys of its issuer; once more, with newer ones, where it
    /// names a key that is not known.
    pub(super) async fn verify(
        &self,
        provider: &JwtProvider,
        token: &mut Token<'_>,
        via: &Via,
    ) -> Result<Claims, JwtError> {
        let uri = match &provider.keys {
            JwtKeys::Inline(text) => {
                let keys = self.0.inline.keys(text).ok_or(JwtError::NoKeys)?;
                return token.verify(provider, &keys, since_1970());
            }
            JwtKeys::Uri(uri) => uri,
        };
        let remote = self.remote(uri, via).ok_or(JwtError::NoKeys)?;
        let keys = remote.keys().await.ok_or(JwtError::NoKeys)?;
        match token.verify(provider, &keys, since_1970()) {
            Err(JwtError::UnknownKey) => {
                let newer = remote.newer(&keys).await.ok_or(JwtError::UnknownKey)?;
                token.verify(provider, &newer, since_1970())
            }
            result => result,
        }
    }

    /// The keys at a URI, which are fetched from now on.
    fn remote(&self, text: &Arc<str>, via: &Via) -> Option<Arc<Remote>> {
        let uri: Uri = text.parse().ok()?;
        let via = via.to(&uri);
        let place = (via.owner(), Arc::clone(text));
        let mut all = lock(&self.0.remote);
        if let Some(remote) = all.get(&place) {
            return Some(Arc::clone(remote));
        }
        let now = Instant::now();
        let remote = Arc::new(Remote {
            known: watch::Sender::default(),
            look: Notify::new(),
            asked: Mutex::new(Asked {
                keys: now,
                attempt: now,
            }),
        });
        let _before = all.insert(place.clone(), Arc::clone(&remote));
        drop(all);
        let inner = Arc::clone(&self.0);
        let kept = Arc::clone(&remote);
        let tasks = &self.0.tasks;
        tasks.spawn_alone(async move { inner.keep(place, uri, via, kept).await });
        Some(remote)
    }
}

/// Inline sets that are kept.
const MOST_INLINE: usize = 1024;

impl Inline {
    fn keys(&self, text: &Arc<str>) -> Option<Arc<KeySet>> {
        let read = self.place(text);
        let parse = || KeySet::parse(text.as_bytes(), false).ok().map(Arc::new);
        read.get_or_init(parse).clone()
    }

    fn place(&self, text: &Arc<str>) -> Arc<Read> {
        let mut all = lock(&self.0);
        if let Some(read) = all.get(text) {
            return Arc::clone(read);
        }
        // Sets of policies that are gone: whoever still needs one reads it again.
        if all.len() >= MOST_INLINE {
            all.clear();
        }
        Arc::clone(all.entry(Arc::clone(text)).or_default())
    }
}

impl Inner {
    /// Fetches the keys again and again, until nobody asks for them any more.
    async fn keep(&self, place: Place, uri: Uri, via: Via, remote: Arc<Remote>) {
        let mut pause = FIRST_RETRY;
        loop {
            lock(&remote.asked).attempt = Instant::now();
            let fetched = fetch(&uri, &via, &self.tls).await;
            let next = match &fetched {
                Ok(_) => {
                    pause = FIRST_RETRY;
                    RENEWAL
                }
                Err(error) => {
                    tracing::warn!(uri = %place.1, %error, "the keys of an issuer can't be fetched");
                    let this = pause;
                    let without = remote.known.borrow().keys.is_none();
                    let most = if without { WITHOUT_KEYS } else { RENEWAL };
                    pause = (pause * 2).min(most);
                    this
                }
            };
            remote.known.send_modify(|known| {
                known.attempts += 1;
                if let Ok(keys) = fetched {
                    known.keys = Some(Arc::new(keys));
                }
            });
            let looked_for = tokio::time::timeout(jittered(next), remote.look.notified());
            let _nobody_looks = looked_for.await.is_err();
            let mut all = lock(&self.remote);
            if lock(&remote.asked).keys.elapsed() >= FORGOTTEN_AFTER {
                let _forgotten = all.remove(&place);
                return;
            }
        }
    }
}

impl Remote {
    /// The last good keys; waits for the first attempt.
    async fn keys(&self) -> Option<Arc<KeySet>> {
        lock(&self.asked).keys = Instant::now();
        let mut known = self.known.subscribe();
        let first = known.wait_for(|known| known.attempts > 0);
        let known = tokio::time::timeout(PATIENCE, first).await.ok()?.ok()?;
        known.keys.clone()
    }

    /// What came after `old`; `None` where nothing did, or it is too soon to look.
    async fn newer(&self, old: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let mut known = self.known.subscribe();
        let attempts = known.borrow_and_update().attempts;
        let is_new = |known: &Known| known.keys.clone().filter(|keys| !Arc::ptr_eq(keys, old));
        if let Some(keys) = is_new(&known.borrow()) {
            return Some(keys);
        }
        if lock(&self.asked).attempt.elapsed() < BETWEEN_LOOKS {
            return None;
        }
        self.look.notify_one();
        let looked = known.wait_for(|known| known.attempts > attempts);
        let known = tokio::time::timeout(PATIENCE, looked).await.ok()?.ok()?;
        is_new(&known)
    }
}

/// Spread, so that not all nodes of a cluster ask at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.9..1.1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Inline;

    #[test]
    fn a_set_that_can_not_be_read_is_read_once() {
        let (inline, text) = (Inline::default(), Arc::from(r#"{"keys": []}"#));
        assert!(inline.keys(&text).is_none());
        assert!(matches!(inline.place(&text).get(), Some(None)));
    }
}
