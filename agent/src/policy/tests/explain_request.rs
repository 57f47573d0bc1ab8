//! Explanations of requests.

use std::sync::Arc;
use std::time::Duration;

use super::explain::meshed_world;
use super::*;
use crate::policy::{ExplainError, Explanation, RequestQuestion, Verdict};
use crate::state::fixtures::{labels, service};
use crate::state::traffic::{TimeoutsSpec, TrafficPolicy, TrafficSpec, TrafficTarget};
use crate::state::{
    BackendRef, HeaderMatch, ParentRef, PathChange, PathMatch, PathPattern, Redirect, Reference,
    RequestMatch, Rewrite, Route, RouteFilter, RouteKind, RouteRule, ValueMatch,
};

/// `METHOD PATH`, with headers.
fn asked(line: &str, headers: &[(&str, &str)]) -> RequestQuestion {
    let (method, path) = line.split_once(' ').unwrap();
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    RequestQuestion {
        method: Some(method.to_owned()),
        path: Some(path.to_owned()),
        host: None,
        headers: headers.iter().map(header).collect(),
    }
}

fn explain(extra: Vec<Object>, source: &str, to: &str, question: &RequestQuestion) -> Explanation {
    let mut canary = service("shop/canary", "10.96.0.3");
    canary.selector = labels(&[("app", "cart")]);
    let mut objects = vec![Object::Service(canary)];
    objects.extend(extra);
    let table = Table::compile(None, meshed_world(objects).now());
    let explanation = table.explain_request(source, to, question).unwrap();
    let sent = serde_json::to_string(&explanation).unwrap();
    let read: Explanation = serde_json::from_str(&sent).unwrap();
    assert_eq!(read, explanation);
    read
}

#[track_caller]
fn check(extra: Vec<Object>, line: &str, expected: (Verdict, Option<u16>, &str)) -> Explanation {
    let explanation = explain(extra, "shop/cart", "shop/web:80", &asked(line, &[]));
    let outcome = &explanation.outcome;
    let reason = outcome.reason.as_deref().unwrap_or("");
    assert_eq!((outcome.verdict, outcome.status, reason), expected);
    explanation
}

const FINE: (Verdict, Option<u16>, &str) = (Verdict::Permitted, None, "");

fn matching(path: &str) -> RequestMatch {
    RequestMatch {
        path: PathMatch::Prefix(path.trim_end_matches('/').into()),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    }
}

fn to_service(name: &str, weight: u32) -> BackendRef {
    BackendRef {
        reference: Reference {
            group: "".into(),
            kind: "Service".into(),
            name: NamespacedName::new("shop", name),
            port: Some(80),
        },
        weight,
        filters: Vec::new(),
        invalid: None,
    }
}

fn rule(path: &str, backends: Vec<BackendRef>) -> RouteRule {
    RouteRule {
        matches: vec![matching(path)],
        backends,
        ..RouteRule::default()
    }
}

/// An `HTTPRoute` of `shop/web`.
fn route(text: &str, rules: Vec<RouteRule>) -> Object {
    Object::Route(Route {
        kind: RouteKind::Http,
        name: name(text),
        generation: 1,
        created: 0,
        parents: vec![ParentRef {
            service: name("shop/web"),
            with_namespace: true,
            port: None,
            section: None,
            index: 0,
            invalid: None,
        }],
        hostnames: Vec::new(),
        rules,
    })
}

fn steps(explanation: &Explanation) -> &crate::policy::RequestSteps {
    explanation.request.as_ref().unwrap()
}

#[test]
fn without_routes_requests_go_to_the_service() {
    let explanation = check(vec![], "GET /", FINE);
    let steps = steps(&explanation);
    assert_eq!(steps.host, "web.shop.svc.cluster.local:80");
    assert_eq!(steps.routes, "no route is for port 80 of Service shop/web");
    assert!(steps.protocol.contains("HTTP/1.1"), "{}", steps.protocol);
    let [backend] = &steps.backends[..] else {
        panic!("{:?}", steps.backends);
    };
    assert_eq!(
        (backend.service.clone(), backend.percent),
        (Some(name("shop/web")), 100)
    );
    assert_eq!(
        (backend.candidates.len(), explanation.servers.len()),
        (2, 2)
    );
}

#[test]
fn each_rule_says_why_it_is_taken_or_not() {
    let mut beta = rule("/", vec![to_service("canary", 1)]);
    beta.matches[0].headers.push(HeaderMatch {
        name: "x-beta".parse().unwrap(),
        value: ValueMatch::Exact("yes".into()),
    });
    let rules = vec![
        beta,
        rule("/api", vec![to_service("web", 9), to_service("canary", 1)]),
        rule("/admin", vec![to_service("web", 1)]),
    ];
    let explanation = check(vec![route("shop/split", rules)], "GET /api/x?y=1", FINE);
    let steps = steps(&explanation);
    let told: Vec<_> = steps
        .rules
        .iter()
        .map(|it| (&*it.rule, it.chosen, &*it.why))
        .collect();
    assert_eq!(
        told,
        [
            ("HTTPRoute shop/split#1", true, "it is the best match"),
            ("HTTPRoute shop/split#0", false, "there is no header x-beta"),
            ("HTTPRoute shop/split#2", false, "the path is another"),
        ]
    );
    assert_eq!(steps.rules[1].wants, "any path, header x-beta: yes");
    let shares: Vec<_> = steps.backends.iter().map(|it| it.percent).collect();
    assert_eq!(shares, [90, 10]);
    assert_eq!(explanation.candidates.len(), 3);
}

#[test]
fn a_request_that_no_rule_is_for_is_answered_404() {
    let rules = vec![rule("/api", vec![to_service("web", 1)])];
    let expected = (Verdict::Answered, Some(404), "no_route");
    check(vec![route("shop/api", rules)], "GET /other", expected);
}

#[test]
fn routes_of_the_clients_namespace_are_for_it_alone() {
    let rules = vec![rule("/api", vec![to_service("web", 1)])];
    let consumer = || {
        vec![
            namespace("out", "enabled"),
            route("out/mine", rules.clone()),
        ]
    };
    check(consumer(), "GET /other", FINE);
    let question = asked("GET /other", &[]);
    let explanation = explain(consumer(), "out/legacy", "shop/web:80", &question);
    assert_eq!(explanation.outcome.status, Some(404));
    let steps = steps(&explanation);
    assert!(
        steps.routes.contains("client's own namespace out"),
        "{}",
        steps.routes
    );
}

#[test]
fn redirects_and_backends_that_are_not_there_are_answers() {
    let redirect = Redirect {
        scheme: None,
        hostname: Some("new.example".into()),
        port: None,
        path: Some(PathChange::Prefix("/new".into())),
        status: 301,
    };
    let moved = RouteRule {
        filters: vec![RouteFilter::Redirect(Arc::new(redirect))],
        ..rule("/old", vec![])
    };
    let rules = vec![
        moved,
        rule("/gone", vec![to_service("gone", 1)]),
        rule("/part", vec![to_service("gone", 1), to_service("web", 1)]),
    ];
    let objects = || vec![route("shop/r", rules.clone())];
    let reason = "redirect to http://new.example/new/x?y";
    check(
        objects(),
        "GET /old/x?y",
        (Verdict::Answered, Some(301), reason),
    );
    let invalid = (Verdict::Answered, Some(500), "backend_invalid");
    let explanation = check(objects(), "GET /gone", invalid);
    let why = steps(&explanation).backends[0].invalid.as_deref();
    assert!(why.is_some_and(|why| why.contains("shop/gone")), "{why:?}");
    let depends = (Verdict::Depends, None, "the back ends differ");
    check(objects(), "GET /part", depends);
}

#[test]
fn servers_decide_on_the_request_as_it_comes_to_them() {
    let paths = |path: &str| To {
        paths: vec![PathPattern::Text(StringMatch::Exact(path.to_owned()))],
        ..To::default()
    };
    let mut rewriting = rule("/v2", vec![to_service("web", 1)]);
    rewriting.filters = vec![RouteFilter::Rewrite(Arc::new(Rewrite {
        hostname: None,
        path: Some(PathChange::Prefix("/admin".into())),
    }))];
    let deny = policy("shop/no-admin", Action::Deny, vec![to(paths("/admin/x"))]);
    let objects = || {
        vec![
            route(
                "shop/r",
                vec![rewriting.clone(), rule("/", vec![to_service("web", 1)])],
            ),
            Object::AuthorizationPolicy(deny.clone()),
        ]
    };
    let denied = (Verdict::Denied, None, "denied_by_rule");
    let explanation = check(objects(), "GET /v2/x", denied);
    assert_eq!(
        explanation.outcome.policy.as_deref(),
        Some("shop/no-admin#0")
    );
    check(objects(), "GET /%61dmin//x", denied);
    check(objects(), "GET /x", FINE);
    check(vec![], "GET /../x", FINE);
    let refused = "bad_request: the path leads above the root";
    check(
        objects(),
        "GET /../x",
        (Verdict::Answered, Some(400), refused),
    );
}

#[test]
fn traffic_policies_in_force_are_told() {
    let policy = TrafficPolicy {
        name: name("shop/slow"),
        targets: vec![TrafficTarget {
            service: "web".into(),
            port: None,
        }],
        spec: TrafficSpec {
            timeouts: Some(TimeoutsSpec {
                request: Some(Duration::from_secs(3)),
                ..TimeoutsSpec::default()
            }),
            ..TrafficSpec::default()
        },
        created: 0,
        generation: 1,
        invalid: None,
        held: false,
    };
    let policy = Object::TrafficPolicy(policy);
    let explanation = check(vec![policy.clone()], "GET /", FINE);
    let traffic = steps(&explanation).backends[0].traffic.as_ref().unwrap();
    assert_eq!(traffic.policies, [name("shop/slow")]);
    let line = "time limits: the request 3s".to_owned();
    assert!(traffic.settings.contains(&line), "{:?}", traffic.settings);
    // A back end without has those of what was dialled.
    let elsewhere = route("shop/r", vec![rule("/", vec![to_service("canary", 1)])]);
    let explanation = check(vec![policy, elsewhere], "GET /", FINE);
    let traffic = steps(&explanation).backends[0].traffic.as_ref().unwrap();
    assert!(traffic.policies.is_empty(), "{:?}", traffic.policies);
    let line = "time limits: the request 3s, as shop/web has them".to_owned();
    assert!(traffic.settings.contains(&line), "{:?}", traffic.settings);
}

#[test]
fn on_opaque_ports_only_the_connection_counts() {
    let mut opaque = service("shop/web", "10.96.0.1");
    opaque.opaque_ports = [80].into();
    let rules = vec![rule("/api", vec![to_service("web", 1)])];
    let objects = vec![Object::Service(opaque), route("shop/r", rules)];
    let explanation = check(objects, "GET /other", FINE);
    assert!(!steps(&explanation).looked_at);
}

#[test]
fn a_client_outside_of_the_mesh_has_no_routes() {
    let rules = vec![rule("/api", vec![to_service("web", 1)])];
    let question = asked("GET /other", &[]);
    let objects = vec![route("shop/r", rules)];
    let explanation = explain(objects, "out/legacy", "shop/web:80", &question);
    assert_eq!(explanation.outcome.verdict, Verdict::Permitted);
    assert!(steps(&explanation).backends.is_empty());
}

#[test]
fn requests_that_make_no_sense() {
    let table = Table::compile(None, meshed_world(vec![]).now());
    let ask = |question: &RequestQuestion| {
        let asked = table.explain_request("shop/cart", "shop/web:80", question);
        asked.unwrap_err()
    };
    for question in [
        asked("G(T /", &[]),
        asked("GET api", &[]),
        asked("GET /", &[("a b", "c")]),
        asked("GET /", &[("a", "b\n")]),
    ] {
        let error = ask(&question);
        assert!(matches!(error, ExplainError::BadRequest(_)), "{error}");
    }
}
