//! Answers of our own.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use super::body::Body;
use super::reason::{FAIRLEAD_REASON, Reason};

/// An answer that says why the request was not passed on, to a client of gRPC in its terms.
pub(super) fn reply(status: StatusCode, reason: &Reason, grpc: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let extra = reason.extra();
    let headers = response.headers_mut();
    if let Some(extra) = extra {
        headers.clone_from(&extra.headers);
    }
    let _before = headers.insert(FAIRLEAD_REASON, reason.header());
    if grpc {
        let grpc_type = HeaderValue::from_static("application/grpc");
        let _before = headers.insert(CONTENT_TYPE, grpc_type);
        reason.write_grpc(reason.kind.grpc_status(), headers);
        return response;
    }
    *response.status_mut() = extra.and_then(|extra| extra.status).unwrap_or(status);
    if let Some(body) = extra.and_then(|extra| extra.body.clone()) {
        *response.body_mut() = Body::full(body);
        return response;
    }
    let text_type = HeaderValue::from_static("text/plain; charset=utf-8");
    let _before = response.headers_mut().insert(CONTENT_TYPE, text_type);
    *response.body_mut() = Body::full(format!("{reason}\n"));
    response
}

/// The request is of gRPC, by its content type.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::http::reason::ReasonKind;

    #[test]
    fn each_client_is_answered_in_its_terms() {
        let reason = Reason::new(ReasonKind::NoEndpoints, "shop/cart");
        let plain = reply(reason.kind.status(), &reason, false);
        assert_eq!(plain.status(), 503);
        assert_eq!(plain.headers()[FAIRLEAD_REASON], "no_endpoints; shop/cart");
        let grpc = reply(reason.kind.status(), &reason, true);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "14");
    }

    #[test]
    fn only_grpc_is_grpc() {
        let is = |text| {
            is_grpc(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(text),
            )]))
        };
        assert!(is("application/grpc") && is("application/grpc+proto"));
        assert!(!is("application/grpc-web") && !is("text/plain"));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
