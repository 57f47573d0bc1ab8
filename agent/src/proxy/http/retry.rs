//! What is sent again, and when.
//!
//! A route's `retry` goes before the TrafficPolicy's `retries`. Either way something is sent
//! again only where nobody has seen it yet (no connection, or the endpoint said that it did
//! not look), or where the method or the route says that doing it twice is no harm. What has
//! become of a request is decided by its head: once bytes of an answer have gone to the
//! client, nothing is sent again.

use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::model::below;
use crate::policy::traffic::Retries;
use crate::state::RouteRetry;
use crate::state::traffic::RetryOn;

/// In milliseconds, when a server of gRPC wants to be asked again; not at all where it is no
/// number (gRPC's proposal A6).
pub(in crate::proxy) const GRPC_RETRY_PUSHBACK_MS: HeaderName =
    HeaderName::from_static("grpc-retry-pushback-ms");

/// The longest that a server may have a request wait here: one that is to wait longer is its
/// client's to send again.
const LONGEST: Duration = Duration::from_secs(10);

/// When a server wants to be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Again {
    /// It does not say.
    Anytime,
    /// Not before so long.
    After(Duration),
    /// Not at all.
    Never,
}

/// How a try ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) enum Ended<'a> {
    /// There was no connection: nobody has seen the request.
    Unreached,
    /// The endpoint said that it did not look at the request.
    Refused,
    /// The connection or the stream ended before an answer.
    Reset,
    /// The try took too long.
    TimedOut,
    /// With an answer, whose body nobody has read yet.
    Answered(StatusCode, &'a HeaderMap),
}

/// What holds for the retries of one request.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Plan<'a> {
    policy: &'a Retries,
    route: Option<&'a RouteRetry>,
    /// It may be done twice.
    repeatable: bool,
}

impl<'a> Plan<'a> {
    pub(in crate::proxy) fn new(
        policy: &'a Retries,
        route: Option<&'a RouteRetry>,
        method: &Method,
    ) -> Self {
        Self {
            policy,
            route,
            repeatable: route.is_some() || policy.methods.contains(method),
        }
    }

    /// Tries beside the first one.
    pub(in crate::proxy) fn attempts(&self) -> u32 {
        let route = self.route.and_then(|route| route.attempts);
        route.unwrap_or(self.policy.attempts)
    }

    /// What an endpoint has read of the request may be needed again; in HTTP/2 also that of
    /// a stream which it refuses. Otherwise it is enough to have back what nobody has read.
    pub(in crate::proxy) fn keeps_body(&self, http2: bool) -> bool {
        let seen = |on: &RetryOn| !matches!(on, RetryOn::ConnectFailure | RetryOn::RefusedStream);
        self.attempts() > 0
            && (self.route.is_some()
                || http2 && self.policy.on.contains(&RetryOn::RefusedStream)
                || self.policy.on.iter().copied().any(is_grpc)
                || self.repeatable
                    && (self.policy.on.iter().any(seen) || !self.policy.codes.is_empty()))
    }

    /// The request is to be sent again, if there is a try left.
    pub(in crate::proxy) fn repeats(&self, ended: Ended<'_>) -> bool {
        let on = |condition| self.policy.on.contains(&condition);
        let failed = self.route.is_some();
        match ended {
            Ended::Unreached => failed || on(RetryOn::ConnectFailure) || on(RetryOn::ServerError),
            Ended::Refused => failed || on(RetryOn::RefusedStream),
            Ended::Reset => {
                self.repeatable && (failed || on(RetryOn::Reset) || on(RetryOn::ServerError))
            }
            Ended::TimedOut => {
                self.repeatable
                    && (failed || on(RetryOn::PerTryTimeout) || on(RetryOn::ServerError))
            }
            Ended::Answered(status, headers) => {
                self.repeatable && self.repeats_status(status) || self.repeats_grpc(headers)
            }
        }
    }

    fn repeats_status(&self, status: StatusCode) -> bool {
        let on = |condition| self.policy.on.contains(&condition);
        match self.route {
            Some(route) => route.codes.contains(&status.as_u16()),
            None => {
                self.policy.codes.contains(&status)
                    || match status.as_u16() {
                        502..=504 => on(RetryOn::GatewayError) || on(RetryOn::ServerError),
                        500..=599 => on(RetryOn::ServerError),
                        409 => on(RetryOn::Retriable4xx),
                        _ => false,
                    }
            }
        }
    }

    /// An answer of gRPC that is nothing but its status. Every call of gRPC is a POST: to
    /// name a status of gRPC says that the calls may be done twice.
    fn repeats_grpc(&self, headers: &HeaderMap) -> bool {
        let status = headers.get("grpc-status").map(http::HeaderValue::as_bytes);
        let condition = match status {
            Some(b"1") => RetryOn::Cancelled,
            Some(b"4") => RetryOn::DeadlineExceeded,
            Some(b"8") => RetryOn::ResourceExhausted,
            Some(b"13") => RetryOn::Internal,
            Some(b"14") => RetryOn::Unavailable,
            _ => return false,
        };
        self.policy.on.contains(&condition)
    }

    /// How long to wait before the retry of this number, where the server has said when:
    /// longer by the wait that there would be otherwise, so that not all come at once. `None`:
    /// it is not to be sent again from here.
    pub(in crate::proxy) fn pause(
        &self,
        number: u32,
        again: Again,
        random: u64,
    ) -> Option<Duration> {
        let wait = self.wait(number, random);
        match again {
            Again::Anytime => Some(wait),
            Again::After(after) => (after <= LONGEST).then(|| after + wait),
            Again::Never => None,
        }
    }

    /// How long to wait before the retry of this number, from 1. A policy's wait is a random
    /// part of a window that doubles, so that clients spread ("full jitter"); a route's is
    /// at least what it says, and that much jitter on top.
    fn wait(&self, number: u32, random: u64) -> Duration {
        let doubled = |base: Duration, max: Duration| {
            let factor = 1u32
                .checked_shl(number.saturating_sub(1))
                .unwrap_or(u32::MAX);
            base.saturating_mul(factor).min(max)
        };
        if let Some(base) = self.route.and_then(|route| route.backoff) {
            return doubled(base, base.saturating_mul(10)) + part(base, random);
        }
        let backoff = self.policy.backoff;
        part(doubled(backoff.base, backoff.max), random)
    }
}

impl Again {
    /// What an answer says that came at this time.
    pub(in crate::proxy) fn said(headers: &HeaderMap, now: Timestamp) -> Self {
        if let Some(pushback) = headers.get(GRPC_RETRY_PUSHBACK_MS) {
            let ms = pushback.to_str().ok().and_then(|text| text.parse().ok());
            return ms.map_or(Self::Never, |ms| Self::After(Duration::from_millis(ms)));
        }
        let said = headers.get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        let Some(said) = said else {
            return Self::Anytime;
        };
        if let Ok(seconds) = said.parse() {
            return Self::After(Duration::from_secs(seconds));
        }
        match DateTimeParser::new().parse_timestamp(said) {
            Ok(at) => Self::After(at.duration_since(now).try_into().unwrap_or_default()),
            Err(_no_date) => Self::Anytime,
        }
    }
}

/// A part of `whole`; `random` is spread over all values.
fn part(whole: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(below(random, nanos))
}

fn is_grpc(on: RetryOn) -> bool {
    matches!(
        on,
        RetryOn::Cancelled
            | RetryOn::DeadlineExceeded
            | RetryOn::Internal
            | RetryOn::ResourceExhausted
            | RetryOn::Unavailable
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

    use super::{Again, Ended, Plan};
    use crate::policy::traffic::{Retries, TrafficSettings};
    use crate::state::RouteRetry;
    use crate::state::traffic::RetryOn;

    fn policy(on: &[RetryOn]) -> Retries {
        Retries {
            on: on.to_vec(),
            ..TrafficSettings::defaults().retries
        }
    }

    /// The plan repeats this answer.
    fn repeats(plan: &Plan<'_>, status: u16, grpc: Option<&'static str>) -> bool {
        let grpc = grpc.map(|grpc| {
            (
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(grpc),
            )
        });
        let headers = HeaderMap::from_iter(grpc);
        plan.repeats(Ended::Answered(
            StatusCode::from_u16(status).unwrap(),
            &headers,
        ))
    }

    #[track_caller]
    fn check(policy: &Retries, method: &Method, expected: [bool; 4]) {
        let plan = Plan::new(policy, None, method);
        let ends = [
            Ended::Unreached,
            Ended::Refused,
            Ended::Reset,
            Ended::TimedOut,
        ];
        assert_eq!(ends.map(|ended| plan.repeats(ended)), expected);
    }

    #[test]
    fn by_default_only_what_nobody_has_seen_is_sent_again() {
        let defaults = TrafficSettings::defaults().retries;
        for method in [Method::GET, Method::POST] {
            check(&defaults, &method, [true, true, false, false]);
            let plan = Plan::new(&defaults, None, &method);
            assert!(!repeats(&plan, 503, None));
            assert!(!plan.keeps_body(false));
            assert!(plan.keeps_body(true));
        }
    }

    #[test]
    fn what_was_seen_is_sent_again_only_where_the_method_is_safe() {
        let policy = policy(&[
            RetryOn::Reset,
            RetryOn::PerTryTimeout,
            RetryOn::GatewayError,
        ]);
        check(&policy, &Method::PUT, [false, false, true, true]);
        check(&policy, &Method::POST, [false, false, false, false]);
        let put = Plan::new(&policy, None, &Method::PUT);
        assert!(put.keeps_body(false));
        assert!(repeats(&put, 503, None));
        assert!(!repeats(&put, 500, None));
        let post = Plan::new(&policy, None, &Method::POST);
        assert!(!post.keeps_body(false));
        assert!(!repeats(&post, 503, None));
    }

    #[test]
    fn server_errors_are_all_of_them() {
        let policy = policy(&[RetryOn::ServerError]);
        check(&policy, &Method::GET, [true, false, true, true]);
        let plan = Plan::new(&policy, None, &Method::GET);
        assert!(repeats(&plan, 500, None));
        assert!(repeats(&plan, 599, None));
        assert!(!repeats(&plan, 409, None));
        assert!(!repeats(&plan, 200, None));
    }

    #[test]
    fn codes_and_conflicts_are_named_by_the_policy() {
        let mut policy = policy(&[RetryOn::Retriable4xx]);
        policy.codes = vec![StatusCode::TOO_EARLY];
        let plan = Plan::new(&policy, None, &Method::GET);
        for (status, expected) in [(409, true), (425, true), (429, false), (503, false)] {
            assert_eq!(repeats(&plan, status, None), expected);
        }
    }

    #[test]
    fn statuses_of_grpc_are_safe_where_they_are_named() {
        let policy = policy(&[RetryOn::Unavailable, RetryOn::ResourceExhausted]);
        let plan = Plan::new(&policy, None, &Method::POST);
        assert!(plan.keeps_body(false));
        assert!(repeats(&plan, 200, Some("14")));
        assert!(repeats(&plan, 200, Some("8")));
        assert!(!repeats(&plan, 200, Some("13")));
        assert!(!repeats(&plan, 200, Some("0")));
        assert!(!repeats(&plan, 200, None));
    }

    #[test]
    fn a_route_says_which_of_its_requests_are_sent_again() {
        let policy = TrafficSettings::defaults().retries;
        let route = RouteRetry {
            attempts: Some(7),
            codes: vec![503],
            backoff: None,
        };
        let plan = Plan::new(&policy, Some(&route), &Method::POST);
        assert_eq!(plan.attempts(), 7);
        assert!(plan.keeps_body(false));
        assert!(plan.repeats(Ended::Reset) && plan.repeats(Ended::TimedOut));
        assert!(repeats(&plan, 503, None));
        assert!(!repeats(&plan, 500, None));
        let none = RouteRetry {
            attempts: Some(0),
            ..route
        };
        assert!(!Plan::new(&policy, Some(&none), &Method::POST).keeps_body(false));
    }

    #[test]
    fn waits_are_parts_of_a_window_that_doubles() {
        let policy = TrafficSettings::defaults().retries;
        let plan = Plan::new(&policy, None, &Method::GET);
        let half = 1 << 63;
        let millis = |number| plan.wait(number, half).as_micros();
        assert_eq!(
            [1, 2, 3, 4, 5, 99].map(millis),
            [12_500, 25_000, 50_000, 100_000, 125_000, 125_000]
        );
        assert_eq!(plan.wait(3, 0), Duration::ZERO);
    }

    #[test]
    fn a_routes_wait_is_never_shorter_than_it_says() {
        let policy = TrafficSettings::defaults().retries;
        let route = RouteRetry {
            attempts: None,
            codes: Vec::new(),
            backoff: Some(Duration::from_millis(100)),
        };
        let plan = Plan::new(&policy, Some(&route), &Method::GET);
        assert_eq!(plan.attempts(), policy.attempts);
        for number in 1..40 {
            assert!(plan.wait(number, 0) >= Duration::from_millis(100));
            assert!(plan.wait(number, u64::MAX) <= Duration::from_millis(1100));
        }
    }

    #[test]
    fn servers_say_when_in_seconds_by_date_or_in_grpc() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let said = |name: &'static str, value: &'static str| {
            let name = HeaderName::from_static(name);
            Again::said(
                &HeaderMap::from_iter([(name, HeaderValue::from_static(value))]),
                now,
            )
        };
        let after = |millis| Again::After(Duration::from_millis(millis));
        assert_eq!(said("retry-after", "2"), after(2000));
        let date = "Fri, 02 Jan 2026 03:04:12 GMT";
        assert_eq!(said("retry-after", date), after(7000));
        let past = "Fri, 02 Jan 2026 03:04:00 GMT";
        assert_eq!(said("retry-after", past), after(0));
        assert_eq!(said("retry-after", "soon"), Again::Anytime);
        assert_eq!(said("x-other", "2"), Again::Anytime);
        assert_eq!(said("grpc-retry-pushback-ms", "250"), after(250));
        for never in ["-1", "", "soon"] {
            assert_eq!(said("grpc-retry-pushback-ms", never), Again::Never);
        }
    }

    #[test]
    fn what_a_server_says_is_waited_and_more_where_that_is_not_too_long() {
        let policy = policy(&[RetryOn::GatewayError]);
        let plan = Plan::new(&policy, None, &Method::GET);
        let half = u64::MAX / 2;
        let wait = plan.wait(1, half);
        assert!(!wait.is_zero());
        let second = Duration::from_secs(1);
        let pause = |again| plan.pause(1, again, half);
        assert_eq!(pause(Again::Anytime), Some(wait));
        assert_eq!(pause(Again::After(second)), Some(second + wait));
        assert_eq!(pause(Again::After(11 * second)), None);
        assert_eq!(pause(Again::Never), None);
    }
}
