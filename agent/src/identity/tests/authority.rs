//! The signer: directories as they come, and what is signed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

use super::super::certificate::{Leaf, parse};
use super::super::client::Signed;
use super::super::clock::unix_time;
use super::super::request::{VerifiedRequest, create};
use super::super::{Authority, AuthorityDir, AuthorityError, Clock as _, RequestError, trust};
use super::{TestClock, authority, id};

const DAY: Duration = Duration::from_hours(24);

fn ca_params(name: &str, clock: &TestClock, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = (clock.now() - Duration::from_hours(1)).into();
    params.not_after = (clock.now() + life).into();
    params
}

/// A root, an intermediate of it, and the files of the intermediate in a directory.
struct Given {
    dir: TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Given {
    fn new(clock: &TestClock, life: Duration) -> Self {
        let key = KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(ca_params("root", clock, DAY * 365), key).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let params = ca_params("intermediate", clock, life);
        let issuer = CertifiedIssuer::signed_by(params, key, &root).unwrap();
        let given = Self {
            dir: TempDir::new().unwrap(),
            root,
            issuer,
        };
        given.write("ca-cert.pem", &given.issuer.pem());
        given.write("ca-key.pem", &given.issuer.key().serialize_pem());
        given.write("root-cert.pem", &given.root.pem());
        given
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn open(&self, clock: &TestClock) -> Result<Authority, AuthorityError> {
        Authority::open_at(self.dir.path(), clock.shared())
    }

    #[track_caller]
    fn refuses(&self, clock: &TestClock, reason: &str) {
        let error = self.open(clock).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn creates_a_root_that_only_the_owner_can_sign_with() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b");
    let created = authority(&path, &clock);
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("ca-key.pem")), 0o600);
    assert!(!path.join("cert-chain.pem").exists());
    let again = authority(&path, &clock);
    assert_eq!(created.roots(), again.roots());
    assert!(!format!("{created:?}").to_lowercase().contains("private"));
}

#[test]
fn processes_that_start_together_share_one_root() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let roots: Vec<_> = std::thread::scope(|scope| {
        let open = || authority(dir.path(), &clock).roots().to_vec();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn refuses_a_directory_with_some_files() {
    let clock = TestClock::new();
    for gone in ["ca-cert.pem", "ca-key.pem", "root-cert.pem"] {
        let given = Given::new(&clock, DAY * 30);
        fs::remove_file(given.dir.path().join(gone)).unwrap();
        given.refuses(&clock, &format!("missing {gone};"));
    }
    let given = Given::new(&clock, DAY * 30);
    fs::remove_file(given.dir.path().join("ca-key.pem")).unwrap();
    fs::remove_file(given.dir.path().join("root-cert.pem")).unwrap();
    given.refuses(&clock, "missing ca-key.pem, root-cert.pem;");
}

/// Else a mounted Secret of cert-manager would be passed over for a new root.
#[test]
fn a_directory_with_an_authority_in_other_names_is_given_no_new_root() {
    let (clock, dir) = (TestClock::new(), TempDir::new().unwrap());
    fs::write(dir.path().join("tls.crt"), "x").unwrap();
    let error = Authority::open_at(dir.path(), clock.shared()).unwrap_err();
    let missing = "missing ca-cert.pem, ca-key.pem, root-cert.pem";
    assert!(error.to_string().contains(missing), "{error}");
    assert!(!dir.path().join("ca-key.pem").exists());
}

#[test]
fn refuses_files_that_do_not_belong_together() {
    let clock = TestClock::new();
    let other = Given::new(&clock, DAY * 30);
    let given = Given::new(&clock, DAY * 30);
    given.write("ca-key.pem", &other.issuer.key().serialize_pem());
    given.refuses(&clock, "ca-key.pem is not the key of ca-cert.pem");

    let given = Given::new(&clock, DAY * 30);
    given.write("root-cert.pem", &other.root.pem());
    given.refuses(&clock, "would not be trusted");

    let given = Given::new(&clock, DAY * 30);
    given.write("ca-cert.pem", "nonsense");
    given.refuses(&clock, "ca-cert.pem: it has no PEM block CERTIFICATE");
    given.write("ca-key.pem", "nonsense");
    given.refuses(&clock, "ca-key.pem: ");

    let given = Given::new(&clock, DAY * 30);
    let leaf = given.open(&clock).unwrap().issue(&id("web"), DAY).unwrap();
    given.write("ca-cert.pem", &leaf.issued.chain_pem());
    given.write("ca-key.pem", &leaf.key_pem());
    given.refuses(&clock, "is no CA");
}

#[test]
fn an_intermediate_is_part_of_the_chain() {
    let clock = TestClock::new();
    let given = Given::new(&clock, DAY * 30);
    // As other tools write it: from the issuer to the root.
    let both = given.issuer.pem() + &given.root.pem();
    for chain in [None, Some(&given.issuer.pem()), Some(&both)] {
        if let Some(chain) = chain {
            given.write("cert-chain.pem", chain);
        }
        let issued = given
            .open(&clock)
            .unwrap()
            .issue(&id("web"), DAY)
            .unwrap()
            .issued;
        assert_eq!(issued.chain.len(), 2);
        assert_eq!(issued.chain[1], *given.issuer.der());
        let list = issued.to_pem_list();
        assert_eq!(list.len(), 3);
        assert_eq!(list[2].matches("BEGIN CERTIFICATE").count(), 1);
        let parsed = Signed::from_pem_list(&list).unwrap();
        assert_eq!(
            (parsed.chain, parsed.roots),
            (issued.chain.clone(), issued.roots.clone())
        );
        let now = unix_time(clock.now());
        let roots = trust::store(&issued.roots);
        trust::verify_client(&roots, &issued.chain[0], &issued.chain[1..], now).unwrap();
    }
}

#[test]
fn a_bundle_of_roots_is_passed_on_whole() {
    let clock = TestClock::new();
    let (given, other) = (Given::new(&clock, DAY * 30), Given::new(&clock, DAY * 30));
    given.write("root-cert.pem", &(given.root.pem() + &other.root.pem()));
    let issued = given
        .open(&clock)
        .unwrap()
        .issue(&id("web"), DAY)
        .unwrap()
        .issued;
    assert_eq!(issued.roots.len(), 2);
    assert_eq!(
        Signed::from_pem_list(&issued.to_pem_list())
            .unwrap()
            .roots
            .len(),
        2
    );
}

#[test]
fn an_rsa_authority_signs_too() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let root = CertifiedIssuer::self_signed(ca_params("rsa", &clock, DAY * 30), key).unwrap();
    fs::write(dir.path().join("ca-cert.pem"), root.pem()).unwrap();
    fs::write(dir.path().join("root-cert.pem"), root.pem()).unwrap();
    fs::write(dir.path().join("ca-key.pem"), root.key().serialize_pem()).unwrap();
    authority(dir.path(), &clock)
        .issue(&id("web"), DAY)
        .unwrap();
}

#[test]
fn a_leaf_says_what_it_should() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let authority = authority(dir.path(), &clock);
    let one = authority.issue(&id("web"), DAY).unwrap().issued;
    let other = authority.issue(&id("web"), DAY).unwrap().issued;
    assert_ne!(one.serial, other.serial);
    let leaf = Leaf::parse(&one.chain[0]).unwrap();
    assert_eq!(leaf.serial, one.serial);
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap();
    assert_eq!(life, DAY + Duration::from_mins(5));
    let certificate = parse(&one.chain[0]).unwrap();
    assert_eq!(certificate.subject().iter().count(), 0);
    assert!(
        certificate
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .critical
    );
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(
        certificate
            .key_usage()
            .unwrap()
            .unwrap()
            .value
            .digital_signature()
    );
}

#[test]
fn an_authority_that_ends_is_respected() {
    let clock = TestClock::new();
    let given = Given::new(&clock, Duration::from_hours(10));
    let authority = given.open(&clock).unwrap();
    let issued = authority.issue(&id("web"), DAY).unwrap().issued;
    assert_eq!(
        issued.not_after,
        authority.not_after(),
        "a leaf outlives its issuer"
    );
    clock.forward(Duration::from_hours(11));
    let error = authority.issue(&id("web"), DAY).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired { .. }), "{error}");
    given.refuses(&clock, "renew it, or set the clock right");
    clock.backward(DAY);
    given.refuses(&clock, "renew it, or set the clock right");
}

#[test]
fn an_emptied_directory_is_not_given_a_new_root() {
    let clock = TestClock::new();
    let given = Given::new(&clock, DAY * 30);
    let mut following = AuthorityDir::open(given.dir.path().to_owned(), clock.shared()).unwrap();
    assert!(!following.refresh());
    for name in ["ca-cert.pem", "ca-key.pem", "root-cert.pem"] {
        fs::remove_file(given.dir.path().join(name)).unwrap();
    }
    assert!(!following.refresh());
    assert!(!given.dir.path().join("ca-key.pem").exists());
    following.current().issue(&id("web"), DAY).unwrap();
}

#[track_caller]
fn check(change: impl FnOnce(&mut CertificateParams), expected: &Result<(), RequestError>) {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let authority = authority(dir.path(), &clock);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    let signed = VerifiedRequest::from_pem(&csr)
        .map_err(AuthorityError::from)
        .and_then(|csr| authority.sign(&id("web"), &csr, DAY));
    match (signed, expected) {
        (Ok(_), Ok(())) => {}
        (Err(AuthorityError::Request(found)), Err(expected)) => assert_eq!(found, *expected),
        (found, expected) => panic!("{found:?}, expected {expected:?}"),
    }
}

#[test]
fn a_request_is_for_one_name_or_none() {
    let uri = |account| SanType::URI(id(account).to_string().try_into().unwrap());
    let other = Err(RequestError::OtherName { id: id("web") });
    check(|_| {}, &Ok(()));
    check(
        |params| params.subject_alt_names = vec![uri("web")],
        &Ok(()),
    );
    check(
        |params| params.subject_alt_names = vec![uri("cart")],
        &other,
    );
    check(
        |params| params.subject_alt_names = vec![uri("web"), uri("web")],
        &other,
    );
    check(
        |params| params.subject_alt_names = vec![uri("web"), uri("cart")],
        &other,
    );
    let dns = || SanType::DnsName("web.shop.svc".try_into().unwrap());
    check(|params| params.subject_alt_names = vec![dns()], &other);
    check(
        |params| params.subject_alt_names = vec![uri("web"), dns()],
        &other,
    );
}

#[test]
fn a_request_for_a_ca_is_refused() {
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    check(|params| params.is_ca = ca, &Err(RequestError::Ca));
}

#[test]
fn a_request_that_is_not_signed_by_its_key_is_refused() {
    let key = KeyPair::generate().unwrap();
    let csr = create(&id("web"), &key).unwrap();
    let mut der = pem::parse(&csr).unwrap().into_contents();
    let last = der.len() - 1;
    der[last] ^= 1;
    let forged = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der));
    let error = VerifiedRequest::from_pem(&forged).unwrap_err();
    assert!(matches!(error, RequestError::Refused { .. }), "{error}");
    for nonsense in ["", "nonsense", &csr[..csr.len() / 2]] {
        let error = VerifiedRequest::from_pem(nonsense).unwrap_err();
        assert_eq!(error, RequestError::Malformed);
    }
}

/// As istiod answers while it replaces its root: one text for each certificate.
#[test]
fn roots_may_come_one_by_one() {
    let clock = TestClock::new();
    let (given, other) = (Given::new(&clock, DAY), Given::new(&clock, DAY));
    let issued = given.open(&clock).unwrap().issue(&id("web"), DAY).unwrap();
    let one = |der| crate::identity::certificates_to_pem(std::slice::from_ref(der));
    let chain = issued.issued.chain.iter().map(one);
    let list: Vec<_> = chain.chain([given.root.pem(), other.root.pem()]).collect();
    let signed = Signed::from_pem_list(&list).unwrap();
    assert_eq!(signed.chain, issued.issued.chain);
    let roots = [given.root.der().clone(), other.root.der().clone()];
    assert_eq!(signed.roots, roots);
}

#[test]
fn answers_that_are_no_chain_are_refused() {
    let clock = TestClock::new();
    let dir = TempDir::new().unwrap();
    let issued = authority(dir.path(), &clock)
        .issue(&id("web"), DAY)
        .unwrap()
        .issued;
    let list = issued.to_pem_list();
    assert!(Signed::from_pem_list(&[]).is_err());
    assert!(Signed::from_pem_list(&list[..1]).is_err());
    assert!(Signed::from_pem_list(&[list[0].clone(), String::new()]).is_err());
    assert!(Signed::from_pem_list(&["x".to_owned(), list[1].clone()]).is_err());
    assert!(issued.not_after > SystemTime::UNIX_EPOCH);
}
