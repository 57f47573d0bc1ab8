//! Why a tunnel did not come to be.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use http::StatusCode;

use crate::identity::{IdentityError, handshake_error};
use crate::proxy::outcome::{ConnectError, Outcome};

/// Why a tunnel to another node did not come to be.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::proxy) enum TunnelError {
    /// No certificate for the client's pod.
    #[error("no certificate: {0}")]
    Certificate(Arc<IdentityError>),
    /// The other node's agent was not reached.
    #[error("cannot reach the destination's node")]
    Connect(#[source] ConnectError),
    /// One of the two did not believe who the other is.
    #[error("TLS: {}", handshake_error(&**.0))]
    Tls(Arc<io::Error>),
    /// The other node does not keep to HTTP/2, or went away.
    #[error("HTTP/2: {0}")]
    Http2(Arc<h2::Error>),
    /// No answer in time.
    #[error("no answer from the destination's node in time")]
    TimedOut,
    /// Policy of the destination refused it.
    #[error("refused by the destination's policy")]
    Denied(Option<Arc<str>>),
    /// The destination's application was not reached from its node.
    #[error("the destination's application does not take the connection")]
    Unavailable(Option<Arc<str>>),
    /// An answer that is not one of HBONE's.
    #[error("unexpected answer {0}")]
    Status(StatusCode),
    /// The connection ended while it was being taken from the pool.
    #[error("the connection to the destination's node ended")]
    Closed,
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(Arc::new(error))
    }
}

impl TunnelError {
    /// The request was not looked at, so that a new connection may succeed: the old one
    /// was closing or dead.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Http2(error) => {
                error.is_go_away()
                    || error.is_io()
                    || error.reason() == Some(h2::Reason::REFUSED_STREAM)
            }
            Self::Certificate(_)
            | Self::Connect(_)
            | Self::Tls(_)
            | Self::TimedOut
            | Self::Denied(_)
            | Self::Unavailable(_)
            | Self::Status(_) => false,
        }
    }

    /// For the flow record.
    pub(in crate::proxy) fn close_reason(&self) -> Cow<'static, str> {
        match self {
            Self::Unavailable(None) => "connect_refused: by the destination's node".into(),
            Self::Unavailable(Some(why)) => format!("{why}: at the destination's node").into(),
            Self::Connect(error) => format!("tunnel_failed: {self}: {error}").into(),
            Self::Certificate(_)
            | Self::Tls(_)
            | Self::Http2(_)
            | Self::TimedOut
            | Self::Denied(_)
            | Self::Status(_)
            | Self::Closed => format!("tunnel_failed: {self}").into(),
        }
    }
}

impl From<TunnelError> for Outcome {
    fn from(error: TunnelError) -> Self {
        match error {
            TunnelError::Certificate(error) => Self::Certificate(error),
            TunnelError::Denied(why) => Self::DeniedByPeer(why),
            TunnelError::Connect(_)
            | TunnelError::Tls(_)
            | TunnelError::Http2(_)
            | TunnelError::TimedOut
            | TunnelError::Unavailable(_)
            | TunnelError::Status(_)
            | TunnelError::Closed => Self::Tunnel(Arc::new(error)),
        }
    }
}
