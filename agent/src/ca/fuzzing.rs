//! Requests of the nodes.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use prost::Message as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::service::impersonated;
use crate::identity::generated::IstioCertificateRequest;
use crate::identity::{
    Authority, AuthorityPem, Clock as _, Leaf, NewRoot, SystemClock, VerifiedRequest, new_root,
};

/// The life that is asked for.
const TTL: Duration = Duration::from_mins(10);

/// Whatever a node sends, a certificate has the identity that was decided on, and is no
/// authority.
pub(crate) fn authority(data: &[u8]) {
    static AUTHORITY: LazyLock<Authority> = LazyLock::new(authority_of_its_own);
    let Ok(request) = IstioCertificateRequest::decode(data) else {
        return;
    };
    let Ok(id) = impersonated(&request) else {
        return;
    };
    let Ok(verified) = VerifiedRequest::from_pem(&request.csr) else {
        return;
    };
    let Ok(issued) = AUTHORITY.sign(&id, &verified, TTL) else {
        return;
    };
    let leaf = Leaf::parse(&issued.chain[0]).expect("what was signed has one identity");
    assert_eq!(leaf.id, id);
    let (_, parsed) = X509Certificate::from_der(&issued.chain[0]).expect("it was parsed");
    assert!(!parsed.is_ca());
    assert!(leaf.not_after <= SystemClock.now() + TTL);
}

fn authority_of_its_own() -> Authority {
    let NewRoot { certificate, key } = new_root(SystemClock.now()).expect("a root");
    let pem = AuthorityPem {
        issuer: ("ca-cert.pem", certificate.clone()),
        key: ("ca-key.pem", key),
        chain: None,
        roots: ("root-cert.pem", certificate),
    };
    Authority::from_pem(Path::new("memory"), &pem, Arc::new(SystemClock)).expect("an authority")
}
