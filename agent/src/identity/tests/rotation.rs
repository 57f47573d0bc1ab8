//! Certificates over time: renewed, kept, lost and found again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::super::authority::timestamp;
use super::super::client::{Ca, Change, SignFuture, Signed};
use super::super::manager::Manager;
use super::super::request::{SignRequest, VerifiedRequest};
use super::super::{
    Authority, CaAddress, CertificateState, CertificateStatus, Clock as _, Credentials, FetchError,
    Identities, IdentityError,
};
use super::handshake::{meet, workload};
use super::{TestClock, agent, authority, config, id};
use crate::model::SpiffeId;

const HOUR: Duration = Duration::from_hours(1);

/// How a CA behaves.
#[derive(Clone, Debug)]
enum Mood {
    Answers,
    Away,
    Hangs,
    Refuses,
    /// As istiod says both of a token that is not valid and of an identity that the node may
    /// not have: of all, or of this one.
    DoesNotKnow(Option<SpiffeId>),
    /// Signs for this one, whoever is asked for.
    Confuses(SpiffeId),
}

/// A CA that behaves as it is told, and writes down who asked when.
#[derive(Debug)]
struct ScriptedCa {
    _dir: TempDir,
    authority: Authority,
    mood: Mutex<Mood>,
    calls: Mutex<Vec<(Instant, SpiffeId)>>,
    /// What the root file has since the last look.
    file: Mutex<Option<Vec<CertificateDer<'static>>>>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl ScriptedCa {
    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    fn calls_since(&self, start: Instant) -> Vec<Duration> {
        let calls = self.calls.lock().unwrap();
        let late = calls.iter().filter(|(at, _)| *at >= start);
        late.map(|(at, _)| *at - start).collect()
    }

    fn answer(&self, request: &SignRequest) -> Result<Signed, FetchError> {
        let id = match self.mood.lock().unwrap().clone() {
            Mood::DoesNotKnow(one) if one.as_ref().is_none_or(|one| *one == request.id) => {
                return Err(FetchError::Refused {
                    code: tonic::Code::Unauthenticated,
                    message: "request authenticate failure".to_owned(),
                });
            }
            Mood::Answers | Mood::Hangs | Mood::DoesNotKnow(_) => request.id.clone(),
            Mood::Confuses(other) => {
                let issued = self.authority.issue(&other, request.ttl).unwrap().issued;
                return Ok(Signed {
                    chain: issued.chain,
                    roots: issued.roots,
                });
            }
            Mood::Away => {
                return Err(FetchError::Unreachable {
                    address: "ca:1".to_owned(),
                    reason: "connection refused".to_owned(),
                });
            }
            Mood::Refuses => {
                return Err(FetchError::Refused {
                    code: tonic::Code::PermissionDenied,
                    message: "not yours".to_owned(),
                });
            }
        };
        let csr = VerifiedRequest::from_pem(&request.csr).unwrap();
        let issued = self.authority.sign(&id, &csr, request.ttl).unwrap();
        Ok(Signed {
            chain: issued.chain,
            roots: issued.roots,
        })
    }
}

impl Ca for ScriptedCa {
    fn sign(&self, request: SignRequest) -> SignFuture {
        let call = (Instant::now(), request.id.clone());
        self.calls.lock().unwrap().push(call);
        let now = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        let hangs = matches!(*self.mood.lock().unwrap(), Mood::Hangs);
        let answer = self.answer(&request);
        let running = Arc::clone(&self.running);
        Box::pin(async move {
            // Let others begin before this one ends.
            sleep(Duration::from_millis(10)).await;
            if hangs {
                sleep(Duration::MAX).await;
            }
            running.fetch_sub(1, Ordering::Relaxed);
            answer
        })
    }

    fn look(&self) -> Change {
        let roots = self.file.lock().unwrap().take();
        roots.map_or(Change::Unchanged, Change::RootFile)
    }
}

struct World {
    clock: TestClock,
    ca: Arc<ScriptedCa>,
    identities: Identities,
}

impl World {
    fn new(mood: Mood) -> Self {
        let clock = TestClock::new();
        let dir = TempDir::new().unwrap();
        let ca = Arc::new(ScriptedCa {
            authority: authority(dir.path(), &clock),
            _dir: dir,
            mood: Mutex::new(mood),
            calls: Mutex::default(),
            file: Mutex::default(),
            running: Arc::default(),
            most: Arc::default(),
        });
        let unused = CaAddress::Url("https://ca:1".to_owned());
        let config = config(unused, clock.shared());
        let (identities, manager) = Manager::with_ca(config, Arc::<ScriptedCa>::clone(&ca));
        tokio::spawn(manager.run());
        Self {
            clock,
            ca,
            identities,
        }
    }

    fn want(&self, accounts: &[&str]) {
        let ids: BTreeSet<_> = accounts.iter().map(|account| id(account)).collect();
        self.identities.set_wanted(ids);
    }

    async fn web(&self) -> Result<Arc<Credentials>, IdentityError> {
        self.identities.credentials(&id("web")).await
    }

    fn status(&self) -> CertificateStatus {
        self.identities.certificates().swap_remove(0)
    }
}

#[tokio::test(start_paused = true)]
async fn renews_at_half_life_and_keeps_the_old_one_valid() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    assert_eq!(
        timestamp(first.not_after()),
        world.status().not_after.unwrap()
    );

    sleep(10 * HOUR).await;
    assert_eq!(world.web().await.unwrap().generation(), first.generation());
    sleep(4 * HOUR).await;
    let second = world.web().await.unwrap();
    assert!(second.generation() > first.generation());
    assert!(second.not_after() > first.not_after());
    assert_eq!(world.ca.calls(), 2);
    // A connection that was made with the first one goes on with it.
    assert!(world.clock.now() < first.not_after());

    sleep(24 * 3 * HOUR).await;
    let calls = world.ca.calls();
    assert!(
        (6..10).contains(&calls),
        "{calls} requests in three and a half days"
    );
}

#[tokio::test(start_paused = true)]
async fn one_request_serves_all_who_wait() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let (one, two, three) = tokio::join!(world.web(), world.web(), world.web());
    let serials = [one, two, three].map(|found| found.unwrap().leaf().serial.clone());
    assert_eq!(serials[0], serials[1]);
    assert_eq!(serials[0], serials[2]);
    assert_eq!(world.ca.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_eight_are_asked_for_at_once() {
    let world = World::new(Mood::Answers);
    let accounts: Vec<_> = (0..50).map(|number| format!("web-{number}")).collect();
    let ids = accounts.iter().map(|account| id(account)).collect();
    world.identities.set_wanted(ids);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.ca.calls(), 50);
    assert_eq!(world.ca.most.load(Ordering::Relaxed), 8);
    let status = world.identities.certificates();
    assert!(
        status
            .iter()
            .all(|one| one.state == CertificateState::Active)
    );
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_is_not_wanted_is_refused_and_forgotten() {
    let world = World::new(Mood::Answers);
    let error = world.web().await.unwrap_err();
    assert!(matches!(error, IdentityError::NotWanted { .. }), "{error}");
    world.want(&["web", "cart"]);
    world.web().await.unwrap();
    world.want(&["cart"]);
    sleep(Duration::from_millis(1)).await;
    assert!(world.identities.in_force(&id("web")).is_none());
    assert!(world.web().await.is_err());
    assert_eq!(world.identities.certificates().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_is_away_at_start_is_found_at_once_when_it_is_back() {
    let world = World::new(Mood::Away);
    let accounts: Vec<_> = (0..30).map(|number| format!("web-{number}")).collect();
    let names: Vec<_> = accounts.iter().map(String::as_str).chain(["web"]).collect();
    world.want(&names);
    let error = world.web().await.unwrap_err();
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert_eq!(world.status().state, CertificateState::Failed);

    sleep(HOUR).await;
    let before = world.ca.calls();
    sleep(Duration::from_mins(1)).await;
    let asked = world.ca.calls() - before;
    assert!(
        (10..40).contains(&asked),
        "{asked} attempts a minute while the CA is away"
    );

    world.ca.set(Mood::Answers);
    let back = Instant::now();
    while world
        .identities
        .certificates()
        .iter()
        .any(|one| one.state != CertificateState::Active)
    {
        sleep(Duration::from_millis(100)).await;
    }
    assert!(
        back.elapsed() < Duration::from_secs(6),
        "took {:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_certificate_outlives_the_outage_that_is_shorter() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    world.ca.set(Mood::Away);
    sleep(23 * HOUR).await;
    assert_eq!(world.web().await.unwrap().generation(), first.generation());
    assert_eq!(world.status().state, CertificateState::Stale);
    assert!(
        world
            .status()
            .last_error
            .unwrap()
            .contains("connection refused")
    );
    world.ca.set(Mood::Answers);
    sleep(Duration::from_secs(10)).await;
    assert!(world.web().await.unwrap().generation() > first.generation());
    assert_eq!(world.status().state, CertificateState::Active);
}

#[tokio::test(start_paused = true)]
async fn an_outage_longer_than_a_life_fails_clearly_and_ends_at_once() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    world.web().await.unwrap();
    world.ca.set(Mood::Away);
    sleep(25 * HOUR).await;
    assert!(
        world.identities.in_force(&id("web")).is_none(),
        "an expired one is handed out"
    );
    let error = world.web().await.unwrap_err();
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert_eq!(world.status().state, CertificateState::Failed);

    world.ca.set(Mood::Answers);
    let back = Instant::now();
    world.web().await.unwrap();
    assert!(
        back.elapsed() < Duration::from_secs(6),
        "took {:?}",
        back.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_retried_ever_more_slowly() {
    let world = World::new(Mood::Refuses);
    let start = Instant::now();
    world.want(&["web"]);
    sleep(2 * HOUR).await;
    let calls = world.ca.calls_since(start);
    let gaps: Vec<_> = calls
        .windows(2)
        .map(|pair| pair[1].abs_diff(pair[0]))
        .collect();
    assert!(gaps[0] < Duration::from_millis(1100), "{gaps:?}");
    assert!(gaps[1] > gaps[0], "{gaps:?}");
    let last = gaps.last().unwrap();
    assert!((115..=156).contains(&last.as_secs()), "{gaps:?}");

    // Far from the next attempt, nobody waits in vain.
    let asked = Instant::now();
    let error = world.web().await.unwrap_err();
    assert!(error.to_string().contains("not yours"), "{error}");
    assert!(asked.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_one_does_not_hold_up_another() {
    let world = World::new(Mood::Refuses);
    world.want(&["web"]);
    sleep(Duration::from_mins(10)).await;
    world.ca.set(Mood::Answers);
    world.want(&["web", "cart"]);
    let asked = Instant::now();
    world.identities.credentials(&id("cart")).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_the_ca_does_not_let_this_node_have_waits_alone() {
    let world = World::new(Mood::DoesNotKnow(Some(id("a"))));
    let mut accounts = vec!["a".to_owned()];
    accounts.extend((0..50).map(|number| format!("web-{number}")));
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    world.want(&accounts);
    sleep(Duration::from_secs(5)).await;
    let status = world.identities.certificates();
    let active = |one: &&CertificateStatus| one.state == CertificateState::Active;
    assert_eq!(status.iter().filter(active).count(), 50);
    sleep(HOUR).await;
    let calls = world.ca.calls() - 50;
    assert!(
        (20..50).contains(&calls),
        "{calls} requests for it in an hour"
    );
    // Others are asked for eight at a time all the while.
    world.ca.most.store(0, Ordering::Relaxed);
    let more: Vec<_> = (50..100).map(|number| format!("web-{number}")).collect();
    let all: Vec<&str> = accounts
        .iter()
        .copied()
        .chain(more.iter().map(String::as_str))
        .collect();
    world.want(&all);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.ca.most.load(Ordering::Relaxed), 8);
    world.ca.set(Mood::Answers);
    sleep(Duration::from_secs(150)).await;
    assert!(world.identities.in_force(&id("a")).is_some());
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_an_identity_that_is_refused_holds_up_none() {
    let world = World::new(Mood::Away);
    let accounts = ["a", "b", "c", "d"];
    world.want(&accounts);
    sleep(Duration::from_mins(10)).await;
    // Who is asked for first, by name, is who is refused.
    world.ca.set(Mood::DoesNotKnow(Some(id("a"))));
    sleep(Duration::from_secs(30)).await;
    for account in &accounts[1..] {
        assert!(
            world.identities.in_force(&id(account)).is_some(),
            "{account}"
        );
    }
    let start = Instant::now();
    sleep(HOUR).await;
    let calls = world.ca.calls_since(start).len();
    assert!(
        (20..60).contains(&calls),
        "{calls} requests for it in an hour"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_valid_is_retried_by_one_for_all() {
    let world = World::new(Mood::DoesNotKnow(None));
    let accounts: Vec<_> = (0..30).map(|number| format!("web-{number}")).collect();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    world.want(&accounts);
    sleep(Duration::from_mins(10)).await;
    let calls = world.ca.calls();
    assert!(calls < 200, "{calls} requests in ten minutes");
    let status = world.status().last_error.unwrap();
    assert!(status.contains("--ca-token-file"), "{status}");
    world.ca.set(Mood::Answers);
    sleep(Duration::from_secs(6)).await;
    let status = world.identities.certificates();
    assert!(
        status
            .iter()
            .all(|one| one.state == CertificateState::Active)
    );
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_hangs_is_given_up() {
    let world = World::new(Mood::Hangs);
    world.want(&["web"]);
    let error = world.web().await.unwrap_err();
    assert!(matches!(error, IdentityError::Pending { .. }), "{error}");
    sleep(Duration::from_secs(21)).await;
    let error = world.status().last_error.unwrap();
    assert!(error.contains("did not answer within 30s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_somebody_else_is_not_used() {
    let world = World::new(Mood::Confuses(id("payments")));
    world.want(&["web"]);
    let error = world.web().await.unwrap_err().to_string();
    assert!(
        error.contains("it is for spiffe://cluster.local/ns/shop/sa/payments"),
        "{error}"
    );
    world.ca.set(Mood::Confuses(id("web")));
    sleep(Duration::from_mins(3)).await;
    let error = world.status().last_error.unwrap();
    assert!(error.contains("it is for another key"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_steps_forward_leads_to_a_new_certificate() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    world.clock.forward(30 * HOUR);
    assert!(world.identities.in_force(&id("web")).is_none());
    let second = world.web().await.unwrap();
    assert!(second.generation() > first.generation());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_steps_past_half_life_renews() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    world.clock.forward(14 * HOUR);
    sleep(Duration::from_secs(6)).await;
    assert!(world.web().await.unwrap().generation() > first.generation());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_steps_back_leads_to_a_new_certificate() {
    let world = World::new(Mood::Answers);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    world.clock.backward(Duration::from_mins(2));
    let same = world.web().await.unwrap();
    assert_eq!(
        same.generation(),
        first.generation(),
        "backdating covers small steps"
    );
    // The authority's own certificate is backdated by an hour.
    world.clock.backward(Duration::from_mins(30));
    let second = world.web().await.unwrap();
    assert!(second.generation() > first.generation());
}

#[tokio::test(start_paused = true)]
async fn the_manager_ends_with_its_last_handle() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let ca = CaAddress::Dir(dir.path().to_owned());
    let (identities, manager) = super::super::start(config(ca, clock.shared())).unwrap();
    drop(identities);
    manager.await;
}

/// What `--ca dir:` is pointed at may be replaced while the agent runs.
#[tokio::test(start_paused = true)]
async fn another_authority_in_the_directory_is_taken_over() {
    let clock = TestClock::new();
    let (dir, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let identities = agent(dir.path(), &clock);
    identities.set_wanted(BTreeSet::from([id("web")]));
    let first = identities.credentials(&id("web")).await.unwrap();

    authority(other.path(), &clock);
    std::fs::write(dir.path().join("ca-key.pem"), "not a key").unwrap();
    sleep(Duration::from_secs(20)).await;
    let same = identities.credentials(&id("web")).await.unwrap();
    assert_eq!(same.generation(), first.generation());
    for name in ["ca-key.pem", "ca-cert.pem", "root-cert.pem"] {
        std::fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
    }
    sleep(Duration::from_secs(20)).await;
    let second = identities.credentials(&id("web")).await.unwrap();
    assert!(second.generation() > first.generation());
    assert_ne!(second.leaf().issuer, first.leaf().issuer);
}

/// The root file is the bundle of the mesh, as a volume of a ConfigMap is.
#[tokio::test(start_paused = true)]
async fn the_bundle_adds_a_root_at_no_cost_and_takes_one_away_at_once() {
    let world = World::new(Mood::Answers);
    let other_dir = TempDir::new().unwrap();
    let other = authority(other_dir.path(), &world.clock);
    let own = world.ca.authority.roots().to_vec();
    let both = [own.clone(), other.roots().to_vec()].concat();
    let file = |roots: &[CertificateDer<'static>]| {
        *world.ca.file.lock().unwrap() = Some(roots.to_vec());
    };
    let bundle = |authority: &Authority| authority.roots_pem();
    let both_pem = bundle(&world.ca.authority) + &bundle(&other);
    let peer = |clock: &TestClock| workload(&other, &both_pem, "cart", clock);

    file(&own);
    world.want(&["web"]);
    let first = world.web().await.unwrap();
    assert!(meet(&first, &peer(&world.clock)).is_err());

    file(&both);
    sleep(Duration::from_secs(6)).await;
    let same = world.web().await.unwrap();
    assert_eq!(same.generation(), first.generation());
    assert_eq!(world.ca.calls(), 1);
    // Also with configurations from before.
    meet(&first, &peer(&world.clock)).unwrap();

    file(other.roots());
    sleep(Duration::from_secs(11)).await;
    assert!(
        world.ca.calls() > 1,
        "a certificate that peers refuse is kept"
    );
}

/// What the CA's own TLS is verified with need not be trusted in the mesh.
#[tokio::test(start_paused = true)]
async fn a_root_file_that_is_not_the_bundle_does_not_count() {
    let world = World::new(Mood::Answers);
    let other_dir = TempDir::new().unwrap();
    let other = authority(other_dir.path(), &world.clock);
    *world.ca.file.lock().unwrap() = Some(other.roots().to_vec());
    world.want(&["web"]);
    let web = world.web().await.unwrap();
    sleep(Duration::from_secs(11)).await;
    let both = world.ca.authority.roots_pem() + &other.roots_pem();
    let stranger = workload(&other, &both, "cart", &world.clock);
    assert!(meet(&web, &stranger).is_err());
    assert_eq!(world.ca.calls(), 1);
}
