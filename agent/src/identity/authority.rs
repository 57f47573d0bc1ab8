//! The signer: one issuing certificate with its key, and the roots that it leads to.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use super::certificate;
use super::clock::{Clock, SystemClock, unix_time};
use super::directory::{self, AuthorityPem, Files, Names};
use super::request::{RequestError, VerifiedRequest};
use super::trust;
use crate::model::{SpiffeId, TrustDomain};

/// A peer's clock may be behind the signer's by this much.
const BACKDATED: Duration = Duration::from_mins(5);
/// An authority that ends sooner than this is warned about.
const ENDS_SOON: Duration = Duration::from_hours(30 * 24);

/// Why an authority can't be opened, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file can't be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Some of the files are there, but not all that are needed.
    #[error(
        "{}: missing {missing}; put the file there, or empty the directory to have a new root created",
        dir.display()
    )]
    Incomplete {
        /// The directory.
        dir: PathBuf,
        /// The names of the missing files.
        missing: String,
    },
    /// A file is not what its name says.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The files do not fit together: what they would sign, no peer would take.
    #[error("{}: what this authority signs would not be trusted: {reason}", dir.display())]
    Untrusted {
        /// The directory.
        dir: PathBuf,
        /// Why a peer refuses.
        reason: String,
    },
    /// A certificate of the authority is over, or has not begun.
    #[error(
        "the authority's certificate is valid from {not_before} to {not_after} only: renew it, or set the clock right"
    )]
    Expired {
        /// When it begins.
        not_before: jiff::Timestamp,
        /// When it ends.
        not_after: jiff::Timestamp,
    },
    /// The request is not in order.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The signature could not be made.
    #[error("signing failed: {0}")]
    Sign(rcgen::Error),
}

/// A certificate authority, opened. Immutable; see [`super::AuthorityDir`] for one that follows
/// its files.
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// The root that its signatures lead to.
    anchor: CertificateDer<'static>,
    /// From the issuer up, without the roots; empty where the issuer is a root.
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
    clock: Arc<dyn Clock>,
}

/// A signed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The leaf, then its issuers, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that peers verify it against.
    pub roots: Vec<CertificateDer<'static>>,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: SystemTime,
}

/// A signed certificate with a new private key.
pub struct IssuedWithKey {
    /// The certificate.
    pub issued: Issued,
    key: KeyPair,
}

impl Authority {
    /// Opens the directory, of which [`directory`] tells the files; an empty or absent
    /// one gets a new self-signed root. Signs with the machine's clock.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        Self::open_at(dir, Arc::new(SystemClock))
    }

    /// [`Authority::open`] with another clock.
    pub fn open_at(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, AuthorityError> {
        let files = directory::open(dir, clock.now())?;
        Self::from_files(dir, files, clock)
    }

    /// From texts that are kept elsewhere; errors name them as below `origin`.
    pub fn from_pem(
        origin: &Path,
        pem: &AuthorityPem,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        Self::from_files(origin, pem.parse(origin)?, clock)
    }

    fn from_files(dir: &Path, files: Files, clock: Arc<dyn Clock>) -> Result<Self, AuthorityError> {
        let untrusted = |reason: String| AuthorityError::Untrusted {
            dir: dir.to_owned(),
            reason,
        };
        let mut chain = Vec::new();
        for link in std::iter::once(&files.issuer).chain(&files.chain) {
            // Other tools write the issuer and the root into cert-chain.pem as well.
            if !files.roots.contains(link) && !chain.contains(link) {
                chain.push(link.clone());
            }
        }

        let anchor = match anchor(&chain, &files.roots) {
            Some(root) => root.clone(),
            None => files.issuer.clone(),
        };
        let (mut not_before, mut not_after) = (SystemTime::UNIX_EPOCH, None);
        for link in chain.iter().chain([&files.issuer, &anchor]) {
            let parsed = certificate::parse(link).map_err(|error| untrusted(error.to_string()))?;
            if !parsed.is_ca() {
                let of = if *link == files.issuer {
                    files.names.issuer
                } else {
                    "its chain"
                };
                let subject = parsed.subject();
                return Err(untrusted(format!("{of}: {subject} is no CA")));
            }
            let validity = parsed.validity();
            let end = certificate::system_time(validity.not_after);
            not_before = not_before.max(certificate::system_time(validity.not_before));
            not_after = Some(not_after.map_or(end, |other: SystemTime| other.min(end)));
        }
        if !owns(&files.key, &files.issuer) {
            let Names { key, issuer, .. } = files.names;
            return Err(untrusted(format!("{key} is not the key of {issuer}")));
        }
        let issuer = Issuer::from_ca_cert_der(&files.issuer, files.key)
            .map_err(|error| untrusted(error.to_string()))?;
        let authority = Self {
            issuer: Arc::new(issuer),
            anchor,
            chain,
            roots: files.roots,
            not_before,
            not_after: not_after.unwrap_or(not_before),
            clock,
        };
        authority.probe(files.names).map_err(|error| match error {
            AuthorityError::Untrusted { reason, .. } => untrusted(reason),
            error => error,
        })?;
        authority.warn_of_end();
        Ok(authority)
    }

    /// Signs a leaf that is thrown away, and verifies it as a peer would: whatever is
    /// wrong with names, keys, constraints or validity of the chain shows here, and not
    /// in the first handshake.
    fn probe(&self, names: Names) -> Result<(), AuthorityError> {
        let domain = TrustDomain("probe.invalid".into());
        let issued = self.issue(&SpiffeId::new(domain, "probe", "probe"), BACKDATED)?;
        let (leaf, chain) = issued.issued.split();
        let now = unix_time(self.clock.now());
        trust::verify_server(&trust::store(&self.roots), leaf, chain, now).map_err(|error| {
            let Names { issuer, roots, .. } = names;
            let leads_nowhere =
                rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
            let reason = if error == leads_nowhere {
                format!("{issuer} does not lead to a root in {roots} by the certificates given")
            } else {
                error.to_string()
            };
            AuthorityError::Untrusted {
                dir: PathBuf::new(),
                reason,
            }
        })
    }

    /// Signs `request` for `id`, for `ttl` or until the authority itself ends. Whether
    /// the sender may have the identity is for the caller to know.
    pub fn sign(
        &self,
        id: &SpiffeId,
        request: &VerifiedRequest,
        ttl: Duration,
    ) -> Result<Issued, AuthorityError> {
        let key = request.key_for(id)?;
        self.sign_leaf(workload(id)?, key, ttl)
    }

    /// Makes a key and signs a certificate with it for `id`.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration) -> Result<IssuedWithKey, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let issued = self.sign_leaf(workload(id)?, &key, ttl)?;
        Ok(IssuedWithKey { issued, key })
    }

    /// Makes a key and signs a certificate with it for a server of these names.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        ttl: Duration,
    ) -> Result<IssuedWithKey, AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let mut params = CertificateParams::new(names).map_err(AuthorityError::Sign)?;
        let addresses = addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let issued = self.sign_leaf(params, &key, ttl)?;
        Ok(IssuedWithKey { issued, key })
    }

    fn sign_leaf(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        ttl: Duration,
    ) -> Result<Issued, AuthorityError> {
        let now = self.clock.now();
        if now < self.not_before || now >= self.not_after {
            return Err(AuthorityError::Expired {
                not_before: timestamp(self.not_before),
                not_after: timestamp(self.not_after),
            });
        }
        let not_after = self.not_after.min(now + ttl);
        let serial = random_serial();
        let hex = certificate::hex(&serial.to_bytes());
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial);
        params.not_before = self.not_before.max(now - BACKDATED).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let leaf = params
            .signed_by(key, &*self.issuer)
            .map_err(AuthorityError::Sign)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.chain);
        Ok(Issued {
            chain,
            roots: self.roots.clone(),
            serial: hex,
            not_after,
        })
    }

    /// The same one, for peers that shall trust these roots.
    #[must_use]
    pub fn with_roots(&self, roots: Vec<CertificateDer<'static>>) -> Self {
        Self {
            issuer: Arc::clone(&self.issuer),
            anchor: self.anchor.clone(),
            chain: self.chain.clone(),
            roots,
            not_before: self.not_before,
            not_after: self.not_after,
            clock: Arc::clone(&self.clock),
        }
    }

    /// Both sign with one key, as one issuer.
    pub fn same_signer(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.issuer, &other.issuer)
    }

    /// The root that what it signs leads to.
    pub fn anchor(&self) -> &CertificateDer<'static> {
        &self.anchor
    }

    /// The roots that peers shall trust.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same, PEM: one block each, in the order in which they came.
    pub fn roots_pem(&self) -> String {
        certificate::to_pem(&self.roots)
    }

    /// From when on all of its certificates are valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the first of its certificates expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Says so where the authority ends soon, or has ended.
    pub fn warn_of_end(&self) {
        let ends = timestamp(self.not_after);
        match self.not_after.duration_since(self.clock.now()) {
            Err(_) => tracing::error!(%ends, "the CA certificate has expired: nothing is signed"),
            Ok(left) if left < ENDS_SOON => {
                tracing::warn!(%ends, "the CA certificate expires soon: renew it");
            }
            Ok(_) => {}
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// The leaf, and what stands between it and the root.
    pub(super) fn split(&self) -> (&CertificateDer<'static>, &[CertificateDer<'static>]) {
        self.chain
            .split_first()
            .expect("an issued chain begins with its leaf")
    }

    /// As the CA protocol carries it: one PEM text for each certificate, and last one
    /// with all roots.
    pub fn to_pem_list(&self) -> Vec<String> {
        self.chain
            .iter()
            .map(std::slice::from_ref)
            .chain([&self.roots[..]])
            .map(certificate::to_pem)
            .collect()
    }

    /// The leaf and its issuers, without the root, as PEM.
    pub fn chain_pem(&self) -> String {
        certificate::to_pem(&self.chain)
    }

    /// The roots, as PEM.
    pub fn roots_pem(&self) -> String {
        certificate::to_pem(&self.roots)
    }
}

impl IssuedWithKey {
    /// The private key, PKCS #8. A secret.
    pub fn key_der(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        rustls::pki_types::PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// The private key, PKCS #8 in PEM. A secret.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

impl fmt::Debug for IssuedWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedWithKey")
            .field("serial", &self.issued.serial)
            .field("key", &"[redacted]")
            .finish_non_exhaustive()
    }
}

/// What a workload's certificate says, but for key and validity.
fn workload(id: &SpiffeId) -> Result<CertificateParams, AuthorityError> {
    let uri = id.to_string().try_into().map_err(AuthorityError::Sign)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// The root that the chain ends at, as far as names tell; of several the longest living.
fn anchor<'a>(
    chain: &[CertificateDer<'_>],
    roots: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    let last = certificate::parse(chain.last()?).ok()?;
    roots
        .iter()
        .filter_map(|der| Some((der, certificate::parse(der).ok()?)))
        .filter(|(_, root)| root.subject().as_raw() == last.issuer().as_raw())
        .max_by_key(|(_, root)| root.validity().not_after.timestamp())
        .map(|(der, _)| der)
}

fn owns(key: &KeyPair, certificate: &CertificateDer<'_>) -> bool {
    certificate::parse(certificate)
        .is_ok_and(|parsed| parsed.public_key().subject_public_key.data == key.der_bytes())
}

/// 126 random bits, positive and of fixed length, as RFC 5280 4.1.2.2 wants it.
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// For people to read. A moment that no calendar has becomes the last one that has.
pub(super) fn timestamp(time: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::MAX)
}
