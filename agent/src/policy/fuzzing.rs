//! Tokens of end users and the keys of their issuers.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

use super::jwt::{Claims, JwtError, KeySet, Token};
use crate::state::{JwtKeys, JwtProvider};

/// What the issuer has signed, with the keys of [`KEYS`]: all that is ever valid.
const SIGNED: [&str; 3] = [
    include_str!("../../../fuzz/seeds/jwt/rs256"),
    include_str!("../../../fuzz/seeds/jwt/es256"),
    include_str!("../../../fuzz/seeds/jwt/eddsa"),
];

/// The keys of the issuer, public as they are.
const KEYS: &[u8] = include_bytes!("../../../fuzz/seeds/key_set/three_kinds");

/// 2026, in seconds since 1970.
const NOW: Duration = Duration::from_secs(1_780_000_000);

fn provider() -> JwtProvider {
    JwtProvider {
        audiences: vec!["shop".into()],
        ..JwtProvider::new("https://issuer", JwtKeys::Inline("".into()))
    }
}

fn verify(text: &str, keys: &KeySet) -> Result<Claims, JwtError> {
    Token::parse(text)?.verify(&provider(), keys, NOW)
}

/// Nothing is valid but what the issuer has signed.
pub(crate) fn jwt(data: &[u8]) {
    static SET: LazyLock<KeySet> =
        LazyLock::new(|| KeySet::parse(KEYS, true).expect("a set of keys"));
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let verified = verify(text, &SET);
    let message = |token: &str| {
        token
            .rsplit_once('.')
            .map(|(message, _)| message.to_owned())
    };
    let signed = SIGNED.iter().any(|known| message(known) == message(text));
    match verified {
        Ok(claims) => {
            assert!(signed, "nobody has signed {text}");
            assert_eq!(claims.principal(), Some("https://issuer/joe"));
        }
        Err(error) => {
            let is_known = SIGNED.contains(&text);
            assert!(!is_known, "a token of the issuer is refused: {error}");
        }
    }
}

/// A set of keys that everyone can read has no secrets in it, and what the issuer has
/// signed is valid only by the issuer's own keys.
pub(crate) fn key_set(data: &[u8]) {
    let Ok(keys) = KeySet::parse(data, true) else {
        return;
    };
    let all = numbers(data);
    assert!(all.iter().any(|key| key.kind != "oct"), "a secret is a key");
    let own = numbers(KEYS);
    for token in SIGNED {
        if verify(token, &keys).is_ok() {
            let known = all.iter().any(|key| own.contains(key));
            assert!(known, "{token} is valid by the keys of somebody else");
        }
    }
}

/// What makes a key that one.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    kind: String,
    /// The modulus, or a point on the curve.
    first: Option<String>,
}

fn numbers(set: &[u8]) -> Vec<Numbers> {
    let set: Value = serde_json::from_slice(set).expect("it was read before");
    let keys = set["keys"].as_array().expect("it was read before").iter();
    let text = |key: &Value, name: &str| key[name].as_str().map(str::to_owned);
    keys.filter_map(|key| {
        Some(Numbers {
            kind: text(key, "kty")?,
            first: text(key, "n").or_else(|| text(key, "x")),
        })
    })
    .collect()
}
