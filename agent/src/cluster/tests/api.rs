//! The definitions of our kinds, beside what the conversion makes of their objects.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::schema::refusals;
use super::spelling::schemas;
use super::trust_domain;
use crate::cluster::FieldProblem;
use crate::cluster::convert::{Converter, NetnsFrom};

/// Those that select pods.
const SELECTING: [&str; 2] = ["AuthorizationPolicy", "MeshPolicy"];
const KINDS: [&str; 3] = ["AuthorizationPolicy", "MeshPolicy", "TrafficPolicy"];

pub(super) fn schema(kind: &str) -> Value {
    let mut schemas = schemas().into_iter();
    schemas.find(|(of, _)| of == kind).unwrap().1
}

pub(super) fn object(kind: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "p", "namespace": "shop"},
    });
    if !spec.is_null() {
        object["spec"] = spec;
    }
    object
}

/// What the conversion says against an object.
pub(super) fn problems(object: &Value) -> Vec<String> {
    let converted = Converter::new(trust_domain(), NetnsFrom::Annotation).value(object);
    let problem = |problem: FieldProblem| format!("{}: {}", problem.field, problem.message);
    converted.problems.into_iter().map(problem).collect()
}

/// Every node of a schema that has fields of its own, with the pointer to an example of
/// it in an object.
fn nodes<'s>(schema: &'s Value, pointer: &str, found: &mut Vec<(String, &'s Value)>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.push((pointer.to_owned(), schema));
        for (name, property) in properties.iter().filter(|(name, _)| *name != "status") {
            nodes(property, &format!("{pointer}/{name}"), found);
        }
    }
    if schema["items"].is_object() {
        nodes(&schema["items"], &format!("{pointer}/0"), found);
    }
    if schema["additionalProperties"].is_object() {
        nodes(
            &schema["additionalProperties"],
            &format!("{pointer}/80"),
            found,
        );
    }
}

/// An object with a field at the end of a pointer.
fn with_field(kind: &str, pointer: &str, field: &str) -> Value {
    let mut value = json!({field: "?"});
    let steps: Vec<&str> = pointer.split('/').skip(1).collect();
    for step in steps.into_iter().rev() {
        value = if step == "0" {
            json!([value])
        } else {
            json!({step: value})
        };
    }
    let mut whole = object(kind, Value::Null);
    whole
        .as_object_mut()
        .unwrap()
        .append(value.as_object_mut().unwrap());
    whole
}

#[test]
fn schema_and_conversion_know_the_same_fields() {
    for kind in KINDS {
        let schema = schema(kind);
        let mut found = Vec::new();
        nodes(&schema, "", &mut found);
        assert!(found.len() > 4);
        for (pointer, node) in found {
            let text = problems(&with_field(kind, &pointer, "strange")).join("\n");
            let known = text.split("strange: is not known here; known are: ").nth(1);
            let known = known.unwrap_or_else(|| panic!("{kind} {pointer}: {text}"));
            let known: BTreeSet<&str> = known.lines().next().unwrap().split(", ").collect();
            let properties = node["properties"].as_object().unwrap().keys();
            let mut properties: BTreeSet<&str> = properties.map(String::as_str).collect();
            if pointer.is_empty() {
                // Of every object of Kubernetes.
                properties.extend(["apiVersion", "kind", "metadata"]);
            }
            assert_eq!(properties, known, "{kind} {pointer}");
        }
    }
}

#[test]
fn a_field_that_is_not_known_is_kept_wherever_it_is() {
    for kind in KINDS {
        let schema = schema(kind);
        let mut found = Vec::new();
        nodes(&schema, "", &mut found);
        for (pointer, node) in found {
            let kept = &node["x-kubernetes-preserve-unknown-fields"];
            assert_eq!(kept, &Value::Bool(true), "{kind} {pointer}");
        }
    }
}

#[test]
fn every_field_is_described() {
    fn walk(schema: &Value, path: &str) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(property["description"].is_string(), "{path}");
            walk(property, &path);
        }
        let inner = [&schema["items"], &schema["additionalProperties"]];
        for inner in inner.into_iter().filter(|inner| inner.is_object()) {
            walk(inner, path);
        }
    }
    for kind in KINDS {
        let schema = schema(kind);
        assert!(schema["description"].is_string());
        walk(&schema, kind);
    }
}

#[track_caller]
pub(super) fn taken(kind: &str, spec: Value) {
    let object = object(kind, spec);
    assert_eq!(
        refusals(&schema(kind), &object),
        Vec::<String>::new(),
        "{object}"
    );
    assert_eq!(problems(&object), Vec::<String>::new(), "{object}");
}

/// The API server does not let it in, and the conversion would not understand it.
#[track_caller]
pub(super) fn refused(kind: &str, spec: Value) {
    let object = object(kind, spec);
    assert_ne!(
        refusals(&schema(kind), &object),
        Vec::<String>::new(),
        "{object}"
    );
    assert_ne!(problems(&object), Vec::<String>::new(), "{object}");
}

/// The API server lets it in, for the conversion to find.
#[track_caller]
pub(super) fn found_later(kind: &str, spec: Value) {
    let object = object(kind, spec);
    assert_eq!(
        refusals(&schema(kind), &object),
        Vec::<String>::new(),
        "{object}"
    );
    assert_ne!(problems(&object), Vec::<String>::new(), "{object}");
}

fn from(source: &Value) -> Value {
    json!({"rules": [{"from": [{"source": source}]}]})
}

fn to(operation: &Value) -> Value {
    json!({"rules": [{"to": [{"operation": operation}]}]})
}

fn provider() -> Value {
    json!({
        "service": "authz",
        "namespace": "security",
        "port": 9000,
        "timeout": "200ms",
        "failOpen": true,
        "includeRequestBody": {"maxBytes": 1024, "allowPartial": true},
        "headers": ["X-User"],
    })
}

fn with(mut base: Value, field: &str, value: Value) -> Value {
    base[field] = value;
    base
}

fn jwt(fields: &Value) -> Value {
    let mut provider = with(fields.clone(), "issuer", json!("https://issuer.example"));
    if fields["issuer"].is_string() {
        provider["issuer"] = fields["issuer"].clone();
    }
    json!({"jwt": {"providers": [provider]}})
}

#[test]
fn what_both_take() {
    let kind = "AuthorizationPolicy";
    taken(kind, Value::Null);
    taken(kind, json!({}));
    taken(kind, json!({"rules": []}));
    taken(kind, json!({"action": "ALLOW", "rules": [{}]}));
    taken(
        kind,
        json!({"action": "AUDIT", "dryRun": true, "selector": {"matchLabels": {"a": "b"}}}),
    );
    taken(
        kind,
        json!({"selector": {}, "targetRefs": [{"kind": "Service", "name": "web"}]}),
    );
    let target = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
    taken(kind, json!({"action": "DENY", "targetRefs": [target]}));
    let principals = [
        "*",
        "a*",
        "*/sa/web",
        "cluster.local/ns/a/sa/b",
        "spiffe://x/ns/a/sa/b",
    ];
    taken(
        kind,
        from(&json!({"principals": principals, "notPrincipals": ["spiffe://*"]})),
    );
    taken(
        kind,
        from(&json!({"namespaces": ["a", "b*", "*c", "*"], "notNamespaces": ["d"]})),
    );
    let longest = "a".repeat(253);
    let accounts = [
        "web",
        "shop/web",
        "a.b-c",
        &longest,
        &format!("{longest}/{longest}"),
    ];
    taken(
        kind,
        from(&json!({"serviceAccounts": accounts, "notServiceAccounts": ["x/0"]})),
    );
    let blocks = ["10.0.0.0/8", "10.1.2.3", "fd00::/8", "::ffff:10.0.0.0/104"];
    taken(
        kind,
        from(&json!({"ipBlocks": blocks, "notIpBlocks": ["::1"]})),
    );
    taken(
        kind,
        to(&json!({"ports": [1, "80", 65535, "65535", "9999", "64000"], "notPorts": ["1"]})),
    );
}

#[test]
fn what_both_take_of_requests() {
    let kind = "AuthorizationPolicy";
    taken(
        kind,
        from(&json!({"requestPrincipals": ["*", "a/b"], "notRequestPrincipals": ["https://*"]})),
    );
    taken(
        kind,
        to(&json!({"methods": ["GET", "P*", "*"], "notMethods": ["*TE", "M-SEARCH"]})),
    );
    let paths = [
        "/",
        "/a*",
        "*.php",
        "*",
        "/a/{*}/b/{**}",
        "/pkg.Service/Method",
        "/a;b=1",
    ];
    taken(kind, to(&json!({"paths": paths, "notPaths": ["/%20"]})));
    taken(
        kind,
        to(&json!({"hosts": ["web", "*.example.com", "web:80", "[::1]:80"], "notHosts": ["a*"]})),
    );
    for key in [
        "request.headers[X-Role]",
        "request.auth.claims[realm][roles]",
        "request.auth.claims[https://x/y z]",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "source.namespace",
    ] {
        let when = |field: &str| json!({"rules": [{"when": [{"key": key, field: ["a", "b*"]}]}]});
        taken(kind, when("values"));
        taken(kind, when("notValues"));
    }
    for (key, value) in [
        ("source.ip", "10.0.0.0/8"),
        ("source.principal", "x/ns/a/sa/b"),
        ("source.serviceAccount", "web"),
        ("source.serviceAccount", "shop/web"),
        ("destination.port", "80"),
    ] {
        taken(
            kind,
            json!({"rules": [{"when": [{"key": key, "values": [value]}]}]}),
        );
        let not = json!({"rules": [{"when": [{"key": key, "notValues": [value]}]}]});
        taken(kind, not);
    }
    taken(
        kind,
        json!({"action": "CUSTOM", "provider": {"service": "authz", "port": 9000}}),
    );
    taken(kind, json!({"action": "CUSTOM", "provider": provider()}));
}

#[test]
fn what_both_take_of_a_mesh_policy() {
    let kind = "MeshPolicy";
    taken(kind, Value::Null);
    taken(kind, json!({"mtls": {}}));
    taken(
        kind,
        jwt(&json!({"jwksUri": "https://issuer.example/keys"})),
    );
    taken(
        kind,
        jwt(&json!({
            "jwks": r#"{"keys": [{"kty": "RSA"}]}"#,
            "audiences": ["a"],
            "fromHeaders": [{"name": "X-Token"}, {"name": "authorization", "prefix": "Bearer "}],
            "fromParams": ["token"],
            "fromCookies": ["session"],
            "forwardOriginalToken": true,
            "outputClaimToHeaders": [{"header": "X-User", "claim": "user.name"}],
            "clockSkew": "30s",
        })),
    );
    for log in [
        json!({}),
        json!({"mode": "ALL", "percent": 0.5}),
        json!({"mode": "ERRORS", "minStatus": 500, "percent": 100}),
        json!({"mode": "NONE"}),
    ] {
        taken(kind, json!({"accessLog": log}));
    }
    let ports = json!({"1": {"mode": "PERMISSIVE"}, "65535": {"mode": "STRICT"}});
    taken(kind, json!({"mtls": {"mode": "STRICT", "ports": ports}}));
}

#[test]
fn what_both_refuse() {
    for kind in SELECTING {
        refused(kind, json!([]));
        refused(kind, json!({"selector": {"matchLabels": {"a": 1}}}));
        refused(kind, json!({"targetRefs": []}));
        refused(
            kind,
            json!({"targetRefs": [{"kind": "Gateway", "name": "x"}]}),
        );
        refused(kind, json!({"targetRefs": [{"kind": "Service"}]}));
        refused(
            kind,
            json!({"targetRefs": [{"kind": "Service", "name": ""}]}),
        );
        refused(kind, json!({"targetRefs": [{"name": "web"}]}));
        refused(
            kind,
            json!({"targetRefs": [{"group": "apps", "kind": "Service", "name": "x"}]}),
        );
        let target = json!([{"kind": "Service", "name": "web"}]);
        let selector = json!({"matchLabels": {"a": "b"}});
        refused(kind, json!({"selector": selector, "targetRefs": target}));
    }
    let kind = "AuthorizationPolicy";
    refused(kind, json!({"action": "allow"}));
    refused(kind, json!({"dryRun": "true"}));
    refused(kind, json!({"rules": {}}));
    refused(kind, json!({"rules": [{"from": []}]}));
    refused(kind, json!({"rules": [{"from": [{}]}]}));
    refused(kind, from(&json!({})));
    refused(kind, to(&json!({})));
    for port in [
        json!(0),
        json!(65536),
        json!(-1),
        json!("0"),
        json!("65536"),
        json!("080"),
        json!("+1"),
        json!("http"),
    ] {
        refused(kind, to(&json!({"ports": [port]})));
        refused(kind, to(&json!({"notPorts": [port]})));
    }
}

#[test]
fn what_both_refuse_of_sources() {
    let kind = "AuthorizationPolicy";
    for principal in [
        "",
        "spiffe://",
        "a*b",
        "**",
        "shop/web",
        "cluster.local/ns/a",
        "x/ns/a/sa/b/",
    ] {
        refused(kind, from(&json!({"principals": [principal]})));
        refused(kind, from(&json!({"notPrincipals": [principal]})));
    }
    for namespace in [
        json!([]),
        json!([""]),
        json!(["a*b"]),
        json!(["**"]),
        json!([1]),
    ] {
        refused(kind, from(&json!({"namespaces": namespace})));
        refused(kind, from(&json!({"notNamespaces": namespace})));
    }
    let too_long = "a".repeat(254);
    for account in [
        json!([]),
        json!([""]),
        json!([1]),
        json!(["*"]),
        json!(["web*"]),
        json!(["*/web"]),
        json!(["Web"]),
        json!(["shop/"]),
        json!(["/web"]),
        json!(["shop/web/"]),
        json!(["cluster.local/ns/shop/sa/web"]),
        json!([too_long]),
        json!([format!("{too_long}/web")]),
    ] {
        refused(kind, from(&json!({"serviceAccounts": account})));
        refused(kind, from(&json!({"notServiceAccounts": account})));
    }
    for block in [json!([]), json!(["web"]), json!(["10.0.0.0/"]), json!([1])] {
        refused(kind, from(&json!({"ipBlocks": block})));
        refused(kind, from(&json!({"notIpBlocks": block})));
    }
}

#[test]
fn what_both_refuse_of_requests() {
    let kind = "AuthorizationPolicy";
    for (field, wrong) in [
        ("methods", json!(["G T"])),
        ("methods", json!([])),
        ("paths", json!(["admin"])),
        ("paths", json!(["/a?b"])),
        ("notPaths", json!(["/a#b"])),
        ("hosts", json!(["a/b"])),
        ("hosts", json!(["a*b"])),
        ("notHosts", json!([1])),
    ] {
        refused(kind, to(&json!({field: wrong})));
    }
    for condition in [
        json!({}),
        json!({"key": "request.headers[x]"}),
        json!({"values": ["x"]}),
        json!({"key": "request.headers[x]", "values": []}),
        json!({"key": "request.headers", "values": ["x"]}),
        json!({"key": "source.serviceAccount"}),
        json!({"key": "source.serviceAccount", "values": []}),
        json!({"key": "source.serviceAccount", "notValues": [""]}),
        json!({"key": "source.serviceAccounts", "values": ["web"]}),
        json!({"key": "request.headers[x][y]", "values": ["x"]}),
        json!({"key": "request.headers[:path]", "values": ["x"]}),
        json!({"key": "request.auth.claims", "values": ["x"]}),
        json!({"key": "request.auth.claims[a]b", "values": ["x"]}),
        json!({"key": "remote.ip", "values": ["10.0.0.1"]}),
        json!({"key": "connection.sni", "values": ["x"]}),
    ] {
        refused(kind, json!({"rules": [{"when": [condition]}]}));
    }
    let custom = |provider| json!({"action": "CUSTOM", "provider": provider});
    refused(kind, json!({"action": "CUSTOM"}));
    refused(kind, json!({"action": "DENY", "provider": provider()}));
    refused(kind, json!({"provider": provider()}));
    refused(kind, custom(json!({"service": "authz"})));
    refused(kind, custom(json!({"port": 9000})));
    for (field, wrong) in [
        ("service", json!("")),
        ("port", json!(0)),
        ("timeout", json!("soon")),
        ("timeout", json!("-1s")),
        ("failOpen", json!("true")),
        ("includeRequestBody", json!({})),
        ("includeRequestBody", json!({"maxBytes": 0})),
        ("includeRequestBody", json!({"maxBytes": 1_048_577})),
        ("headers", json!(["a b"])),
        ("headers", json!([])),
    ] {
        refused(kind, custom(with(provider(), field, wrong)));
    }
}

#[test]
fn what_both_refuse_of_a_mesh_policy() {
    let kind = "MeshPolicy";
    refused(kind, json!({"jwt": {}}));
    refused(kind, json!({"jwt": {"providers": []}}));
    refused(kind, jwt(&json!({})));
    let uri = "https://issuer.example/keys";
    let set = r#"{"keys": [{"kty": "RSA"}]}"#;
    refused(kind, jwt(&json!({"jwks": set, "jwksUri": uri})));
    for (field, wrong) in [
        ("jwksUri", json!("ftp://issuer.example/keys")),
        ("jwksUri", json!("https://joe@issuer.example/keys")),
        ("audiences", json!([])),
        ("fromHeaders", json!([{}])),
        ("fromHeaders", json!([{"name": "a b"}])),
        ("fromParams", json!([""])),
        ("fromCookies", json!(["a;b"])),
        ("forwardOriginalToken", json!("yes")),
        ("outputClaimToHeaders", json!([{"header": "x-user"}])),
        ("outputClaimToHeaders", json!([{"claim": "x"}])),
        ("clockSkew", json!("a minute")),
    ] {
        refused(kind, jwt(&with(json!({"jwksUri": uri}), field, wrong)));
    }
    for log in [
        json!([]),
        json!({"mode": "ON"}),
        json!({"mode": "ERRORS", "minStatus": 200}),
        json!({"mode": "ALL", "minStatus": 500}),
        json!({"minStatus": 500}),
        json!({"mode": "NONE", "percent": 1}),
        json!({"percent": 101}),
    ] {
        refused(kind, json!({"accessLog": log}));
    }
    refused(kind, json!({"mtls": {"mode": "DISABLE"}}));
    for port in ["0", "65536", "-1", "http"] {
        refused(kind, json!({"mtls": {"ports": {port: {"mode": "STRICT"}}}}));
    }
    refused(kind, json!({"mtls": {"ports": {"80": {}}}}));
    refused(kind, json!({"mtls": {"ports": {"80": {"mode": "strict"}}}}));
}

#[test]
fn what_only_the_conversion_can_tell() {
    let kind = "AuthorizationPolicy";
    found_later(kind, json!({"dryrun": true}));
    found_later(kind, from(&json!({"principal": ["*"]})));
    found_later(kind, to(&json!({"paths": ["/a//b", "/%2f"]})));
    found_later(kind, to(&json!({"notPaths": ["/a/{*}b"]})));
    for account in ["web*", "*", "Web", "shop/web/x"] {
        let key = "source.serviceAccount";
        let condition = json!({"key": key, "values": [account]});
        found_later(kind, json!({"rules": [{"when": [condition]}]}));
        let condition = json!({"key": key, "notValues": [account]});
        found_later(kind, json!({"rules": [{"when": [condition]}]}));
    }
    let keyless = json!({"rules": [{"when": [{"key": "source.ip", "values": ["web"]}]}]});
    found_later(kind, keyless);
    found_later(
        kind,
        json!({"action": "CUSTOM", "dryRun": true, "provider": provider()}),
    );
    found_later(kind, json!({"selector": {"matchExpressions": []}}));
    found_later(kind, from(&json!({"ipBlocks": ["10.0.0.0/33"]})));
    let target = json!({"kind": "Service", "name": "web", "namespace": "bank"});
    found_later(kind, json!({"targetRefs": [target]}));
    found_later("MeshPolicy", json!({"tracing": {}}));
    found_later("MeshPolicy", jwt(&json!({"jwks": "not JSON"})));
    found_later("MeshPolicy", jwt(&json!({"jwks": r#"{"keys": []}"#})));
    let claim = json!([{"header": "Host", "claim": "x"}]);
    let uri = "https://issuer.example/keys";
    found_later(
        "MeshPolicy",
        jwt(&json!({"jwksUri": uri, "outputClaimToHeaders": claim})),
    );
    found_later(
        "MeshPolicy",
        jwt(&json!({"jwksUri": uri, "clockSkew": "1h"})),
    );
    let ports = json!({"080": {"mode": "STRICT"}});
    found_later("MeshPolicy", json!({"mtls": {"ports": ports}}));
}

/// A null is not the same as nothing: who writes `from:` with nothing behind it does not
/// mean everybody. An API server drops it unless the schema says otherwise, which
/// `refusals` would not let pass.
#[test]
fn no_null_is_dropped() {
    #[track_caller]
    fn caught(kind: &str, spec: Value) {
        let mut object = object(kind, json!({}));
        object["spec"] = spec;
        refusals(&schema(kind), &object);
        assert_ne!(problems(&object), Vec::<String>::new(), "{object}");
    }
    for kind in KINDS {
        let schema = schema(kind);
        let mut found = Vec::new();
        nodes(&schema["properties"]["spec"], "/spec", &mut found);
        for (pointer, node) in found {
            for field in node["properties"].as_object().unwrap().keys() {
                let mut object = with_field(kind, &pointer, field);
                *object.pointer_mut(&format!("{pointer}/{field}")).unwrap() = Value::Null;
                caught(kind, object["spec"].take());
            }
        }
        caught(kind, Value::Null);
    }
    for kind in SELECTING {
        caught(kind, json!({"selector": {"matchLabels": {"app": null}}}));
    }
    caught("AuthorizationPolicy", json!({"rules": [null]}));
    caught("AuthorizationPolicy", from(&json!({"principals": [null]})));
    caught("MeshPolicy", json!({"mtls": {"ports": {"80": null}}}));
}
