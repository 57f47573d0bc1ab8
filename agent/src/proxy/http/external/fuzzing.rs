//! What Services answer that are asked about requests.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;

use super::Verdict;
use super::authorization::verdict;
use super::generated::auth::CheckResponse;
use super::generated::ratelimit::RateLimitResponse;
use super::rate_limit::{self, limited};

/// Headers that say what a message is, and are not for others to change.
const FRAMING: [&str; 4] = ["host", "content-length", "transfer-encoding", "connection"];

/// What frames a message stays as it was, whatever is to be changed.
pub(in crate::proxy::http) fn authorization(message: &[u8]) {
    let Ok(answer) = CheckResponse::decode(message) else {
        return;
    };
    let permitted = answer
        .status
        .as_ref()
        .is_some_and(|status| status.code == 0);
    let before = |value: &'static str| -> HeaderMap {
        let pair = |name| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        FRAMING.into_iter().map(pair).collect()
    };
    let check = |headers: &HeaderMap| {
        for name in FRAMING {
            let values: Vec<_> = headers.get_all(name).iter().collect();
            assert_eq!(values, ["as it was"], "{name}");
        }
    };
    match verdict(answer) {
        Verdict::Permitted(changes) => {
            assert!(permitted);
            let mut headers = before("as it was");
            changes.apply(&mut headers);
            check(&headers);
            let mut headers = before("as it was");
            changes.apply_to_answer(&mut headers);
            check(&headers);
        }
        Verdict::Denied(denied) => {
            assert!(!permitted && !denied.status.is_informational());
            let mut headers = before("as it was");
            denied.apply(&mut headers);
            check(&headers);
        }
        Verdict::Unavailable => assert!(!permitted),
    }
}

/// What is over a limit is never within it.
pub(in crate::proxy::http) fn rate_limit(message: &[u8]) {
    let Ok(answer) = RateLimitResponse::decode(message) else {
        return;
    };
    let verdict = limited(&answer);
    assert_eq!(
        verdict == rate_limit::Verdict::Within,
        answer.overall_code == 1
    );
    if let rate_limit::Verdict::Over(Some(after)) = verdict {
        // Seconds of a signed 64-bit number, and less than one more.
        assert!(after <= Duration::new(i64::MAX.unsigned_abs(), 999_999_999));
    }
}
