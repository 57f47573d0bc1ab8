//! What the rules of our kinds cost an API server: it refuses a definition with a rule that
//! may cost too much, and takes whatever has no bound for huge. All of it is bounded here
//! by more than Kubernetes' own estimate.

use regex::Regex;
use serde_json::Value;

use super::spelling::schemas;

/// Of one rule over all of an object, in the API server's units.
const RULE: u64 = 10_000_000;
/// Of all rules of a definition.
const DEFINITION: u64 = 100_000_000;

/// What Kubernetes 1.36 estimates of the dearest rules, by how they begin.
const KUBERNETES: [(&str, u64); 4] = [
    ("self.all(port, ", 589_817),
    ("has(self.values) ", 131_072),
    ("(has(self.value) ? ", 98_304),
    ("has(self.local) ", 192),
];

/// A rule where it stands.
struct Found<'s> {
    path: String,
    rule: &'s str,
    schema: &'s Value,
    /// How often it is evaluated at most; `None`: there is no bound.
    times: Option<u64>,
}

fn find<'s>(schema: &'s Value, path: &str, times: Option<u64>, found: &mut Vec<Found<'s>>) {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        found.push(Found {
            path: path.to_owned(),
            rule: rule["rule"].as_str().unwrap(),
            schema,
            times,
        });
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        find(property, &format!("{path}.{name}"), times, found);
    }
    for (inner, bound) in [
        ("items", "maxItems"),
        ("additionalProperties", "maxProperties"),
    ] {
        if schema[inner].is_object() {
            let times = times.zip(schema[bound].as_u64()).map(|(a, b)| a * b);
            find(&schema[inner], &format!("{path}[]"), times, found);
        }
    }
}

/// The bound of what a path of a rule stands for; `None`: it has none.
fn bound(schema: &Value, path: &str) -> Option<u64> {
    let mut at = schema;
    for name in path.split('.').skip(1) {
        at = &at["properties"][name];
        assert!(at.is_object(), "{path} of a rule is not in its schema");
    }
    match at["type"].as_str() {
        Some("array") => at["maxItems"].as_u64(),
        Some("object") if at["additionalProperties"].is_object() => at["maxProperties"].as_u64(),
        Some("string") if at["enum"].is_array() => Some(1),
        Some("string") => at["maxLength"].as_u64(),
        _ => Some(1),
    }
}

/// No less than what one evaluation costs: its words and signs, as often as what it loops
/// over and what it compares are long.
fn cost(found: &Found<'_>) -> Result<u64, String> {
    let words = r"'[^']*'|[A-Za-z0-9_.]+|&&|\|\||[=!<>]=|\S";
    let words = Regex::new(words).unwrap();
    let mut cost = words.find_iter(found.rule).count() as u64;
    // These cost the same whatever they look at.
    let constant = Regex::new(r"(has|size)\(self[A-Za-z0-9_.]*\)").unwrap();
    let rest = constant.replace_all(found.rule, "1");
    let call = Regex::new(r"([A-Za-z]+)\(").unwrap();
    for name in call.captures_iter(&rest) {
        if !["all", "int"].contains(&&name[1]) {
            return Err(format!("nothing is known of the cost of {}", &name[1]));
        }
    }
    let read = Regex::new(r"self(\.[A-Za-z0-9_]+)*").unwrap();
    for path in read.find_iter(&rest) {
        let path = path.as_str().trim_end_matches(".all");
        let bound = bound(found.schema, path).ok_or(format!("{path} has no bound"))?;
        cost = cost.saturating_mul(bound);
    }
    Ok(cost)
}

fn whole(found: &Found<'_>) -> Result<u64, String> {
    let times = found.times.ok_or("a list or map around it has no bound")?;
    Ok(cost(found)?.saturating_mul(times))
}

#[test]
fn no_rule_costs_more_than_an_api_server_takes() {
    let mut compared = 0;
    for (kind, schema) in schemas() {
        let mut all = Vec::new();
        find(&schema, "", Some(1), &mut all);
        assert!(!all.is_empty());
        let mut sum = 0;
        for found in &all {
            let cost = whole(found).unwrap_or_else(|why| panic!("{kind}{}: {why}", found.path));
            assert!(cost <= RULE, "{kind}{}: {cost}", found.path);
            sum += cost;
            for (_, estimate) in KUBERNETES.iter().filter(|it| found.rule.starts_with(it.0)) {
                assert!(cost >= *estimate, "{kind}{}: {cost}", found.path);
                compared += 1;
            }
        }
        assert!(sum <= DEFINITION, "{kind}: {sum}");
    }
    assert_eq!(compared, KUBERNETES.len());
}

#[test]
fn what_has_no_bound_is_named() {
    let of = |schema: Value| {
        let mut all = Vec::new();
        find(&schema, "", Some(1), &mut all);
        whole(&all[0])
    };
    let with = |rule: &str, mut schema: Value| {
        schema["x-kubernetes-validations"] = serde_json::json!([{"rule": rule}]);
        schema
    };
    let map = |bound: Value| serde_json::json!({"type": "object", "additionalProperties": {}, "maxProperties": bound});
    let each = "self.all(it, int(it) > 1)";
    assert_eq!(
        of(with(each, map(Value::Null))).unwrap_err(),
        "self has no bound"
    );
    assert_eq!(of(with(each, map(100.into()))), Ok(1_100));
    let text = |bound: Value| serde_json::json!({"properties": {"a": {"type": "string", "maxLength": bound}}});
    let compare = "has(self.a) && self.a == 'b'";
    assert_eq!(
        of(with(compare, text(Value::Null))).unwrap_err(),
        "self.a has no bound"
    );
    assert_eq!(of(with(compare, text(10.into()))), Ok(80));
    let list =
        |bound: Value| serde_json::json!({"items": with("1 == 1", Value::Null), "maxItems": bound});
    assert!(of(list(Value::Null)).is_err());
    assert_eq!(of(list(7.into())), Ok(21));
    assert!(of(with("self.a.matches('b')", text(1.into()))).is_err());
}
