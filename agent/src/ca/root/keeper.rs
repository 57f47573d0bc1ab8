//! The loop that follows the Secret, and as the leader keeps Secret and bundle in order.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Times;
use super::content::{Content, ContentError, Phase};
use super::overlap::Overlap;
use super::rotation::{Seen, Step, due};
use crate::ca::service::Shared;
use crate::cluster::kube::{ApiFailure, BundleStore, Leader, Published, SecretObject, SecretStore};
use crate::identity::{Authority, AuthorityError, Clock};

/// Between two looks at the Secret and the bundle: a part of the overlap, within this.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// An authority that ends soon is warned about so often.
const WARN: Duration = Duration::from_hours(1);

/// Where the authority is, and what this process may do about it.
#[derive(Clone, Debug)]
pub struct SecretRoot {
    /// Key and certificates; made by the leader where there is none.
    pub secret: SecretStore,
    /// Where the roots are published by the leader.
    pub bundle: Option<BundleStore>,
    /// Of all replicas one writes.
    pub leader: Leader,
    /// How long a new root is published before it signs: every agent has read the bundle
    /// by then.
    pub overlap: Duration,
    /// The longest life of a certificate: so long an old root is trusted still.
    pub life: Duration,
}

/// Why a turn did not come to its end.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("there is no Secret {0} yet; the leader of the replicas makes it")]
    Absent(crate::model::NamespacedName),
    #[error(
        "Secret {0} was deleted; the last one stays in force here: apply it again, or restart \
         all replicas to have a new root made"
    )]
    Deleted(crate::model::NamespacedName),
    #[error("{0}")]
    Content(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("Secret {name}: {source}")]
    Secret {
        name: crate::model::NamespacedName,
        source: ApiFailure,
    },
    #[error("ConfigMap {name}: {source}")]
    Bundle {
        name: crate::model::NamespacedName,
        source: ApiFailure,
    },
}

impl From<ContentError> for KeepError {
    fn from(error: ContentError) -> Self {
        Self::Content(error.to_string())
    }
}

/// Follows the Secret.
#[derive(Debug)]
pub(in crate::ca) struct Keeper {
    root: SecretRoot,
    clock: Arc<dyn Clock>,
    times: Times,
    /// The last one that was in order.
    content: Option<Content>,
    /// The version that was read last, and what is wrong with it.
    version: String,
    malformed: Option<String>,
    /// What was said last.
    problem: Option<String>,
    overlap: Overlap,
    /// The phase as it is, and since when it was seen.
    phase: Option<(Phase, Instant)>,
    warned: Instant,
}

impl Keeper {
    pub(in crate::ca) fn new(root: SecretRoot, clock: Arc<dyn Clock>) -> Self {
        let times = Times {
            overlap: root.overlap,
            life: root.life,
        };
        Self {
            root,
            clock,
            times,
            content: None,
            version: String::new(),
            malformed: None,
            problem: None,
            overlap: Overlap::default(),
            phase: None,
            warned: Instant::now(),
        }
    }

    /// Follows the Secret, and tells the service what signs.
    pub(in crate::ca) async fn run(mut self, shared: &Shared) -> Infallible {
        loop {
            let outcome = self.turn(shared).await;
            self.say(outcome.err(), shared);
            self.warn_of_end(shared);
            let pause = (self.times.overlap / 4).clamp(POLL.0, POLL.1);
            let pause = pause.mul_f64(rand::random_range(0.8..=1.0));
            tokio::select! {
                () = sleep(pause) => {}
                () = self.root.leader.changed() => {}
            }
        }
    }

    async fn turn(&mut self, shared: &Shared) -> Result<(), KeepError> {
        let read = self.read().await;
        // What follows goes on with the last good one, also while the Secret can't be read.
        let authority = self.in_force();
        if let Some(authority) = &authority {
            shared.replace_authority(authority);
        }
        let (Some(authority), true) = (authority, self.root.leader.is_leader()) else {
            return read;
        };
        let published = self.publish(&authority).await;
        read?;
        published?;
        self.rotate().await?;
        if let Some(authority) = self.in_force() {
            shared.replace_authority(&authority);
        }
        Ok(())
    }

    /// Reads the Secret, and makes it where there was none yet.
    async fn read(&mut self) -> Result<(), KeepError> {
        let name = self.root.secret.name().clone();
        let failed = |source| KeepError::Secret {
            name: name.clone(),
            source,
        };
        let object = match self.root.secret.read().await.map_err(failed)? {
            Some(object) => object,
            None if self.content.is_some() => return Err(KeepError::Deleted(name)),
            None if !self.root.leader.is_leader() => return Err(KeepError::Absent(name)),
            None => {
                let new = Content::create(&name, self.clock.now())?;
                match self.root.secret.create(&new).await {
                    Ok(object) => {
                        tracing::info!(secret = %name, "made a self-signed root certificate");
                        object
                    }
                    // Another replica was faster; what it made is read at the next turn.
                    Err(ApiFailure::Conflict { .. }) => return Err(KeepError::Absent(name)),
                    Err(source) => return Err(failed(source)),
                }
            }
        };
        if object.version() != self.version {
            return self.adopt(object);
        }
        match &self.malformed {
            Some(problem) => Err(KeepError::Content(problem.clone())),
            None => Ok(()),
        }
    }

    fn adopt(&mut self, object: SecretObject) -> Result<(), KeepError> {
        object.version().clone_into(&mut self.version);
        let content = Content::parse(self.root.secret.name(), object, &self.clock);
        let content = match content {
            Ok(content) => content,
            Err(error) => {
                self.malformed = Some(error.to_string());
                return Err(error.into());
            }
        };
        self.malformed = None;
        let phase = content.rotation.as_ref().map(|rotation| rotation.phase);
        if self.phase.map(|(phase, _)| phase) != phase {
            self.phase = phase.map(|phase| (phase, Instant::now()));
            if let Some(phase) = phase {
                tracing::info!(%phase, "the root's rotation");
            }
        }
        tracing::info!(secret = %self.root.secret.name(), version = self.version, "read the CA's key and certificates");
        self.content = Some(content);
        Ok(())
    }

    /// What signs now.
    fn in_force(&mut self) -> Option<Arc<Authority>> {
        let content = self.content.as_ref()?;
        if content.rotation.is_some() {
            self.overlap.take(&content.authority);
            return Some(Arc::clone(&content.authority));
        }
        let now = (self.clock.now(), Instant::now());
        Some(self.overlap.follow(&content.authority, now, self.times))
    }

    async fn publish(&self, authority: &Authority) -> Result<(), KeepError> {
        let Some(bundle) = &self.root.bundle else {
            return Ok(());
        };
        let roots = authority.roots_pem();
        let published = bundle.publish(&roots).await;
        let published = published.map_err(|source| KeepError::Bundle {
            name: bundle.name().clone(),
            source,
        })?;
        if published != Published::Unchanged {
            let roots = authority.roots().len();
            tracing::info!(bundle = %bundle.name(), ?published, roots, "the roots were published");
        }
        Ok(())
    }

    /// Takes the step that is due. The bundle has been published.
    async fn rotate(&mut self) -> Result<(), KeepError> {
        let (Some(content), Some((_, since))) = (&self.content, self.phase) else {
            return Ok(());
        };
        let Some(rotation) = &content.rotation else {
            return Ok(());
        };
        let now = self.clock.now();
        let seen = Seen {
            now,
            watched: since.elapsed(),
            validity: (
                content.authority.not_before(),
                content.authority.not_after(),
            ),
        };
        let step = due(rotation, &seen, self.times);
        let wanted = match step {
            Step::Wait => return Ok(()),
            Step::Announce => content.announced(now)?,
            Step::Confirm => content.confirmed(now),
            Step::Switch => content.switched(now),
            Step::SwitchAgain => content.switched_again(now),
            Step::Retire => content.retired(),
        };
        // What could not be used is not written.
        let name = self.root.secret.name().clone();
        Content::parse(&name, wanted.clone(), &self.clock)?;
        match self.root.secret.replace(&wanted).await {
            Ok(object) => {
                tracing::info!(secret = %name, ?step, "the root's rotation goes on");
                self.adopt(object)
            }
            // Somebody wrote it meanwhile: what is due is asked again of what is there.
            Err(ApiFailure::Conflict { .. }) => Ok(()),
            Err(source) => Err(KeepError::Secret { name, source }),
        }
    }

    /// A problem is told once, and when it is over.
    fn say(&mut self, error: Option<KeepError>, shared: &Shared) {
        let expected = matches!(error, Some(KeepError::Absent(_)));
        let problem = error.map(|error| error.to_string());
        if problem == self.problem {
            return;
        }
        if let Some(problem) = &problem
            && expected
        {
            tracing::info!(problem, "waiting for the CA's key and certificates");
        } else if let Some(problem) = &problem {
            tracing::error!(problem, "the CA's key and certificates");
        } else {
            tracing::info!("the CA's key and certificates are in order");
        }
        shared.set_root_problem(problem.clone());
        self.problem = problem;
    }

    fn warn_of_end(&mut self, shared: &Shared) {
        if self.warned.elapsed() >= WARN {
            self.warned = Instant::now();
            shared.warn_of_end();
        }
    }
}
