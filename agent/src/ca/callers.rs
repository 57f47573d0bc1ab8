//! Who calls: a token of a file for each node, or a service account's token that the API
//! server reviews.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::time::Instant;

use super::tokens::{TokenDir, Tokens};
use crate::cluster::kube::{ReviewError, TokenOwner, TokenReviews};
use crate::model::{NamespacedName, NodeName};
use crate::state::Snapshot;

/// So long an answer of the API server counts. A token that is withdrawn, as with its
/// pod, is good for no longer.
const KEPT: Duration = Duration::from_secs(30);
/// A refusal is remembered for less: what was wrong may be put right.
const KEPT_REFUSAL: Duration = Duration::from_secs(10);
/// For those who waited for the same answer.
const KEPT_FAILURE: Duration = Duration::from_secs(1);
/// Answers that are remembered of agents: more than there are nodes.
const AGENTS: usize = 16_384;
/// And of strangers.
const STRANGERS: usize = 1024;
/// Reviews under way at once of the tokens that were agents' before.
const REVIEWS: usize = 32;
/// Of all others, which nobody waits for: strangers must not make the API server busy, nor
/// keep agents from it.
const NEW_REVIEWS: usize = 16;
/// The same from one address. An agent has one token, and asks about it once at a time;
/// a few may share an address.
const NEW_REVIEWS_PER_SOURCE: usize = 4;
/// Longer than any token.
const MAX_TOKEN: usize = 16 * 1024;

/// Why a caller is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Whoever it is, it is told no more than that it is refused. The reason is for the log.
    Stranger(String),
    /// Nobody can say now. The reason is for the log.
    Unavailable(String),
}

/// How callers prove which node they are.
#[derive(Debug)]
pub(super) enum Callers {
    /// By the tokens of files.
    Files(ArcSwap<Tokens>),
    /// By the API server.
    Reviews(Box<Reviews>),
}

impl Callers {
    pub(super) fn files(directory: &TokenDir) -> Self {
        Self::Files(ArcSwap::new(directory.current()))
    }

    /// The node that has the token, which came from the address `source`.
    pub(super) async fn node(
        &self,
        token: &str,
        source: Option<IpAddr>,
        snapshots: &watch::Receiver<Snapshot>,
    ) -> Result<NodeName, Refusal> {
        match self {
            Self::Files(tokens) => {
                let tokens = tokens.load();
                let stranger = || Refusal::Stranger("no node has this token".to_owned());
                tokens.node(token).cloned().ok_or_else(stranger)
            }
            Self::Reviews(reviews) => {
                let owner = reviews.owner(token, source).await?;
                reviews.node(&owner, &snapshots.borrow())
            }
        }
    }
}

type Answer = Result<TokenOwner, ReviewError>;
/// Held while the API server is asked, so that it is asked once.
type Slot = Arc<AsyncMutex<Option<(Instant, Answer)>>>;

/// Tokens that the API server reviews.
#[derive(Debug)]
pub(super) struct Reviews {
    server: TokenReviews,
    /// The service account of the agents.
    agent: NamespacedName,
    permits: Semaphore,
    newcomers: Newcomers,
    answers: Mutex<Answers>,
}

/// Reviews under way of tokens that are not known to be agents'.
#[derive(Debug, Default)]
struct Newcomers(Mutex<Underway>);

#[derive(Debug, Default)]
struct Underway {
    all: usize,
    by_source: HashMap<Option<IpAddr>, usize>,
}

/// One of them.
#[derive(Debug)]
struct Newcomer<'n> {
    newcomers: &'n Newcomers,
    source: Option<IpAddr>,
}

impl Newcomers {
    /// `None`: it is one too many.
    fn admit(&self, source: Option<IpAddr>) -> Option<Newcomer<'_>> {
        let mut underway = self.underway();
        let of_source = underway.by_source.get(&source).copied().unwrap_or_default();
        if underway.all >= NEW_REVIEWS || of_source >= NEW_REVIEWS_PER_SOURCE {
            return None;
        }
        underway.all += 1;
        underway.by_source.insert(source, of_source + 1);
        drop(underway);
        let newcomers = self;
        Some(Newcomer { newcomers, source })
    }

    fn underway(&self) -> MutexGuard<'_, Underway> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        let mut underway = self.newcomers.underway();
        underway.all -= 1;
        if let Some(of_source) = underway.by_source.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                underway.by_source.remove(&self.source);
            }
        }
    }
}

/// By the hash of the token. Those that were refused have a place of their own, so that
/// no stranger pushes an agent out.
#[derive(Debug, Default)]
struct Answers {
    agents: HashMap<[u8; 32], Slot>,
    others: HashMap<[u8; 32], Slot>,
}

impl Reviews {
    pub(super) fn new(server: TokenReviews, agent: NamespacedName) -> Self {
        Self {
            server,
            agent,
            permits: Semaphore::new(REVIEWS),
            newcomers: Newcomers::default(),
            answers: Mutex::default(),
        }
    }

    /// Whose the token is, as was found not long ago.
    async fn owner(&self, token: &str, source: Option<IpAddr>) -> Result<TokenOwner, Refusal> {
        if token.is_empty() || token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return Err(Refusal::Stranger(
                "that is no service account token".to_owned(),
            ));
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let (slot, known) = self.slot(hash);
        let mut answer = slot.lock().await;
        if let Some((until, found)) = &*answer
            && Instant::now() < *until
        {
            return refuse(found.clone());
        }
        let found = if known {
            let _permit = self.permits.acquire().await;
            self.server.review(token).await
        } else {
            let busy = || Refusal::Unavailable("too many new tokens at once".to_owned());
            let _newcomer = self.newcomers.admit(source).ok_or_else(busy)?;
            self.server.review(token).await
        };
        let kept = match &found {
            Ok(_) => KEPT,
            Err(ReviewError::Invalid { .. }) => KEPT_REFUSAL,
            Err(ReviewError::Failed(_)) => KEPT_FAILURE,
        };
        *answer = Some((Instant::now() + kept, found.clone()));
        if found
            .as_ref()
            .is_ok_and(|owner| owner.account == self.agent)
        {
            self.keep(hash, &slot);
        }
        refuse(found)
    }

    /// Where the answer is, and whether the token was an agent's before.
    fn slot(&self, hash: [u8; 32]) -> (Slot, bool) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = answers.agents.get(&hash) {
            return (Arc::clone(slot), true);
        }
        make_room(&mut answers.others, STRANGERS);
        let slot = answers.others.entry(hash).or_default();
        (Arc::clone(slot), false)
    }

    /// The token is an agent's, and is to be found as one from now on.
    fn keep(&self, hash: [u8; 32], slot: &Slot) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.others.remove(&hash);
        make_room(&mut answers.agents, AGENTS);
        answers.agents.insert(hash, Arc::clone(slot));
    }

    /// The node that the owner of a token is on, if it is an agent there.
    fn node(&self, owner: &TokenOwner, snapshot: &Snapshot) -> Result<NodeName, Refusal> {
        let stranger = |reason: String| Err(Refusal::Stranger(reason));
        if owner.account != self.agent {
            let (account, agent) = (&owner.account, &self.agent);
            return stranger(format!("the token is of {account}, agents are {agent}"));
        }
        let Some(pod) = &owner.pod else {
            return stranger("the token is bound to no pod".to_owned());
        };
        let name = NamespacedName::new(Arc::clone(&owner.account.namespace), pod.name.as_str());
        let known = snapshot.pods.get(&name);
        let known = known.filter(|known| *known.uid == *pod.uid);
        match (&pod.node, known.and_then(|known| known.node.as_ref())) {
            (Some(node), None) => Ok(node.clone()),
            (Some(node), Some(seen)) if node == seen => Ok(node.clone()),
            (None, Some(seen)) => Ok(seen.clone()),
            (Some(node), Some(seen)) => stranger(format!(
                "the token is of node {node}, its pod {name} is on {seen}"
            )),
            (None, None) if snapshot.revision == 0 => Err(Refusal::Unavailable(
                "the CA has not read the state of the cluster yet".to_owned(),
            )),
            (None, None) => stranger(format!("the pod {name} of the token is on no node")),
        }
    }
}

fn refuse(answer: Answer) -> Result<TokenOwner, Refusal> {
    answer.map_err(|error| match error {
        ReviewError::Invalid { reason } => Refusal::Stranger(reason),
        ReviewError::Failed(_) => Refusal::Unavailable(error.to_string()),
    })
}

/// Forgets what is over, and where that is not enough, all: it is asked for anew.
fn make_room(answers: &mut HashMap<[u8; 32], Slot>, limit: usize) {
    if answers.len() < limit {
        return;
    }
    let now = Instant::now();
    answers.retain(|_, slot| match slot.try_lock() {
        Ok(answer) => answer.as_ref().is_some_and(|(until, _)| now < *until),
        // Being asked for.
        Err(_) => true,
    });
    if answers.len() >= limit {
        answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_leaves_room_for_new_tokens_of_others() {
        let newcomers = Newcomers::default();
        let source = |last| Some(IpAddr::from([10, 0, 0, last]));
        let greedy: Vec<_> = (0..100)
            .filter_map(|_| newcomers.admit(source(1)))
            .collect();
        assert_eq!(greedy.len(), NEW_REVIEWS_PER_SOURCE);
        let others: Vec<_> = (2..100)
            .filter_map(|n| newcomers.admit(source(n)))
            .collect();
        assert_eq!(greedy.len() + others.len(), NEW_REVIEWS);
        assert!(newcomers.admit(None).is_none(), "all places are taken");
        drop((greedy, others));
        assert!(newcomers.admit(source(1)).is_some());
        let underway = newcomers.underway();
        assert_eq!((underway.all, underway.by_source.len()), (0, 0));
    }
}
