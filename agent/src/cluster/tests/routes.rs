//! Routes: what is understood, and what becomes of the rest.

use std::time::Duration;

use super::*;
use crate::state::{
    HeaderChange, PathChange, Redirect, Rewrite, Route, RouteFilter, RouteRule, Scheme,
    SessionCarrier,
};

fn read(kind: &str, spec: &str) -> (Option<Route>, Vec<String>) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: r, namespace: \
         shop, generation: 3}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web}}]\n\
         {spec}\n"
    );
    let services = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                    spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n";
    let snapshot = World::of(&format!("{text}{services}"));
    let route = snapshot.routes.values().next();
    (route.map(|route| Route::clone(route)), problems(&snapshot))
}

/// The only rule of an `HTTPRoute`.
fn rule(rule: &str) -> (RouteRule, Vec<String>) {
    let (route, problems) = read("HTTPRoute", &format!("  rules: [{rule}]"));
    let rules = route.expect("it is a route").rules;
    let [rule] = rules.try_into().expect("it has one rule");
    (rule, problems)
}

#[track_caller]
fn understood(text: &str) -> RouteRule {
    let (rule, problems) = rule(text);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!((&rule.invalid, &rule.left_out), (&None, &None));
    rule
}

/// The rule answers 500, and a problem of this field says why.
#[track_caller]
fn refused(text: &str, expected: &str) {
    let (rule, problems) = rule(text);
    let said = problems.join("\n");
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("; the rule answers 500"), "{said}");
    assert!(rule.invalid.is_some());
}

fn filter(text: &str) -> RouteFilter {
    let rule = understood(&format!("{{filters: [{text}]}}"));
    rule.filters[0].clone()
}

#[test]
fn regular_expressions_are_counted() {
    let header = |at: usize| format!("{{type: RegularExpression, name: a{at}, value: b{at}+}}");
    let all: Vec<String> = (0..63).map(header).collect();
    let path = "path: {type: RegularExpression, value: /c+}";
    let rule_with = |more: &str| {
        let headers = all.join(", ");
        rule(&format!(
            "{{matches: [{{headers: [{headers}]}}, {{{path}}}{more}]}}"
        ))
    };
    let (most, problems) = rule_with("");
    assert_eq!((most.matches.len(), problems), (2, Vec::new()));
    let (beyond, problems) = rule_with(&format!(", {{{path}}}"));
    assert_eq!(beyond.matches, most.matches);
    let expected = "spec.rules[0].matches[2].path.value: is one regular expression too many";
    let [problem] = problems.try_into().expect("there is one problem");
    assert!(problem.contains(expected), "{problem}");
    assert!(beyond.left_out.is_some());
}

#[test]
fn what_identifies_a_route() {
    let (route, _) = read("HTTPRoute", "");
    let route = route.unwrap();
    assert_eq!(route.name.to_string(), "shop/r");
    assert_eq!((route.generation, route.created), (3, 0));
    assert_eq!(route.parents[0].service.to_string(), "shop/web");
}

#[test]
fn versions_that_are_alike() {
    let kinds = |version: &str, kind: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: \
             r}}\nspec: {{}}\n"
        );
        World::of(&text).routes.len()
    };
    for (kind, versions) in [
        ("HTTPRoute", vec!["v1", "v1beta1"]),
        ("GRPCRoute", vec!["v1", "v1alpha2"]),
        ("TLSRoute", vec!["v1", "v1alpha3", "v1alpha2"]),
        ("TCPRoute", vec!["v1", "v1alpha2"]),
    ] {
        for version in versions {
            assert_eq!(kinds(version, kind), 1, "{version} {kind}");
        }
        assert_eq!(kinds("v7", kind), 0);
    }
}

#[test]
fn headers_are_changed() {
    let RouteFilter::RequestHeaders(change) = filter(
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: b}], add: \
         [{name: c, value: d}], remove: [E]}}",
    ) else {
        panic!("another filter");
    };
    let expected = HeaderChange {
        set: vec![("a".parse().unwrap(), "b".parse().unwrap())],
        add: vec![("c".parse().unwrap(), "d".parse().unwrap())],
        remove: vec!["e".parse().unwrap()],
    };
    assert_eq!(*change, expected);
}

#[test]
fn headers_that_frame_or_inject_are_refused() {
    let set = |name: &str, value: &str| {
        format!(
            "{{filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: \
             {name}, value: {value}}}]}}}}]}}"
        )
    };
    let field = "spec.rules[0].filters[0].responseHeaderModifier.set[0]";
    refused(&set("a", r#""b\r\nc: d""#), &format!("{field}.value"));
    refused(&set(r#""a\r\nc""#, "b"), &format!("{field}.name"));
    refused(
        &set("transfer-encoding", "chunked"),
        &format!("{field}.name"),
    );
    refused(&set("Content-Length", "'0'"), &format!("{field}.name"));
    refused(&set("Trailer", "a"), &format!("{field}.name"));
    refused(&set("proxy-connection", "a"), &format!("{field}.name"));
    refused(&set("a", "1"), &format!("{field}.value"));
}

#[test]
fn redirects_and_rewrites() {
    let redirect = filter(
        "{type: RequestRedirect, requestRedirect: {scheme: https, hostname: example.org, port: \
         8443, statusCode: 308, path: {type: ReplaceFullPath, replaceFullPath: /x}}}",
    );
    let expected = Redirect {
        scheme: Some(Scheme::Https),
        hostname: Some("example.org".into()),
        port: Some(8443),
        path: Some(PathChange::Full("/x".into())),
        status: 308,
    };
    assert_eq!(redirect, RouteFilter::Redirect(Arc::new(expected)));
    let rewrite = filter(
        "{type: URLRewrite, urlRewrite: {hostname: example.org, path: {type: ReplacePrefixMatch, \
         replacePrefixMatch: /x}}}",
    );
    let expected = Rewrite {
        hostname: Some("example.org".into()),
        path: Some(PathChange::Prefix("/x".into())),
    };
    assert_eq!(rewrite, RouteFilter::Rewrite(Arc::new(expected)));
}

#[test]
fn mirrors_of_all_of_a_share_and_of_a_fraction() {
    let share = |more: &str| {
        let RouteFilter::Mirror(mirror) = filter(&format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: web, port: 80}}{more}}}}}"
        )) else {
            panic!("another filter");
        };
        (mirror.numerator, mirror.denominator)
    };
    assert_eq!(share(""), (1, 1));
    assert_eq!(share(", percent: 5"), (5, 100));
    assert_eq!(share(", percent: 0"), (0, 100));
    assert_eq!(share(", fraction: {numerator: 1}"), (1, 100));
    assert_eq!(share(", fraction: {numerator: 1, denominator: 3}"), (1, 3));
}

#[test]
fn cors_has_a_default_age() {
    let RouteFilter::Cors(cors) = filter(
        "{type: CORS, cors: {allowOrigins: ['https://*.example.org'], allowMethods: [GET], \
         allowCredentials: true}}",
    ) else {
        panic!("another filter");
    };
    assert_eq!(cors.allow_origins, ["https://*.example.org".into()]);
    assert_eq!(cors.max_age, Duration::from_secs(5));
    assert!(cors.allow_credentials);
}

#[test]
fn filters_that_are_not_understood() {
    for (filter, field) in [
        ("{}", "type: is missing"),
        (
            "{type: ExtensionRef, extensionRef: {}}",
            "type: ExtensionRef is not supported",
        ),
        (
            "{type: ExternalAuth}",
            "type: ExternalAuth is not supported",
        ),
        ("{type: CORS}", "cors: is missing"),
        (
            "{type: CORS, cors: {}, urlRewrite: {}}",
            "urlRewrite: is not known here",
        ),
        (
            "{type: CORS, cors: {allowOrigins: [\"a\\nb\"]}}",
            "cors.allowOrigins[0]",
        ),
        ("{type: CORS, cors: {maxAge: 0}}", "cors.maxAge"),
        (
            "{type: CORS, cors: {allowCookies: true}}",
            "cors.allowCookies",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {statusCode: 300}}",
            "statusCode",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {scheme: ftp}}",
            "scheme",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {hostname: \"a b\"}}",
            "hostname",
        ),
        (
            "{type: RequestRedirect, requestRedirect: {path: {type: X}}}",
            "path.type",
        ),
        (
            "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: \"/a \
             b\"}}}",
            "replaceFullPath",
        ),
        (
            "{type: RequestMirror, requestMirror: {}}",
            "requestMirror.backendRef: is missing",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: w}, percent: 101}}",
            "requestMirror.percent",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: w}, fraction: {numerator: \
             2, denominator: 1}}}",
            "requestMirror.fraction",
        ),
        (
            "{type: RequestMirror, requestMirror: {backendRef: {name: w}, fraction: {numerator: \
             1}, percent: 1}}",
            "can't be given together",
        ),
    ] {
        refused(
            &format!("{{filters: [{filter}]}}"),
            "spec.rules[0].filters[0].",
        );
        refused(&format!("{{filters: [{filter}]}}"), field);
    }
}

#[test]
fn filters_that_exclude_each_other() {
    let redirect = "{type: RequestRedirect, requestRedirect: {port: 1}}";
    let rewrite = "{type: URLRewrite, urlRewrite: {hostname: a}}";
    let both = format!("{{filters: [{redirect}, {rewrite}]}}");
    refused(&both, "can't be used together");
    let invalid = rule(&both).0.invalid.unwrap();
    assert_eq!(invalid.reason, "IncompatibleFilters");
    refused(
        &format!("{{filters: [{rewrite}, {rewrite}]}}"),
        "another filter of this type",
    );
    let answers = format!("{{filters: [{redirect}], backendRefs: [{{name: web, port: 80}}]}}");
    refused(
        &answers,
        "spec.rules[0].backendRefs: can't be given together",
    );
}

#[test]
fn a_prefix_is_replaced_only_where_there_is_one() {
    let rule = |path: &str| {
        format!(
            "{{matches: [{{path: {path}}}], filters: [{{type: URLRewrite, urlRewrite: {{path: \
             {{type: ReplacePrefixMatch, replacePrefixMatch: /x}}}}}}]}}"
        )
    };
    understood(&rule("{type: PathPrefix, value: /a}"));
    refused(
        &rule("{type: Exact, value: /a}"),
        "ReplacePrefixMatch takes matches",
    );
}

#[test]
fn a_back_end_that_is_not_understood_costs_its_share_alone() {
    let (rule, problems) = rule(
        "{backendRefs: [{name: web, port: 80, filters: [{type: Magic}]}, {name: web, port: 80, \
         weight: 9}]}",
    );
    assert_eq!(rule.invalid, None);
    assert!(rule.backends[0].invalid.is_some());
    assert_eq!(
        (&rule.backends[1].invalid, rule.backends[1].weight),
        (&None, 9)
    );
    assert!(
        problems[0].ends_with("; its share of the requests gets 500"),
        "{problems:?}"
    );
    for bad in [
        "weight: -1",
        "weight: 1000001",
        "port: 0",
        "timeout: 1s",
        "namespace: ''",
    ] {
        let rule = self::rule(&format!("{{backendRefs: [{{name: web, {bad}}}]}}")).0;
        assert!(rule.backends[0].invalid.is_some(), "{bad}");
    }
}

#[test]
fn timeouts_and_retries() {
    let rule = understood(
        "{name: n, timeouts: {request: 1m30s, backendRequest: 250ms}, retry: {attempts: 3, codes: \
         [500, 503], backoff: 100ms}}",
    );
    assert_eq!(rule.name.as_deref(), Some("n"));
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(90)));
    assert_eq!(
        rule.timeouts.backend_request,
        Some(Duration::from_millis(250))
    );
    let retry = rule.retry.unwrap();
    assert_eq!((retry.attempts, retry.codes), (Some(3), vec![500, 503]));
    assert_eq!(retry.backoff, Some(Duration::from_millis(100)));

    let endless = understood("{timeouts: {request: 0s, backendRequest: 1h}}");
    assert_eq!(endless.timeouts.request, Some(Duration::ZERO));

    refused(
        "{timeouts: {request: 1s, backendRequest: 2s}}",
        "backendRequest: can't be longer",
    );
    for bad in [
        "10",
        "10x",
        "s",
        "-1s",
        "1.5s",
        "123456s",
        "1h1m1s1ms1h",
        "''",
    ] {
        refused(
            &format!("{{timeouts: {{request: {bad}}}}}"),
            "timeouts.request",
        );
    }
    refused("{timeouts: {idle: 1s}}", "timeouts.idle: is not known here");
    refused("{retry: {codes: [399]}}", "retry.codes[0]");
    refused("{retry: {attempts: -1}}", "retry.attempts");
    refused("{retries: 1}", "spec.rules[0].retries: is not known here");
}

#[test]
fn sessions() {
    let session = |text: &str| {
        let rule = understood(&format!("{{sessionPersistence: {{{text}}}}}"));
        rule.session.unwrap()
    };
    let cookie = |name: Option<&str>, path: &str, permanent| SessionCarrier::Cookie {
        name: name.map(Into::into),
        path: path.into(),
        permanent,
    };
    assert_eq!(session("").carrier, cookie(None, "/", false));
    let full = session(
        "type: Cookie, absoluteTimeout: 1h, cookie: {name: c, path: /p, lifetimeType: Permanent}",
    );
    assert_eq!(full.carrier, cookie(Some("c"), "/p", true));
    assert_eq!(full.absolute_timeout, Some(Duration::from_hours(1)));
    let older = session("sessionName: c, cookieConfig: {lifetimeType: Session}");
    assert_eq!(older.carrier, cookie(Some("c"), "/", false));
    let header = SessionCarrier::Header {
        name: "x-session".parse().unwrap(),
    };
    assert_eq!(
        session("type: Header, header: {name: X-Session}").carrier,
        header
    );

    let refuse = |text: &str, field: &str| {
        refused(&format!("{{sessionPersistence: {{{text}}}}}"), field);
    };
    refuse("type: Header", "header.name: is missing");
    refuse(
        "cookie: {lifetimeType: Permanent}",
        "absoluteTimeout: is missing",
    );
    refuse("cookie: {path: \"/;x\"}", "cookie.path");
    refuse("cookie: {name: \"a;b\"}", "can't be the name");
    refuse("idleTimeout: 1h", "idleTimeout: is not known here");
}

#[test]
fn an_unknown_field_of_the_whole_makes_every_rule_answer_itself() {
    let (route, problems) = read(
        "HTTPRoute",
        "  clients: [x]\n  rules: [{name: a}, {name: b}]",
    );
    assert!(problems[0].contains("spec.clients: is not known here"));
    assert!(problems[0].ends_with("; the route answers 500"));
    let rules = route.unwrap().rules;
    assert!(rules.iter().all(|rule| rule.invalid.is_some()) && rules.len() == 2);
}

#[test]
fn hostnames_mean_nothing_for_services() {
    let (route, problems) = read("HTTPRoute", "  hostnames: [example.org]\n  rules: [{}]");
    assert!(
        problems[0].contains("spec.hostnames: mean nothing for a Service"),
        "{problems:?}"
    );
    let route = route.unwrap();
    assert_eq!((route.hostnames.len(), &route.rules[0].invalid), (0, &None));
}

#[test]
fn fields_of_other_kinds_are_not_known() {
    for (kind, rule) in [
        ("GRPCRoute", "{timeouts: {request: 1s}}"),
        (
            "GRPCRoute",
            "{filters: [{type: URLRewrite, urlRewrite: {}}]}",
        ),
        ("TCPRoute", "{matches: []}"),
        ("TCPRoute", "{filters: []}"),
    ] {
        let (route, problems) = read(kind, &format!("  rules: [{rule}]"));
        assert!(route.unwrap().rules[0].invalid.is_some(), "{kind} {rule}");
        assert_eq!(problems.len(), 1);
    }
}

#[test]
fn a_null_is_as_good_as_nothing() {
    let rule = understood(
        "{name: null, matches: [{path: null, headers: null}], filters: null, timeouts: null, \
         retry: null, sessionPersistence: null, backendRefs: [{name: web, port: 80, weight: null, \
         namespace: null}]}",
    );
    assert_eq!(rule.backends[0].weight, 1);
    assert_eq!((rule.retry, rule.session), (None, None));
}

#[test]
fn a_null_where_something_is_needed_is_missing() {
    for (field, text) in [
        ("headers[0].value", "{headers: [{name: a, value: null}]}"),
        ("headers[0].name", "{headers: [{name: null, value: b}]}"),
        (
            "queryParams[0].value",
            "{queryParams: [{name: a, value: null}]}",
        ),
        (
            "queryParams[0].name",
            "{queryParams: [{name: null, value: b}]}",
        ),
    ] {
        let (rule, problems) = rule(&format!("{{matches: [{text}]}}"));
        let said = problems.join("\n");
        let expected = format!("spec.rules[0].matches[0].{field}: is missing");
        assert!(said.contains(&expected), "{said}");
        assert!(rule.matches.is_empty(), "{text}");
    }
    let headers = "requestHeaderModifier";
    let modifier = format!("type: RequestHeaderModifier, {headers}");
    for (field, text) in [
        (
            ".set[0].value",
            format!("{modifier}: {{set: [{{name: a, value: null}}]}}"),
        ),
        (
            ".set[0].name",
            format!("{modifier}: {{set: [{{name: null, value: b}}]}}"),
        ),
    ] {
        let field = format!("spec.rules[0].filters[0].{headers}{field}: is missing");
        refused(&format!("{{filters: [{{{text}}}]}}"), &field);
    }
    let mirror = "{filters: [{type: RequestMirror, requestMirror: {backendRef: null}}]}";
    let field = "spec.rules[0].filters[0].requestMirror.backendRef: is missing";
    refused(mirror, field);
    let mirror = "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: null}}}]}";
    let field = "spec.rules[0].filters[0].requestMirror.backendRef.name: is missing";
    refused(mirror, field);

    let (named, problems) = rule("{backendRefs: [{name: null, port: 80}]}");
    assert!(named.backends[0].invalid.is_some(), "{problems:?}");
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, \
                namespace: shop}\nspec: {parentRefs: [{group: '', kind: Service, name: null}]}\n";
    let snapshot = World::of(text);
    let route = snapshot.routes.values().next().expect("it is a route");
    assert!(route.parents[0].invalid.is_some());
}

#[test]
fn a_route_that_can_not_be_read_leaves_the_last_good_one() {
    let mut world = World::new();
    let text = |spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, \
             namespace: shop}}\nspec: {spec}\n"
        )
    };
    let good = "{parentRefs: [{group: '', kind: Service, name: web}], rules: [{name: a}]}";
    world.put("a.yaml", &text(good));
    let snapshot = world.put("a.yaml", &text("{rules: {}}"));
    let said = problems(&snapshot).join("\n");
    assert!(
        said.contains("spec.rules: must be a list; its last good version stays"),
        "{said}"
    );
    let route = snapshot.routes.values().next().unwrap();
    assert_eq!(route.rules[0].name.as_deref(), Some("a"));
}
