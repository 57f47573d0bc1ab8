//! Answers before the answer (1xx), such as 103 Early Hints: passed on between a client and a
//! server of HTTP/2. Where HTTP/1.1 is spoken they are dropped, since hyper can't write them;
//! that is always allowed (RFC 9110, section 15.2).

use std::future::pending;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::sync::mpsc;

use super::headers;
use super::reason::disown;
use super::reply::is_grpc;

/// More than these of one request that the client does not take are dropped.
const WAITING: usize = 4;

/// Takes what comes before the answer to one request; travels in its extensions.
#[derive(Clone, Debug)]
pub(super) struct Interim(mpsc::Sender<Response<()>>);

/// What came before the answer.
#[derive(Debug)]
pub(super) struct Hints(Option<mpsc::Receiver<Response<()>>>);

impl Hints {
    /// Those for the client of this request, from now on: where it may have a use for them,
    /// so that calls of gRPC cost nothing.
    pub(super) fn of<B>(request: &mut Request<B>) -> Self {
        let wanted = matches!(*request.method(), Method::GET | Method::HEAD);
        if !wanted || is_grpc(request.headers()) {
            return Self(None);
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let _before = request.extensions_mut().insert(Interim(sender));
        Self(Some(receiver))
    }

    /// The next one; never, where there can't be any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Response<()> {
        if let Some(receiver) = &mut self.0 {
            if let Some(hint) = receiver.recv().await {
                return hint;
            }
            self.0 = None;
        }
        pending().await
    }
}

impl Interim {
    /// Passes one on, but for those that are between two ends of a connection.
    pub(super) fn pass(&self, status: StatusCode, head: &HeaderMap) {
        let own = [StatusCode::CONTINUE, StatusCode::SWITCHING_PROTOCOLS];
        if !status.is_informational() || own.contains(&status) {
            return;
        }
        let mut hint = Response::new(());
        *hint.status_mut() = status;
        hint.headers_mut().clone_from(head);
        headers::interim(hint.headers_mut());
        disown(hint.headers_mut());
        // A client that does not read does without.
        let _taken = self.0.try_send(hint).is_ok();
    }
}
