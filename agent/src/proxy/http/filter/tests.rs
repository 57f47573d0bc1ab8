//! Filters one after the other, as a route lists them.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};

use super::{Flow, Pending, Place, apply_request, apply_response};
use crate::policy::Filter;
use crate::state::{Cors, HeaderChange, PathChange, Redirect, Rewrite};

const PLACE: Place = Place {
    prefix: 3,
    port: 80,
};

fn set(name: &'static str, value: &'static str) -> Arc<HeaderChange> {
    let entry = (
        HeaderName::from_static(name),
        HeaderValue::from_static(value),
    );
    Arc::new(HeaderChange {
        set: vec![entry],
        ..HeaderChange::default()
    })
}

fn cors() -> Filter {
    Filter::Cors(Arc::new(Cors {
        allow_origins: vec!["https://a".into()],
        allow_methods: Vec::new(),
        allow_headers: Vec::new(),
        expose_headers: Vec::new(),
        allow_credentials: false,
        max_age: Duration::from_secs(5),
    }))
}

fn redirect() -> Filter {
    Filter::Redirect(Arc::new(Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status: 301,
    }))
}

#[track_caller]
fn go_on(filters: &[Filter], request: Request<()>) -> (http::request::Parts, Pending) {
    let (mut parts, ()) = request.into_parts();
    match apply_request(filters, &mut parts, PLACE) {
        Flow::Continue(pending) => (parts, pending),
        other => panic!("{other:?}"),
    }
}

#[test]
fn headers_hosts_and_paths_change_in_one_go() {
    let filters = [
        Filter::RequestHeaders(set("x-canary", "1")),
        Filter::Rewrite(Arc::new(Rewrite {
            hostname: None,
            path: Some(PathChange::Prefix("/v2".into())),
        })),
        Filter::RequestHeaders(set("host", "api.shop")),
    ];
    let request = Request::get("/v1/cart").header("host", "web");
    let (parts, _pending) = go_on(&filters, request.body(()).unwrap());
    assert_eq!(parts.uri, "/v2/cart");
    assert_eq!(parts.headers["host"], "api.shop");
    assert_eq!(parts.headers["x-canary"], "1");
}

#[test]
fn the_filters_before_a_redirect_count_for_it() {
    let filters = [Filter::RequestHeaders(set("host", "elsewhere")), redirect()];
    let (mut parts, ()) = Request::get("/a")
        .header("host", "web")
        .body(())
        .unwrap()
        .into_parts();
    match apply_request(&filters, &mut parts, PLACE) {
        Flow::Reply(response) => {
            assert_eq!(response.status(), StatusCode::MOVED_PERMANENTLY);
            assert_eq!(response.headers()["location"], "http://elsewhere/a");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_route_that_makes_no_request_fails_and_says_so() {
    let filters = [Filter::RequestHeaders(set("host", "not a host"))];
    let (mut parts, ()) = Request::get("/a").body(()).unwrap().into_parts();
    match apply_request(&filters, &mut parts, PLACE) {
        Flow::Fail(reason) => assert_eq!(reason.kind.word(), "backend_invalid"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn responses_are_changed_and_told_their_origin() {
    let filters = [Filter::ResponseHeaders(set("x-served-by", "v2")), cors()];
    let request = Request::get("/").header("origin", "https://a");
    let (_parts, pending) = go_on(&filters, request.body(()).unwrap());
    let (mut response, ()) = Response::new(()).into_parts();
    apply_response(&filters, &mut response, &pending);
    assert_eq!(response.headers["x-served-by"], "v2");
    assert_eq!(response.headers["access-control-allow-origin"], "https://a");
}

#[test]
fn responses_to_requests_without_origin_stay_as_they_are() {
    let filters = [cors()];
    let (_parts, pending) = go_on(&filters, Request::get("/").body(()).unwrap());
    let (mut response, ()) = Response::new(()).into_parts();
    apply_response(&filters, &mut response, &pending);
    assert!(response.headers.is_empty());
}
