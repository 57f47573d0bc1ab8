//! Who issues tokens to end users, and where requests carry them.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// An issuer of tokens that a MeshPolicy names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JwtProvider {
    /// What its tokens have as `iss`.
    pub issuer: Arc<str>,
    /// Any of these must be in `aud`; none: any audience.
    pub audiences: Vec<Arc<str>>,
    /// Its keys.
    pub keys: JwtKeys,
    /// Headers that carry its tokens.
    pub from_headers: Vec<TokenHeader>,
    /// Query parameters that carry its tokens.
    pub from_params: Vec<Arc<str>>,
    /// Cookies that carry its tokens.
    pub from_cookies: Vec<Arc<str>>,
    /// The token is left in the request.
    pub forward: bool,
    /// Claims that the application gets as headers.
    pub output_claims: Vec<ClaimHeader>,
    /// How far the clock of the issuer may be off.
    pub clock_skew: Duration,
}

impl JwtProvider {
    /// An issuer whose tokens are for anybody, and are looked for nowhere as yet.
    pub fn new(issuer: &str, keys: JwtKeys) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            keys,
            from_headers: Vec::new(),
            from_params: Vec::new(),
            from_cookies: Vec::new(),
            forward: false,
            output_claims: Vec::new(),
            clock_skew: Duration::ZERO,
        }
    }
}

/// The keys of a [`JwtProvider`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum JwtKeys {
    /// A JSON Web Key Set (RFC 7517), as text.
    Inline(Arc<str>),
    /// Where there is one, over HTTP or HTTPS.
    Uri(Arc<str>),
}

/// A header that carries a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TokenHeader {
    /// Its name, in lower case.
    pub name: Arc<str>,
    /// What stands before the token, such as `Bearer `.
    pub prefix: Arc<str>,
}

/// A claim that becomes a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ClaimHeader {
    /// The header's name, in lower case.
    pub header: Arc<str>,
    /// The names from the outermost claim to the one that is meant.
    pub claim: Vec<Arc<str>>,
}
