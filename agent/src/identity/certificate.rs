//! What is read out of certificates: the SPIFFE id, the validity, the key.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer as _, SubjectPublicKeyInfo, X509Certificate};

use crate::model::{SpiffeId, TrustDomain};

/// Why a peer's certificate, though its chain may be in order, proves no identity
/// that this connection accepts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Not an X.509 certificate.
    #[error("the certificate can't be parsed")]
    Malformed,
    /// There is no URI among its alternative names.
    #[error("the certificate carries no URI, so no SPIFFE id")]
    NoIdentity,
    /// There are several URIs; which one counts would be the reader's choice.
    #[error("the certificate carries {count} URIs, of which none can be taken for the identity")]
    SeveralIdentities {
        /// How many.
        count: usize,
    },
    /// The URI is no workload's id.
    #[error(
        "the certificate's URI {uri:?} is not spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>"
    )]
    NotSpiffe {
        /// The URI, shortened where it is long.
        uri: String,
    },
    /// The identity is of another mesh.
    #[error("{found} is not of the trust domain {own}")]
    OtherTrustDomain {
        /// The peer.
        found: SpiffeId,
        /// The trust domain of this mesh.
        own: TrustDomain,
    },
    /// The peer is a workload of the mesh, but not the one that was dialled.
    #[error("the peer is {found}, expected {expected}")]
    OtherIdentity {
        /// The peer.
        found: SpiffeId,
        /// Who should be there.
        expected: SpiffeId,
    },
}

/// A workload's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The only URI among its alternative names.
    pub(crate) id: SpiffeId,
    /// The serial number in hexadecimal.
    pub(crate) serial: String,
    /// The issuer's distinguished name.
    pub(crate) issuer: String,
    /// Valid from this moment.
    pub(crate) not_before: SystemTime,
    /// Not valid from this moment on.
    pub(crate) not_after: SystemTime,
    /// The `SubjectPublicKeyInfo`, DER.
    pub(crate) public_key: Vec<u8>,
}

impl Leaf {
    /// Reads a workload's certificate. Nothing is verified.
    pub(crate) fn parse(der: &[u8]) -> Result<Self, PeerError> {
        let certificate = parse(der)?;
        Ok(Self {
            id: spiffe_id(&certificate)?,
            serial: serial(&certificate),
            issuer: certificate.issuer().to_string(),
            not_before: system_time(certificate.validity().not_before),
            not_after: system_time(certificate.validity().not_after),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// The certificate is within its validity.
    pub(crate) fn valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// The identity that a certificate claims and when it ends. Nothing is verified.
pub(super) fn identity(der: &[u8]) -> Result<(SpiffeId, SystemTime), PeerError> {
    let certificate = parse(der)?;
    let id = spiffe_id(&certificate)?;
    Ok((id, system_time(certificate.validity().not_after)))
}

/// The certificate and nothing after it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PeerError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(PeerError::Malformed),
    }
}

/// The one URI of the certificate, as a workload's id.
///
/// Two URIs are refused even where one alone would do: peers that take the first
/// and peers that take any of them must come to one answer.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, PeerError> {
    let Ok(names) = certificate.subject_alternative_name() else {
        return Err(PeerError::Malformed);
    };
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next().ok_or(PeerError::NoIdentity)?;
    match uris.count() {
        0 => uri.parse().map_err(|_unhelpful| PeerError::NotSpiffe {
            uri: uri.chars().take(256).collect(),
        }),
        more => Err(PeerError::SeveralIdentities { count: more + 1 }),
    }
}

/// The serial number in hexadecimal, without separators.
pub(super) fn serial(certificate: &X509Certificate<'_>) -> String {
    hex(certificate.raw_serial())
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String never fails.
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// The moment as the system counts it; what is before 1970 becomes 1970.
pub(super) fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The `SubjectPublicKeyInfo` is that of `key`.
pub(super) fn has_key(public_key: &[u8], key: &rcgen::KeyPair) -> bool {
    use rcgen::PublicKeyData as _;
    SubjectPublicKeyInfo::from_der(public_key)
        .is_ok_and(|(_, parsed)| parsed.subject_public_key.data == key.der_bytes())
}

/// Nobody above it has signed it: no chain needs it, and it is there to be trusted.
pub(crate) fn is_root(der: &CertificateDer<'static>) -> bool {
    parse(der)
        .is_ok_and(|parsed| parsed.is_ca() && parsed.subject().as_raw() == parsed.issuer().as_raw())
}

/// All certificates of a PEM text, in order; `None` where a block can't be read or
/// there is none.
pub(crate) fn from_pem(text: &str) -> Option<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// Certificates as PEM, one block each.
pub(crate) fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> = certificates
        .iter()
        .map(|der| pem::Pem::new("CERTIFICATE", der.to_vec()))
        .collect();
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_many_config(&blocks, lines)
}
