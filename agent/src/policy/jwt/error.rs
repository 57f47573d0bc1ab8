//! Why a token is not valid.

/// Why a token is not valid. Its words go to clients, and tell nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is not three parts of base64 with JSON in the first two.
    #[error("malformed")]
    Malformed,
    /// It is longer than any token should be.
    #[error("too large")]
    TooLarge,
    /// Nobody whose tokens are taken issues it.
    #[error("issuer unknown")]
    UnknownIssuer,
    /// None of the signatures that are understood, such as `none`.
    #[error("algorithm not supported")]
    Algorithm,
    /// It asks for what is not understood (`crit`).
    #[error("critical extension not supported")]
    Critical,
    /// Its issuer has no key of this name and kind.
    #[error("key unknown")]
    UnknownKey,
    /// The keys of its issuer were never fetched.
    #[error("keys of the issuer not available")]
    NoKeys,
    /// Someone else made it, or it was changed.
    #[error("signature wrong")]
    Signature,
    /// Its time is over.
    #[error("expired")]
    Expired,
    /// Its time is still to come.
    #[error("not valid yet")]
    NotYetValid,
    /// It is for somebody else.
    #[error("audience wrong")]
    Audience,
}
