//! Which of several matches decides, and what it costs to find it.

use std::fmt::Write as _;

use super::*;

#[test]
fn the_order_of_the_specification() {
    let rules = "[{name: root},
      {name: short, matches: [{path: {value: /a}}]},
      {name: long, matches: [{path: {value: /a/b}}]},
      {name: regex, matches: [{path: {type: RegularExpression, value: '/a/r.*'}}]},
      {name: exact, matches: [{path: {type: Exact, value: /a/b}}]},
      {name: headers, matches: [{path: {value: /a}, headers: [{name: x, value: '1'}, {name: y, \
       value: '1'}]}]},
      {name: header, matches: [{path: {value: /a}, headers: [{name: x, value: '1'}]}]},
      {name: query, matches: [{path: {value: /a}, queryParams: [{name: q, value: '1'}]}]},
      {name: method, matches: [{path: {value: /a}, method: PUT}]}]";
    let table = table(&http("shop/r", rules));
    let routes = routes(&table);
    check(&routes, "GET /z", "r#root");
    check(&routes, "GET /a", "r#short");
    check(&routes, "GET /a/b", "r#exact");
    check(&routes, "GET /a/b/c", "r#long");
    check(&routes, "GET /a/b/c\nx: 1\ny: 1", "r#long");
    check(&routes, "GET /a/rest", "r#regex");
    check(&routes, "GET /a\nx: 1", "r#header");
    check(&routes, "GET /a\nx: 1\ny: 1", "r#headers");
    check(&routes, "GET /a?q=1", "r#query");
    check(&routes, "GET /a?q=1\nx: 1", "r#header");
    check(&routes, "PUT /a?q=1\nx: 1\ny: 1", "r#method");
}

#[test]
fn the_older_route_goes_first_and_then_the_first_by_name() {
    let aged = |name: &str, created: &str| {
        http(name, "[{}]").replace(
            "namespace: shop",
            &format!("namespace: shop, creationTimestamp: '{created}'"),
        )
    };
    let young = aged("shop/a", "2026-02-01T00:00:00Z");
    let old = aged("shop/z", "2026-01-01T00:00:00Z");
    check(&routes(&table(&format!("{young}{old}"))), "GET /", "z#0");
    let same = aged("shop/y", "2026-01-01T00:00:00Z");
    check(
        &routes(&table(&format!("{young}{old}{same}"))),
        "GET /",
        "y#0",
    );
}

#[test]
fn the_first_rule_of_a_route_goes_first() {
    let rules = "[{name: one, matches: [{path: {value: /a}}]}, {name: two, matches: [{path: \
                 {value: /a/}}]}]";
    check(&routes(&table(&http("shop/r", rules))), "GET /a", "r#one");
}

#[test]
fn routes_of_a_service_are_merged() {
    let one = http("shop/one", "[{matches: [{path: {value: /a}}]}]");
    let two = http("shop/two", "[{matches: [{path: {value: /a/b}}]}]");
    let table = table(&format!("{one}{two}"));
    check(&routes(&table), "GET /a", "one#0");
    check(&routes(&table), "GET /a/b", "two#0");
}

/// The matches that are looked at for a request among routes with one rule each.
fn looked_at(count: usize, one: impl Fn(usize) -> String, request: &str) -> usize {
    let mut text = String::new();
    for at in 0..count {
        let rules = format!("[{{matches: [{}]}}]", one(at));
        write!(text, "{}", http(&format!("shop/r{at}"), &rules)).unwrap();
    }
    let table = table(&text);
    let (path, query) = request.split_once('?').unwrap_or((request, ""));
    let mut headers = HeaderMap::new();
    headers.insert("tenant", HeaderValue::from_static("t0"));
    let head = RequestHead {
        method: &Method::GET,
        path,
        query: Some(query),
        host: "web",
        headers: &headers,
    };
    let mut looked = 0;
    let found = routes(&table).search(&head, &mut looked);
    let rule = found.expect("a route is for it").rule;
    assert_eq!(&*rule.label, "HTTPRoute shop/r0#0");
    looked
}

#[test]
fn a_thousand_routes_cost_what_one_does() {
    let flat = |one: &dyn Fn(usize) -> String, request: &str| {
        let (few, many) = (looked_at(1, one, request), looked_at(1000, one, request));
        assert_eq!((few, many), (1, 1), "{request}");
    };
    flat(&|at| format!("{{path: {{value: /p{at}/x}}}}"), "/p0/x/y/z");
    flat(
        &|at| format!("{{path: {{type: Exact, value: /p{at}}}}}"),
        "/p0",
    );
    flat(
        &|at| format!("{{headers: [{{name: tenant, value: t{at}}}]}}"),
        "/any",
    );
    flat(
        &|at| format!("{{queryParams: [{{name: q, value: v{at}}}]}}"),
        "/any?q=v0",
    );
}
