//! Every bound that the schemas of our kinds have, on both of its sides. The cases are made
//! from the schemas, so that a new field needs an example and a new bound nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::schema::{by_schema, refusals};
use super::spelling::schemas;
use super::trust_domain;
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::cluster::{FieldPath, FieldProblem, Segment};

/// Specs that together have each field of each kind.
fn examples() -> Vec<(&'static str, Value)> {
    let mut examples = vec![
        (
            "AuthorizationPolicy",
            json!({
                "action": "ALLOW",
                "dryRun": true,
                "selector": {"matchLabels": {"app": "web"}},
                "rules": [{
                    "from": [{"source": {
                        "principals": ["cluster.local/ns/a/sa/b"],
                        "notPrincipals": ["spiffe://x/*"],
                        "namespaces": ["a"],
                        "notNamespaces": ["b*"],
                        "serviceAccounts": ["shop/web"],
                        "notServiceAccounts": ["web"],
                        "ipBlocks": ["10.0.0.0/8"],
                        "notIpBlocks": ["fd00::1"],
                        "requestPrincipals": ["a/b"],
                        "notRequestPrincipals": ["*"],
                    }}],
                    "to": [{"operation": {
                        "ports": [80, "81"],
                        "notPorts": [82],
                        "methods": ["GET"],
                        "notMethods": ["P*"],
                        "paths": ["/a"],
                        "notPaths": ["*.php"],
                        "hosts": ["web"],
                        "notHosts": ["*.example.com"],
                    }}],
                    "when": [{"key": "request.headers[x]", "values": ["a"], "notValues": ["b"]}],
                }],
            }),
        ),
        (
            "AuthorizationPolicy",
            json!({
                "action": "CUSTOM",
                "targetRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "shop"}],
                "provider": {
                    "service": "authz",
                    "namespace": "security",
                    "port": 9000,
                    "timeout": "200ms",
                    "failOpen": true,
                    "includeRequestBody": {"maxBytes": 1024, "allowPartial": true},
                    "headers": ["x-user"],
                },
            }),
        ),
        (
            "MeshPolicy",
            json!({
                "selector": {"matchLabels": {"app": "web"}},
                "mtls": {"mode": "STRICT", "ports": {"80": {"mode": "PERMISSIVE"}}},
                "accessLog": {"mode": "ERRORS", "minStatus": 500, "percent": 50},
                "jwt": {"providers": [{
                    "issuer": "https://issuer.example",
                    "audiences": ["a"],
                    "jwks": r#"{"keys": [{"kty": "RSA"}]}"#,
                    "fromHeaders": [{"name": "x-token", "prefix": "Bearer "}],
                    "fromParams": ["token"],
                    "fromCookies": ["session"],
                    "forwardOriginalToken": true,
                    "outputClaimToHeaders": [{"header": "x-user", "claim": "user.name"}],
                    "clockSkew": "30s",
                }]},
            }),
        ),
        (
            "MeshPolicy",
            json!({
                "targetRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "shop"}],
                "jwt": {"providers": [{"issuer": "i", "jwksUri": "https://issuer.example/keys"}]},
            }),
        ),
    ];
    examples.extend(traffic().into_iter().map(|it| ("TrafficPolicy", it)));
    examples
}

#[expect(clippy::too_many_lines, reason = "one table")]
fn traffic() -> Vec<Value> {
    let targets = |target: Value| {
        let mut whole =
            json!({"group": "core", "kind": "Service", "name": "web", "namespace": "shop"});
        whole
            .as_object_mut()
            .unwrap()
            .append(&mut target.as_object().unwrap().clone());
        json!([whole])
    };
    let hash = |hash: Value| {
        json!({
            "targetRefs": targets(json!({})),
            "loadBalancing": {"algorithm": "CONSISTENT_HASH", "consistentHash": hash},
        })
    };
    let global = |entry: Value| {
        json!({
            "targetRefs": targets(json!({})),
            "rateLimits": [{"global": {
                "service": {"name": "limits", "namespace": "infra", "port": 8081},
                "domain": "d",
                "descriptors": [{"entries": [entry]}],
                "timeout": "20ms",
                "onFailure": "DENY",
            }}],
        })
    };
    vec![
        json!({
            "targetRefs": targets(json!({"port": 80})),
            "loadBalancing": {
                "algorithm": "RANDOM",
                "locality": {"node": true, "zone": true, "overprovisioning": 140},
                "slowStart": {"window": "30s", "minimumPercent": 10},
            },
            "connections": {"max": 1, "perClient": 1, "pending": 1, "idleTimeout": "1m"},
            "requests": {"max": 1, "perClient": 1, "retries": 1},
            "outlierDetection": {
                "consecutive5xxErrors": 5,
                "consecutiveGatewayErrors": 5,
                "successRate": {"minimumHosts": 5, "requestVolume": 100, "stdevFactor": 1900},
                "latency": {
                    "minimumHosts": 5, "requestVolume": 100, "percentOfMedian": 300,
                    "minimum": "100ms",
                },
                "interval": "10s",
                "baseEjectionTime": "30s",
                "maxEjectionTime": "5m",
                "maxEjectionPercent": 10,
                "panicThreshold": 50,
            },
            "retries": {
                "attempts": 2,
                "backoff": {"base": "25ms", "max": "250ms"},
                "retryOn": ["5xx"],
                "codes": [429],
                "methods": ["GET"],
                "budget": {"percent": 20, "minPerSecond": 10},
            },
            "timeouts": {
                "request": "1s", "perTry": "1s", "connect": "1s", "idle": "1s", "stream": "1s",
            },
            "rateLimits": [{
                "name": "n",
                "match": {
                    "methods": ["GET"],
                    "paths": ["/a"],
                    "headers": [{"name": "x-a", "value": "b"}],
                },
                "local": {
                    "requests": 1, "per": "1s", "burst": 1, "by": "HEADER", "header": "x-a",
                },
            }],
            "faults": [{
                "match": {
                    "methods": ["GET"],
                    "paths": ["/a"],
                    "headers": [{"name": "x-a", "value": "b"}],
                },
                "delay": {"percent": 50, "duration": "1s"},
                "abort": {"percent": 50, "status": 503},
            }],
            "adaptiveConcurrency": {"initial": 20, "min": 20, "max": 1000, "tolerance": 150},
        }),
        json!({
            "targetRefs": targets(json!({"sectionName": "http"})),
            "faults": [{"abort": {"grpcStatus": 14}}],
        }),
        hash(json!({"table": "RING", "header": "x-a", "boundedLoad": 125})),
        hash(json!({"cookie": "c"})),
        hash(json!({"source": true})),
        hash(json!({"query": "q"})),
        global(json!({"key": "k", "value": "v"})),
        global(json!({"key": "k", "header": "x-a"})),
        global(json!({"key": "k", "from": "CLIENT"})),
    ]
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    })
}

fn problems(object: &Value) -> Vec<FieldProblem> {
    let mut converter = Converter::new(trust_domain(), NetnsFrom::Annotation);
    converter.value(object).problems
}

/// A value of an example, beside its schema.
struct Place<'s> {
    path: FieldPath,
    schema: &'s Value,
}

/// The same path as text without indices, as a schema has it.
fn name(path: &FieldPath) -> String {
    let keys = path.0.iter().filter_map(|segment| match segment {
        Segment::Key(key) => Some(key.as_str()),
        Segment::Index(_) => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

fn places<'s>(schema: &'s Value, value: &Value, path: &FieldPath, found: &mut Vec<Place<'s>>) {
    found.push(Place {
        path: path.clone(),
        schema,
    });
    for (key, value) in value.as_object().into_iter().flatten() {
        let inner = match &schema["properties"][key] {
            Value::Null => &schema["additionalProperties"],
            property => property,
        };
        places(inner, value, &path.key(key), found);
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        places(&schema["items"], value, &path.index(index), found);
    }
}

/// Every property of a schema, by its name in [`name`]'s form.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        found.insert(path.clone());
        fields(property, &path, found);
        fields(&property["items"], &path, found);
        // The one map with values of its own is that of ports.
        fields(
            &property["additionalProperties"],
            &format!("{path}.80"),
            found,
        );
    }
}

/// A value of a spec, to be changed.
fn at<'v>(spec: &'v mut Value, path: &FieldPath) -> &'v mut Value {
    path.0
        .iter()
        .skip(1)
        .fold(spec, |value, segment| match segment {
            Segment::Key(key) => &mut value[key],
            Segment::Index(index) => &mut value[index],
        })
}

/// What stands in for a value to try one keyword of its schema.
struct Cases {
    inside: Vec<Value>,
    outside: Vec<Value>,
    /// What the message about those outside has in it.
    says: String,
    /// The field that the message is about, below the value.
    field: Option<String>,
}

impl Cases {
    fn new(inside: Vec<Value>, outside: Vec<Value>, says: &str) -> Self {
        Self {
            inside,
            outside,
            says: says.to_owned(),
            field: None,
        }
    }
}

/// As many items, characters or fields as a number says.
fn resized(value: &Value, size: u64) -> Value {
    let size = usize::try_from(size).unwrap();
    match value {
        Value::Array(items) => items.iter().cycle().take(size).cloned().collect(),
        Value::String(text) => {
            let last = text.chars().last().unwrap();
            let padding = std::iter::repeat(last);
            text.chars()
                .chain(padding)
                .take(size)
                .collect::<String>()
                .into()
        }
        Value::Object(fields) => {
            let any = fields.values().next().unwrap();
            let named = (1..=size).map(|number| (number.to_string(), any.clone()));
            Value::Object(named.collect())
        }
        other => panic!("{other} has no size"),
    }
}

/// As many as a bound says, and one too few or too many.
fn sized(value: &Value, inside: u64, outside: u64) -> Cases {
    let outside = vec![resized(value, outside)];
    let number = inside.to_string();
    // One at least is said in words.
    let says = if inside == 1 { "" } else { &number };
    Cases::new(vec![resized(value, inside)], outside, says)
}

/// A number that is a bound, and one a step beyond.
fn number(bound: &Value, step: i64) -> Cases {
    #[expect(clippy::cast_possible_truncation, reason = "no bound is so large")]
    let whole = bound.as_f64().unwrap() as i64;
    assert_eq!(json!(whole).as_f64(), bound.as_f64());
    let outside = vec![json!(whole + step)];
    Cases::new(vec![json!(whole)], outside, &whole.to_string())
}

/// A map without one of the fields that it needs.
fn without(value: &Value, required: &Value) -> Vec<Cases> {
    let without = |field: &Value| {
        let field = field.as_str().unwrap();
        let mut fields = value.as_object().unwrap().clone();
        assert!(fields.remove(field).is_some());
        Cases {
            field: Some(field.to_owned()),
            ..Cases::new(Vec::new(), vec![fields.into()], "")
        }
    };
    required.as_array().unwrap().iter().map(without).collect()
}

/// Both sides of one keyword; nothing where it is none of a bound.
fn cases(keyword: &str, bound: &Value, schema: &Value, value: &Value) -> Vec<Cases> {
    match keyword {
        "minItems" | "minLength" => {
            let least = bound.as_u64().unwrap();
            vec![sized(value, least, least - 1)]
        }
        "minProperties" => vec![Cases::new(Vec::new(), vec![json!({})], "")],
        "maxItems" | "maxLength" | "maxProperties" => {
            let most = bound.as_u64().unwrap();
            vec![sized(value, most, most + 1)]
        }
        "minimum" if value.is_number() => vec![number(bound, -1)],
        "maximum" if value.is_number() => vec![number(bound, 1)],
        "enum" => {
            let known = bound.as_array().unwrap();
            let outside = if known[0].is_boolean() {
                json!(false)
            } else {
                json!("?")
            };
            vec![Cases::new(known.clone(), vec![outside], "")]
        }
        "required" => without(value, bound),
        "pattern" => {
            let outside = edits(value)
                .into_iter()
                .filter(|it| !by_schema(schema, it).is_empty());
            let outside: Vec<Value> = outside.collect();
            assert!(
                !outside.is_empty() || !value.is_string(),
                "nothing is outside {bound}"
            );
            vec![Cases::new(Vec::new(), outside, "")]
        }
        "type" | "x-kubernetes-int-or-string" => {
            let all = [
                json!(1),
                json!("?"),
                json!(true),
                json!([]),
                json!({}),
                json!(1.5),
            ];
            let wrong = all.into_iter().filter(|it| !by_type(keyword, bound, it));
            vec![Cases::new(Vec::new(), wrong.collect(), "")]
        }
        // What is given to a port as text has its pattern.
        "minimum"
        | "maximum"
        | "description"
        | "format"
        | "properties"
        | "items"
        | "additionalProperties"
        | "nullable"
        | "x-kubernetes-preserve-unknown-fields"
        | "x-kubernetes-validations" => Vec::new(),
        other => panic!("{other} of a schema has no cases"),
    }
}

fn by_type(keyword: &str, expected: &Value, value: &Value) -> bool {
    by_schema(&json!({keyword: expected}), value).is_empty()
}

/// A text with one character more, less, or another.
fn edits(value: &Value) -> Vec<Value> {
    let Some(text) = value.as_str() else {
        return Vec::new();
    };
    let mut edits = vec![
        String::new(),
        text[1..].to_owned(),
        text[..text.len() - 1].to_owned(),
    ];
    for probe in [
        " ", "*", "/", "#", "?", "A", "1", "é", "\u{1}", ".", "-", "[", "]", ":", "@",
    ] {
        edits.extend([
            format!("{probe}{text}"),
            format!("{text}{probe}"),
            probe.to_owned(),
        ]);
    }
    edits.into_iter().map(Value::from).collect()
}

/// Why a case is not as it should be.
type Wrong = Option<String>;

/// What a schema takes and the conversion knows to be wrong for other reasons.
const KNOWN_BETTER: [(&str, &str); 1] = [
    // One character is no key set.
    ("spec.jwt.providers.jwks", "minLength"),
];

/// What the schema takes is taken, unless a rule in CEL asks for another field with it.
fn check_inside(whole: &Value, object: &Value) -> Wrong {
    let refused = by_schema(whole, object);
    if !refused.is_empty() {
        return Some(format!("inside, and refused: {refused:?}"));
    }
    let problems = problems(object);
    let differs = !problems.is_empty() && refusals(whole, object).is_empty();
    differs.then(|| format!("inside, and refused: {problems:?}"))
}

/// What it refuses is refused, with a problem at this field that says this.
fn check_outside(whole: &Value, object: &Value, (field, says): (&FieldPath, &str)) -> Wrong {
    if by_schema(whole, object).is_empty() {
        return Some("outside, and taken".to_owned());
    }
    let problems = problems(object);
    let named = |it: &FieldProblem| it.field == *field && it.message.contains(says);
    let missing = !problems.iter().any(named);
    missing.then(|| format!("{says:?} is not in {problems:?}"))
}

/// All cases of one example; adds the fields that it has.
fn check_example(kind: &str, spec: &Value, seen: &mut BTreeSet<String>) -> Vec<String> {
    let (_, whole) = schemas()
        .into_iter()
        .find(|(name, _)| name == kind)
        .unwrap();
    let mut wrong = refusals(&whole, &object(kind, spec));
    let mut found = Vec::new();
    let schema = &whole["properties"]["spec"];
    places(schema, spec, &FieldPath::of(&["spec"]), &mut found);
    for Place { path, schema } in found {
        seen.insert(format!("{kind}.{}", name(&path)));
        let value = at(&mut spec.clone(), &path).clone();
        let with = |value: &Value| {
            let mut spec = spec.clone();
            *at(&mut spec, &path) = value.clone();
            object(kind, &spec)
        };
        for (keyword, bound) in schema.as_object().unwrap() {
            for cases in cases(keyword, bound, schema, &value) {
                let field = cases.field.as_ref().map_or(path.clone(), |it| path.key(it));
                let known = KNOWN_BETTER.contains(&(&name(&path), keyword));
                let inside = cases.inside.iter().filter(|_| !known);
                let inside = inside.map(|it| (it, check_inside(&whole, &with(it))));
                let about = (&field, &*cases.says);
                let outside = cases.outside.iter();
                let outside = outside.map(|it| (it, check_outside(&whole, &with(it), about)));
                let all = inside.chain(outside);
                wrong.extend(all.filter_map(|(value, wrong)| {
                    let mut value = value.to_string();
                    value = value.chars().take(60).collect();
                    Some(format!("{kind} {path} {keyword} {value}: {}", wrong?))
                }));
            }
        }
    }
    wrong
}

#[test]
fn each_bound_of_a_schema_holds_without_an_api_server() {
    let mut seen = BTreeSet::new();
    let examples = examples().into_iter();
    let wrong = examples.flat_map(|(kind, spec)| check_example(kind, &spec, &mut seen));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (kind, schema) in schemas() {
        let mut fields_of = BTreeSet::new();
        fields(
            &schema["properties"]["spec"],
            &format!("{kind}.spec"),
            &mut fields_of,
        );
        let missing: Vec<_> = fields_of.difference(&seen).collect();
        assert!(missing.is_empty(), "without an example: {missing:?}");
    }
}
