//! Why a request to the API server failed, in words for people.

use std::error::Error as _;
use std::time::Duration;

use ::kube::Error;
use ::kube::api::PostParams;

/// Why a request to the API server failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiFailure {
    /// RBAC does not permit it. The message names verb, resource and user.
    #[error("{message}; deploy/ has the rules that grant it")]
    Forbidden {
        /// What the API server says.
        message: String,
    },
    /// There is no such object.
    #[error("{message}")]
    NotFound {
        /// What the API server says.
        message: String,
    },
    /// Somebody else wrote or created the object meanwhile.
    #[error("{message}")]
    Conflict {
        /// What the API server says.
        message: String,
    },
    /// The API server does not take the request.
    #[error("the API server refused ({code}): {message}")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// What it says.
        message: String,
    },
    /// The API server is there, but can't answer now.
    #[error("the API server can't answer now ({code}): {message}")]
    Overloaded {
        /// The HTTP status.
        code: u16,
        /// What it says.
        message: String,
    },
    /// Nobody answers, or what answers is not understood.
    #[error("the API server can't be reached: {reason}")]
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// No answer in time.
    #[error("the API server did not answer within {}s", timeout.as_secs())]
    TimedOut {
        /// How long it was waited for.
        timeout: Duration,
    },
}

impl ApiFailure {
    /// It may well succeed later, with nothing changed.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. } | Self::Unreachable { .. } | Self::TimedOut { .. }
        )
    }
}

impl From<Error> for ApiFailure {
    fn from(error: Error) -> Self {
        let Error::Api(status) = error else {
            return Self::Unreachable {
                reason: innermost(&error),
            };
        };
        let (code, message) = (status.code, status.message.clone());
        match code {
            403 => Self::Forbidden { message },
            404 => Self::NotFound { message },
            409 => Self::Conflict { message },
            429 | 500.. => Self::Overloaded { code, message },
            _ => Self::Refused { code, message },
        }
    }
}

/// What the chain of errors ends in: the outer ones say no more than which layer it was.
fn innermost(error: &Error) -> String {
    let mut last = error.source();
    let mut text = error.to_string();
    while let Some(source) = last {
        text = source.to_string();
        last = source.source();
    }
    text
}

/// What is written is ours, as `kubectl get --show-managed-fields` tells.
pub(super) fn post() -> PostParams {
    PostParams {
        field_manager: Some("fairlead".to_owned()),
        ..PostParams::default()
    }
}

/// The answer, within `timeout`.
pub(super) async fn within<T>(
    timeout: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, ApiFailure> {
    match tokio::time::timeout(timeout, request).await {
        Ok(answer) => Ok(answer?),
        Err(_elapsed) => Err(ApiFailure::TimedOut { timeout }),
    }
}
