//! Tokens, good and bad.

use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::fixtures::{NOW, ec_key, ed_key, forge, rsa_key, secret_key, set, sign};
use super::{Claims, JwtError, KeySet, NotAKeySet, Token};
use crate::state::{JwtKeys, JwtProvider};

fn provider() -> JwtProvider {
    JwtProvider {
        clock_skew: Duration::from_mins(1),
        ..JwtProvider::new("https://issuer", JwtKeys::Inline("".into()))
    }
}

/// The key `r` of RSA, `e` of an elliptic curve and `s`, a secret.
fn keys() -> KeySet {
    let keys = [rsa_key("r"), ec_key("e"), ed_key("d"), secret_key("s")];
    KeySet::parse(set(&keys).as_bytes(), false).unwrap()
}

fn claims(more: &Value) -> Value {
    let mut claims = json!({"iss": "https://issuer", "sub": "joe", "exp": NOW + 300});
    for (name, value) in more.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

fn verify_with(token: &str, provider: &JwtProvider, keys: &KeySet) -> Result<Claims, JwtError> {
    Token::parse(token)?.verify(provider, keys, Duration::from_secs(NOW))
}

fn verify(token: &str) -> Result<Claims, JwtError> {
    verify_with(token, &provider(), &keys())
}

#[track_caller]
fn refuse(token: &str, expected: JwtError) {
    assert_eq!(verify(token).unwrap_err(), expected);
}

fn with(more: &Value) -> String {
    sign(Algorithm::ES256, Some("e"), &claims(more))
}

#[test]
fn every_kind_of_key_checks_its_tokens() {
    for (algorithm, key) in [
        (Algorithm::RS256, "r"),
        (Algorithm::PS256, "r"),
        (Algorithm::ES256, "e"),
        (Algorithm::EdDSA, "d"),
        (Algorithm::HS256, "s"),
    ] {
        for id in [Some(key), None] {
            let token = sign(algorithm, id, &claims(&json!({})));
            let claims = verify(&token).unwrap();
            assert_eq!(
                claims.principal(),
                Some("https://issuer/joe"),
                "{algorithm:?}"
            );
        }
    }
}

#[test]
fn a_token_without_a_signature_is_none() {
    let claims = claims(&json!({}));
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let token = forge(&json!({"alg": algorithm}), &claims, b"x");
        refuse(&token, JwtError::Algorithm);
        let unsigned = token.rsplit_once('.').unwrap().0;
        refuse(&format!("{unsigned}."), JwtError::Algorithm);
        assert!(verify(unsigned).is_err());
    }
    let token = sign(Algorithm::RS256, Some("r"), &claims);
    let unsigned = token.rsplit_once('.').unwrap().0;
    refuse(&format!("{unsigned}."), JwtError::Signature);
    refuse(&forge(&json!({}), &claims, b"x"), JwtError::Malformed);
}

#[test]
fn a_public_key_is_no_secret() {
    let public = rsa_key("r")["n"].as_str().unwrap().to_owned();
    let claims = claims(&json!({}));
    for id in [json!("r"), json!("e"), json!("d")] {
        let header = json!({"alg": "HS256", "kid": id});
        refuse(
            &forge(&header, &claims, public.as_bytes()),
            JwtError::UnknownKey,
        );
    }
    // Without a name only the secret is tried, which the forger does not have.
    let header = json!({"alg": "HS256"});
    refuse(
        &forge(&header, &claims, public.as_bytes()),
        JwtError::Signature,
    );
}

#[test]
fn a_token_brings_no_key_of_its_own() {
    let header = json!({"alg": "HS256", "jwk": secret_key("x"), "jku": "http://evil", "kid": "x"});
    refuse(
        &forge(&header, &claims(&json!({})), b"x"),
        JwtError::UnknownKey,
    );
    let header = json!({"alg": "HS256", "crit": ["exp"]});
    refuse(
        &forge(&header, &claims(&json!({})), b"x"),
        JwtError::Critical,
    );
}

#[test]
fn a_key_is_used_for_what_it_is_for() {
    let token = || sign(Algorithm::RS256, Some("r"), &claims(&json!({})));
    let with = |field: &str, value: Value| {
        let mut key = rsa_key("r");
        key[field] = value;
        KeySet::parse(set(&[key, ec_key("e")]).as_bytes(), false).unwrap()
    };
    for (field, value, expected) in [
        ("alg", json!("RS256"), Ok(())),
        ("alg", json!("PS256"), Err(JwtError::UnknownKey)),
        ("alg", json!("ES256"), Err(JwtError::UnknownKey)),
        ("use", json!("sig"), Ok(())),
        ("use", json!("enc"), Err(JwtError::UnknownKey)),
        ("key_ops", json!(["verify"]), Ok(())),
        ("key_ops", json!(["encrypt"]), Err(JwtError::UnknownKey)),
        ("kid", json!("other"), Err(JwtError::UnknownKey)),
    ] {
        let result = verify_with(&token(), &provider(), &with(field, value.clone()));
        assert_eq!(result.map(drop), expected, "{field} {value}");
    }
}

#[test]
fn sets_of_keys() {
    let parse = |text: &str, public| KeySet::parse(text.as_bytes(), public).map(drop);
    assert_eq!(parse("", true), Err(NotAKeySet::Json));
    assert_eq!(parse("[]", true), Err(NotAKeySet::Keys));
    assert_eq!(parse(r#"{"keys": {}}"#, true), Err(NotAKeySet::Keys));
    assert_eq!(parse(r#"{"keys": []}"#, true), Err(NotAKeySet::Unusable));
    assert_eq!(
        parse(&set(&[secret_key("s")]), true),
        Err(NotAKeySet::Unusable)
    );
    assert_eq!(parse(&set(&[secret_key("s")]), false), Ok(()));
    let strange = json!({"kty": "odd", "kid": "x"});
    assert_eq!(
        parse(&set(&[strange.clone(), json!(1)]), true),
        Err(NotAKeySet::Unusable)
    );
    assert_eq!(
        parse(&set(&[strange, json!(1), rsa_key("r")]), true),
        Ok(())
    );
    let many = vec![rsa_key("r"); 257];
    assert_eq!(parse(&set(&many), true), Err(NotAKeySet::Keys));
}

#[test]
fn whoever_changes_a_token_spoils_it() {
    let token = sign(Algorithm::EdDSA, Some("d"), &claims(&json!({})));
    let other = sign(
        Algorithm::EdDSA,
        Some("d"),
        &claims(&json!({"sub": "root"})),
    );
    let (message, _) = other.rsplit_once('.').unwrap();
    let (_, signature) = token.rsplit_once('.').unwrap();
    refuse(&format!("{message}.{signature}"), JwtError::Signature);
    let of_other_key = forge(
        &json!({"alg": "EdDSA", "kid": "d"}),
        &claims(&json!({})),
        b"x",
    );
    refuse(&of_other_key, JwtError::Signature);
    let short = &token[..token.len() - 2];
    refuse(short, JwtError::Signature);
}

#[test]
fn times() {
    let minute = 60;
    refuse(&with(&json!({"exp": NOW - minute})), JwtError::Expired);
    refuse(
        &with(&json!({"nbf": NOW + minute + 1})),
        JwtError::NotYetValid,
    );
    refuse(
        &with(&json!({"iat": NOW + minute + 1})),
        JwtError::NotYetValid,
    );
    refuse(&with(&json!({"exp": "tomorrow"})), JwtError::Malformed);
    refuse(&with(&json!({"exp": null})), JwtError::Malformed);
    refuse(&with(&json!({"exp": -1})), JwtError::Expired);
    for fine in [
        json!({"exp": NOW - minute + 1}),
        json!({"exp": 1e18}),
        json!({"exp": 1_780_000_000.5}),
        json!({"nbf": NOW + minute, "iat": NOW + minute}),
    ] {
        assert_eq!(verify(&with(&fine)).map(drop), Ok(()), "{fine}");
    }
    let mut forever = claims(&json!({}));
    forever.as_object_mut().unwrap().remove("exp");
    let token = sign(Algorithm::ES256, Some("e"), &forever);
    assert_eq!(verify(&token).map(drop), Ok(()));
}

#[test]
fn issuers_and_audiences() {
    refuse(
        &with(&json!({"iss": "https://other"})),
        JwtError::UnknownIssuer,
    );
    refuse(&with(&json!({"iss": null})), JwtError::UnknownIssuer);
    let provider = JwtProvider {
        audiences: vec!["web".into(), "api".into()],
        ..provider()
    };
    for (audience, expected) in [
        (json!("web"), Ok(())),
        (json!(["x", "api"]), Ok(())),
        (json!("WEB"), Err(JwtError::Audience)),
        (json!(["x"]), Err(JwtError::Audience)),
        (json!([]), Err(JwtError::Audience)),
        (json!({"web": "web"}), Err(JwtError::Audience)),
    ] {
        let token = with(&json!({"aud": audience}));
        let result = verify_with(&token, &provider, &keys());
        assert_eq!(result.map(drop), expected, "{audience}");
    }
    let none = verify_with(&with(&json!({})), &provider, &keys());
    assert_eq!(none, Err(JwtError::Audience));
}

#[test]
fn what_is_no_token_is_refused() {
    for text in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "é.é.é",
        "e30.e30.e30",
    ] {
        assert_eq!(verify(text), Err(JwtError::Malformed), "{text}");
    }
    let huge = with(&json!({"padding": "x".repeat(20_000)}));
    refuse(&huge, JwtError::TooLarge);
    let padded = with(&json!({})).replacen('.', "=.", 1);
    refuse(&padded, JwtError::Malformed);
}

#[test]
fn noise_is_never_a_token() {
    let token = with(&json!({"aud": "web"}));
    let mut seed = 11_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    let letters = b"ABCdef012-_.=";
    for _ in 0..5_000 {
        let mut bytes = token.clone().into_bytes();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            let letter = letters[random(letters.len())];
            // The last letter carries bits that nobody reads.
            if at + 1 < bytes.len() {
                bytes[at] = letter;
            }
        }
        let text = String::from_utf8(bytes).unwrap();
        if text != token {
            assert!(verify(&text).is_err(), "{text}");
        }
    }
}
