//! Failures that are made on purpose, to see what their clients make of them.

use std::time::Duration;

use http::Method;
use http::{HeaderMap, StatusCode};

use crate::state::traffic::{AbortWith, ComparedPath, Fault};

/// What is done to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Injected {
    /// It waits so long first.
    pub(in crate::proxy) delay: Option<Duration>,
    /// It is answered like this then.
    pub(in crate::proxy) abort: Option<AbortWith>,
}

/// What the first fault that matches does to a request; the shares of its delay and of its
/// abort are drawn apart. `path` is in the form in which paths are compared.
pub(in crate::proxy) fn injected(
    faults: &[Fault],
    (method, path, headers): (&Method, Option<&str>, &HeaderMap),
    mut random: impl FnMut() -> u64,
) -> Injected {
    let path = ComparedPath::for_fault(path);
    let matching = |fault: &&Fault| fault.matches.matches(method, path, headers);
    let Some(fault) = faults.iter().find(matching) else {
        return Injected::default();
    };
    let delay = fault.delay.filter(|delay| delay.share.hits(random()));
    let abort = fault.abort.filter(|abort| abort.share.hits(random()));
    Injected {
        delay: delay.map(|delay| delay.duration),
        abort: abort.map(|abort| abort.with),
    }
}

/// The status of an abort, to clients of HTTP and to those of gRPC.
pub(in crate::proxy) fn status(abort: AbortWith) -> (StatusCode, u16) {
    match abort {
        AbortWith::Status(status) => (status, grpc_of(status)),
        AbortWith::Grpc(code) => (http_of(code), code.into()),
    }
}

/// By gRPC's own table of HTTP statuses (http-grpc-status-mapping).
fn grpc_of(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// By the comments of `google.rpc.Code`.
fn http_of(code: u8) -> StatusCode {
    match code {
        0 => StatusCode::OK,
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, Method, StatusCode};

    use super::{Injected, injected, status};
    use crate::state::StringMatch;
    use crate::state::traffic::{Abort, AbortWith, Delay, Fault, Share, TrafficMatch};

    const HALF: Share = Share(500_000);
    const TEAPOT: AbortWith = AbortWith::Status(StatusCode::IM_A_TEAPOT);

    fn fault(path: &str, delay: Option<Share>, abort: Option<Share>) -> Fault {
        Fault {
            matches: TrafficMatch {
                paths: vec![StringMatch::Exact(path.into())],
                ..TrafficMatch::default()
            },
            delay: delay.map(|share| Delay {
                share,
                duration: Duration::from_secs(1),
            }),
            abort: abort.map(|share| Abort {
                share,
                with: TEAPOT,
            }),
        }
    }

    #[track_caller]
    fn check(
        faults: &[Fault],
        path: impl Into<Option<&'static str>>,
        draws: &[u64],
        delayed: bool,
        aborted: bool,
    ) {
        let mut draws = draws.iter().copied();
        let facts = (&Method::GET, path.into(), &HeaderMap::new());
        let found = injected(faults, facts, || draws.next().expect("no further draw"));
        let expected = Injected {
            delay: delayed.then_some(Duration::from_secs(1)),
            abort: aborted.then_some(TEAPOT),
        };
        assert_eq!(found, expected);
        assert_eq!(draws.next(), None, "a draw too few");
    }

    #[test]
    fn the_first_fault_that_matches_counts() {
        let faults = [
            fault("/a", Some(Share::ALL), None),
            fault("/a", None, Some(Share::ALL)),
        ];
        check(&faults, "/a", &[u64::MAX], true, false);
        check(&faults, "/b", &[], false, false);
        check(&faults, None, &[], false, false);
    }

    #[test]
    fn delay_and_abort_have_shares_of_their_own() {
        let faults = [fault("/a", Some(HALF), Some(HALF))];
        check(&faults, "/a", &[0, 0], true, true);
        check(&faults, "/a", &[u64::MAX, 0], false, true);
        check(&faults, "/a", &[0, u64::MAX], true, false);
        check(&faults, "/a", &[1 << 63, 1 << 63], false, false);
        let none = [fault("/a", Some(Share(0)), Some(Share(0)))];
        check(&none, "/a", &[0, 0], false, false);
    }

    #[test]
    fn each_kind_of_client_gets_a_status_of_its_own() {
        assert_eq!(
            status(AbortWith::Status(StatusCode::SERVICE_UNAVAILABLE)).1,
            14
        );
        assert_eq!(status(AbortWith::Status(StatusCode::IM_A_TEAPOT)).1, 2);
        let exhausted = status(AbortWith::Grpc(8));
        assert_eq!(exhausted, (StatusCode::TOO_MANY_REQUESTS, 8));
    }
}
