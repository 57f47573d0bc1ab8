//! Tokens of end users in requests: where they are, whose they are, and what becomes of
//! them.
//!
//! In: the head of a request and the issuers of its destination. Out: what its token says,
//! or why the request is refused. Whether a token is valid [`crate::policy`] decides; here
//! is what that needs: keys, fetched and kept ([`Keys`]), and a clock.

pub(super) mod extract;
mod fetch;
mod keys;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::request::Parts;
use http::{HeaderName, HeaderValue};

pub(in crate::proxy::http) use self::extract::set_path;
use self::extract::{remove, tokens};
pub(in crate::proxy) use self::fetch::Via;
pub(in crate::proxy) use self::keys::Keys;
use crate::policy::{Claims, JwtError, Token};
use crate::state::JwtProvider;

/// The token of a request, verified.
#[derive(Debug)]
pub(super) struct EndUser {
    /// What it says.
    pub(super) claims: Claims,
    provider: Arc<JwtProvider>,
}

/// Verifies every token that a request carries. Of several the one counts whose issuer is
/// named first.
pub(super) async fn authenticate(
    parts: &Parts,
    providers: &[Arc<JwtProvider>],
    keys: &Keys,
    via: &Via,
) -> Result<Option<EndUser>, JwtError> {
    let mut best: Option<(usize, EndUser)> = None;
    for found in tokens(parts, providers)? {
        let mut token = Token::parse(&found.text)?;
        let issuer = token.issuer().ok_or(JwtError::UnknownIssuer)?;
        let carries =
            |provider: &JwtProvider| *provider.issuer == *issuer && found.place.is_of(provider);
        let position = providers.iter().position(|provider| carries(provider));
        let position = position.ok_or(JwtError::UnknownIssuer)?;
        let provider = Arc::clone(&providers[position]);
        let claims = keys.verify(&provider, &mut token, via).await?;
        if best.as_ref().is_none_or(|(first, _)| position < *first) {
            best = Some((position, EndUser { claims, provider }));
        }
    }
    Ok(best.map(|(_, user)| user))
}

/// Makes the head what the application gets: headers that claims become are nobody else's
/// to send, and tokens that are not to be forwarded end here.
pub(super) fn rewrite(parts: &mut Parts, providers: &[Arc<JwtProvider>], user: Option<&EndUser>) {
    let outputs = providers
        .iter()
        .flat_map(|provider| &provider.output_claims);
    for output in outputs {
        remove_alike(parts, &output.header);
    }
    if let Some(user) = user {
        for output in &user.provider.output_claims {
            let name = HeaderName::from_bytes(output.header.as_bytes());
            let value = user.claims.header(&output.claim).map(HeaderValue::try_from);
            if let (Ok(name), Some(Ok(value))) = (name, value) {
                let _before = parts.headers.insert(name, value);
            }
        }
    }
    for provider in providers.iter().filter(|provider| !provider.forward) {
        remove(parts, provider);
    }
}

/// Removes a header and those that servers which know no `-` in names take for it.
fn remove_alike(parts: &mut Parts, name: &str) {
    let folded = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let alike = |other: &&HeaderName| {
        let other = other.as_str().bytes().map(folded);
        other.eq(name.bytes().map(folded))
    };
    let names: Vec<HeaderName> = parts.headers.keys().filter(alike).cloned().collect();
    for name in names {
        let _value = parts.headers.remove(name);
    }
}

/// Since 1970, by this node's clock.
pub(super) fn since_1970() -> std::time::Duration {
    // Before 1970 every token is from the future, and so refused.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
