//! Why there is no certificate.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use super::authority::AuthorityError;
use super::certificate::PeerError;
use super::credentials::tls_error;
use crate::model::SpiffeId;

/// Why one request to the CA failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer: nobody listens, the network is down, TLS failed, the CA is starting.
    #[error("the CA at {address} can't be reached: {reason}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What happened.
        reason: String,
    },
    /// No answer in time.
    #[error("the CA did not answer within {}s", timeout.as_secs())]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The CA answered that it does not sign this.
    #[error("the CA refused ({code}): {message}{}", self.remedy())]
    Refused {
        /// The gRPC status.
        code: Code,
        /// What it says.
        message: String,
    },
    /// The node's token, or the root of the CA's own TLS, can't be read.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The authority of `--ca dir:` does not sign.
    #[error(transparent)]
    Authority(AuthorityError),
    /// The signing request could not be made.
    #[error("the signing request could not be made: {0}")]
    Request(rcgen::Error),
    /// The answer has no chain of leaf, issuers and root.
    #[error("the CA's answer can't be parsed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// The certificate is for nobody, or not a workload's.
    #[error("the CA's certificate can't be used: {0}")]
    Identity(PeerError),
    /// The certificate is not what was asked for.
    #[error("the CA's certificate can't be used: {reason}")]
    Unusable {
        /// What is wrong.
        reason: String,
    },
    /// TLS does not take the chain, or it does not lead to the CA's root.
    #[error("the CA's certificate can't be used: {}", tls_error(.0))]
    Chain(rustls::Error),
}

impl FetchError {
    /// It would have failed for any identity: nobody was there to answer, or there is no
    /// token to show.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::File { .. } => true,
            Self::Refused { code, .. } => *code == Code::Unavailable,
            Self::Authority(_)
            | Self::Request(_)
            | Self::Malformed { .. }
            | Self::Identity(_)
            | Self::Unusable { .. }
            | Self::Chain(_) => false,
        }
    }
}

impl FetchError {
    /// The CA does not know who asks, or does not let it ask for this.
    pub(super) fn is_of_caller(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: Code::Unauthenticated,
                ..
            }
        )
    }

    /// What there is to do about it, with what is before it; empty where there is nothing to
    /// say. Istio's CAs tell a caller no more than these words, and their log the rest.
    fn remedy(&self) -> &'static str {
        let Self::Refused { message, .. } = self else {
            return "";
        };
        if message.contains("request impersonation authentication failure") {
            "; istiod signs for the pods of the agent's node only, where CA_TRUSTED_NODE_ACCOUNTS \
             names the agent's service account and --cluster-id is its own: its log says which"
        } else if message.contains("request authenticate failure") {
            "; the token of --ca-token-file must be valid, and for the audience that the CA \
             expects (istio-ca), --cluster-id must be its own, and of istio-csr \
             --ca-trusted-node-accounts must name the agent's service account: its log says which"
        } else {
            ""
        }
    }
}

/// Why there are no credentials for a workload.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IdentityError {
    /// No enrolled pod of this node has the identity.
    #[error("{id} is the identity of no enrolled pod of this node")]
    NotWanted {
        /// The identity.
        id: SpiffeId,
    },
    /// There is no certificate that is valid now, and getting one failed.
    #[error("no valid certificate for {id}: {source}")]
    Failed {
        /// The identity.
        id: SpiffeId,
        /// What the last attempt ran into. Displayed by this error too, which ends up
        /// in flow records alone.
        source: Arc<FetchError>,
    },
    /// The first answer is still being waited for.
    #[error("no certificate for {id} yet: the CA has not answered")]
    Pending {
        /// The identity.
        id: SpiffeId,
    },
    /// The agent is shutting down.
    #[error("the certificate manager has stopped")]
    Stopped,
}

/// Why the certificate manager can't be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory of `--ca dir:` is not in order.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The URL has no form that a CA can be reached by.
    #[error("--ca {url}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong, and what is right.
        reason: &'static str,
    },
    /// A flag that the CA's address makes necessary is missing.
    #[error("--ca {url} needs {flag}")]
    MissingFlag {
        /// The CA.
        url: String,
        /// The flag.
        flag: &'static str,
    },
}
