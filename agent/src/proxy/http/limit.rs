//! Local rate limits: token buckets of this node, one for each thing that is counted.
//!
//! In: the limits of a Service's port and a request. Out: whether it may go, and if not,
//! when to come again. How many buckets there are is bounded, and so is what one limit may
//! have of them: a client that makes up values of a header takes no bucket from others.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use http::request::Parts;
use xxhash_rust::xxh3::{Xxh3, Xxh3Builder};

use crate::model::{NamespacedName, SpiffeId};
use crate::policy::balance::TokenBucket;
use crate::policy::traffic::{Limiter, RateLimit};
use crate::state::traffic::{ComparedPath, LimitKey};

/// Buckets of one limit; further values share one.
const BUCKETS: usize = 16_384;

/// Between two looks for buckets of a full limit that need not be kept.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(1);

/// What is known of a request that is to be counted.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Counted<'a> {
    /// The Service and the port that it goes to.
    pub(in crate::proxy) service: &'a NamespacedName,
    pub(in crate::proxy) port: u16,
    /// Who sends it.
    pub(in crate::proxy) client: &'a SpiffeId,
    /// The label of the rule that it matched.
    pub(in crate::proxy) rule: Option<&'a str>,
    /// Its path in the form in which paths are compared, if it has one.
    pub(in crate::proxy) path: Option<&'a str>,
    pub(in crate::proxy) parts: &'a Parts,
}

impl Counted<'_> {
    /// The limit holds for it.
    pub(in crate::proxy) fn is_of(&self, limit: &RateLimit) -> bool {
        let path = ComparedPath::for_limit(self.path);
        let Parts {
            method, headers, ..
        } = self.parts;
        limit.matches.matches(method, path, headers)
    }
}

/// A request that may not go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Limited {
    /// The limit: the policy, and the limit's name where it has one.
    pub(in crate::proxy) limit: String,
    /// There is a token after so long.
    pub(in crate::proxy) retry_after: Duration,
}

/// All buckets of this node.
#[derive(Debug)]
pub(in crate::proxy) struct Limits {
    limits: RwLock<HashMap<u128, Arc<Buckets>>>,
    /// Of one limit.
    most: usize,
}

/// The buckets of one limit of one port.
#[derive(Debug)]
struct Buckets {
    known: RwLock<Known>,
    overflow: TokenBucket,
}

/// Buckets by their keys.
#[derive(Debug, Default)]
struct Known {
    by_key: HashMap<u128, Arc<TokenBucket>>,
    /// When those that need not be kept were last looked for.
    swept: Option<Instant>,
}

/// What a limit lets through, beside its name the identity of its buckets: with other
/// numbers they begin anew.
#[derive(Clone, Copy, Debug)]
struct Rate {
    requests: u32,
    per: Duration,
    burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            limits: RwLock::default(),
            most: BUCKETS,
        }
    }
}

impl Limits {
    /// Counts a request against every local limit that it matches, in their order.
    pub(in crate::proxy) fn count(
        &self,
        limits: &[RateLimit],
        counted: Counted<'_>,
        now: Instant,
    ) -> Result<(), Limited> {
        for (index, limit) in limits.iter().enumerate() {
            let Limiter::Local {
                requests,
                per,
                burst,
                ref by,
            } = limit.limiter
            else {
                continue;
            };
            if !counted.is_of(limit) {
                continue;
            }
            let rate = Rate {
                requests,
                per,
                burst,
            };
            let buckets = self.buckets(identity(limit, index, counted, rate), rate, now);
            let taken = buckets.take(key(by, counted), rate, self.most, now);
            taken.map_err(|retry_after| Limited {
                limit: name(limit),
                retry_after,
            })?;
        }
        Ok(())
    }

    fn buckets(&self, identity: u128, rate: Rate, now: Instant) -> Arc<Buckets> {
        let limits = self.limits.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(buckets) = limits.get(&identity) {
            return Arc::clone(buckets);
        }
        drop(limits);
        let mut limits = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        // Limits come and go with their policies: those at rest are like new ones.
        limits.retain(|_identity, buckets| !buckets.is_at_rest(now));
        let new = || Arc::new(Buckets::new(rate, now));
        Arc::clone(limits.entry(identity).or_insert_with(new))
    }
}

impl Buckets {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            known: RwLock::default(),
            overflow: rate.bucket(now),
        }
    }

    fn take(&self, key: u128, rate: Rate, most: usize, now: Instant) -> Result<(), Duration> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.by_key.get(&key) {
            return bucket.take(now);
        }
        if known.has_no_room(most, now) {
            return self.overflow.take(now);
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match known.bucket(key, rate, most, now) {
            Some(bucket) => bucket.take(now),
            None => self.overflow.take(now),
        }
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let mut buckets = known.by_key.values();
        self.overflow.is_full(now) && buckets.all(|bucket| bucket.is_full(now))
    }
}

impl Known {
    /// It is full, and was so when it was last looked at, a moment ago.
    fn has_no_room(&self, most: usize, now: Instant) -> bool {
        let lately = |swept| now.saturating_duration_since(swept) < BETWEEN_SWEEPS;
        self.by_key.len() >= most && self.swept.is_some_and(lately)
    }

    /// The bucket of a key, a new one where there is room for it.
    fn bucket(&mut self, key: u128, rate: Rate, most: usize, now: Instant) -> Option<&TokenBucket> {
        // Whoever held the lock before may have swept.
        if self.by_key.len() >= most && !self.has_no_room(most, now) {
            self.by_key.retain(|_key, bucket| !bucket.is_full(now));
            self.swept = Some(now);
        }
        if self.by_key.len() >= most && !self.by_key.contains_key(&key) {
            return None;
        }
        let new = || Arc::new(rate.bucket(now));
        Some(self.by_key.entry(key).or_insert_with(new))
    }
}

impl Rate {
    fn bucket(self, now: Instant) -> TokenBucket {
        TokenBucket::new(self.requests, self.per, self.burst, now)
    }
}

/// Tells limits apart that are of different policies, places, ports or numbers.
fn identity(limit: &RateLimit, index: usize, counted: Counted<'_>, rate: Rate) -> u128 {
    let mut hash = Xxh3Builder::new().build();
    write(&mut hash, &limit.policy.namespace);
    write(&mut hash, &limit.policy.name);
    hash.update(&index.to_le_bytes());
    write(&mut hash, &counted.service.namespace);
    write(&mut hash, &counted.service.name);
    hash.update(&counted.port.to_le_bytes());
    hash.update(&rate.requests.to_le_bytes());
    hash.update(&rate.per.as_nanos().to_le_bytes());
    hash.update(&rate.burst.to_le_bytes());
    hash.digest128()
}

/// What has a count of its own.
fn key(by: &LimitKey, counted: Counted<'_>) -> u128 {
    let mut hash = Xxh3Builder::new().build();
    match by {
        LimitKey::Service => {}
        LimitKey::Client => {
            write(&mut hash, &counted.client.trust_domain.0);
            write(&mut hash, &counted.client.namespace);
            write(&mut hash, &counted.client.service_account);
        }
        LimitKey::Route => write(&mut hash, counted.rule.unwrap_or_default()),
        LimitKey::Header(name) => {
            for value in counted.parts.headers.get_all(name) {
                hash.update(&value.len().to_le_bytes());
                hash.update(value.as_bytes());
            }
        }
    }
    hash.digest128()
}

/// With its length, so that no two lists of parts are the same bytes.
fn write(hash: &mut Xxh3, part: &str) {
    hash.update(&part.len().to_le_bytes());
    hash.update(part.as_bytes());
}

/// How a limit is called to clients.
pub(super) fn name(limit: &RateLimit) -> String {
    if limit.name.is_empty() {
        return format!("by {}", limit.policy);
    }
    format!("by {}#{}", limit.policy, limit.name)
}

#[cfg(test)]
mod tests {
    use std::sync::{PoisonError, RwLock};
    use std::time::{Duration, Instant};

    use http::{HeaderName, Request};

    use super::{Counted, Limited, Limits};
    use crate::model::{NamespacedName, SpiffeId, TrustDomain};
    use crate::policy::traffic::{Limiter, RateLimit};
    use crate::state::StringMatch;
    use crate::state::traffic::{LimitKey, TrafficMatch};

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(by: LimitKey, requests: u32) -> RateLimit {
        RateLimit {
            policy: NamespacedName::new("shop", "web"),
            name: "".into(),
            matches: TrafficMatch::default(),
            limiter: Limiter::Local {
                requests,
                per: SECOND,
                burst: requests,
                by,
            },
        }
    }

    /// Who asks for what.
    #[derive(Clone, Copy)]
    struct Asks {
        client: &'static str,
        rule: &'static str,
        key: Option<&'static str>,
        path: Option<&'static str>,
    }

    const ASKS: Asks = Asks {
        client: "cart",
        rule: "r",
        key: None,
        path: Some("/"),
    };

    fn ask(limits: &Limits, limit: &RateLimit, asks: Asks, now: Instant) -> Result<(), Limited> {
        let mut request = Request::get("/");
        if let Some(key) = asks.key {
            request = request.header("x-key", key);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let client = SpiffeId::new(TrustDomain("cluster.local".into()), "shop", asks.client);
        let service = NamespacedName::new("shop", "web");
        let counted = Counted {
            service: &service,
            port: 80,
            client: &client,
            rule: Some(asks.rule),
            path: asks.path,
            parts: &parts,
        };
        limits.count(std::slice::from_ref(limit), counted, now)
    }

    /// `same` shares a bucket of one token with [`ASKS`], `other` does not.
    #[track_caller]
    fn check(by: &LimitKey, same: Asks, other: Asks) {
        let (limits, limit, now) = (Limits::default(), limit(by.clone(), 1), Instant::now());
        assert_eq!(ask(&limits, &limit, ASKS, now), Ok(()));
        let limited = ask(&limits, &limit, same, now).unwrap_err();
        assert_eq!(limited.limit, "by shop/web");
        assert_eq!(limited.retry_after, SECOND);
        assert_eq!(ask(&limits, &limit, other, now), Ok(()));
        assert_eq!(ask(&limits, &limit, same, now + 2 * SECOND), Ok(()));
    }

    #[test]
    fn clients_routes_and_values_are_counted_apart() {
        let other_client = Asks {
            client: "web",
            ..ASKS
        };
        let other_rule = Asks { rule: "s", ..ASKS };
        let keyed = Asks {
            key: Some("a"),
            ..ASKS
        };
        check(&LimitKey::Client, other_rule, other_client);
        check(&LimitKey::Route, other_client, other_rule);
        let header = LimitKey::Header(HeaderName::from_static("x-key"));
        check(&header, other_client, keyed);
    }

    #[test]
    fn a_service_has_one_count() {
        let (limits, limit, now) = (
            Limits::default(),
            limit(LimitKey::Service, 1),
            Instant::now(),
        );
        assert_eq!(ask(&limits, &limit, ASKS, now), Ok(()));
        let other = Asks {
            client: "web",
            rule: "s",
            key: Some("a"),
            ..ASKS
        };
        assert!(ask(&limits, &limit, other, now).is_err());
    }

    #[test]
    fn a_limit_that_changes_begins_anew() {
        let (limits, now) = (Limits::default(), Instant::now());
        let strict = limit(LimitKey::Service, 1);
        assert_eq!(ask(&limits, &strict, ASKS, now), Ok(()));
        assert!(ask(&limits, &strict, ASKS, now).is_err());
        assert_eq!(
            ask(&limits, &limit(LimitKey::Service, 2), ASKS, now),
            Ok(())
        );
    }

    #[test]
    fn what_does_not_match_is_not_counted() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut limit = limit(LimitKey::Service, 1);
        limit.matches.methods = vec![http::Method::POST];
        for _ in 0..3 {
            assert_eq!(ask(&limits, &limit, ASKS, now), Ok(()));
        }
    }

    #[test]
    fn a_path_without_a_form_escapes_no_limit() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut limit = limit(LimitKey::Service, 1);
        limit.matches.paths = vec![StringMatch::Exact("/api".into())];
        let asks = |path| ask(&limits, &limit, Asks { path, ..ASKS }, now);
        assert_eq!(asks(Some("/other")), Ok(()));
        assert_eq!(asks(None), Ok(()));
        assert!(asks(Some("/api")).is_err());
        assert!(asks(None).is_err());
        assert_eq!(asks(Some("/other")), Ok(()));
    }

    #[test]
    fn values_that_are_made_up_share_what_is_left() {
        let limits = Limits {
            limits: RwLock::default(),
            most: 2,
        };
        let limit = limit(LimitKey::Header(HeaderName::from_static("x-key")), 1);
        let now = Instant::now();
        let keyed = |key| Asks {
            key: Some(key),
            ..ASKS
        };
        assert_eq!(ask(&limits, &limit, keyed("a"), now), Ok(()));
        assert_eq!(ask(&limits, &limit, keyed("b"), now), Ok(()));
        // One token for all others together, and those that have a bucket keep it.
        assert_eq!(ask(&limits, &limit, keyed("c"), now), Ok(()));
        assert!(ask(&limits, &limit, keyed("d"), now).is_err());
        assert_eq!(ask(&limits, &limit, keyed("a"), now + 2 * SECOND), Ok(()));
        let buckets = limits.limits.read().unwrap_or_else(PoisonError::into_inner);
        let buckets = buckets.values().next().unwrap();
        assert_eq!(buckets.known.read().unwrap().by_key.len(), 2);
        // Buckets that are full again make room.
        let _shared = buckets.take(
            7,
            super::Rate {
                requests: 1,
                per: SECOND,
                burst: 1,
            },
            2,
            now + 9 * SECOND,
        );
        assert_eq!(buckets.known.read().unwrap().by_key.len(), 1);
    }

    #[test]
    fn a_full_limit_is_swept_once_a_second() {
        let rate = super::Rate {
            requests: 10,
            per: SECOND,
            burst: 10,
        };
        let now = Instant::now();
        let buckets = super::Buckets::new(rate, now);
        let kept_after = |key, after| {
            assert_eq!(buckets.take(key, rate, 2, now + after), Ok(()));
            buckets.known.read().unwrap().by_key.len()
        };
        for (key, kept) in [(1, 1), (2, 2), (3, 2)] {
            assert_eq!(kept_after(key, Duration::ZERO), kept);
        }
        // Both are full again, but nobody looks.
        assert_eq!(kept_after(4, SECOND / 2), 2);
        assert_eq!(kept_after(5, SECOND), 1);
    }
}
