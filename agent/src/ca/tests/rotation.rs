//! The Secret of the authority: made, followed, rotated, by several replicas.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{cluster, settings};
use crate::ca::callers::{Callers, Reviews};
use crate::ca::root::{Keeper, SecretRoot};
use crate::ca::service::Shared;
use crate::ca::{Authority, Health};
use crate::cluster::kube::fake::FakeApi;
use crate::cluster::kube::{BundleStore, Leader, LeaseConfig, SecretStore, TokenReviews, elect};
use crate::identity::Clock as _;
use crate::identity::tests::TestClock;
use crate::identity::tests::handshake::{meet, workload};
use crate::model::NamespacedName;

const SECRET: &str = "/api/v1/namespaces/fairlead-system/secrets/fairlead-ca";
const BUNDLE: &str = "/api/v1/namespaces/fairlead-system/configmaps/roots";
pub(super) const OVERLAP: Duration = Duration::from_mins(2);
pub(super) const LIFE: Duration = Duration::from_mins(10);
/// For a poll and what follows from it.
pub(super) const MOMENT: Duration = Duration::from_secs(11);

/// A process of the CA, but for its network.
pub(super) struct Replica {
    shared: Arc<Shared>,
    leader: Leader,
    tasks: Vec<JoinHandle<()>>,
}

impl Replica {
    fn start(api: &FakeApi, clock: &TestClock, lease: &str) -> Self {
        let name = |name: &str| NamespacedName::new("fairlead-system", name);
        let lease = LeaseConfig {
            namespace: "fairlead-system".to_owned(),
            name: lease.to_owned(),
            holder: "replica".to_owned(),
        };
        let (leader, election) = elect(api.client(), lease);
        let root = SecretRoot {
            secret: SecretStore::new(api.client(), name("fairlead-ca")),
            bundle: Some(BundleStore::new(api.client(), name("roots"))),
            leader: leader.clone(),
            overlap: OVERLAP,
            life: LIFE,
        };
        let reviews = TokenReviews::new(api.client(), "fairlead-ca".to_owned());
        let callers = Callers::Reviews(Box::new(Reviews::new(reviews, name("fairlead-agent"))));
        let (_, snapshots) = watch::channel(cluster());
        let shared = Arc::new(Shared::new(settings(snapshots, clock), callers));
        let keeper = Keeper::new(root, clock.shared());
        let followed = Arc::clone(&shared);
        let keeping = async move { match keeper.run(&followed).await {} };
        Self {
            shared,
            leader,
            tasks: vec![tokio::spawn(election), tokio::spawn(keeping)],
        }
    }

    pub(super) fn authority(&self) -> Arc<Authority> {
        self.shared.authority().expect("there is no authority")
    }

    pub(super) fn not_ready(&self) -> Vec<String> {
        Health(Arc::clone(&self.shared)).reasons()
    }

    fn kill(self) {
        for task in self.tasks {
            task.abort();
        }
    }
}

pub(super) struct World {
    api: FakeApi,
    pub(super) clock: TestClock,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            api: FakeApi::new(),
            clock: TestClock::new(),
        }
    }

    pub(super) fn replica(&self) -> Replica {
        Replica::start(&self.api, &self.clock, "fairlead-ca")
    }

    fn secret(&self) -> Value {
        self.api.get(SECRET).expect("there is no Secret")
    }

    pub(super) fn bundle(&self) -> String {
        let bundle = self.api.get(BUNDLE).expect("there is no ConfigMap");
        bundle["data"]["root-cert.pem"].as_str().unwrap().to_owned()
    }

    fn annotate(&self, key: &str, value: &str) {
        let mut secret = self.secret();
        secret["metadata"]["annotations"][key] = value.into();
        self.api.put(SECRET, secret);
    }

    /// Somebody else's Secret.
    pub(super) fn put(&self, data: &[(&str, String)]) {
        let data: serde_json::Map<_, _> = data
            .iter()
            .map(|(key, text)| ((*key).to_owned(), Value::from(base64_of(text.as_bytes()))))
            .collect();
        self.api.put(
            SECRET,
            json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "fairlead-ca", "namespace": "fairlead-system"},
                "data": data,
            }),
        );
    }

    pub(super) fn writes(&self) -> usize {
        self.api.requests(&Method::PUT, SECRET)
    }
}

/// As Kubernetes writes bytes.
fn base64_of(bytes: &[u8]) -> String {
    serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec()))
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned()
}

/// How many roots a bundle has.
pub(super) fn roots(bundle: &str) -> usize {
    bundle.matches("BEGIN CERTIFICATE").count()
}

/// A root of somebody else, as texts of certificate and key.
fn foreign(name: &str, clock: &TestClock) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(params(name, clock), KeyPair::generate().unwrap()).unwrap()
}

fn params(name: &str, clock: &TestClock) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (clock.now() - Duration::from_hours(1)).into();
    params.not_after = (clock.now() + Duration::from_hours(24 * 365)).into();
    params
}

#[tokio::test(start_paused = true)]
async fn replicas_that_race_make_one_root() {
    let world = World::new();
    // Each of them believes that it leads.
    let one = Replica::start(&world.api, &world.clock, "one");
    let other = Replica::start(&world.api, &world.clock, "other");
    sleep(MOMENT * 2).await;
    assert!(one.leader.is_leader() && other.leader.is_leader());
    assert_eq!(one.authority().roots(), other.authority().roots());
    assert_eq!(roots(&world.bundle()), 1);
    assert_eq!(world.writes(), 0);
}

#[tokio::test(start_paused = true)]
async fn all_replicas_sign_and_only_the_leader_makes_the_root() {
    let world = World::new();
    let replicas = [world.replica(), world.replica(), world.replica()];
    sleep(MOMENT * 2).await;
    for replica in &replicas {
        assert_eq!(replica.not_ready(), Vec::<String>::new());
        assert_eq!(replica.authority().roots_pem(), world.bundle());
    }
    let leaders = replicas.iter().filter(|one| one.leader.is_leader());
    assert_eq!(leaders.count(), 1);
    let made = world
        .api
        .requests(&Method::POST, "/api/v1/namespaces/fairlead-system/secrets");
    assert_eq!(made, 1);
    assert_eq!(
        world.secret()["metadata"]["annotations"]["fairlead.dev/rotation"],
        "automatic"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_is_edited_or_deleted_is_put_back() {
    let world = World::new();
    let _replicas = [world.replica(), world.replica()];
    sleep(MOMENT).await;
    let bundle = world.bundle();
    let mut edited = world.api.get(BUNDLE).unwrap();
    edited["data"]["root-cert.pem"] = "of a stranger".into();
    world.api.put(BUNDLE, edited);
    sleep(MOMENT).await;
    assert_eq!(world.bundle(), bundle);
    world.api.delete(BUNDLE);
    sleep(MOMENT).await;
    assert_eq!(world.bundle(), bundle);
}

#[tokio::test(start_paused = true)]
async fn a_root_is_replaced_without_loss() {
    let world = World::new();
    let replicas = [world.replica(), world.replica()];
    sleep(MOMENT).await;
    let old = replicas[0].authority();
    let before = workload(&old, &world.bundle(), "before", &world.clock);

    world.annotate("fairlead.dev/rotate", "2026-11-20T10:00:00Z");
    sleep(MOMENT).await;
    let both = world.bundle();
    assert_eq!(roots(&both), 2);
    for replica in &replicas {
        assert_eq!(
            replica.authority().anchor(),
            old.anchor(),
            "the new root signs too early"
        );
        assert_eq!(replica.authority().roots().len(), 2);
    }
    // Signed by the old one, verified with both, and with the old one alone.
    let during = workload(&replicas[1].authority(), &both, "during", &world.clock);
    meet(&before, &during).unwrap();

    sleep(OVERLAP + MOMENT).await;
    for replica in &replicas {
        assert_ne!(replica.authority().anchor(), old.anchor());
        assert_eq!(replica.authority().roots().len(), 2);
    }
    assert_eq!(world.bundle(), both);
    let new = replicas[1].authority();
    let after = workload(&new, &both, "after", &world.clock);
    meet(&during, &after).unwrap();
    assert!(
        meet(&before, &after).is_err(),
        "it never heard of the new root"
    );

    sleep(LIFE + OVERLAP + MOMENT).await;
    assert_eq!(roots(&world.bundle()), 1);
    let last = workload(&new, &world.bundle(), "last", &world.clock);
    meet(&after, &last).unwrap();
    assert!(meet(&during, &last).is_err());
    let secret = world.secret();
    for gone in ["next-cert.pem", "next-key.pem", "previous-cert.pem"] {
        assert_eq!(secret["data"][gone], Value::Null);
    }

    // What was asked for was done once.
    let writes = world.writes();
    sleep(LIFE).await;
    assert_eq!(world.writes(), writes);
    assert_eq!(roots(&world.bundle()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_ends_is_replaced_unasked() {
    let world = World::new();
    let replica = world.replica();
    sleep(MOMENT).await;
    let old = replica.authority();
    world
        .clock
        .forward(Duration::from_hours(24 * 365 * 8) + Duration::from_hours(48));
    sleep(MOMENT + OVERLAP + MOMENT).await;
    assert_ne!(replica.authority().anchor(), old.anchor());
    sleep(LIFE + OVERLAP + MOMENT).await;
    assert_eq!(roots(&world.bundle()), 1);
}

#[tokio::test(start_paused = true)]
async fn another_replica_goes_on_where_the_leader_stopped() {
    let world = World::new();
    let mut replicas = vec![world.replica()];
    sleep(MOMENT).await;
    replicas.push(world.replica());
    sleep(MOMENT).await;
    let old = replicas[0].authority();
    world.annotate("fairlead.dev/rotate", "now");
    sleep(MOMENT).await;
    assert_eq!(roots(&world.bundle()), 2);

    replicas.remove(0).kill();
    let second = &replicas[0];
    let died = Instant::now();
    while !second.leader.is_leader() {
        sleep(Duration::from_millis(500)).await;
        // It signs all the time.
        second.authority();
    }
    assert!(
        died.elapsed() < Duration::from_secs(21),
        "{:?}",
        died.elapsed()
    );
    sleep(OVERLAP + MOMENT).await;
    assert_ne!(second.authority().anchor(), old.anchor());
    world.api.delete(BUNDLE);
    sleep(MOMENT).await;
    assert_eq!(roots(&world.bundle()), 2);
}

/// The clock of the replica that takes over is a day ahead.
#[tokio::test(start_paused = true)]
async fn a_leader_whose_clock_is_ahead_waits_for_the_overlap() {
    let world = World::new();
    let first = world.replica();
    sleep(MOMENT).await;
    let old = first.authority();
    world.annotate("fairlead.dev/rotate", "now");
    sleep(MOMENT).await;
    first.kill();
    let ahead = world.clock.clone();
    world.clock.forward(Duration::from_hours(24));
    let second = Replica::start(&world.api, &ahead, "fairlead-ca");
    sleep(OVERLAP.saturating_sub(MOMENT)).await;
    assert_eq!(second.authority().anchor(), old.anchor());
    sleep(MOMENT * 4).await;
    assert_ne!(second.authority().anchor(), old.anchor());
}

#[tokio::test(start_paused = true)]
async fn roots_that_somebody_empties_stay_published() {
    let world = World::new();
    let replica = world.replica();
    sleep(MOMENT).await;
    world.annotate("fairlead.dev/rotate", "2026-11-20T10:00:00Z");
    sleep(MOMENT).await;
    let (both, authority) = (world.bundle(), replica.authority());
    assert_eq!(roots(&both), 2);
    let mut emptied = world.secret();
    emptied["data"]["root-cert.pem"] = "".into();
    world.api.put(SECRET, emptied);
    sleep(OVERLAP + MOMENT).await;
    assert_eq!(world.bundle(), both);
    assert!(Arc::ptr_eq(&replica.authority(), &authority));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_secret_leaves_the_last_good_one_in_force() {
    let world = World::new();
    let replica = world.replica();
    sleep(MOMENT).await;
    let (good, authority) = (world.secret(), replica.authority());
    let mut bad = good.clone();
    bad["data"]["ca-key.pem"] = base64_of(b"not a key").into();
    world.api.put(SECRET, bad);
    sleep(MOMENT).await;
    assert!(Arc::ptr_eq(&replica.authority(), &authority));
    assert_eq!(roots(&world.bundle()), 1);
    assert_eq!(replica.not_ready(), Vec::<String>::new());

    // For one that starts now there is none.
    let late = world.replica();
    sleep(MOMENT).await;
    let reasons = late.not_ready().join("\n");
    assert!(
        reasons.contains("Secret fairlead-system/fairlead-ca/ca-key.pem: "),
        "{reasons}"
    );
    world.api.put(SECRET, good);
    sleep(MOMENT).await;
    assert_eq!(late.not_ready(), Vec::<String>::new());

    world.api.delete(SECRET);
    sleep(MOMENT).await;
    assert!(
        world.api.get(SECRET).is_none(),
        "it is not for the CA to undo that"
    );
    assert_eq!(replica.authority().roots(), authority.roots());
}

#[tokio::test(start_paused = true)]
async fn what_keeps_a_replica_from_being_ready_is_said() {
    let world = World::new();
    world.api.forbid(Some(SECRET));
    let replica = world.replica();
    sleep(MOMENT).await;
    let reasons = replica.not_ready().join("\n");
    assert!(reasons.contains("cannot GET"), "{reasons}");
    assert!(reasons.contains("deploy/ has the rules"), "{reasons}");
    world.api.forbid(None);
    world.put(&[("tls.crt", "x".to_owned())]);
    sleep(MOMENT).await;
    let reasons = replica.not_ready().join("\n");
    assert!(reasons.contains("missing tls.key, ca.crt"), "{reasons}");
    world.put(&[("tls.crt", "x".to_owned()), ("ca-cert.pem", "x".to_owned())]);
    sleep(MOMENT).await;
    let reasons = replica.not_ready().join("\n");
    assert!(
        reasons.contains("both ca-cert.pem and tls.crt"),
        "{reasons}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_can_not_be_reached_signs_on() {
    let world = World::new();
    let replica = world.replica();
    sleep(MOMENT).await;
    world.api.set_away(true);
    sleep(Duration::from_hours(1)).await;
    assert!(!replica.leader.is_leader());
    assert_eq!(replica.not_ready(), Vec::<String>::new());
    world.api.set_away(false);
    sleep(MOMENT).await;
    assert!(replica.leader.is_leader());
}

/// As cert-manager replaces a CA: certificate, key and root at once.
#[tokio::test(start_paused = true)]
async fn a_root_that_somebody_else_replaces_overlaps_too() {
    let world = World::new();
    let secret = |issuer: &CertifiedIssuer<'static, KeyPair>, root: String| {
        world.put(&[
            ("tls.crt", issuer.pem()),
            ("tls.key", issuer.key().serialize_pem()),
            ("ca.crt", root),
        ]);
    };
    let (first, second) = (
        foreign("first", &world.clock),
        foreign("second", &world.clock),
    );
    secret(&first, first.pem());
    let replicas = [world.replica(), world.replica()];
    sleep(MOMENT).await;
    let old = replicas[0].authority();
    assert_eq!(world.bundle().trim(), first.pem().trim());

    // An intermediate of the same root signs at once.
    let key = KeyPair::generate().unwrap();
    let intermediate = params("intermediate", &world.clock);
    let intermediate = CertifiedIssuer::signed_by(intermediate, key, &first).unwrap();
    secret(&intermediate, first.pem());
    sleep(MOMENT).await;
    let now = replicas[0].authority();
    assert!(!now.same_signer(&old) && now.anchor() == old.anchor());
    let before = workload(&now, &world.bundle(), "before", &world.clock);

    secret(&second, second.pem());
    sleep(MOMENT).await;
    assert_eq!(roots(&world.bundle()), 2);
    for replica in &replicas {
        assert_eq!(
            replica.authority().anchor(),
            old.anchor(),
            "the new root signs too early"
        );
    }
    let during = workload(
        &replicas[0].authority(),
        &world.bundle(),
        "during",
        &world.clock,
    );
    meet(&before, &during).unwrap();
    sleep(OVERLAP).await;
    for replica in &replicas {
        assert_ne!(replica.authority().anchor(), old.anchor());
        assert_eq!(replica.authority().roots().len(), 2);
    }
    let after = workload(
        &replicas[0].authority(),
        &world.bundle(),
        "after",
        &world.clock,
    );
    meet(&during, &after).unwrap();
    sleep(LIFE + OVERLAP).await;
    assert_eq!(world.bundle().trim(), second.pem().trim());
    assert_eq!(world.writes(), 0, "somebody else's Secret was written");
}
