//! One token (RFC 7519), in the compact form of RFC 7515.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, crypto};
use serde_json::{Map, Value};

use super::claims::Claims;
use super::error::JwtError;
use super::keys::KeySet;
use crate::state::JwtProvider;

/// Longer tokens would not fit where headers go anyway.
const LARGEST: usize = 16 << 10;

/// A token as it was sent, of which nothing is believed yet.
#[derive(Debug)]
pub struct Token<'t> {
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
    /// What is signed.
    message: &'t str,
    signature: &'t str,
}

impl<'t> Token<'t> {
    /// Takes a token apart.
    pub fn parse(token: &'t str) -> Result<Self, JwtError> {
        if token.len() > LARGEST {
            return Err(JwtError::TooLarge);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(JwtError::Malformed)?;
        if payload.contains('.') {
            return Err(JwtError::Malformed);
        }
        let header = object(header)?;
        if header.contains_key("crit") {
            return Err(JwtError::Critical);
        }
        let algorithm = header.get("alg").and_then(Value::as_str);
        let algorithm = algorithm.ok_or(JwtError::Malformed)?;
        let algorithm = algorithm.parse().map_err(|_invalid| JwtError::Algorithm)?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(JwtError::Malformed),
        };
        Ok(Self {
            algorithm,
            key_id,
            claims: object(payload)?,
            message,
            signature,
        })
    }

    /// Who it says has issued it. Good for nothing but to know whose keys to try.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Checks it against its issuer's keys, and that it is valid at this time since 1970.
    /// What is verified is handed out once.
    pub fn verify(
        &mut self,
        provider: &JwtProvider,
        keys: &KeySet,
        now: Duration,
    ) -> Result<Claims, JwtError> {
        if self.issuer() != Some(&*provider.issuer) {
            return Err(JwtError::UnknownIssuer);
        }
        self.check_signature(keys)?;
        self.check_times(now.as_secs_f64(), provider.clock_skew.as_secs_f64())?;
        self.check_audience(provider)?;
        Ok(Claims::new(std::mem::take(&mut self.claims)))
    }

    fn check_signature(&self, keys: &KeySet) -> Result<(), JwtError> {
        let mut error = JwtError::UnknownKey;
        for key in keys.candidates(self.algorithm, self.key_id.as_deref()) {
            let message = self.message.as_bytes();
            let right = crypto::verify(self.signature, message, &key.decoding, self.algorithm);
            if right.unwrap_or(false) {
                return Ok(());
            }
            error = JwtError::Signature;
        }
        Err(error)
    }

    fn check_times(&self, now: f64, skew: f64) -> Result<(), JwtError> {
        if self.time("exp")?.is_some_and(|end| now >= end + skew) {
            return Err(JwtError::Expired);
        }
        for name in ["nbf", "iat"] {
            if self.time(name)?.is_some_and(|begin| now < begin - skew) {
                return Err(JwtError::NotYetValid);
            }
        }
        Ok(())
    }

    /// A time since 1970; one that is no number is an error rather than none.
    fn time(&self, name: &str) -> Result<Option<f64>, JwtError> {
        match self.claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(JwtError::Malformed),
        }
    }

    fn check_audience(&self, provider: &JwtProvider) -> Result<(), JwtError> {
        let wanted = |audience: &Value| {
            let audience = audience.as_str();
            let mut wanted = provider.audiences.iter();
            wanted.any(|wanted| audience == Some(&**wanted))
        };
        let fits = match self.claims.get("aud") {
            _ if provider.audiences.is_empty() => true,
            Some(Value::Array(audiences)) => audiences.iter().any(wanted),
            Some(audience) => wanted(audience),
            None => false,
        };
        fits.then_some(()).ok_or(JwtError::Audience)
    }
}

/// The object in one part of a token.
fn object(part: &str) -> Result<Map<String, Value>, JwtError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_invalid| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_invalid| JwtError::Malformed)
}
