//! How long a request may take, and how the next hop learns of it.
//!
//! The client's own deadline (`grpc-timeout`), the route's and the policy's all hold: the
//! earliest ends the request. What is left of it goes on to the next hop where the request
//! is gRPC, so that a chain of calls ends together.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::record::Exchange;
use crate::policy::CompiledRule;
use crate::policy::traffic::Timeouts;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Digits of a `grpc-timeout`, by the protocol.
const DIGITS: usize = 8;

/// The units of a `grpc-timeout`, finest first, with their nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// When a request is over, whoever said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Deadline {
    pub(in crate::proxy) at: Instant,
    /// How long that was when the request came.
    pub(in crate::proxy) after: Duration,
}

impl Deadline {
    /// The earliest of these; a limit of zero is none, as Gateway API has it.
    pub(in crate::proxy) fn earliest(
        limits: impl IntoIterator<Item = Option<Duration>>,
        now: Instant,
    ) -> Option<Self> {
        let limits = limits.into_iter().flatten();
        Self::after(limits.filter(|limit| !limit.is_zero()).min()?, now)
    }

    /// After so long; `None`: later than time goes.
    pub(in crate::proxy) fn after(after: Duration, now: Instant) -> Option<Self> {
        let at = now.checked_add(after)?;
        Some(Self { at, after })
    }

    /// The earlier of two.
    pub(in crate::proxy) fn or_earlier(self, other: Option<Self>) -> Self {
        other.filter(|other| other.at < self.at).unwrap_or(self)
    }

    /// What is left.
    pub(in crate::proxy) fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }
}

/// The client's deadline of a gRPC request. One that is not of the protocol's form is none:
/// the server is the judge of it. Zero is a deadline that has passed.
pub(in crate::proxy) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.as_bytes();
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > DIGITS {
        return None;
    }
    let mut amount = 0u64;
    for digit in digits {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        amount = amount * 10 + digit;
    }
    let (_, nanoseconds) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    // Eight digits of hours are more nanoseconds than fit.
    Some(Duration::from_nanos(amount.saturating_mul(*nanoseconds)))
}

/// Tells the next hop how long it has. Never longer than `left`: rounding is downwards.
pub(in crate::proxy) fn write_grpc_timeout(headers: &mut HeaderMap, left: Duration) {
    let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    let mut text = String::with_capacity(DIGITS + 1);
    for (unit, nanoseconds) in UNITS {
        let amount = left / nanoseconds;
        if amount < 10u64.pow(8) {
            text.push_str(&amount.to_string());
            text.push(char::from(unit));
            break;
        }
    }
    // Even the most that fits is some five million hours.
    let value = HeaderValue::try_from(text).expect("digits and a letter");
    let _before = headers.insert(GRPC_TIMEOUT, value);
}

/// How long a request and each of its tries may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Until an answer has begun, over all tries.
    pub(super) head: Option<Deadline>,
    /// Until it has ended.
    pub(super) whole: Option<Deadline>,
    /// The same two of each try.
    try_head: Option<Duration>,
    try_whole: Option<Duration>,
    /// Without a byte of the answer.
    pub(super) idle: Option<Duration>,
}

impl Limits {
    pub(super) fn new(
        rule: Option<&CompiledRule>,
        policy: &Timeouts,
        headers: &HeaderMap,
        exchange: &Exchange,
    ) -> Self {
        let now = exchange.started();
        let route = rule.map(|rule| rule.timeouts).unwrap_or_default();
        let client = exchange.deadline(headers);
        let whole = Deadline::earliest([route.request, policy.stream], now);
        let given = |limit: Option<Duration>| limit.filter(|limit| !limit.is_zero());
        Self {
            head: until_answered(rule, Some(policy), headers, exchange),
            whole: earlier(whole, client),
            try_head: given(route.backend_request.or(policy.per_try)),
            try_whole: given(route.backend_request),
            idle: policy.idle,
        }
    }

    /// Of what is to turn into something else, which is nobody's answer: only until it has.
    pub(super) fn until_switched(self) -> Self {
        Self {
            whole: None,
            try_whole: None,
            idle: None,
            ..self
        }
    }

    /// Until when a try must have an answer.
    pub(super) fn head_of_try(&self, begun: Instant) -> Option<Deadline> {
        earlier(
            self.try_head
                .and_then(|after| Deadline::after(after, begun)),
            self.head,
        )
    }

    /// Until when a try must have all of its answer.
    pub(super) fn whole_of_try(&self, begun: Instant) -> Option<Deadline> {
        earlier(
            self.try_whole
                .and_then(|after| Deadline::after(after, begun)),
            self.whole,
        )
    }
}

/// Until when a request must be answered, from the time when its head was read. A deadline of
/// the client's that has passed is one, unlike a limit of zero.
pub(super) fn until_answered(
    rule: Option<&CompiledRule>,
    policy: Option<&Timeouts>,
    headers: &HeaderMap,
    exchange: &Exchange,
) -> Option<Deadline> {
    let route = rule.and_then(|rule| rule.timeouts.request);
    let request = route.or_else(|| policy?.request);
    let limit = Deadline::earliest([request], exchange.started());
    earlier(limit, exchange.deadline(headers))
}

fn earlier(one: Option<Deadline>, other: Option<Deadline>) -> Option<Deadline> {
    match one {
        Some(one) => Some(one.or_earlier(other)),
        None => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};
    use tokio::time::Instant;

    use super::{Deadline, grpc_timeout, write_grpc_timeout};

    #[track_caller]
    fn check(text: &str, expected: Option<Duration>) {
        let mut headers = HeaderMap::new();
        let _before = headers.insert("grpc-timeout", HeaderValue::from_str(text).unwrap());
        assert_eq!(grpc_timeout(&headers), expected, "{text}");
    }

    #[test]
    fn timeouts_of_all_units_are_read() {
        check("1H", Some(Duration::from_hours(1)));
        check("2M", Some(Duration::from_mins(2)));
        check("3S", Some(Duration::from_secs(3)));
        check("250m", Some(Duration::from_millis(250)));
        check("7u", Some(Duration::from_micros(7)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        check("0m", Some(Duration::ZERO));
    }

    #[test]
    fn other_forms_are_no_deadline() {
        for text in [
            "",
            "5",
            "S",
            "-1S",
            "1 S",
            "1s",
            "123456789m",
            "1.5S",
            "+1S",
        ] {
            check(text, None);
        }
        assert!(grpc_timeout(&HeaderMap::new()).is_none());
    }

    #[test]
    fn hours_beyond_what_fits_are_the_longest_time() {
        check("99999999H", Some(Duration::from_nanos(u64::MAX)));
    }

    #[test]
    fn what_is_written_is_never_longer() {
        let cases = [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_micros(99_999), "99999000n"),
            (Duration::from_nanos(100_000_001), "100000u"),
            (Duration::from_secs(150), "150000m"),
            (Duration::ZERO, "0n"),
            (Duration::MAX, "5124095H"),
        ];
        for (left, expected) in cases {
            let mut headers = HeaderMap::new();
            write_grpc_timeout(&mut headers, left);
            assert_eq!(headers["grpc-timeout"], expected);
            assert!(grpc_timeout(&headers).unwrap() <= left);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_limit_holds_and_zero_is_none() {
        let now = Instant::now();
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(9));
        let deadline = Deadline::earliest([Some(long), Some(Duration::ZERO), Some(short)], now);
        let deadline = deadline.unwrap();
        assert_eq!((deadline.at, deadline.after), (now + short, short));
        assert_eq!(deadline.left(now + long), Duration::ZERO);
        let later = Deadline::earliest([Some(long)], now).unwrap();
        assert_eq!(later.or_earlier(Some(deadline)), deadline);
        assert_eq!(deadline.or_earlier(Some(later)), deadline);
        assert_eq!(Deadline::earliest([Some(Duration::ZERO), None], now), None);
    }
}
