//! What the Secret says, and what it says in the next phase of a rotation. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;

use crate::cluster::kube::SecretObject;
use crate::identity::{
    Authority, AuthorityError, AuthorityPem, Clock, NewRoot, certificates_from_pem,
    certificates_to_pem, is_root, new_root,
};
use crate::model::NamespacedName;

const ISSUER: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";
const CHAIN: &str = "cert-chain.pem";
const ROOTS: &str = "root-cert.pem";
/// As cert-manager names them.
const MANAGER_ISSUER: &str = "tls.crt";
const MANAGER_KEY: &str = "tls.key";
const MANAGER_ROOTS: &str = "ca.crt";
/// Of a root that signs later.
const NEXT: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
/// Of the root that signed before.
const PREVIOUS: &str = "previous-cert.pem";

/// The root is the CA's own, and when it is replaced: `automatic` or `on-request`.
const MODE: &str = "fairlead.dev/rotation";
/// Any new value asks for a rotation.
const REQUEST: &str = "fairlead.dev/rotate";
/// The last value of [`REQUEST`] that was heard.
const HEARD: &str = "fairlead.dev/rotate-heard";
/// When the bundle got the next root.
const PUBLISHED: &str = "fairlead.dev/next-root-published";
/// When the next root began to sign.
const SWITCHED: &str = "fairlead.dev/root-switched";

/// Why the Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    #[error(
        "Secret {name}: missing {missing}; it needs ca-cert.pem, ca-key.pem and root-cert.pem, \
         or tls.crt, tls.key and ca.crt (the last of which may be left out where the \
         certificate is self-signed)"
    )]
    Incomplete {
        name: NamespacedName,
        missing: String,
    },
    #[error("Secret {name}: it has both ca-cert.pem and tls.crt; remove the keys of one form")]
    Ambiguous { name: NamespacedName },
    #[error("Secret {name}: {key} is not text: PEM is expected")]
    NotText {
        name: NamespacedName,
        key: &'static str,
    },
    #[error("Secret {name}: annotation {annotation}: {value:?} is not {expected}")]
    Annotation {
        name: NamespacedName,
        annotation: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("Secret {0}")]
    Authority(AuthorityError),
}

/// What the Secret says.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) authority: Arc<Authority>,
    /// `None`: the root is somebody else's, who replaces it.
    pub(super) rotation: Option<Rotation>,
    pub(super) object: SecretObject,
}

/// How far a root of our own is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rotation {
    /// It is replaced before it ends, without being asked.
    pub(super) automatic: bool,
    /// It was asked for, and not heard yet.
    pub(super) requested: bool,
    pub(super) phase: Phase,
}

/// The phases of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// One root.
    Steady,
    /// The next one is there, and since then in the bundle.
    Announced { published: Option<SystemTime> },
    /// It signs since then; the one before is trusted still.
    Switched { at: SystemTime },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("steady"),
            Self::Announced { published: None } => f.write_str("announced"),
            Self::Announced {
                published: Some(at),
            } => write!(f, "announced, published {}", written(*at)),
            Self::Switched { at } => write!(f, "switched {}", written(*at)),
        }
    }
}

impl Content {
    /// Reads the Secret.
    pub(super) fn parse(
        name: &NamespacedName,
        object: SecretObject,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, ContentError> {
        let reader = Reader {
            name,
            object: &object,
        };
        let pem = reader.authority()?;
        let rotation = reader.rotation()?;
        let origin = PathBuf::from(name.to_string());
        let authority = Authority::from_pem(&origin, &pem, Arc::clone(clock))
            .map_err(ContentError::Authority)?;
        Ok(Self {
            authority: Arc::new(authority),
            rotation,
            object,
        })
    }

    /// A new Secret with a new root.
    pub(super) fn create(
        name: &NamespacedName,
        now: SystemTime,
    ) -> Result<SecretObject, AuthorityError> {
        let NewRoot { certificate, key } = new_root(now)?;
        let mut object = SecretObject::new(name);
        object.set_value(KEY, Some(key.into_bytes()));
        object.set_value(ISSUER, Some(certificate.clone().into_bytes()));
        object.set_value(ROOTS, Some(certificate.into_bytes()));
        object.set_annotation(MODE, Some("automatic".to_owned()));
        Ok(object)
    }

    /// The Secret with a next root in its bundle. The request is heard.
    pub(super) fn announced(&self, now: SystemTime) -> Result<SecretObject, AuthorityError> {
        let NewRoot { certificate, key } = new_root(now)?;
        let mut object = self.object.clone();
        let mut roots = self.authority.roots_pem();
        roots.push_str(&certificate);
        object.set_value(ROOTS, Some(roots.into_bytes()));
        object.set_value(NEXT, Some(certificate.into_bytes()));
        object.set_value(NEXT_KEY, Some(key.into_bytes()));
        object.set_annotation(PUBLISHED, None);
        let request = object.annotation(REQUEST).map(str::to_owned);
        object.set_annotation(HEARD, request);
        Ok(object)
    }

    /// The Secret with the moment from which the overlap counts.
    pub(super) fn confirmed(&self, now: SystemTime) -> SecretObject {
        let mut object = self.object.clone();
        object.set_annotation(PUBLISHED, Some(written(now)));
        object
    }

    /// The Secret with the next root as the one that signs.
    pub(super) fn switched(&self, now: SystemTime) -> SecretObject {
        let mut object = self.object.clone();
        let value = |key: &str| self.object.value(key).map(<[u8]>::to_vec);
        object.set_value(PREVIOUS, value(ISSUER));
        object.set_value(ISSUER, value(NEXT));
        object.set_value(KEY, value(NEXT_KEY));
        object.set_value(CHAIN, None);
        object.set_value(NEXT, None);
        object.set_value(NEXT_KEY, None);
        object.set_annotation(PUBLISHED, None);
        object.set_annotation(SWITCHED, Some(written(now)));
        object
    }

    /// The Secret with another moment of the switch, where that lay in the future.
    pub(super) fn switched_again(&self, now: SystemTime) -> SecretObject {
        let mut object = self.object.clone();
        object.set_annotation(SWITCHED, Some(written(now)));
        object
    }

    /// The Secret without the root that signed before.
    pub(super) fn retired(&self) -> SecretObject {
        let mut object = self.object.clone();
        let previous = self.object.value(PREVIOUS).and_then(text);
        let previous = previous.and_then(certificates_from_pem).unwrap_or_default();
        let mut roots = self.authority.roots().to_vec();
        roots.retain(|root| !previous.contains(root));
        object.set_value(ROOTS, Some(certificates_to_pem(&roots).into_bytes()));
        object.set_value(PREVIOUS, None);
        object.set_annotation(SWITCHED, None);
        object
    }
}

/// To the second: for people to read.
fn written(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

struct Reader<'a> {
    name: &'a NamespacedName,
    object: &'a SecretObject,
}

impl Reader<'_> {
    fn has(&self, key: &str) -> bool {
        self.object
            .value(key)
            .is_some_and(|value| !value.is_empty())
    }

    fn text(&self, key: &'static str) -> Result<(&'static str, String), ContentError> {
        let value = self.object.value(key).unwrap_or_default();
        let text = text(value).ok_or_else(|| ContentError::NotText {
            name: self.name.clone(),
            key,
        })?;
        Ok((key, text.to_owned()))
    }

    fn authority(&self) -> Result<AuthorityPem, ContentError> {
        let istio = [ISSUER, KEY, ROOTS];
        let manager = [MANAGER_ISSUER, MANAGER_KEY, MANAGER_ROOTS];
        let any = |keys: [&str; 3]| keys.iter().any(|key| self.has(key));
        let keys = match (any(istio), any(manager)) {
            (true, true) => {
                let name = self.name.clone();
                return Err(ContentError::Ambiguous { name });
            }
            (false, true) => manager,
            (_, false) => istio,
        };
        let missing = keys.iter().filter(|key| !self.has(key));
        let missing: Vec<_> = missing.copied().collect();
        let [issuer, key, roots] = keys;
        // As in Istio's own Secret, and where an issuer of cert-manager tells of no CA. Of one
        // that is rotated here somebody has taken them away: there may have been a next one.
        let is_rotated = self.object.annotation(MODE).is_some();
        let own_root = match missing[..] {
            [only] if only == roots && !is_rotated => self.self_signed(issuer)?,
            _ => None,
        };
        if !missing.is_empty() && own_root.is_none() {
            return Err(ContentError::Incomplete {
                name: self.name.clone(),
                missing: missing.join(", "),
            });
        }
        let chain = keys == istio && self.has(CHAIN);
        Ok(AuthorityPem {
            issuer: self.text(issuer)?,
            key: self.text(key)?,
            roots: own_root.map_or_else(|| self.text(roots), Ok)?,
            chain: chain.then(|| self.text(CHAIN)).transpose()?,
        })
    }

    /// The certificate of a key as its own root, where it is one.
    fn self_signed(
        &self,
        key: &'static str,
    ) -> Result<Option<(&'static str, String)>, ContentError> {
        let certificates = certificates_from_pem(&self.text(key)?.1).unwrap_or_default();
        let own = certificates.first().filter(|first| is_root(first));
        let own = own.map(|own| certificates_to_pem(std::slice::from_ref(own)));
        Ok(own.map(|pem| (key, pem)))
    }

    fn rotation(&self) -> Result<Option<Rotation>, ContentError> {
        let automatic = match self.object.annotation(MODE) {
            None => return Ok(None),
            Some("automatic") => true,
            Some("on-request") => false,
            Some(_) => return Err(self.wrong(MODE, "automatic or on-request")),
        };
        let phase = if self.has(NEXT) && self.has(NEXT_KEY) {
            let published = self.time(PUBLISHED)?;
            Phase::Announced { published }
        } else if self.has(PREVIOUS) {
            // Where somebody removed the moment, it counts from now on.
            let at = self.time(SWITCHED)?;
            let at = at.unwrap_or(SystemTime::UNIX_EPOCH + std::time::Duration::MAX / 4);
            Phase::Switched { at }
        } else {
            Phase::Steady
        };
        let request = self.object.annotation(REQUEST);
        Ok(Some(Rotation {
            automatic,
            requested: request.is_some() && request != self.object.annotation(HEARD),
            phase,
        }))
    }

    fn time(&self, annotation: &'static str) -> Result<Option<SystemTime>, ContentError> {
        let Some(value) = self.object.annotation(annotation) else {
            return Ok(None);
        };
        let time = Timestamp::from_str(value);
        let time = time
            .map_err(|_unhelpful| self.wrong(annotation, "a time such as 2026-01-31T12:00:00Z"))?;
        Ok(Some(time.into()))
    }

    fn wrong(&self, annotation: &'static str, expected: &'static str) -> ContentError {
        ContentError::Annotation {
            name: self.name.clone(),
            annotation,
            value: self
                .object
                .annotation(annotation)
                .unwrap_or_default()
                .to_owned(),
            expected,
        }
    }
}
