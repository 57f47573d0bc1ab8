//! Answers before the answer (1xx), such as 103 Early Hints: passed on between a client and a
//! server of HTTP/2. Where HTTP/1.1 is spoken they are dropped, since hyper can't write them;
//! that is always allowed (RFC 9110, section 15.2).
//!
//! What h2 has taken for a client that does not read stays in memory: so few are passed on, and
//! small ones, however many a server sends.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use http::{HeaderMap, Method, Request, Response, StatusCode};

use super::headers;
use super::reason::disown;
use super::reply::is_grpc;
use crate::proxy::lock::lock;

/// Passed on for one request.
const MOST: usize = 8;
/// Bytes of names and values of one.
const LARGEST: usize = 4 << 10;

/// Takes what comes before the answer to one request; travels in its extensions.
#[derive(Clone, Debug)]
pub(super) struct Interim(Arc<Shared>);

/// What came before the answer; nothing where the client has no use for that.
#[derive(Debug)]
pub(super) struct Hints(Option<Arc<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    waiting: AtomicWaker,
}

#[derive(Debug, Default)]
struct State {
    hints: VecDeque<Response<()>>,
    /// So many were taken in all.
    taken: usize,
}

impl Hints {
    /// Those for the client of this request, from now on. Calls of gRPC cost nothing.
    pub(super) fn of<B>(request: &mut Request<B>) -> Self {
        let wanted = matches!(*request.method(), Method::GET | Method::HEAD);
        if !wanted || is_grpc(request.headers()) {
            return Self(None);
        }
        let shared = Arc::new(Shared::default());
        let interim = Interim(Arc::clone(&shared));
        let _before = request.extensions_mut().insert(interim);
        Self(Some(shared))
    }

    /// The next one, if there ever is one. Cancel safe.
    pub(super) async fn next(&self) -> Response<()> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Response<()>> {
        let Some(shared) = &self.0 else {
            return Poll::Pending;
        };
        shared.waiting.register(cx.waker());
        let mut state = lock(&shared.state);
        state.hints.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Interim {
    /// Passes one on, but for those that are between two ends of a connection.
    pub(super) fn pass(&self, status: StatusCode, head: &HeaderMap) {
        let own = [StatusCode::CONTINUE, StatusCode::SWITCHING_PROTOCOLS];
        let size = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            name.as_str().len() + value.len()
        };
        if !status.is_informational()
            || own.contains(&status)
            || head.iter().map(size).sum::<usize>() > LARGEST
        {
            return;
        }
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        if state.taken >= MOST {
            return;
        }
        state.taken += 1;
        let mut hint = Response::new(());
        *hint.status_mut() = status;
        hint.headers_mut().clone_from(head);
        headers::interim(hint.headers_mut());
        disown(hint.headers_mut());
        state.hints.push_back(hint);
        drop(state);
        shared.waiting.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http::{HeaderMap, HeaderValue, Request, StatusCode};

    use super::{Hints, Interim, LARGEST, MOST};

    #[test]
    fn few_and_small_ones_are_passed_on_however_many_there_are() {
        let mut request = Request::get("/").body(()).unwrap();
        let hints = Hints::of(&mut request);
        let interim = request.extensions().get::<Interim>().unwrap();
        let mut head = HeaderMap::new();
        let long = HeaderValue::try_from("x".repeat(LARGEST)).unwrap();
        drop(head.insert("link", long));
        interim.pass(StatusCode::EARLY_HINTS, &head);
        drop(head.insert("link", HeaderValue::from_static("</a.css>")));
        for status in [100, 101, 200] {
            interim.pass(StatusCode::from_u16(status).unwrap(), &head);
        }
        let mut passed = 0;
        for _ in 0..1000 {
            interim.pass(StatusCode::EARLY_HINTS, &head);
            while hints.next().now_or_never().is_some() {
                passed += 1;
            }
        }
        assert_eq!(passed, MOST);
    }

    #[test]
    fn calls_and_uploads_have_none() {
        let call = Request::get("/").header("content-type", "application/grpc");
        for request in [call, Request::post("/")] {
            let mut request = request.body(()).unwrap();
            let hints = Hints::of(&mut request);
            assert!(request.extensions().is_empty());
            assert!(hints.next().now_or_never().is_none());
        }
    }
}
