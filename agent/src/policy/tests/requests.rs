//! AuthorizationPolicies on requests.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::policy::{Admission, Claims, HttpRequest};
use crate::state::{
    ClaimHeader, Condition, ExternalProvider, JwtKeys, JwtProvider, PathPart, PathPattern,
    PathTemplate, Test, Values,
};

/// A request of `Client::cart`.
struct Asked {
    method: Method,
    path: Option<&'static str>,
    host: &'static str,
    headers: HeaderMap,
    claims: Option<Claims>,
}

impl Asked {
    fn get(path: &'static str) -> Self {
        Self {
            method: Method::GET,
            path: Some(path),
            host: "web.shop:8080",
            headers: HeaderMap::new(),
            claims: None,
        }
    }

    fn method(self, name: &str) -> Self {
        let method = name.parse().unwrap();
        Self { method, ..self }
    }

    fn host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    fn header(mut self, name: &'static str, value: &'static [u8]) -> Self {
        let value = HeaderValue::from_bytes(value).unwrap();
        self.headers.append(HeaderName::from_static(name), value);
        self
    }

    fn claims(self, text: &str) -> Self {
        let claims = Some(Claims::new(serde_json::from_str(text).unwrap()));
        Self { claims, ..self }
    }

    fn http(&self) -> HttpRequest<'_> {
        HttpRequest {
            method: &self.method,
            path: self.path,
            host: self.host,
            headers: &self.headers,
            claims: self.claims.as_ref(),
        }
    }

    fn decide(&self, policies: &[AuthorizationPolicy]) -> Decision {
        let http = self.http();
        with_client(policies, |inbound, request| {
            inbound.authorize_request(request, &http)
        })
    }
}

fn with_client<T>(
    policies: &[AuthorizationPolicy],
    ask: impl FnOnce(&crate::policy::InboundPolicy, &Request<'_>) -> T,
) -> T {
    let table = table(policies.iter().cloned().map(Object::AuthorizationPolicy));
    let client = Client::cart();
    let request = Request {
        peer: client.identity.as_ref(),
        client_ip: client.ip,
        port: client.port,
        encrypted: true,
    };
    ask(&table.inbound(&name("shop/web")), &request)
}

/// Whether one rule matches a request: as a DENY, as an ALLOW.
#[track_caller]
fn check(rule: &Rule, asked: &Asked, deny: bool, allow: bool) {
    let matches = |action, word: &str| {
        let policies = [policy("shop/p", action, vec![rule.clone()])];
        words(&asked.decide(&policies)) == word
    };
    let as_deny = matches(Action::Deny, "denied_by_rule shop/p#0");
    let as_allow = matches(Action::Allow, "permitted shop/p#0");
    assert_eq!((as_deny, as_allow), (deny, allow));
}

/// The same for both.
#[track_caller]
fn check_all(rule: &Rule, matching: Vec<Asked>, others: Vec<Asked>) {
    for asked in matching {
        check(rule, &asked, true, true);
    }
    for asked in others {
        check(rule, &asked, false, false);
    }
}

fn paths(paths: Vec<StringMatch>) -> Rule {
    to(To {
        paths: paths.into_iter().map(PathPattern::Text).collect(),
        ..To::default()
    })
}

fn methods(methods: &[&str]) -> Rule {
    to(To {
        methods: methods.iter().flat_map(|method| exact(method)).collect(),
        ..To::default()
    })
}

fn when(key: &str, test: Test) -> Rule {
    Rule {
        when: vec![Condition {
            key: key.into(),
            test,
        }],
        ..Rule::default()
    }
}

fn header(values: &[&str], not_values: &[&str]) -> Rule {
    let list = |texts: &[&str]| texts.iter().flat_map(|text| exact(text)).collect();
    when(
        "request.headers[x-role]",
        Test::Header {
            name: "x-role".into(),
            values: Values {
                values: list(values),
                not_values: list(not_values),
            },
        },
    )
}

fn admission(policies: &[AuthorizationPolicy]) -> String {
    with_client(policies, |inbound, request| {
        match inbound.authorize_connection(request) {
            Admission::Decided(decision) => words(&decision),
            Admission::PerRequest => "per request".to_owned(),
        }
    })
}

#[test]
fn methods_are_compared_in_the_case_that_is_safe() {
    let rule = methods(&["DELETE", "PUT"]);
    let asked = |name: &str| Asked::get("/").method(name);
    check_all(
        &rule,
        vec![asked("DELETE"), asked("PUT")],
        vec![asked("GET")],
    );
    check(&rule, &asked("delete"), true, false);
    let others = to(To {
        not_methods: exact("GET"),
        ..To::default()
    });
    check_all(&others, vec![asked("PUT")], vec![asked("GET")]);
    check(&others, &asked("get"), true, false);
}

#[test]
fn paths_by_text() {
    let rule = paths(vec![
        StringMatch::Exact("/admin".to_owned()),
        StringMatch::Prefix("/api/".to_owned()),
        StringMatch::Suffix(".php".to_owned()),
    ]);
    let matching = ["/admin", "/api/", "/api/x", "/x/y.php"];
    let others = ["/", "/admin/", "/Admin", "/api", "/x.php/y"];
    check_all(
        &rule,
        matching.map(Asked::get).into(),
        others.map(Asked::get).into(),
    );
    let any = paths(vec![StringMatch::Present]);
    check_all(&any, vec![Asked::get("/")], vec![]);
}

#[test]
fn parameters_of_paths_escape_no_deny() {
    let rule = paths(exact("/admin"));
    check(&rule, &Asked::get("/admin;x=1"), true, false);
    check(&rule, &Asked::get("/;/admin;"), true, false);
    let others = to(To {
        not_paths: exact("/public")
            .into_iter()
            .map(PathPattern::Text)
            .collect(),
        ..To::default()
    });
    // Not surely the public one: denied, and not allowed.
    check(&others, &Asked::get("/public;x"), true, false);
}

#[test]
fn a_request_without_a_path_is_denied_by_paths() {
    let asked = Asked {
        path: None,
        ..Asked::get("/").method("CONNECT")
    };
    check(&paths(exact("/admin")), &asked, true, false);
}

#[test]
fn paths_by_template() {
    let template = PathTemplate(vec![
        PathPart::Literal("/users/".to_owned()),
        PathPart::Segment,
        PathPart::Literal("/orders/".to_owned()),
        PathPart::Rest,
    ]);
    let rule = to(To {
        paths: vec![PathPattern::Template(template)],
        ..To::default()
    });
    let matching = ["/users/7/orders/", "/users/7/orders/a/b"];
    let others = ["/users/7/orders", "/users//orders/", "/users/7/8/orders/"];
    check_all(
        &rule,
        matching.map(Asked::get).into(),
        others.map(Asked::get).into(),
    );
}

#[test]
fn hosts_in_any_case_with_or_without_port() {
    let rule = to(To {
        hosts: vec![
            StringMatch::Exact("web.shop".to_owned()),
            StringMatch::Suffix(".example.com".to_owned()),
            StringMatch::Prefix("api.".to_owned()),
            StringMatch::Exact("other:81".to_owned()),
        ],
        ..To::default()
    });
    let matching = [
        "web.shop",
        "WEB.Shop:8080",
        "web.shop.",
        "a.EXAMPLE.com",
        "api.x",
        "other:81",
    ];
    let others = [
        "web",
        "web.shop.evil",
        "example.com",
        "other",
        "other:82",
        "",
    ];
    let host = |host| Asked::get("/").host(host);
    check_all(&rule, matching.map(host).into(), others.map(host).into());
    let none = to(To {
        not_hosts: exact("web.shop"),
        ..To::default()
    });
    check_all(&none, vec![host("x")], vec![host("WEB.SHOP:80")]);
}

#[test]
fn headers_given_several_times_are_read_in_the_safe_way() {
    let asked = || Asked::get("/");
    let role = |value: &'static [u8]| asked().header("x-role", value);
    let admin = header(&["admin"], &[]);
    check_all(
        &admin,
        vec![role(b"admin")],
        vec![asked(), role(b"user"), role(b"Admin")],
    );
    check(
        &admin,
        &role(b"admin").header("x-role", b"user"),
        true,
        false,
    );
    check(&admin, &role(b"\xff"), true, false);
    let others = header(&[], &["admin"]);
    check_all(&others, vec![asked(), role(b"user")], vec![role(b"admin")]);
    check(
        &others,
        &role(b"admin").header("x-role", b"user"),
        true,
        false,
    );
    check(&others, &role(b"\xff"), true, false);
}

#[test]
fn principals_of_requests_need_a_token() {
    let joe = || Asked::get("/").claims(r#"{"iss": "https://a", "sub": "joe"}"#);
    let ann = || Asked::get("/").claims(r#"{"iss": "https://a", "sub": "ann"}"#);
    let nobody = || Asked::get("/").claims(r#"{"iss": "https://a"}"#);
    let of_joe = from(From {
        request_principals: exact("https://a/joe"),
        ..From::default()
    });
    check_all(&of_joe, vec![joe()], vec![ann(), nobody(), Asked::get("/")]);
    let anyone = from(From {
        request_principals: vec![StringMatch::Present],
        ..From::default()
    });
    check_all(&anyone, vec![joe()], vec![nobody(), Asked::get("/")]);
    let not_joe = from(From {
        not_request_principals: exact("https://a/joe"),
        ..From::default()
    });
    check_all(&not_joe, vec![ann()], vec![joe()]);
    check(&not_joe, &Asked::get("/"), true, false);
    // As it is written to refuse whoever shows no token.
    let without = from(From {
        not_request_principals: vec![StringMatch::Present],
        ..From::default()
    });
    check(&without, &Asked::get("/"), true, false);
    check(&without, &joe(), false, false);
}

#[test]
fn claims() {
    let rule = |values: &[&str], not_values: &[&str]| {
        let list = |texts: &[&str]| texts.iter().flat_map(|text| exact(text)).collect();
        let path = vec!["realm".into(), "roles".into()];
        let values = Values {
            values: list(values),
            not_values: list(not_values),
        };
        when(
            "request.auth.claims[realm][roles]",
            Test::Claim { path, values },
        )
    };
    let admin = || Asked::get("/").claims(r#"{"realm": {"roles": ["admin", "user"]}}"#);
    let user = || Asked::get("/").claims(r#"{"realm": {"roles": "user"}}"#);
    let none = || Asked::get("/").claims("{}");
    let anonymous = || Asked::get("/");
    check_all(
        &rule(&["admin"], &[]),
        vec![admin()],
        vec![user(), none(), anonymous()],
    );
    check_all(&rule(&[], &["admin"]), vec![user(), none()], vec![admin()]);
    check(&rule(&[], &["admin"]), &anonymous(), true, false);
    check_all(
        &rule(&["user"], &["admin"]),
        vec![user()],
        vec![admin(), none()],
    );
}

#[test]
fn all_clauses_must_match() {
    let mut rule = methods(&["GET"]);
    rule.when = header(&["admin"], &[]).when;
    rule.from = principals("cluster.local/ns/shop/sa/cart").from;
    let admin = |path| Asked::get(path).header("x-role", b"admin");
    check_all(
        &rule,
        vec![admin("/")],
        vec![Asked::get("/"), admin("/").method("PUT")],
    );
    rule.from = principals("cluster.local/ns/shop/sa/other").from;
    check(&rule, &admin("/"), false, false);
}

#[test]
fn a_connection_is_decided_where_no_request_could_change_that() {
    let allow = |rule| policy("shop/a", Action::Allow, vec![rule]);
    let deny = |rule| policy("shop/d", Action::Deny, vec![rule]);
    let audit = |rule| policy("shop/w", Action::Audit, vec![rule]);
    let get = || methods(&["GET"]);
    let get_on = |port| Rule {
        to: vec![To {
            ports: vec![port],
            ..get().to.remove(0)
        }],
        ..Rule::default()
    };
    for (policies, expected) in [
        (vec![], "permitted"),
        (vec![allow(get())], "per request"),
        (vec![deny(get())], "per request"),
        (vec![audit(get())], "per request"),
        (vec![allow(get_on(1))], "no_rule_allows shop/a"),
        (vec![deny(get_on(1))], "permitted"),
        (vec![audit(get_on(1))], "permitted"),
        (
            vec![deny(ports(&[8080])), allow(get())],
            "denied_by_rule shop/d#0",
        ),
        (
            vec![deny(get()), allow(ports(&[1]))],
            "denied_by_rule shop/d#0",
        ),
        (
            vec![
                allow(ports(&[8080])),
                policy("shop/b", Action::Allow, vec![get()]),
            ],
            "permitted shop/a#0",
        ),
        (vec![allow(ports(&[8080])), deny(get())], "per request"),
        (
            vec![deny(get_on(1)), allow(ports(&[8080]))],
            "permitted shop/a#0",
        ),
        (
            vec![allow(paths(exact("/"))), deny(get_on(8080))],
            "per request",
        ),
    ] {
        assert_eq!(admission(&policies), expected, "{policies:?}");
    }
}

#[test]
fn without_http_an_allow_of_requests_never_matches_and_a_deny_does() {
    let decide = |policies: &[AuthorizationPolicy]| {
        with_client(policies, |inbound, request| {
            words(&inbound.authorize(request))
        })
    };
    let header = header(&["admin"], &[]);
    let not_joe = from(From {
        not_request_principals: exact("a/joe"),
        ..From::default()
    });
    for rule in [methods(&["GET"]), paths(exact("/")), header, not_joe] {
        let allow = policy("shop/p", Action::Allow, vec![rule.clone()]);
        assert_eq!(decide(&[allow]), "no_rule_allows shop/p", "{rule:?}");
        let deny = policy("shop/p", Action::Deny, vec![rule.clone()]);
        assert_eq!(decide(&[deny]), "denied_by_rule shop/p#0", "{rule:?}");
    }
    let elsewhere = Rule {
        to: vec![To {
            ports: vec![1],
            methods: exact("GET"),
            ..To::default()
        }],
        ..Rule::default()
    };
    assert_eq!(
        decide(&[policy("shop/p", Action::Deny, vec![elsewhere])]),
        "permitted"
    );
}

fn provider() -> ExternalProvider {
    ExternalProvider {
        service: name("shop/authz"),
        port: 9000,
        timeout: Duration::from_secs(1),
        fail_open: false,
        body: None,
        headers: Vec::new(),
    }
}

#[test]
fn a_custom_asks_about_what_the_others_permit() {
    let custom = AuthorizationPolicy {
        provider: Some(Arc::new(provider())),
        ..policy("shop/c", Action::Custom, vec![methods(&["PUT"])])
    };
    let deny = policy("shop/d", Action::Deny, vec![paths(exact("/no"))]);
    let policies = [custom.clone(), deny];
    assert_eq!(admission(&policies), "per request");
    let put = Asked::get("/").method("PUT");
    assert_eq!(words(&put.decide(&policies)), "permitted");
    assert_eq!(
        words(&Asked::get("/no").decide(&policies)),
        "denied_by_rule shop/d#0"
    );
    let asked = |asked: &Asked| {
        let http = asked.http();
        with_client(&policies, |inbound, request| {
            let external = inbound.external(request, &http);
            let rules = external.into_iter().map(|(_, rule)| rule.to_string());
            rules.collect::<Vec<_>>()
        })
    };
    assert_eq!(asked(&put), ["shop/c#0"]);
    assert_eq!(asked(&Asked::get("/")), Vec::<String>::new());
    // Without HTTP there is nothing to ask about.
    let opaque = with_client(&[custom], |inbound, request| {
        words(&inbound.authorize(request))
    });
    assert_eq!(opaque, "needs_http shop/c#0");
}

#[test]
fn mtls_goes_before_requests() {
    let mesh = mesh("shop/m", Some(MtlsMode::Strict), &[]);
    let get = policy("shop/p", Action::Allow, vec![methods(&["GET"])]);
    let table = table([Object::MeshPolicy(mesh), Object::AuthorizationPolicy(get)]);
    let client = Client::plaintext();
    let request = Request {
        peer: None,
        client_ip: client.ip,
        port: client.port,
        encrypted: false,
    };
    let inbound = table.inbound(&name("shop/web"));
    let Admission::Decided(decision) = inbound.authorize_connection(&request) else {
        panic!("left to the requests");
    };
    assert_eq!(words(&decision), "mtls_required shop/m");
}

#[test]
fn dry_runs_mark_requests() {
    let dry = AuthorizationPolicy {
        dry_run: true,
        ..policy("shop/p", Action::Deny, vec![paths(exact("/admin"))])
    };
    let decision = Asked::get("/admin").decide(std::slice::from_ref(&dry));
    assert_eq!(words(&decision), "permitted");
    assert_eq!(decision.audit, ["shop/p#0: would deny".into()]);
    assert!(Asked::get("/").decide(&[dry]).audit.is_empty());
}

/// A `MeshPolicy` with an issuer of tokens.
fn issuer(header: Option<&str>) -> MeshPolicy {
    let claims = header.map(|header| ClaimHeader {
        header: header.into(),
        claim: vec!["sub".into()],
    });
    let provider = JwtProvider {
        output_claims: claims.into_iter().collect(),
        ..JwtProvider::new("https://a", JwtKeys::Uri("https://a/keys".into()))
    };
    MeshPolicy {
        jwt: vec![Arc::new(provider)],
        ..mesh("shop/jwt", None, &[])
    }
}

/// Whether a connection is decided, what is said of it without HTTP, and whether a request
/// that is denied lacks a token.
#[track_caller]
fn check_tokens(objects: Vec<Object>, asked: &Asked, expected: (&str, &str, bool)) {
    let table = table(objects);
    let client = Client::cart();
    let request = Request {
        peer: client.identity.as_ref(),
        client_ip: client.ip,
        port: client.port,
        encrypted: true,
    };
    let inbound = table.inbound(&name("shop/web"));
    let admission = match inbound.authorize_connection(&request) {
        Admission::Decided(decision) => words(&decision),
        Admission::PerRequest => "per request".to_owned(),
    };
    let opaque = words(&inbound.authorize(&request));
    let lacks = inbound.lacks_token(&request, &asked.http());
    assert_eq!((&*admission, &*opaque, lacks), expected);
}

#[test]
fn issuers_make_connections_depend_on_their_requests() {
    let asked = Asked::get("/");
    let jwt = |header| Object::MeshPolicy(issuer(header));
    check_tokens(vec![jwt(None)], &asked, ("per request", "permitted", true));
    let needs = ("per request", "needs_http", true);
    check_tokens(vec![jwt(Some("x-user"))], &asked, needs);
    let invalid = MeshPolicy {
        jwt_invalid: true,
        ..issuer(None)
    };
    let denied = ("invalid_policy shop/jwt", "invalid_policy shop/jwt", false);
    check_tokens(vec![Object::MeshPolicy(invalid)], &asked, denied);
}

#[test]
fn whoever_could_be_permitted_with_a_token_lacks_one() {
    let of = |principals: &[&str], not_principals: &[&str]| From {
        request_principals: principals.iter().flat_map(|text| exact(text)).collect(),
        not_request_principals: not_principals.iter().flat_map(|text| exact(text)).collect(),
        ..From::default()
    };
    let lacks = |rule: Rule, action, asked: &Asked| {
        let jwt = Object::MeshPolicy(issuer(None));
        let policy = Object::AuthorizationPolicy(policy("shop/p", action, vec![rule]));
        let table = table([jwt, policy]);
        let client = Client::cart();
        let request = Request {
            peer: client.identity.as_ref(),
            client_ip: client.ip,
            port: client.port,
            encrypted: true,
        };
        table
            .inbound(&name("shop/web"))
            .lacks_token(&request, &asked.http())
    };
    let joe = Asked::get("/").claims(r#"{"iss": "a", "sub": "joe"}"#);
    let allow = || from(of(&["a/joe"], &[]));
    assert!(lacks(allow(), Action::Allow, &Asked::get("/")));
    assert!(!lacks(allow(), Action::Allow, &joe));
    let mut elsewhere = allow();
    elsewhere.to = methods(&["PUT"]).to;
    assert!(!lacks(elsewhere, Action::Allow, &Asked::get("/")));
    let deny = || from(of(&[], &["a/joe"]));
    assert!(lacks(deny(), Action::Deny, &Asked::get("/")));
    assert!(!lacks(methods(&["GET"]), Action::Deny, &Asked::get("/")));
}
