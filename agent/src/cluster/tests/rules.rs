//! Every rule in CEL of our kinds, beside what the conversion makes of the same objects.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::api::{object, problems, schema};
use super::schema::refusals;
use super::spelling::schemas;

/// A rule, and the fields that it asks for where it stands.
struct Asked {
    kind: &'static str,
    message: &'static str,
    /// A spec, with what the rule is about at `at`.
    spec: Value,
    at: &'static str,
    /// Each is left out, or has one of the values.
    fields: Vec<(&'static str, Vec<Value>)>,
}

fn asked(
    (kind, message): (&'static str, &'static str),
    spec: Value,
    at: &'static str,
    fields: Vec<(&'static str, Vec<Value>)>,
) -> Asked {
    Asked {
        kind,
        message,
        spec,
        at,
        fields,
    }
}

fn of_selections() -> Vec<Asked> {
    let target = json!([{"kind": "Service", "name": "web"}]);
    let selectors = vec![
        json!({}),
        json!({"matchLabels": {}}),
        json!({"matchLabels": {"a": "b"}}),
    ];
    let both = "selector and targetRefs can't be given together";
    let of = |kind| {
        let fields = vec![
            ("selector", selectors.clone()),
            ("targetRefs", vec![target.clone()]),
        ];
        asked((kind, both), json!({}), "", fields)
    };
    vec![of("AuthorizationPolicy"), of("MeshPolicy")]
}

fn of_authorization() -> Vec<Asked> {
    let kind = "AuthorizationPolicy";
    let provider = json!({"service": "authz", "port": 9000});
    let actions = ["ALLOW", "DENY", "AUDIT", "CUSTOM"].map(Value::from);
    vec![
        asked(
            (kind, "CUSTOM needs a provider, and nothing else has one"),
            json!({}),
            "",
            vec![("action", actions.to_vec()), ("provider", vec![provider])],
        ),
        asked(
            (kind, "values or notValues must be given"),
            json!({"rules": [{"when": [{"key": "source.serviceAccount"}]}]}),
            "/rules/0/when/0",
            vec![
                ("values", vec![json!(["web"])]),
                ("notValues", vec![json!(["shop/api"])]),
            ],
        ),
    ]
}

fn of_mesh() -> Vec<Asked> {
    let kind = "MeshPolicy";
    let strict = || vec![json!({"mode": "STRICT"})];
    let ports = ["0", "1", "65535", "65536", "-1", "http"];
    let log = || {
        vec![
            ("mode", ["ALL", "ERRORS", "NONE"].map(Value::from).to_vec()),
            ("minStatus", vec![json!(500)]),
            ("percent", vec![json!(50)]),
        ]
    };
    vec![
        asked(
            (kind, "the keys must be ports: 1 to 65535"),
            json!({"mtls": {"ports": {}}}),
            "/mtls/ports",
            ports.into_iter().map(|port| (port, strict())).collect(),
        ),
        asked(
            (kind, "minStatus has a meaning with ERRORS only"),
            json!({"accessLog": {}}),
            "/accessLog",
            log(),
        ),
        asked(
            (kind, "there is no part of NONE"),
            json!({"accessLog": {}}),
            "/accessLog",
            log(),
        ),
        asked(
            (kind, "either jwks or jwksUri must be given"),
            json!({"jwt": {"providers": [{"issuer": "i"}]}}),
            "/jwt/providers/0",
            vec![
                ("jwks", vec![json!(r#"{"keys": [{"kty": "RSA"}]}"#)]),
                ("jwksUri", vec![json!("https://issuer.example/keys")]),
            ],
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "one table")]
fn of_traffic() -> Vec<Asked> {
    let kind = "TrafficPolicy";
    let with = |name: &str, section: Value| json!({"targetRefs": [{"kind": "Service", "name": "web"}], name: section});
    let local = json!({"requests": 1, "per": "1s"});
    let global = |entry: Value| {
        json!({
            "service": {"name": "limits", "port": 8081},
            "domain": "d",
            "descriptors": [{"entries": [entry]}],
        })
    };
    let hash = json!({"algorithm": "CONSISTENT_HASH", "consistentHash": {}});
    vec![
        asked(
            (kind, "port and sectionName can't be given together"),
            with("timeouts", json!({})),
            "/targetRefs/0",
            vec![
                ("port", vec![json!(80)]),
                ("sectionName", vec![json!("http")]),
            ],
        ),
        asked(
            (
                kind,
                "consistentHash goes together with the algorithm CONSISTENT_HASH",
            ),
            with("loadBalancing", json!({})),
            "/loadBalancing",
            vec![
                ("algorithm", vec![json!("RANDOM"), json!("CONSISTENT_HASH")]),
                ("consistentHash", vec![json!({"source": true})]),
            ],
        ),
        asked(
            (kind, "must have one of header, cookie, source and query"),
            with("loadBalancing", hash),
            "/loadBalancing/consistentHash",
            vec![
                ("header", vec![json!("x-a")]),
                ("cookie", vec![json!("c")]),
                ("source", vec![json!(true)]),
                ("query", vec![json!("q")]),
            ],
        ),
        asked(
            (kind, "must have one of local and global"),
            with("rateLimits", json!([{}])),
            "/rateLimits/0",
            vec![
                ("local", vec![local.clone()]),
                (
                    "global",
                    vec![global(json!({"key": "k", "from": "CLIENT"}))],
                ),
            ],
        ),
        asked(
            (kind, "header goes together with by: HEADER"),
            with("rateLimits", json!([{"local": local}])),
            "/rateLimits/0/local",
            vec![
                (
                    "by",
                    ["SERVICE", "CLIENT", "ROUTE", "HEADER"]
                        .map(Value::from)
                        .to_vec(),
                ),
                ("header", vec![json!("x-a")]),
            ],
        ),
        asked(
            (kind, "must have one of value, header and from"),
            with(
                "rateLimits",
                json!([{"global": global(json!({"key": "k"}))}]),
            ),
            "/rateLimits/0/global/descriptors/0/entries/0",
            vec![
                ("value", vec![json!("v")]),
                ("header", vec![json!("x-a")]),
                ("from", vec![json!("PATH")]),
            ],
        ),
        asked(
            (kind, "must have a delay, an abort, or both"),
            with("faults", json!([{}])),
            "/faults/0",
            vec![
                ("delay", vec![json!({"duration": "1s"})]),
                ("abort", vec![json!({"status": 503})]),
            ],
        ),
        asked(
            (kind, "must have one of status and grpcStatus"),
            with("faults", json!([{"abort": {}}])),
            "/faults/0/abort",
            vec![
                ("status", vec![json!(503)]),
                ("grpcStatus", vec![json!(14)]),
            ],
        ),
    ]
}

fn all() -> Vec<Asked> {
    let parts = [of_selections(), of_authorization(), of_mesh(), of_traffic()];
    parts.into_iter().flatten().collect()
}

/// Each way to leave fields out and to give them values.
fn combinations(fields: &[(&'static str, Vec<Value>)]) -> Vec<Map<String, Value>> {
    let Some(((name, values), rest)) = fields.split_first() else {
        return vec![Map::new()];
    };
    let mut all = Vec::new();
    for with in combinations(rest) {
        for value in values {
            let mut with = with.clone();
            with.insert((*name).to_owned(), value.clone());
            all.push(with);
        }
        all.push(with);
    }
    all
}

#[test]
fn the_conversion_says_what_each_rule_in_cel_says() {
    for asked in all() {
        let schema = schema(asked.kind);
        let (mut takes, mut refuses) = (0, 0);
        for fields in combinations(&asked.fields) {
            let mut spec = asked.spec.clone();
            let place = spec.pointer_mut(asked.at).unwrap();
            place.as_object_mut().unwrap().extend(fields);
            let object = object(asked.kind, spec);
            let (refusals, problems) = (refusals(&schema, &object), problems(&object));
            assert_eq!(
                refusals.is_empty(),
                problems.is_empty(),
                "{object}: {refusals:?} {problems:?}"
            );
            takes += usize::from(refusals.is_empty());
            refuses += usize::from(refusals.iter().any(|it| it.contains(asked.message)));
        }
        assert!(takes > 0 && refuses > 0, "{}", asked.message);
    }
}

#[test]
fn each_rule_in_cel_has_its_cases() {
    fn walk(schema: &Value, found: &mut BTreeSet<String>) {
        let rules = schema["x-kubernetes-validations"].as_array();
        let messages = rules.into_iter().flatten().map(|rule| &rule["message"]);
        found.extend(messages.map(|it| it.as_str().unwrap().to_owned()));
        for property in schema["properties"].as_object().into_iter().flatten() {
            walk(property.1, found);
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if inner.is_object() {
                walk(inner, found);
            }
        }
    }
    for (kind, schema) in schemas() {
        let mut found = BTreeSet::new();
        walk(&schema, &mut found);
        let cases = all().into_iter().filter(|asked| asked.kind == kind);
        let cases: BTreeSet<String> = cases.map(|asked| asked.message.to_owned()).collect();
        assert_eq!(found, cases, "{kind}");
    }
}
