//! Where certificates come from: an authority in this process, or a CA over gRPC.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;

use super::certificate;
use super::error::FetchError;
use super::follow::AuthorityDir;
use super::request::{SignRequest, VerifiedRequest};

/// A chain as the CA answered. Not verified.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    /// The leaf, then its issuers.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// What the leaf is to be verified against, and every peer's too.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Signed {
    /// From the CA protocol's list: leaf, issuers, and last the roots, which some CAs give
    /// as one text and istiod as one text for each.
    pub(super) fn from_pem_list(list: &[String]) -> Result<Self, FetchError> {
        let malformed = |reason| FetchError::Malformed { reason };
        let (roots, rest) = list.split_last().ok_or(malformed("it is empty"))?;
        if rest.is_empty() {
            return Err(malformed("it has one element, not leaf and root"));
        }
        let parse = |text: &String| certificate::from_pem(text);
        let unreadable = "an element is no PEM certificate";
        let roots = parse(roots).ok_or(malformed(unreadable))?;
        let rest: Option<Vec<_>> = rest.iter().map(parse).collect();
        let mut chain: Vec<_> = rest.ok_or(malformed(unreadable))?.concat();
        let issuers = chain.split_off(1);
        let (mut own, issuers): (Vec<_>, Vec<_>) =
            issuers.into_iter().partition(certificate::is_root);
        chain.extend(issuers);
        own.extend(roots);
        Ok(Self { chain, roots: own })
    }
}

/// What a look at the CA's files found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing new.
    Unchanged,
    /// Another authority signs, and these are the roots from now on: certificates are to
    /// be renewed.
    Authority(Vec<CertificateDer<'static>>),
    /// The CA's root file has these now. Whether they are the mesh's, or only for the
    /// CA's own TLS, is for [`super::bundle::Bundle`] to tell.
    RootFile(Vec<CertificateDer<'static>>),
}

pub(super) type SignFuture = Pin<Box<dyn Future<Output = Result<Signed, FetchError>> + Send>>;

/// A certificate authority, from its client's side.
pub(super) trait Ca: Send + Sync + fmt::Debug {
    /// Asks for one certificate. The future may be dropped at any time.
    fn sign(&self, request: SignRequest) -> SignFuture;

    /// Looks, without waiting, whether what is known of the CA changed.
    fn look(&self) -> Change;

    /// Nothing is being fetched: connections may be closed.
    fn idle(&self) {}
}

/// `--ca dir:PATH`: the authority in this process.
#[derive(Debug)]
pub(super) struct LocalCa(Mutex<AuthorityDir>);

impl LocalCa {
    pub(super) fn new(authority: AuthorityDir) -> Self {
        Self(Mutex::new(authority))
    }
}

impl Ca for LocalCa {
    fn sign(&self, request: SignRequest) -> SignFuture {
        let authority = {
            let directory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(directory.current())
        };
        Box::pin(async move {
            let SignRequest { id, csr, ttl } = request;
            let issued = VerifiedRequest::from_pem(&csr)
                .map_err(Into::into)
                .and_then(|csr| authority.sign(&id, &csr, ttl))
                .map_err(FetchError::Authority)?;
            Ok(Signed {
                chain: issued.chain,
                roots: issued.roots,
            })
        })
    }

    fn look(&self) -> Change {
        let mut directory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if directory.refresh() {
            Change::Authority(directory.current().roots().to_vec())
        } else {
            Change::Unchanged
        }
    }
}

/// The content of a small file, or an error that names it.
pub(super) fn read(path: &PathBuf) -> Result<String, FetchError> {
    std::fs::read_to_string(path).map_err(|error| FetchError::File {
        path: path.clone(),
        reason: error.to_string(),
    })
}
