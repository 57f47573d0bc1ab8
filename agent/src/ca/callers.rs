//! Who calls: a token of a file for each node, or a service account's token that the API
//! server reviews.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
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
/// Reviews under way at once: strangers must not make the API server busy.
const REVIEWS: usize = 32;
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

    /// The node that has the token.
    pub(super) async fn node(
        &self,
        token: &str,
        snapshots: &watch::Receiver<Snapshot>,
    ) -> Result<NodeName, Refusal> {
        match self {
            Self::Files(tokens) => {
                let tokens = tokens.load();
                let stranger = || Refusal::Stranger("no node has this token".to_owned());
                tokens.node(token).cloned().ok_or_else(stranger)
            }
            Self::Reviews(reviews) => {
                let owner = reviews.owner(token).await?;
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
    answers: Mutex<Answers>,
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
            answers: Mutex::default(),
        }
    }

    /// Whose the token is, as was found not long ago.
    async fn owner(&self, token: &str) -> Result<TokenOwner, Refusal> {
        if token.is_empty() || token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return Err(Refusal::Stranger(
                "that is no service account token".to_owned(),
            ));
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let slot = self.slot(hash);
        let mut answer = slot.lock().await;
        if let Some((until, found)) = &*answer
            && Instant::now() < *until
        {
            return refuse(found.clone());
        }
        let found = self.ask(token).await;
        let kept = match &found {
            Ok(_) => KEPT,
            Err(ReviewError::Invalid { .. }) => KEPT_REFUSAL,
            Err(ReviewError::Failed(_)) => KEPT_FAILURE,
        };
        *answer = Some((Instant::now() + kept, found.clone()));
        if found.is_ok() {
            self.keep(hash, &slot);
        }
        refuse(found)
    }

    async fn ask(&self, token: &str) -> Answer {
        let _permit = self.permits.acquire().await;
        self.server.review(token).await
    }

    fn slot(&self, hash: [u8; 32]) -> Slot {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = answers.agents.get(&hash) {
            return Arc::clone(slot);
        }
        make_room(&mut answers.others, STRANGERS);
        Arc::clone(answers.others.entry(hash).or_default())
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
