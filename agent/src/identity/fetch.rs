//! One attempt to get a certificate: a new key, a request, and a check of the answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::certificate::{self, Leaf};
use super::client::{Ca, Signed};
use super::clock::{Clock, unix_time};
use super::error::FetchError;
use super::request::{self, SignRequest};
use super::trust;
use crate::model::SpiffeId;

/// For connecting and the answer together. istio-csr waits for cert-manager, which waits for
/// whoever it has signing done by; given up too early, each attempt would leave one more
/// request behind and never an answer.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// A certificate that was checked, and its key.
pub(super) struct Fetched {
    pub(super) leaf: Leaf,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Fetches a certificate for `id`.
pub(super) async fn fetch(
    ca: Arc<dyn Ca>,
    clock: Arc<dyn Clock>,
    id: SpiffeId,
    ttl: Duration,
) -> Result<Fetched, FetchError> {
    let key = KeyPair::generate().map_err(FetchError::Request)?;
    let csr = request::create(&id, &key).map_err(FetchError::Request)?;
    let request = SignRequest {
        id: id.clone(),
        csr,
        ttl,
    };
    let signed = tokio::time::timeout(TIMEOUT, ca.sign(request))
        .await
        .map_err(|_elapsed| FetchError::TimedOut { timeout: TIMEOUT })??;
    let leaf = check(&signed, &id, &key, clock.now())?;
    let Signed { chain, roots } = signed;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    Ok(Fetched {
        leaf,
        chain,
        roots,
        key,
    })
}

/// The answer is a certificate for `id` and for our key, valid now, under its own root.
/// A CA that is confused must not make this node speak as somebody else.
fn check(
    signed: &Signed,
    id: &SpiffeId,
    key: &KeyPair,
    now: SystemTime,
) -> Result<Leaf, FetchError> {
    let reason = "it has no leaf";
    let (first, rest) = signed
        .chain
        .split_first()
        .ok_or(FetchError::Malformed { reason })?;
    let leaf = Leaf::parse(first).map_err(FetchError::Identity)?;
    let unusable = |reason: String| Err(FetchError::Unusable { reason });
    if leaf.id != *id {
        return unusable(format!("it is for {}, not for {id}", leaf.id));
    }
    if !certificate::has_key(&leaf.public_key, key) {
        return unusable("it is for another key".to_owned());
    }
    let roots = trust::store(&signed.roots);
    trust::verify_server(&roots, first, rest, unix_time(now)).map_err(FetchError::Chain)?;
    trust::verify_client(&roots, first, rest, unix_time(now)).map_err(FetchError::Chain)?;
    Ok(leaf)
}
