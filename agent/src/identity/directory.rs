//! The directory of a certificate authority, in Istio's names.
//!
//! | file | content |
//! |---|---|
//! | `ca-cert.pem` | the issuing certificate: the root itself or an intermediate |
//! | `ca-key.pem` | its private key, mode 0600 |
//! | `root-cert.pem` | the root, or the bundle of roots that peers shall trust |
//! | `cert-chain.pem` | optional: from the issuer up to, and without, the root |

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{AuthorityError, random_serial};
use super::certificate;

const ISSUER: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const ROOT: &str = "root-cert.pem";
const CHAIN: &str = "cert-chain.pem";
/// cert-manager's names, which only a Secret may have: a directory with these is not empty.
const FOREIGN: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// How long a root that is created here lives.
const ROOT_TTL: Duration = Duration::from_hours(10 * 365 * 24);
/// Clocks of peers may be behind by this much when the root is new.
const ROOT_BACKDATED: Duration = Duration::from_hours(1);

/// The parsed files. `Debug` of the key shows nothing of it.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) issuer: CertificateDer<'static>,
    pub(super) key: KeyPair,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) names: Names,
}

/// What an error calls them by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) key: &'static str,
    pub(super) issuer: &'static str,
    pub(super) roots: &'static str,
}

/// Reads the directory; one that has none of the files gets a new self-signed root.
/// Any number of processes may do so at once: one creates, all read the same.
pub(super) fn open(dir: &Path, now: SystemTime) -> Result<Files, AuthorityError> {
    if !dir.exists() {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(io_error(dir))?;
    }
    let _lock = lock(dir);
    let present = [ISSUER, KEY, ROOT, CHAIN].map(|name| dir.join(name).exists());
    match present {
        [true, true, true, _] => {}
        [false, false, false, false] if !FOREIGN.iter().any(|name| dir.join(name).exists()) => {
            create(dir, now)?;
        }
        _ => {
            let required = [ISSUER, KEY, ROOT].into_iter().zip(present);
            let missing = required.filter(|(_, there)| !there).map(|(name, _)| name);
            return Err(AuthorityError::Incomplete {
                dir: dir.to_owned(),
                missing: missing.collect::<Vec<_>>().join(", "),
            });
        }
    }
    read(dir)
}

/// Held while the directory is looked at and created; let go when dropped. Where it
/// can't be had, as on a read-only mount, nobody else can create either.
fn lock(dir: &Path) -> Option<File> {
    let file = File::open(dir).ok()?;
    flock(&file, FlockOperation::LockExclusive).ok()?;
    Some(file)
}

fn read(dir: &Path) -> Result<Files, AuthorityError> {
    let text = |name: &'static str| -> Result<(&'static str, String), AuthorityError> {
        let path = dir.join(name);
        let text = fs::read_to_string(&path).map_err(io_error(&path))?;
        Ok((name, text))
    };
    warn_of_mode(&dir.join(KEY));
    let pem = AuthorityPem {
        key: text(KEY)?,
        issuer: text(ISSUER)?,
        roots: text(ROOT)?,
        chain: dir.join(CHAIN).exists().then(|| text(CHAIN)).transpose()?,
    };
    pem.parse(dir)
}

/// The texts of an authority, each with the name that an error calls it by.
pub struct AuthorityPem {
    /// The issuing certificate; those after it stand between it and a root.
    pub issuer: (&'static str, String),
    /// Its private key. A secret.
    pub key: (&'static str, String),
    /// What stands between it and a root.
    pub chain: Option<(&'static str, String)>,
    /// The roots that peers shall trust.
    pub roots: (&'static str, String),
}

impl AuthorityPem {
    /// The certificates and the key; errors name them as below `origin`.
    pub(super) fn parse(&self, origin: &Path) -> Result<Files, AuthorityError> {
        let malformed = |name: &str, reason: String| AuthorityError::Malformed {
            path: origin.join(name),
            reason,
        };
        let certificates = |(name, text): &(&'static str, String)| {
            let reason = "it has no PEM block CERTIFICATE, or one that can't be read";
            certificate::from_pem(text).ok_or_else(|| malformed(name, reason.to_owned()))
        };
        let (name, key) = &self.key;
        let key = private_key(key).map_err(|reason| malformed(name, reason.to_owned()))?;
        let roots = certificates(&self.roots)?;
        let mut chain = certificates(&self.issuer)?;
        let issuer = chain.remove(0);
        if let Some(more) = &self.chain {
            chain.extend(certificates(more)?);
        }
        Ok(Files {
            issuer,
            key,
            roots,
            chain,
            names: Names {
                key: self.key.0,
                issuer: self.issuer.0,
                roots: self.roots.0,
            },
        })
    }
}

/// The first private key of a text, whatever stands before it: OpenSSL writes the curve of a
/// key as a block of its own.
fn private_key(text: &str) -> Result<KeyPair, &'static str> {
    let Ok(der) = PrivateKeyDer::from_pem_slice(text.as_bytes()) else {
        return Err(if text.contains("ENCRYPTED") {
            "it is encrypted; give the key without a passphrase, as `openssl pkey` writes it"
        } else {
            "it has no private key: PEM of PKCS #8, PKCS #1 or SEC 1 is expected"
        });
    };
    KeyPair::try_from(&der).map_err(|_unhelpful| {
        "it has a key that can't sign: RSA of 2048 bits or more, ECDSA P-256, P-384 or P-521, or \
         Ed25519 is expected"
    })
}

impl fmt::Debug for AuthorityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityPem")
            .field("issuer", &self.issuer)
            .field("chain", &self.chain)
            .field("roots", &self.roots)
            .field("key", &"[redacted]")
            .finish()
    }
}

fn create(dir: &Path, now: SystemTime) -> Result<(), AuthorityError> {
    let NewRoot { certificate, key } = new_root(now)?;
    write(&dir.join(KEY), 0o600, &key)?;
    write(&dir.join(ROOT), 0o644, &certificate)?;
    write(&dir.join(ISSUER), 0o644, &certificate)?;
    tracing::info!(dir = %dir.display(), "created a self-signed root certificate");
    Ok(())
}

/// A self-signed root that was just made, PEM.
pub struct NewRoot {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS #8. A secret.
    pub key: String,
}

impl fmt::Debug for NewRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRoot")
            .field("certificate", &self.certificate)
            .field("key", &"[redacted]")
            .finish()
    }
}

/// Makes a self-signed root.
pub fn new_root(now: SystemTime) -> Result<NewRoot, AuthorityError> {
    let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
    // Roots of different meshes are told apart by their names.
    let name: u32 = rand::random();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Fairlead");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Fairlead root CA {name:08x}"));
    params.serial_number = Some(random_serial());
    params.not_before = (now - ROOT_BACKDATED).into();
    params.not_after = (now + ROOT_TTL).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).map_err(AuthorityError::Sign)?;
    Ok(NewRoot {
        certificate: root.pem(),
        key: key.serialize_pem(),
    })
}

/// The file appears whole and with its mode, or not at all.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), AuthorityError> {
    let attempt = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    attempt().map_err(io_error(path))
}

/// Says so where others than the owner may read a secret.
pub(crate) fn warn_of_mode(path: &Path) {
    if let Ok(metadata) = fs::metadata(path)
        && metadata.mode() & 0o077 != 0
    {
        let mode = format!("{:04o}", metadata.mode() & 0o7777);
        tracing::warn!(path = %path.display(), mode, "others may read this secret; chmod 600 it");
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    |source| AuthorityError::Io { path, source }
}

/// What tells that a file was replaced or written, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// `None` where there is no such file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// The stamps of all files of an authority's directory.
pub(super) fn stamps(dir: &Path) -> [Option<Stamp>; 4] {
    [ISSUER, KEY, ROOT, CHAIN].map(|name: &str| -> Option<Stamp> {
        let path: PathBuf = dir.join(name);
        Stamp::of(&path)
    })
}
