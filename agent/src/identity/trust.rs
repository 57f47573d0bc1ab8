//! The roots in force now, and the verification of a peer's chain against them.
//!
//! One [`Trust`] is shared by every TLS configuration of the agent, so that a root
//! which is added or removed counts from the next handshake on, also for
//! configurations that were built before.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore,
    SignatureScheme,
};

use super::certificate::{self, PeerError};
use crate::model::{SpiffeId, TrustDomain};

/// The algorithms of the mesh: TLS 1.3 only, hybrid post-quantum key exchange first.
///
/// AES-128 stands first: it is the cheaper one per byte and is not what a quantum
/// computer breaks; a peer that wants AES-256 gets it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The algorithms of the mesh.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::clone(&PROVIDER)
}

/// The bundle of roots that peers are verified against.
#[derive(Clone)]
pub(super) struct Trust(Arc<ArcSwap<Roots>>);

struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
    /// `None` while there is no root: then nobody is let in.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Trust {
    /// Trust in nobody.
    pub(super) fn nobody() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Roots::new(Vec::new()))))
    }

    /// Replaces the bundle, for all configurations at once. Tells whether it differs.
    pub(super) fn replace(&self, mut roots: Vec<CertificateDer<'static>>) -> bool {
        roots.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
        roots.dedup();
        if self.0.load().certificates == roots {
            return false;
        }
        self.0.store(Arc::new(Roots::new(roots)));
        true
    }

    /// The chain leads to a root in force, for use as a TLS client, and nothing of it
    /// is expired.
    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let roots = self.0.load();
        let verifier = roots.clients.as_ref().ok_or(NO_ROOTS)?;
        verifier.verify_client_cert(leaf, chain, now).map(|_| ())
    }

    /// The same for use as a TLS server. The name is checked by the caller.
    fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_server(&self.0.load().store, leaf, chain, now)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = self.0.load().certificates.len();
        f.debug_struct("Trust").field("roots", &roots).finish()
    }
}

const NO_ROOTS: rustls::Error = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);

impl Roots {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let store = Arc::new(store(&certificates));
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), provider())
            .build()
            .ok();
        Self {
            certificates,
            store,
            clients,
        }
    }
}

/// The certificates as trust anchors; those that can't be one are left out.
pub(super) fn store(certificates: &[CertificateDer<'_>]) -> RootCertStore {
    let mut store = RootCertStore::empty();
    let (_, ignored) = store.add_parsable_certificates(certificates.iter().cloned());
    if ignored > 0 {
        tracing::warn!(
            ignored,
            "certificates of the root bundle can't be used as roots"
        );
    }
    store
}

/// The chain leads to one of `roots` and may serve, now.
pub(super) fn verify_server(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let leaf = rustls::server::ParsedCertificate::try_from(leaf)?;
    let algorithms = PROVIDER.signature_verification_algorithms.all;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&leaf, roots, chain, now, algorithms)
}

/// The chain leads to one of `roots` and may be a client's, now.
pub(super) fn verify_client(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
        .build()
        .map_err(|_unhelpful| NO_ROOTS)?;
    verifier.verify_client_cert(leaf, chain, now).map(|_| ())
}

/// Takes only the one expected workload for the server.
#[derive(Debug)]
pub(super) struct ExpectServer {
    pub(super) trust: Trust,
    pub(super) expected: SpiffeId,
}

impl ServerCertVerifier for ExpectServer {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.verify_server(leaf, chain, now)?;
        let (found, _) = certificate::identity(leaf).map_err(refuse)?;
        if found == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            let expected = self.expected.clone();
            Err(refuse(PeerError::OtherIdentity { found, expected }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Takes any workload of the own trust domain for a client; what it may do is for
/// policy to say.
#[derive(Debug)]
pub(super) struct RequireClient {
    pub(super) trust: Trust,
    pub(super) trust_domain: TrustDomain,
}

impl ClientCertVerifier for RequireClient {
    /// None: the hints would tell a stranger which CA this is, and no peer reads them.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.verify_client(leaf, chain, now)?;
        let (found, _) = certificate::identity(leaf).map_err(refuse)?;
        if found.trust_domain == self.trust_domain {
            Ok(ClientCertVerified::assertion())
        } else {
            let own = self.trust_domain.clone();
            Err(refuse(PeerError::OtherTrustDomain { found, own }))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &PROVIDER.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn refuse(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// Never asked for: the configurations offer TLS 1.3 only.
fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}
