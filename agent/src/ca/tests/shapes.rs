//! The Secret as other tools write it: certificates and keys of OpenSSL, in every form in
//! which cert-manager and Istio have them. `shapes/make.sh` made them.

use std::time::Duration;

use tokio::time::sleep;

use super::rotation::{LIFE, MOMENT, OVERLAP, World, roots};
use crate::identity::tests::handshake::{meet, workload};

macro_rules! shape {
    ($name:literal) => {
        include_str!(concat!("shapes/", $name))
    };
}

const ROOT: &str = shape!("root.crt");
const ROOT_KEY: &str = shape!("root.pkcs8.key");
const RENEWED: &str = shape!("root.renewed.crt");
const RSA: &str = shape!("rsa.crt");
const P256: &str = shape!("P-256.crt");
const P256_KEY: &str = shape!("P-256.pkcs8.key");
const P384: &str = shape!("P-384.crt");
const DEEP: &str = shape!("deep.crt");
const DEEP_KEY: &str = shape!("deep.pkcs8.key");
const LEAF: &str = shape!("leaf.crt");

/// cert-manager's Secret.
fn manager(issuer: &str, key: &str, roots: &str) -> Vec<(&'static str, String)> {
    vec![
        ("tls.crt", issuer.to_owned()),
        ("tls.key", key.to_owned()),
        ("ca.crt", roots.to_owned()),
    ]
}

/// Istio's `cacerts`.
fn istio(issuer: &str, key: &str, roots: &str, chain: &str) -> Vec<(&'static str, String)> {
    vec![
        ("ca-cert.pem", issuer.to_owned()),
        ("ca-key.pem", key.to_owned()),
        ("root-cert.pem", roots.to_owned()),
        ("cert-chain.pem", chain.to_owned()),
    ]
}

/// Two workloads reach each other with what a Secret signs, by its bundle.
async fn check(what: &str, data: &[(&str, String)], expected: usize) {
    let world = World::new();
    world.put(data);
    let replica = world.replica();
    sleep(MOMENT).await;
    assert_eq!(replica.not_ready(), Vec::<String>::new(), "{what}");
    let bundle = world.bundle();
    assert_eq!(roots(&bundle), expected, "{what}");
    let workload = |name| workload(&replica.authority(), &bundle, name, &world.clock);
    meet(&workload("one"), &workload("other")).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(world.writes(), 0, "somebody else's Secret was written");
}

/// What is said of a Secret that can't be used.
async fn check_refused(what: &str, data: &[(&str, String)], expected: &[&str]) {
    let world = World::new();
    world.put(data);
    let replica = world.replica();
    sleep(MOMENT).await;
    let reasons = replica.not_ready().join("\n");
    for expected in expected {
        assert!(reasons.contains(expected), "{what}: {reasons}");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_in_every_form_sign() {
    for (what, issuer, key) in [
        ("RSA, PKCS #1", RSA, shape!("rsa.pkcs1.key")),
        ("RSA, PKCS #8", RSA, shape!("rsa.pkcs8.key")),
        ("P-256, SEC 1", P256, shape!("P-256.sec1.key")),
        ("P-256, PKCS #8", P256, P256_KEY),
        ("P-384, SEC 1", P384, shape!("P-384.sec1.key")),
        ("P-384, PKCS #8", P384, shape!("P-384.pkcs8.key")),
    ] {
        check(what, &manager(issuer, key, ROOT), 1).await;
        check(what, &istio(issuer, key, ROOT, issuer), 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn chains_as_cert_manager_and_istio_write_them_are_understood() {
    let chain = format!("{DEEP}{P256}");
    let data = manager(&chain, DEEP_KEY, ROOT);
    check("an intermediate of an intermediate", &data, 1).await;
    let whole = format!("{DEEP}{P256}{ROOT}");
    check("with the root", &manager(&whole, DEEP_KEY, ROOT), 1).await;
    let own = manager(ROOT, ROOT_KEY, ROOT);
    check("an issuer SelfSigned", &own, 1).await;
    let data = istio(DEEP, DEEP_KEY, ROOT, &chain);
    check("cert-chain.pem from the issuer on", &data, 1).await;
    let data = istio(DEEP, DEEP_KEY, ROOT, &whole);
    check("cert-chain.pem with the root", &data, 1).await;
    let data = istio(DEEP, DEEP_KEY, ROOT, P256);
    check("cert-chain.pem without the issuer", &data, 1).await;
    let both = format!("{ROOT}{RENEWED}");
    let data = istio(P256, P256_KEY, &both, P256);
    check("two roots", &data, 2).await;
    // As Windows' editors and `kubectl create --from-file` leave it.
    let dos = P256.replace('\n', "\r\n");
    check("lines of DOS", &manager(&dos, P256_KEY, ROOT), 1).await;
    let text = format!("subject=/O=shapes\nissuer=/O=shapes\n{P256}");
    check("text before", &manager(&text, P256_KEY, ROOT), 1).await;
}

/// Istio's own `istio-ca-secret`, and a Certificate whose issuer tells no CA.
#[tokio::test(start_paused = true)]
async fn a_self_signed_certificate_is_its_own_root() {
    let data = istio(ROOT, ROOT_KEY, "", "");
    check("istio-ca-secret", &data, 1).await;
    let data = &manager(ROOT, ROOT_KEY, "")[..2];
    check("without ca.crt", data, 1).await;
    for (data, roots) in [
        (istio(P256, P256_KEY, "", P256), "root-cert.pem"),
        (manager(P256, P256_KEY, ""), "ca.crt"),
        // Whether the one after it is to be trusted its owner has to say.
        (manager(&format!("{P256}{ROOT}"), P256_KEY, ""), "ca.crt"),
    ] {
        check_refused(
            roots,
            &data,
            &[
                &format!("missing {roots}"),
                "where the certificate is self-signed",
            ],
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_key_of_the_secret_that_is_wrong_is_named() {
    let secret = "Secret fairlead-system/fairlead-ca";
    let key = |name: &str| format!("{secret}/{name}: ");
    for (data, expected) in [
        (
            manager(P256, shape!("P-256.encrypted.key"), ROOT),
            vec![key("tls.key"), "it is encrypted".to_owned()],
        ),
        (
            istio(P256, "nonsense", ROOT, ""),
            vec![key("ca-key.pem"), "PKCS #8, PKCS #1 or SEC 1".to_owned()],
        ),
        (
            manager(P256, P256, ROOT),
            vec![key("tls.key"), "PKCS #8, PKCS #1 or SEC 1".to_owned()],
        ),
        (
            manager(P256_KEY, P256_KEY, ROOT),
            vec![key("tls.crt"), "PEM block CERTIFICATE".to_owned()],
        ),
        (
            manager(P256, P256_KEY, "nonsense"),
            vec![key("ca.crt"), "PEM block CERTIFICATE".to_owned()],
        ),
        (
            istio(P256, P256_KEY, ROOT, "nonsense"),
            vec![key("cert-chain.pem"), "PEM block CERTIFICATE".to_owned()],
        ),
        (
            manager(P384, P256_KEY, ROOT),
            vec!["tls.key is not the key of tls.crt".to_owned()],
        ),
        (
            manager(LEAF, shape!("leaf.pkcs8.key"), ROOT),
            vec!["tls.crt".to_owned(), "CN=no authority is no CA".to_owned()],
        ),
        (
            manager(DEEP, DEEP_KEY, ROOT),
            vec!["tls.crt does not lead to a root in ca.crt".to_owned()],
        ),
        (
            istio(P256, P256_KEY, RSA, P256),
            vec!["ca-cert.pem does not lead to a root in root-cert.pem".to_owned()],
        ),
    ] {
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check_refused(secret, &data, &expected).await;
    }
}

/// As cert-manager renews a root with `rotationPolicy: Never`: the same name and key.
#[tokio::test(start_paused = true)]
async fn a_root_that_is_renewed_with_its_key_overlaps() {
    let world = World::new();
    world.put(&manager(ROOT, ROOT_KEY, ROOT));
    let replica = world.replica();
    sleep(MOMENT).await;
    let before = workload(
        &replica.authority(),
        &world.bundle(),
        "before",
        &world.clock,
    );
    world.put(&manager(RENEWED, ROOT_KEY, RENEWED));
    sleep(MOMENT).await;
    assert_eq!(roots(&world.bundle()), 2);
    let during = workload(
        &replica.authority(),
        &world.bundle(),
        "during",
        &world.clock,
    );
    meet(&before, &during).unwrap();
    sleep(OVERLAP + LIFE + OVERLAP + Duration::from_mins(1)).await;
    assert_eq!(world.bundle().trim(), RENEWED.trim());
    let after = workload(&replica.authority(), &world.bundle(), "after", &world.clock);
    meet(&during, &after).unwrap();
}
