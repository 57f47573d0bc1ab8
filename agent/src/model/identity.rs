//! Workload identities: SPIFFE ids of the one form that the mesh knows.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The trust domain of a mesh, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrustDomain(pub Arc<str>);

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The mesh that vouches for the identity.
    pub trust_domain: TrustDomain,
    /// The namespace of the service account.
    pub namespace: Arc<str>,
    /// The service account.
    pub service_account: Arc<str>,
}

/// Why a string is not a [`SpiffeId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
pub struct SpiffeIdError(pub String);

impl SpiffeId {
    /// The identity of a service account.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain,
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        parse(uri).ok_or_else(|| SpiffeIdError(uri.to_owned()))
    }
}

fn parse(uri: &str) -> Option<SpiffeId> {
    let mut parts = uri.strip_prefix("spiffe://")?.split('/');
    let trust_domain = segment(parts.next()?)?;
    (parts.next()? == "ns").then_some(())?;
    let namespace = segment(parts.next()?)?;
    (parts.next()? == "sa").then_some(())?;
    let service_account = segment(parts.next()?)?;
    parts
        .next()
        .is_none()
        .then(|| SpiffeId::new(TrustDomain(trust_domain.into()), namespace, service_account))
}

/// A segment of only the characters that SPIFFE allows: no escapes, no empty
/// segment and no dot segment, so that two spellings of one identity can't exist.
fn segment(text: &str) -> Option<&str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let dots = text == "." || text == "..";
    (!text.is_empty() && !dots && text.bytes().all(allowed)).then_some(text)
}

impl Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::SpiffeId;

    #[track_caller]
    fn refuses(uri: &str) {
        assert!(uri.parse::<SpiffeId>().is_err(), "{uri} was taken");
    }

    #[test]
    fn round_trips() {
        let uri = "spiffe://cluster.local/ns/shop/sa/cart";
        let id: SpiffeId = uri.parse().unwrap();
        assert_eq!(&*id.namespace, "shop");
        assert_eq!(&*id.service_account, "cart");
        assert_eq!(id.to_string(), uri);
    }

    #[test]
    fn refuses_other_forms() {
        refuses("");
        refuses("spiffe://");
        refuses("https://cluster.local/ns/a/sa/b");
        refuses("spiffe://cluster.local/ns/a");
        refuses("spiffe://cluster.local/ns/a/sa/");
        refuses("spiffe://cluster.local/ns//sa/b");
        refuses("spiffe://cluster.local/ns/a/sa/b/c");
        refuses("spiffe://cluster.local/ns/a/sa/b/");
        refuses("spiffe://cluster.local/ns/../sa/b");
        refuses("spiffe://cluster.local/ns/a%2fb/sa/c");
        refuses("spiffe://cluster.local/ns/a/sa/b?x");
        refuses("SPIFFE://cluster.local/ns/a/sa/b");
    }
}
