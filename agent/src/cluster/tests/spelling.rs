//! What the definitions of our kinds must not say, as Kubernetes and its programs read it.

use std::sync::LazyLock;

use serde_json::Value;

use crate::cluster::api;

/// The schema of each kind.
pub(super) fn schemas() -> Vec<(String, Value)> {
    static SCHEMAS: LazyLock<Vec<(String, Value)>> = LazyLock::new(generated);
    SCHEMAS.clone()
}

fn generated() -> Vec<(String, Value)> {
    let definitions = api::definitions().into_iter();
    let schemas = definitions.map(|mut definition| {
        let schema = definition.spec.versions.remove(0).schema.unwrap();
        let schema = serde_json::to_value(schema.open_api_v3_schema).unwrap();
        (definition.spec.names.kind, schema)
    });
    schemas.collect()
}

/// Of others it warns whoever applies the definition.
#[test]
fn every_format_is_one_of_kubernetes() {
    fn walk(schema: &Value, path: &str) {
        if let Some(format) = schema["format"].as_str() {
            let known = ["int32", "int64", "float", "double", "date-time"];
            assert!(known.contains(&format), "{path}: {format}");
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(property, &format!("{path}.{name}"));
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if inner.is_object() {
                walk(inner, path);
            }
        }
    }
    for (kind, schema) in schemas() {
        walk(&schema, &kind);
    }
}

/// kubectl and Helm read these without quotes as booleans and nulls, and give the API server
/// `true` for a field `on`.
#[test]
fn no_field_or_value_is_another_word_to_yaml_1_1() {
    const WORDS: [&str; 10] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "~",
    ];
    fn walk(schema: &Value, path: &str, seen: &mut usize) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            assert!(!WORDS.contains(&&*name.to_lowercase()), "{path}");
            *seen += 1;
            walk(property, &path, seen);
        }
        // A condition's status is given by programs.
        let of_users = !path.contains(".status.");
        for value in schema["enum"].as_array().into_iter().flatten() {
            let word = value.as_str().unwrap_or_default().to_lowercase();
            assert!(!of_users || !WORDS.contains(&&*word), "{path}: {value}");
        }
        for inner in [&schema["items"], &schema["additionalProperties"]] {
            if inner.is_object() {
                walk(inner, path, seen);
            }
        }
    }
    for (kind, schema) in schemas() {
        let mut seen = 0;
        walk(&schema, &kind, &mut seen);
        assert!(seen > 10, "{kind}");
    }
}
