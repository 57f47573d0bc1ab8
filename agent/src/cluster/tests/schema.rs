//! As much of an API server's validation by schema as our kinds use, to tell what it
//! would refuse. A keyword that is not known here fails the test that meets it.

use std::cell::RefCell;
use std::collections::HashMap;

use kube_cel::Validator;
use regex::Regex;
use serde_json::{Map, Value};

/// What an API server would say against an object; nothing: it takes it.
pub(super) fn refusals(schema: &Value, object: &Value) -> Vec<String> {
    let mut refusals = by_schema(schema, object);
    if let Err(errors) = Validator::new().validate(schema, object, None) {
        refusals.extend(errors.iter().map(ToString::to_string));
    }
    refusals
}

/// Whether a pattern of a schema matches; each is compiled once.
fn matches(pattern: &str, text: &str) -> bool {
    thread_local! {
        static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        let known = compiled.entry(pattern.to_owned());
        let regex = known.or_insert_with(|| Regex::new(pattern).unwrap());
        regex.is_match(text)
    })
}

/// The same without the rules in CEL.
pub(super) fn by_schema(schema: &Value, object: &Value) -> Vec<String> {
    let mut refusals = Vec::new();
    check(schema, object, "", &mut refusals);
    refusals
}

fn check(schema: &Value, value: &Value, path: &str, refusals: &mut Vec<String>) {
    let schema = schema.as_object().expect("a schema is a map");
    if value.is_null() && schema.get("nullable") == Some(&Value::Bool(true)) {
        if schema.contains_key("enum") {
            refusals.push(format!("{path}: null is none of the values"));
        }
        return;
    }
    for (keyword, expected) in schema {
        if !holds(keyword, expected, schema, value) {
            refusals.push(format!("{path}: {keyword} {expected} does not hold"));
        }
    }
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object);
    let properties = properties.unwrap_or(&empty);
    for (key, value) in value.as_object().unwrap_or(&empty) {
        let path = format!("{path}.{key}");
        match (properties.get(key), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema)) => {
                let dropped = value.is_null() && schema["nullable"] != Value::Bool(true);
                assert!(!dropped, "the null of {path} would be dropped");
                check(schema, value, &path, refusals);
            }
            (None, None) => {
                let kept = schema.get("x-kubernetes-preserve-unknown-fields");
                assert_eq!(kept, Some(&Value::Bool(true)), "{path} would be dropped");
            }
        }
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        for (index, item) in list.iter().enumerate() {
            check(items, item, &format!("{path}[{index}]"), refusals);
        }
    }
}

fn holds(keyword: &str, expected: &Value, schema: &Map<String, Value>, value: &Value) -> bool {
    let length = |value: &Value| match value {
        Value::String(text) => Some(text.chars().count()),
        Value::Array(list) => Some(list.len()),
        Value::Object(map) => Some(map.len()),
        _ => None,
    };
    let bound = || usize::try_from(expected.as_u64().unwrap()).unwrap();
    match keyword {
        "description"
        | "title"
        | "format"
        | "items"
        | "properties"
        | "additionalProperties"
        | "nullable"
        | "x-kubernetes-list-map-keys"
        | "x-kubernetes-list-type"
        | "x-kubernetes-preserve-unknown-fields"
        | "x-kubernetes-validations" => true,
        "x-kubernetes-int-or-string" => value.is_string() || value.is_i64() || value.is_u64(),
        "type" => match expected.as_str().unwrap() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            other => panic!("type {other}"),
        },
        "enum" => expected.as_array().unwrap().contains(value),
        "required" => value.as_object().is_none_or(|map| {
            let fields = expected.as_array().unwrap().iter();
            fields
                .map(|field| field.as_str().unwrap())
                .all(|field| map.contains_key(field))
        }),
        "minItems" | "minLength" | "minProperties" => {
            length(value).is_none_or(|length| length >= bound())
        }
        "maxItems" | "maxLength" | "maxProperties" => {
            length(value).is_none_or(|length| length <= bound())
        }
        "minimum" => value
            .as_f64()
            .is_none_or(|n| n >= expected.as_f64().unwrap()),
        "maximum" => value
            .as_f64()
            .is_none_or(|n| n <= expected.as_f64().unwrap()),
        "pattern" => {
            let pattern = expected.as_str().unwrap();
            value.as_str().is_none_or(|text| matches(pattern, text))
        }
        other => panic!("the keyword {other} of {schema:?} is not known"),
    }
}
