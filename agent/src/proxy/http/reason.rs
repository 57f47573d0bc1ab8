//! Why the proxy answered by itself, in the words that applications read.
//!
//! ```text
//! fairlead-reason: timed_out; after 500ms
//! grpc-status: 4        grpc-message: timed_out; after 500ms
//! grpc-status-details-bin: google.rpc.Status with one google.rpc.ErrorInfo
//!                          { reason: "TIMED_OUT", domain: "fairlead.dev" }
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use prost::Message;
use prost_types::Any;

/// Why, on responses that the proxy made.
pub(in crate::proxy) const FAIRLEAD_REASON: HeaderName = HeaderName::from_static("fairlead-reason");
/// How often a request was repeated, on responses that came of repeating it.
pub(in crate::proxy) const FAIRLEAD_RETRIES: HeaderName =
    HeaderName::from_static("fairlead-retries");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// The `domain` of every `google.rpc.ErrorInfo` of ours.
const DOMAIN: &str = "fairlead.dev";
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// What gRPC wants escaped in `grpc-message`: all but printable ASCII, and the percent
/// sign itself.
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// The kind of an answer that the proxy made itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::proxy) enum ReasonKind {
    NoRoute,
    NoEndpoints,
    CircuitOpen,
    RateLimited,
    PolicyDenied,
    JwtInvalid,
    JwtMissing,
    ExtAuthzDenied,
    ExtAuthzUnavailable,
    TimedOut,
    UpstreamReset,
    ConnectFailed,
    Overloaded,
    FaultInjected,
    BadRequest,
    BackendInvalid,
    TooManyRequestsInFlight,
}

/// Why the proxy answered by itself: a word, and what there is to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Reason {
    pub(in crate::proxy) kind: ReasonKind,
    /// Goes to the client as it is: it names nothing that the client may not know.
    pub(in crate::proxy) detail: Cow<'static, str>,
    extra: Option<Box<Extra>>,
}

/// What an answer has besides what its reason says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Extra {
    /// Another status than that of the reason; not for gRPC.
    pub(in crate::proxy) status: Option<StatusCode>,
    /// More headers.
    pub(in crate::proxy) headers: HeaderMap,
    /// Another text than the reason's; not for gRPC.
    pub(in crate::proxy) body: Option<String>,
}

impl Extra {
    /// This status, and nothing more.
    pub(in crate::proxy) fn status(status: StatusCode) -> Self {
        Self {
            status: Some(status),
            ..Self::default()
        }
    }
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.rpc.ErrorInfo`.
#[derive(Clone, PartialEq, Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(map = "string, string", tag = "3")]
    metadata: HashMap<String, String>,
}

impl ReasonKind {
    /// The word, as in `fairlead-reason` and in flow records.
    pub(in crate::proxy) fn word(self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoEndpoints => "no_endpoints",
            Self::CircuitOpen => "circuit_open",
            Self::RateLimited => "rate_limited",
            Self::PolicyDenied => "policy_denied",
            Self::JwtInvalid => "jwt_invalid",
            Self::JwtMissing => "jwt_missing",
            Self::ExtAuthzDenied => "ext_authz_denied",
            Self::ExtAuthzUnavailable => "ext_authz_unavailable",
            Self::TimedOut => "timed_out",
            Self::UpstreamReset => "upstream_reset",
            Self::ConnectFailed => "connect_failed",
            Self::Overloaded => "overloaded",
            Self::FaultInjected => "fault_injected",
            Self::BadRequest => "bad_request",
            Self::BackendInvalid => "backend_invalid",
            Self::TooManyRequestsInFlight => "too_many_requests_in_flight",
        }
    }

    /// The status of an answer to a request that is not gRPC.
    pub(in crate::proxy) fn status(self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::PolicyDenied | Self::ExtAuthzDenied => StatusCode::FORBIDDEN,
            Self::JwtInvalid | Self::JwtMissing => StatusCode::UNAUTHORIZED,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::UpstreamReset => StatusCode::BAD_GATEWAY,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::BackendInvalid => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoEndpoints
            | Self::CircuitOpen
            | Self::ExtAuthzUnavailable
            | Self::ConnectFailed
            | Self::Overloaded
            | Self::FaultInjected
            | Self::TooManyRequestsInFlight => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The `grpc-status` of an answer to a gRPC request.
    pub(in crate::proxy) fn grpc_status(self) -> u16 {
        match self {
            Self::NoRoute => 12,
            Self::RateLimited | Self::TooManyRequestsInFlight => 8,
            Self::PolicyDenied | Self::ExtAuthzDenied => 7,
            Self::JwtInvalid | Self::JwtMissing => 16,
            Self::TimedOut => 4,
            Self::BadRequest => 13,
            Self::NoEndpoints
            | Self::CircuitOpen
            | Self::ExtAuthzUnavailable
            | Self::UpstreamReset
            | Self::ConnectFailed
            | Self::Overloaded
            | Self::FaultInjected
            | Self::BackendInvalid => 14,
        }
    }
}

impl Reason {
    /// A reason with something to add; empty: nothing.
    pub(in crate::proxy) fn new(kind: ReasonKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            extra: None,
        }
    }

    /// The same, whose answer has more.
    pub(in crate::proxy) fn with(self, extra: Extra) -> Self {
        let extra = Some(Box::new(extra));
        Self { extra, ..self }
    }

    /// What its answer has besides.
    pub(in crate::proxy) fn extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    /// The value of `fairlead-reason`.
    pub(in crate::proxy) fn header(&self) -> HeaderValue {
        if self.detail.is_empty() {
            return HeaderValue::from_static(self.kind.word());
        }
        // A detail with bytes that a header can't hold is left out, the word never is.
        HeaderValue::try_from(self.to_string())
            .unwrap_or_else(|_invalid| HeaderValue::from_static(self.kind.word()))
    }

    /// As flow records have it.
    pub(in crate::proxy) fn in_flows(&self) -> Cow<'static, str> {
        if self.detail.is_empty() {
            return self.kind.word().into();
        }
        format!("{}: {}", self.kind.word(), self.detail).into()
    }

    /// The status of a gRPC answer: code, message and details.
    pub(in crate::proxy) fn write_grpc(&self, code: u16, headers: &mut HeaderMap) {
        let message = self.to_string();
        let escaped = utf8_percent_encode(&message, MESSAGE).to_string();
        if let Ok(escaped) = HeaderValue::try_from(escaped) {
            let _before = headers.insert(GRPC_MESSAGE, escaped);
        }
        if let Ok(details) = HeaderValue::try_from(self.details(code, message)) {
            let _before = headers.insert(GRPC_DETAILS, details);
        }
        let _before = headers.insert(GRPC_STATUS, HeaderValue::from(code));
    }

    /// `grpc-status-details-bin`: one `ErrorInfo` that programs can read.
    fn details(&self, code: u16, message: String) -> String {
        let mut metadata = HashMap::new();
        if !self.detail.is_empty() {
            let _before = metadata.insert("detail".to_owned(), self.detail.clone().into_owned());
        }
        let info = ErrorInfo {
            reason: self.kind.word().to_ascii_uppercase(),
            domain: DOMAIN.to_owned(),
            metadata,
        };
        let details = vec![Any {
            type_url: ERROR_INFO.to_owned(),
            value: info.encode_to_vec(),
        }];
        let code = i32::from(code);
        let status = Status {
            code,
            message,
            details,
        };
        STANDARD_NO_PAD.encode(status.encode_to_vec())
    }
}

/// Takes away what applications say in the proxy's name: clients believe it.
pub(in crate::proxy) fn disown(headers: &mut HeaderMap) {
    let _before = headers.remove(FAIRLEAD_REASON);
    let _before = headers.remove(FAIRLEAD_RETRIES);
}

/// The word of an answer that the agent at the other end of a tunnel has made.
pub(in crate::proxy) fn word(headers: &HeaderMap) -> Option<&str> {
    let reason = headers.get(FAIRLEAD_REASON)?.to_str().ok()?;
    reason.split(';').next()
}

impl From<ReasonKind> for Reason {
    fn from(kind: ReasonKind) -> Self {
        Self::new(kind, "")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.word())?;
        if !self.detail.is_empty() {
            write!(f, "; {}", self.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD_NO_PAD;
    use http::HeaderMap;
    use prost::Message as _;

    use super::{ErrorInfo, Reason, ReasonKind, Status};

    #[test]
    fn the_header_has_the_word_and_the_detail() {
        let bare = Reason::from(ReasonKind::NoEndpoints);
        assert_eq!(bare.header(), "no_endpoints");
        let detailed = Reason::new(ReasonKind::TimedOut, "after 500ms");
        assert_eq!(detailed.header(), "timed_out; after 500ms");
    }

    #[test]
    fn a_detail_that_no_header_can_hold_is_left_out() {
        let reason = Reason::new(ReasonKind::PolicyDenied, "by shop/a\r\nset-cookie: x");
        assert_eq!(reason.header(), "policy_denied");
    }

    #[test]
    fn grpc_clients_get_a_status_with_details() {
        let mut headers = HeaderMap::new();
        let reason = Reason::new(ReasonKind::CircuitOpen, "requests 100% \u{e9}");
        reason.write_grpc(reason.kind.grpc_status(), &mut headers);
        assert_eq!(headers["grpc-status"], "14");
        let message = "circuit_open; requests 100%25 %C3%A9";
        assert_eq!(headers["grpc-message"], message);
        let details = STANDARD_NO_PAD.decode(&headers["grpc-status-details-bin"]);
        let status = Status::decode(&*details.unwrap()).unwrap();
        assert_eq!(status.code, 14);
        assert_eq!(status.message, "circuit_open; requests 100% \u{e9}");
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(info.reason, "CIRCUIT_OPEN");
        assert_eq!(info.domain, "fairlead.dev");
        assert_eq!(info.metadata["detail"], "requests 100% \u{e9}");
    }
}
