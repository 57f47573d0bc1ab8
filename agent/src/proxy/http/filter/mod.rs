//! What the rule that matched does to a request and to its response.
//!
//! In: the filters of [`crate::policy::CompiledRule`] and of the back end that was chosen,
//! in the order of the route. Out: the head of the message, changed, or an answer in place
//! of any back end's. Heads only, and pure; bodies that are copied or translated are in
//! [`mirror`] and [`grpc_web`].

mod cors;
pub(in crate::proxy) mod fault;
pub(in crate::proxy) mod grpc_web;
mod header;
pub(in crate::proxy) mod mirror;
mod path;
mod redirect;
mod rewrite;
pub(in crate::proxy) mod session;

use http::header::ORIGIN;
use http::{HeaderValue, Response, request, response};

use super::reason::{Reason, ReasonKind};
use crate::policy::Filter;

/// What a request was to its route.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Place {
    /// Bytes of the path that the match of a prefix covered.
    pub(in crate::proxy) prefix: usize,
    /// The port that the client dialled.
    pub(in crate::proxy) port: u16,
}

/// What becomes of a request.
#[derive(Debug)]
pub(in crate::proxy) enum Flow {
    /// It goes on, with what its response is to be told apart by.
    Continue(Pending),
    /// It is answered here, as the route asks.
    Reply(Response<()>),
    /// It can't be sent as the route asks.
    Fail(Reason),
}

/// What the filters of a response need of its request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::proxy) struct Pending {
    /// The origin of a browser's request, where the route says who may read the response.
    origin: Option<HeaderValue>,
}

/// Applies filters to a request, in their order.
pub(in crate::proxy) fn apply_request(
    filters: &[Filter],
    parts: &mut request::Parts,
    place: Place,
) -> Flow {
    let mut pending = Pending::default();
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => {
                header::change(&mut parts.headers, change);
                if let Some(host) = rewrite::host_of(change)
                    && rewrite::set_host(parts, host.clone()).is_err()
                {
                    return fail("the route sets no valid host");
                }
            }
            Filter::Rewrite(wanted) => {
                if rewrite::rewrite(parts, wanted, place.prefix).is_err() {
                    return fail("the route rewrites to no valid address");
                }
            }
            Filter::Redirect(wanted) => {
                let answer = redirect::answer(parts, wanted, place.prefix, place.port);
                return answer.map_or_else(
                    |_none| fail("the route redirects to no valid location"),
                    Flow::Reply,
                );
            }
            Filter::Cors(cors) => {
                if let Some(answer) = cors::preflight(parts, cors) {
                    return Flow::Reply(answer);
                }
                pending.origin = parts.headers.get(ORIGIN).cloned();
            }
            // The one is for responses, the other is the pipeline's: a copy has a body.
            Filter::ResponseHeaders(_) | Filter::Mirror(_) => {}
        }
    }
    Flow::Continue(pending)
}

/// Applies filters to a response, be it a back end's or the proxy's own.
pub(in crate::proxy) fn apply_response(
    filters: &[Filter],
    parts: &mut response::Parts,
    pending: &Pending,
) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(change) => header::change(&mut parts.headers, change),
            Filter::Cors(cors) => {
                if let Some(origin) = &pending.origin {
                    cors::decorate(&mut parts.headers, cors, origin);
                }
            }
            Filter::RequestHeaders(_)
            | Filter::Rewrite(_)
            | Filter::Redirect(_)
            | Filter::Mirror(_) => {}
        }
    }
}

fn fail(detail: &'static str) -> Flow {
    Flow::Fail(Reason::new(ReasonKind::BackendInvalid, detail))
}

#[cfg(test)]
mod tests;
