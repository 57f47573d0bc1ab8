//! Certificate signing requests: made by the agent, checked by the authority.

use std::time::Duration;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, IsCa, KeyPair, SanType,
    SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::model::SpiffeId;

/// What an agent asks a CA for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SignRequest {
    /// For whom.
    pub(super) id: SpiffeId,
    /// The signing request, PEM.
    pub(super) csr: String,
    /// For how long.
    pub(super) ttl: Duration,
}

/// A signing request for `id`: empty subject, and so the URI critical (RFC 5280, 4.2.1.6).
pub(crate) fn create(id: &SpiffeId, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.serialize_request(key)?.pem()
}

/// Why a signing request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not a PEM block `CERTIFICATE REQUEST`, or not a PKCS #10 request.
    #[error("the signing request can't be parsed")]
    Malformed,
    /// It is not signed with the key that it carries, or asks for what is not known here.
    #[error("the signing request is refused: {reason}")]
    Refused {
        /// What the parser says.
        reason: String,
    },
    /// Its key is of no kind that is signed.
    #[error("the key is neither ECDSA P-256 or P-384, nor Ed25519, nor RSA of 2048 bits or more")]
    Key,
    /// It asks for a name that is not the identity.
    #[error("the signing request has a name other than {id}")]
    OtherName {
        /// What it was to be for.
        id: SpiffeId,
    },
    /// It asks for a certificate that may sign others.
    #[error("the signing request asks for a CA certificate")]
    Ca,
}

/// A signing request whose signature was verified.
#[derive(Debug)]
pub struct VerifiedRequest {
    names: Vec<SanType>,
    is_ca: bool,
    key: SubjectPublicKeyInfo,
}

impl VerifiedRequest {
    /// Parses a request and verifies that the sender has the key that is in it.
    pub fn from_pem(text: &str) -> Result<Self, RequestError> {
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|_unhelpful| RequestError::Malformed)?;
        let Ok(([], parsed)) = X509CertificationRequest::from_der(&der) else {
            return Err(RequestError::Malformed);
        };
        let key = public_key(parsed.certification_request_info.subject_pki.raw)?;
        let verified = CertificateSigningRequestParams::from_der(&der).map_err(|error| {
            RequestError::Refused {
                reason: error.to_string(),
            }
        })?;
        Ok(Self {
            names: verified.params.subject_alt_names,
            is_ca: matches!(verified.params.is_ca, IsCa::Ca(_)),
            key,
        })
    }

    /// The request is for `id` or for no name, and for nothing more than a leaf.
    pub(super) fn key_for(&self, id: &SpiffeId) -> Result<&SubjectPublicKeyInfo, RequestError> {
        let uri = id.to_string();
        let own = |name: &SanType| matches!(name, SanType::URI(other) if other.as_str() == uri);
        if self.names.len() > 1 || !self.names.iter().all(own) {
            return Err(RequestError::OtherName { id: id.clone() });
        }
        if self.is_ca {
            return Err(RequestError::Ca);
        }
        Ok(&self.key)
    }
}

/// The key, if it is one that every peer can verify with.
fn public_key(spki: &[u8]) -> Result<SubjectPublicKeyInfo, RequestError> {
    use x509_parser::prelude::SubjectPublicKeyInfo as Parsed;
    use x509_parser::public_key::PublicKey;
    let Ok((_, parsed)) = Parsed::from_der(spki) else {
        return Err(RequestError::Malformed);
    };
    if let Ok(PublicKey::RSA(rsa)) = parsed.parsed()
        && !(2048..=8192).contains(&rsa.key_size())
    {
        return Err(RequestError::Key);
    }
    SubjectPublicKeyInfo::from_der(spki).map_err(|_unhelpful| RequestError::Key)
}
