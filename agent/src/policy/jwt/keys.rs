//! The keys of an issuer (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// More keys in one set are no set of keys.
const MOST_KEYS: usize = 256;

/// Signatures of each kind of key.
const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const SECRET: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// The keys with which an issuer signs.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Key {
    id: Option<String>,
    /// What it may be used with: a public key is never a secret, whatever a token says.
    algorithms: Vec<Algorithm>,
    pub(super) decoding: DecodingKey,
}

/// A text has no key in it that could be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKeySet {
    /// It is no JSON.
    #[error("it is no JSON")]
    Json,
    /// It has no list `keys`, or one that is too long.
    #[error("it has no list of keys")]
    Keys,
    /// None of its keys can check signatures.
    #[error("none of its keys can be used to check signatures")]
    Unusable,
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys that are of no use are left out. Secret ones are too
    /// where everyone could read them (`public`).
    pub fn parse(text: &[u8], public: bool) -> Result<Self, NotAKeySet> {
        let set: Value = serde_json::from_slice(text).map_err(|_invalid| NotAKeySet::Json)?;
        let keys = set.get("keys").and_then(Value::as_array);
        let keys = keys.filter(|keys| keys.len() <= MOST_KEYS);
        let keys = keys.ok_or(NotAKeySet::Keys)?.iter();
        let keys: Vec<Key> = keys.filter_map(|key| Key::read(key, public)).collect();
        if keys.is_empty() {
            return Err(NotAKeySet::Unusable);
        }
        Ok(Self { keys })
    }

    /// The keys that may have made a signature.
    pub(super) fn candidates<'k>(
        &'k self,
        algorithm: Algorithm,
        id: Option<&'k str>,
    ) -> impl Iterator<Item = &'k Key> {
        let named = move |key: &&Key| id.is_none() || key.id.as_deref() == id;
        let keys = self.keys.iter().filter(named);
        keys.filter(move |key| key.algorithms.contains(&algorithm))
    }
}

impl Key {
    fn read(key: &Value, public: bool) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
        let common = &jwk.common;
        let for_signatures = !matches!(&common.public_key_use, Some(PublicKeyUse::Encryption));
        let operations = common.key_operations.as_ref();
        let verifies = operations.is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !for_signatures || !verifies {
            return None;
        }
        let of_kind = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => RSA,
            AlgorithmParameters::EllipticCurve(key) => match key.curve {
                EllipticCurve::P256 => &[Algorithm::ES256],
                EllipticCurve::P384 => &[Algorithm::ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            AlgorithmParameters::OctetKey(_) if !public => SECRET,
            _ => return None,
        };
        let named = key.get("alg").and_then(Value::as_str);
        let allowed = |algorithm: &&Algorithm| {
            named.is_none_or(|named| named.parse().ok() == Some(**algorithm))
        };
        let algorithms: Vec<Algorithm> = of_kind.iter().filter(allowed).copied().collect();
        (!algorithms.is_empty()).then_some(())?;
        Some(Self {
            id: jwk.common.key_id.clone(),
            algorithms,
            decoding: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}
