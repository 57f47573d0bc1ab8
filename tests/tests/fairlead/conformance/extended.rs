//! What has no manifest in the suite's directory: the extended features of the profile
//! MESH-HTTP, each with the route that its documentation shows.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::until_ok;

use super::echo::{Case, get, refused};
use super::stage::{CONSUMER, MESH, Stage, all};

/// A route of the Service `echo` with these rules, as YAML.
fn route(rules: &str) -> String {
    route_of("HTTPRoute", MESH, "echo", rules)
}

/// Rules are indented by two.
pub(super) fn route_of(kind: &str, namespace: &str, service: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata:
  name: conformance
  namespace: {namespace}
spec:
  parentRefs:
  - {{group: \"\", kind: Service, name: {service}, namespace: {MESH}}}
  rules:
{rules}
"
    )
}

const V1: &str = "[{name: echo-v1, port: 8080}]";

#[expect(clippy::too_many_lines, reason = "one table of routes and cases")]
pub(super) fn filters() -> Result<()> {
    let stage = Stage::up()?;
    let run =
        |name: &str, rules: &str, cases: &[Case]| stage.with_routes(name, &route(rules), cases);
    let rule = |path: &str, filter: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
    filters: [{filter}]
    backendRefs: {V1}\n"
        )
    };
    let redirect = |path: &str, what: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: {path}}}}}]
    filters: [{{type: RequestRedirect, requestRedirect: {{{what}}}}}]\n"
        )
    };
    let rewrite = |path: &str, what: &str| {
        rule(
            path,
            &format!("{{type: URLRewrite, urlRewrite: {{{what}}}}}"),
        )
    };
    all([
        run(
            "redirects",
            &[
                redirect("/hostname", "hostname: example.org"),
                redirect("/moved", "hostname: example.org, statusCode: 301"),
                redirect("/other", "statusCode: 303, hostname: example.org"),
                redirect("/temporary", "statusCode: 307, hostname: example.org"),
                redirect("/permanent", "statusCode: 308, hostname: example.org"),
                redirect("/port", "port: 8083"),
                redirect("/scheme", "scheme: https, hostname: example.org"),
                redirect(
                    "/original-prefix",
                    "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new-prefix}",
                ),
                redirect(
                    "/full",
                    "path: {type: ReplaceFullPath, replaceFullPath: /full-path-replacement}",
                ),
            ]
            .concat(),
            &redirects(),
        ),
        run(
            "rewrites",
            &[
                rewrite(
                    "/prefix/one",
                    "path: {type: ReplacePrefixMatch, replacePrefixMatch: /one}",
                ),
                rewrite(
                    "/strip-prefix",
                    "path: {type: ReplacePrefixMatch, replacePrefixMatch: /}",
                ),
                rewrite(
                    "/full/one",
                    "path: {type: ReplaceFullPath, replaceFullPath: /one}",
                ),
                rewrite("/host", "hostname: one.example.org"),
            ]
            .concat(),
            &rewrites(),
        ),
        run(
            "response headers",
            &rule(
                "/",
                "{type: ResponseHeaderModifier, responseHeaderModifier: {
      set: [{name: X-Echo-Set, value: by-the-route}],
      add: [{name: X-Echo-Add, value: added}], remove: [Content-Type]}}",
            ),
            &[get("/", "echo-v1")
                .answers("x-echo-set", "by-the-route")
                .answers("x-echo-add", "added")
                .answers_no("content-type")],
        ),
        run(
            "cors",
            &rule(
                "/",
                "{type: CORS, cors: {allowOrigins: [\"https://www.foo.com\"],
      allowMethods: [GET, OPTIONS], allowHeaders: [x-header-1], allowCredentials: true,
      exposeHeaders: [x-header-2], maxAge: 3600}}",
            ),
            &cors(),
        ),
        mirror(&stage),
    ])
}

fn redirects() -> Vec<Case> {
    vec![
        refused("/hostname", 302).answers("location", "http://example.org/hostname"),
        refused("/moved", 301).answers("location", "http://example.org/moved"),
        refused("/other", 303).answers("location", "http://example.org/other"),
        refused("/temporary", 307).answers("location", "http://example.org/temporary"),
        refused("/permanent", 308).answers("location", "http://example.org/permanent"),
        refused("/port", 302).answers("location", "http://echo:8083/port"),
        refused("/scheme", 302).answers("location", "https://example.org/scheme"),
        refused("/original-prefix/lemon", 302).answers("location", "http://echo/new-prefix/lemon"),
        refused("/full/path/original", 302)
            .answers("location", "http://echo/full-path-replacement"),
    ]
}

fn rewrites() -> Vec<Case> {
    vec![
        get("/prefix/one/two", "echo-v1").sees("/one/two"),
        get("/prefix/one", "echo-v1").sees("/one"),
        get("/strip-prefix/three", "echo-v1").sees("/three"),
        get("/strip-prefix", "echo-v1").sees("/"),
        get("/full/one/two", "echo-v1").sees("/one"),
        get("/host", "echo-v1").receives("Host", "one.example.org"),
    ]
}

fn cors() -> Vec<Case> {
    vec![
        refused("/", 200)
            .method("OPTIONS")
            .send("Origin", "https://www.foo.com")
            .send("Access-Control-Request-Method", "GET")
            .send("Access-Control-Request-Headers", "x-header-1")
            .answers("access-control-allow-origin", "https://www.foo.com")
            .answers("access-control-allow-credentials", "true")
            .answers("access-control-max-age", "3600"),
        get("/", "echo-v1")
            .send("Origin", "https://www.foo.com")
            .answers("access-control-allow-origin", "https://www.foo.com")
            .answers("access-control-expose-headers", "x-header-2"),
        get("/", "echo-v1")
            .send("Origin", "https://www.bar.com")
            .answers_no("access-control-allow-origin"),
    ]
}

/// The other pod, which this Service never leads to, gets a copy whose answer nobody sees.
fn mirror(stage: &Stage) -> Result<()> {
    let rules = format!(
        "  - filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: echo-v2, port: 8080}}}}}}]
    backendRefs: {V1}"
    );
    let manifests = stage.world.manifests();
    let route = route_of("HTTPRoute", MESH, "echo-v1", &rules);
    manifests.write("mirror.yaml", &route)?;
    // Before the route is in force there is no copy.
    let mirrored = until_ok("the mirrored request", Duration::from_secs(30), || {
        get("/mirrored", "echo-v1").to("echo-v1", 80).check(stage)?;
        let seen = stage.requests_of("echo-v2");
        ensure!(seen.contains("request GET /mirrored"), "{seen}");
        Ok(())
    });
    manifests.remove("mirror.yaml")?;
    mirrored
}

pub(super) fn backends() -> Result<()> {
    let stage = Stage::up()?;
    let run =
        |name: &str, rules: &str, cases: &[Case]| stage.with_routes(name, &route(rules), cases);
    all([
        run(
            "no such backend",
            "  - backendRefs: [{name: nonexistent, port: 8080}]",
            &[refused("/", 500)],
        ),
        run(
            "half of the backends are missing",
            &format!(
                "  - matches: [{{path: {{value: /sound}}}}]
    backendRefs: {V1}
  - backendRefs: [{{name: echo-v1, port: 8080}}, {{name: nonexistent, port: 8080}}]"
            ),
            &[
                get("/sound", "echo-v1"),
                refused("/", 500),
                get("/", "echo-v1"),
            ],
        ),
        run(
            "no backend has a weight",
            "  - backendRefs: [{name: echo-v1, port: 8080, weight: 0}]",
            &[refused("/", 500)],
        ),
        run(
            "no backend",
            "  - matches: [{path: {value: /}}]",
            &[refused("/", 500)],
        ),
        run(
            "timeouts",
            &format!(
                "  - matches: [{{path: {{value: /request}}}}]
    timeouts: {{request: 500ms}}
    backendRefs: {V1}
  - matches: [{{path: {{value: /backend}}}}]
    timeouts: {{backendRequest: 500ms}}
    backendRefs: {V1}
  - matches: [{{path: {{value: /none}}}}]
    timeouts: {{request: 0s}}
    backendRefs: {V1}"
            ),
            &[
                get("/request", "echo-v1"),
                refused("/request?delay=1", 504),
                get("/backend", "echo-v1"),
                refused("/backend?delay=1", 504),
                get("/none?delay=1", "echo-v1"),
            ],
        ),
        grants(&stage),
    ])
}

/// A backend in another namespace needs that namespace's word.
fn grants(stage: &Stage) -> Result<()> {
    // A route of the namespace of clients, to a Service of that of the servers.
    let rules =
        "  - backendRefs: [{name: echo-v1, namespace: gateway-conformance-mesh, port: 8080}]";
    let asks = |from: &str| route_of("HTTPRoute", from, "echo", rules);
    let grant = format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: conformance, namespace: {MESH}}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {CONSUMER}}}]
  to: [{{group: \"\", kind: Service}}]
"
    );
    let refused = refused("/", 500).of_consumer();
    let granted = get("/", "echo-v1").of_consumer();
    stage.with_routes("no grant", &asks(CONSUMER), std::slice::from_ref(&refused))?;
    let manifests = stage.world.manifests();
    manifests.write("grant.yaml", &grant)?;
    let with_grant = stage.with_routes("grant", &asks(CONSUMER), &[granted]);
    manifests.remove("grant.yaml")?;
    with_grant
}

pub(super) fn matches() -> Result<()> {
    let stage = Stage::up()?;
    let run =
        |name: &str, rules: &str, cases: &[Case]| stage.with_routes(name, &route(rules), cases);
    all([
        run(
            "methods",
            "  - matches: [{method: POST}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{method: GET}]
    backendRefs: [{name: echo-v2, port: 8080}]",
            &[
                get("/", "echo-v1").method("POST"),
                get("/", "echo-v2"),
                refused("/", 404).method("DELETE"),
            ],
        ),
        run(
            "paths",
            "  - matches: [{path: {type: Exact, value: /exact}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /prefix/}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {type: PathPrefix, value: /prefix/longer}}]
    backendRefs: [{name: echo-v2, port: 8080}]
  - matches: [{path: {type: RegularExpression, value: \"/regex/[a-z]+\"}}]
    backendRefs: [{name: echo-v2, port: 8080}]",
            &[
                get("/exact", "echo-v1"),
                refused("/exact/", 404),
                refused("/Exact", 404),
                get("/prefix", "echo-v1"),
                get("/prefix/short", "echo-v1"),
                get("/prefix/longer/path", "echo-v2"),
                refused("/prefixed", 404),
                get("/regex/abc", "echo-v2"),
                refused("/regex/1", 404),
                refused("/regex/abc/def", 404),
            ],
        ),
        run(
            "headers",
            "  - matches: [{headers: [{name: version, value: one}]}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{headers: [{name: version, value: two}]}]
    backendRefs: [{name: echo-v2, port: 8080}]
  - matches: [{headers: [{name: version, value: two}, {name: color, value: orange}]}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{headers: [{name: build, type: RegularExpression, value: \"v[0-9]+\"}]}]
    backendRefs: [{name: echo-v2, port: 8080}]",
            &[
                get("/", "echo-v1").send("Version", "one"),
                get("/", "echo-v2").send("version", "two"),
                get("/", "echo-v1")
                    .send("version", "two")
                    .send("color", "orange"),
                get("/", "echo-v2").send("build", "v17"),
                refused("/", 404).send("build", "17"),
                refused("/", 404).send("version", "One"),
            ],
        ),
        run(
            "named rules",
            "  - name: first
    matches: [{path: {value: /first}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - name: second
    backendRefs: [{name: echo-v2, port: 8080}]",
            &[get("/first", "echo-v1"), get("/", "echo-v2")],
        ),
        run(
            "a bad rule harms no other",
            "  - matches: [{path: {type: RegularExpression, value: \"/bad/(\"}}]
    backendRefs: [{name: echo-v1, port: 8080}]
  - matches: [{path: {value: /good}}]
    backendRefs: [{name: echo-v2, port: 8080}]",
            &[get("/good", "echo-v2")],
        ),
    ])
}

/// A route in the clients' own namespace holds for them alone, and before the servers'.
pub(super) fn consumers() -> Result<()> {
    let stage = Stage::up()?;
    let marked = |namespace: &str, value: &str| {
        let rules = format!(
            "  - filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Route, value: {value}}}]}}}}]
    backendRefs: [{{name: echo-v1, namespace: {MESH}, port: 80}}]"
        );
        route_of("HTTPRoute", namespace, "echo-v1", &rules)
    };
    let ask = || get("/", "echo-v1").to("echo-v1", 80);
    let grant = format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: conformance, namespace: {MESH}}}
spec:
  from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {CONSUMER}}}]
  to: [{{group: \"\", kind: Service}}]
"
    );
    stage.world.manifests().write("grant.yaml", &grant)?;
    all([
        stage.with_routes(
            "consumer",
            &marked(CONSUMER, "consumer"),
            &[
                ask().of_consumer().answers("x-route", "consumer"),
                ask().answers_no("x-route"),
            ],
        ),
        stage.with_routes(
            "both",
            &format!(
                "{}---\n{}",
                marked(CONSUMER, "consumer"),
                marked(MESH, "producer")
            ),
            &[
                ask().of_consumer().answers("x-route", "consumer"),
                ask().answers("x-route", "producer"),
            ],
        ),
    ])
}
