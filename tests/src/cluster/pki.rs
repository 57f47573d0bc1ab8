//! Keys and certificates of a control plane, made anew for each.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};

/// Names under which pods know the API server.
const SERVER_NAMES: [&str; 3] = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// The authority of a control plane.
#[derive(Debug)]
pub(super) struct Pki {
    directory: PathBuf,
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the root.
    pub(super) fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let mut parameters = CertificateParams::default();
        parameters
            .distinguished_name
            .push(DnType::CommonName, "kubernetes");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(parameters, key()?)?;
        let pki = Self {
            directory: directory.to_owned(),
            root,
        };
        fs::write(pki.root(), pki.root.pem())?;
        Ok(pki)
    }

    /// The certificate that signs all others.
    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The API server's certificate.
    pub(super) fn server(&self, address: IpAddr) -> Result<Pair> {
        let mut parameters = CertificateParams::new(SERVER_NAMES.map(str::to_owned))?;
        parameters
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        parameters
            .subject_alt_names
            .push(SanType::IpAddress(address));
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign("server", &parameters)
    }

    /// The certificate of a user, in at most one group.
    pub(super) fn user(&self, name: &str, group: Option<&str>) -> Result<Pair> {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            parameters
                .distinguished_name
                .push(DnType::OrganizationName, group);
        }
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&format!("user-{name}"), &parameters)
    }

    /// A key for tokens of service accounts: its private and its public half.
    pub(super) fn token_key(&self) -> Result<(PathBuf, PathBuf)> {
        let key = key()?;
        let (private, public) = (
            self.directory.join("tokens.key"),
            self.directory.join("tokens.pub"),
        );
        fs::write(&private, key.serialize_pem())?;
        fs::write(&public, key.public_key_pem())?;
        Ok((private, public))
    }

    fn sign(&self, name: &str, parameters: &CertificateParams) -> Result<Pair> {
        let key = key()?;
        let certificate = parameters.signed_by(&key, &self.root)?;
        let pair = Pair {
            certificate: self.directory.join(format!("{name}.crt")),
            key: self.directory.join(format!("{name}.key")),
        };
        fs::write(&pair.certificate, certificate.pem())?;
        fs::write(&pair.key, key.serialize_pem())?;
        Ok(pair)
    }
}

fn key() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}
