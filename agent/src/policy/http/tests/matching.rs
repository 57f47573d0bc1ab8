//! What a match is for.

use super::*;

#[track_caller]
fn matches(matches: &str, request: &str, expected: bool) {
    let table = table(&http("shop/r", &format!("[{{matches: [{matches}]}}]")));
    let found = rule(&routes(&table), request) != "none";
    assert_eq!(found, expected, "{matches} of {request}");
}

#[track_caller]
fn prefix(path: &str, request: &str, expected: bool) {
    let path = format!("{{path: {{type: PathPrefix, value: {path}}}}}");
    matches(&path, &format!("GET {request}"), expected);
}

#[track_caller]
fn regex(path: &str, request: &str, expected: bool) {
    let path = format!("{{path: {{type: RegularExpression, value: '{path}'}}}}");
    matches(&path, &format!("GET {request}"), expected);
}

#[test]
fn a_prefix_is_of_whole_segments() {
    prefix("/abc", "/abc", true);
    prefix("/abc", "/abc/", true);
    prefix("/abc", "/abc/def", true);
    prefix("/abc", "/abcd", false);
    prefix("/abc", "/ABC", false);
    prefix("/abc", "/x/abc", false);
    prefix("/abc/", "/abc", true);
    prefix("/abc/", "/abc/def", true);
    prefix("/abc/", "/abcd", false);
    prefix("/a/b", "/a/b/c", true);
    prefix("/a/b", "/a", false);
    prefix("/a%20b", "/a%20b/c", true);
}

#[test]
fn the_root_is_a_prefix_of_anything() {
    for path in ["/", "/a", "//a", "*", ""] {
        prefix("/", path, true);
        matches(
            "{headers: [{name: host, value: web}]}",
            &format!("GET {path}"),
            true,
        );
    }
}

#[test]
fn an_exact_path_is_the_whole_path() {
    let exact = "{path: {type: Exact, value: /a/b}}";
    matches(exact, "GET /a/b", true);
    matches(exact, "GET /a/b?c", true);
    matches(exact, "GET /a/b/", false);
    matches(exact, "GET /a", false);
    matches(exact, "GET /A/b", false);
}

#[test]
fn a_regular_expression_is_of_the_whole_path() {
    regex("/v[0-9]+", "/v12", true);
    regex("/v[0-9]+", "/v12/x", false);
    regex("/v[0-9]+", "/x/v12", false);
    regex("/a|/b", "/b", true);
    regex("/a|/b", "/b/c", false);
    regex("/a|/b", "/x/b", false);
    regex("(?m)/a$", "/a/b", false);
    regex("/(?i)abc", "/ABC", true);
}

#[test]
fn methods_headers_and_parameters_all_hold() {
    let all = "{method: POST, headers: [{name: Version, value: one}, {name: x, type: \
               RegularExpression, value: 'a+'}], queryParams: [{name: animal, value: whale}]}";
    let headers = "version: one\nx: aa";
    matches(all, &format!("POST /?animal=whale\n{headers}"), true);
    matches(all, &format!("GET /?animal=whale\n{headers}"), false);
    matches(all, &format!("POST /?animal=cat\n{headers}"), false);
    matches(all, &format!("POST /?Animal=whale\n{headers}"), false);
    matches(all, &format!("POST /\n{headers}"), false);
    matches(all, "POST /?animal=whale\nversion: One\nx: aa", false);
    matches(all, "POST /?animal=whale\nversion: one\nx: aab", false);
    matches(all, "POST /?animal=whale\nversion: one", false);
}

#[test]
fn a_header_that_is_repeated_is_one_list() {
    let version = "{headers: [{name: v, value: 'a,b'}]}";
    matches(version, "GET /\nv: a\nv: b", true);
    matches(version, "GET /\nv: a,b", true);
    matches(version, "GET /\nv: a", false);
    matches(
        "{headers: [{name: v, value: a}]}",
        "GET /\nv: a\nv: b",
        false,
    );
}

#[test]
fn of_a_name_given_twice_the_first_counts() {
    let headers = "{headers: [{name: v, value: a}, {name: V, value: b}]}";
    matches(headers, "GET /\nv: a", true);
    matches(headers, "GET /\nv: b", false);
    let query = "{queryParams: [{name: q, value: a}, {name: q, value: b}]}";
    matches(query, "GET /?q=a", true);
    matches(query, "GET /?q=a&q=b", true);
    matches(query, "GET /?q=b&q=a", false);
}

#[test]
fn parameters_are_decoded() {
    let query = "{queryParams: [{name: q, value: 'a b/+'}]}";
    matches(query, "GET /?q=a%20b%2F%2B", true);
    matches(query, "GET /?x&q=a+b/%2b&y=1", true);
    matches(query, "GET /?q=a+b/+", false);
    matches("{queryParams: [{name: q, value: a}]}", "GET /?%71=a", true);
    matches("{queryParams: [{name: q, value: a}]}", "GET /?q", false);
}

#[test]
fn a_match_that_is_not_understood_matches_nothing() {
    for bad in [
        "{path: {type: Suffix, value: /a}}",
        "{path: {value: a}}",
        "{path: {value: /a//b}}",
        "{path: {value: /a/../b}}",
        "{path: {value: /a/.}}",
        "{path: {value: '/a?b'}}",
        "{path: {value: '/a#b'}}",
        "{path: {value: /a%2Fb}}",
        "{path: {value: /a%2}}",
        "{path: {value: ''}}",
        "{path: {type: RegularExpression, value: '('}}",
        "{path: {type: RegularExpression, value: '/a)|(/b'}}",
        "{path: {type: RegularExpression, value: '/(((a{1,100}){1,100}){1,100})'}}",
        "{method: get}",
        "{method: [GET]}",
        "{headers: [{name: 'a b', value: c}]}",
        "{headers: [{name: a}]}",
        "{headers: [{name: a, value: ''}]}",
        "{headers: [{name: a, type: Prefix, value: b}]}",
        "{headers: {a: b}}",
        "{queryParams: [{value: a}]}",
        "{cookies: [{name: a, value: b}]}",
        "{path: {value: /, caseSensitive: false}}",
        "x",
    ] {
        let text = http("shop/r", &format!("[{{matches: [{bad}]}}]"));
        let (_, problems) = objects(&text);
        let said = problems.join("\n");
        assert!(
            said.starts_with("spec.rules[0].matches[0]"),
            "{bad}: {said}"
        );
        assert!(said.contains("; the match is left out"), "{bad}: {said}");
        let table = table(&text);
        for request in ["GET /", "GET /a", "GET /b", "POST /a/b\na: b"] {
            check(&routes(&table), request, "none");
        }
    }
}

#[test]
fn what_is_right_beside_it_holds() {
    let rules = "[{matches: [{path: {value: x}}, {path: {value: /a}}]}]";
    let table = table(&http("shop/r", rules));
    check(&routes(&table), "GET /a", "r#0");
    check(&routes(&table), "GET /", "none");
}

#[test]
fn a_rule_that_is_not_understood_answers_itself() {
    let rules = "[{matches: [{path: {value: /a}}], filters: [{type: Magic}]}, {name: rest}]";
    let text = http("shop/r", rules);
    let (_, problems) = objects(&text);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("spec.rules[0].filters[0].type: Magic is not supported"));
    assert!(
        problems[0].ends_with("; the rule answers 500"),
        "{problems:?}"
    );
    let table = table(&text);
    let routes = routes(&table);
    check(&routes, "GET /a", "r#0");
    check(&routes, "GET /b", "r#rest");
    let find = |path| {
        let head = RequestHead {
            method: &Method::GET,
            path,
            query: None,
            host: "",
            headers: &HeaderMap::new(),
        };
        routes.find(&head).unwrap().rule.invalid.clone()
    };
    assert!(find("/a").is_some_and(|why| why.contains("Magic")));
    assert_eq!(find("/b"), None);
}

#[test]
fn grpc_calls_match_by_service_and_method() {
    let web = "{name: web, group: '', kind: Service}";
    let rules = "[{name: call, matches: [{method: {service: a.B, method: C}}]},
      {name: service, matches: [{method: {service: a.B}}]},
      {name: header, matches: [{method: {service: a.B}, headers: [{name: v, value: '1'}]}]},
      {name: method, matches: [{method: {method: D}}]},
      {name: regex, matches: [{method: {type: RegularExpression, service: 'a\\..*'}}]},
      {name: any, matches: [{headers: [{name: v, value: '1'}]}]}]";
    let table = table(&route("GRPCRoute", "shop/r", web, rules));
    let routes = routes(&table);
    check(&routes, "POST /a.B/C", "r#call");
    check(&routes, "POST /a.B/D", "r#service");
    check(&routes, "POST /a.B/D\nv: 1", "r#header");
    check(&routes, "POST /a.B/C\nv: 1", "r#call");
    check(&routes, "POST /x.Y/D", "r#method");
    check(&routes, "POST /a.X/E", "r#regex");
    check(&routes, "POST /x.Y/E\nv: 1", "r#any");
    check(&routes, "POST /x.Y/E", "none");
    check(&routes, "POST /a.B/C/D", "none");
    check(&routes, "POST /a.B", "none");
    check(&routes, "POST /", "none");
}

#[test]
fn a_grpc_route_without_matches_is_for_any_call() {
    let web = "{name: web, group: '', kind: Service}";
    let table = table(&route("GRPCRoute", "shop/r", web, "[{}]"));
    check(&routes(&table), "POST /a.B/C", "r#0");
    check(&routes(&table), "GET /index.html", "none");
}

#[test]
fn a_prefix_says_how_much_of_the_path_it_covers() {
    let rules = "[{matches: [{path: {value: /a/b/}}, {path: {value: /}}, {path: {type: Exact, \
                 value: /x}}]}]";
    let table = table(&http("shop/r", rules));
    assert_eq!(rule(&routes(&table), "GET /a/b/c"), "r#0 4");
    assert_eq!(rule(&routes(&table), "GET /a/b"), "r#0 4");
    assert_eq!(rule(&routes(&table), "GET /a"), "r#0 0");
    assert_eq!(rule(&routes(&table), "GET /x"), "r#0 2");
}
