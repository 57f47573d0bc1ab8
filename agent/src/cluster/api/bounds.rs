//! What the schemas demand of a spec, held where no API server has: manifests come from
//! directories too, and an API server may have older definitions than the agent.
//!
//! In: a spec as it was written. Out: what an API server would refuse by its schema alone.
//! Nothing of a schema is spelled out here, so that a new bound holds at once; rules in CEL
//! are the conversion's own ([`crate::cluster::convert`]).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use regex_automata::meta::Regex;
use serde_json::{Map, Number, Value};

use super::definitions;
use crate::cluster::field::{FieldPath, FieldProblem, Segment};

/// What is wrong with the spec of an object of one of our kinds, by its schema.
pub(in crate::cluster) fn violations(kind: &str, spec: &Value) -> Vec<FieldProblem> {
    static SPECS: LazyLock<BTreeMap<String, Node>> = LazyLock::new(specs);
    let mut found = Found::default();
    if let Some(schema) = SPECS.get(kind) {
        found.at.0.push(Segment::Key("spec".to_owned()));
        schema.check(spec, &mut found);
    }
    found.problems
}

fn specs() -> BTreeMap<String, Node> {
    let mut patterns = Patterns::default();
    let definitions = definitions().into_iter();
    let specs = definitions.filter_map(|mut definition| {
        let version = definition.spec.versions.pop()?;
        let schema = version.schema?.open_api_v3_schema?;
        let spec = schema.properties?.remove("spec")?;
        Some((definition.spec.names.kind, Node::new(spec, &mut patterns)))
    });
    specs.collect()
}

/// The bounds of one value.
#[derive(Debug)]
struct Node {
    kind: Option<Kind>,
    nullable: bool,
    values: Option<Vec<Value>>,
    /// Characters, items or fields.
    size: [Option<usize>; 2],
    range: [Option<f64>; 2],
    pattern: Option<(String, Regex)>,
    required: Vec<String>,
    properties: BTreeMap<String, Node>,
    /// Of a list, or of a map whose keys are anything.
    items: Option<Box<Node>>,
    /// The fields that tell the items of a list apart.
    keys: Vec<String>,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Object,
    Array,
    String,
    Boolean,
    Integer,
    Number,
    IntOrString,
}

/// Each pattern is compiled once: many fields share one.
#[derive(Default)]
struct Patterns(BTreeMap<String, Regex>);

/// Problems, and where the walk is.
#[derive(Default)]
struct Found {
    at: FieldPath,
    problems: Vec<FieldProblem>,
}

impl Found {
    fn report(&mut self, message: impl Into<String>) {
        self.problems.push(FieldProblem {
            field: self.at.clone(),
            message: message.into(),
        });
    }

    fn within(&mut self, step: Segment, walk: impl FnOnce(&mut Self)) {
        self.at.0.push(step);
        walk(self);
        self.at.0.pop();
    }
}

impl Node {
    fn new(schema: JSONSchemaProps, patterns: &mut Patterns) -> Self {
        let count = |bound: Option<i64>| bound.and_then(|it| usize::try_from(it).ok());
        let least = schema.min_length.or(schema.min_items);
        let most = schema.max_length.or(schema.max_items);
        let items = match (schema.items, schema.additional_properties) {
            (Some(JSONSchemaPropsOrArray::Schema(items)), _)
            | (_, Some(JSONSchemaPropsOrBool::Schema(items))) => Some(items),
            _ => None,
        };
        let properties = schema.properties.unwrap_or_default().into_iter();
        let properties = properties.map(|(name, it)| (name, Self::new(it, patterns)));
        Self {
            kind: match schema.x_kubernetes_int_or_string {
                Some(true) => Some(Kind::IntOrString),
                _ => schema.type_.as_deref().and_then(Kind::named),
            },
            nullable: schema.nullable == Some(true),
            values: schema
                .enum_
                .map(|values| values.into_iter().map(|it| it.0).collect()),
            size: [
                count(least.or(schema.min_properties)),
                count(most.or(schema.max_properties)),
            ],
            range: [schema.minimum, schema.maximum],
            properties: properties.collect(),
            items: items.map(|items| Box::new(Self::new(*items, patterns))),
            pattern: schema.pattern.map(|text| {
                let regex = patterns.compiled(&text);
                (text, regex)
            }),
            required: schema.required.unwrap_or_default(),
            keys: schema.x_kubernetes_list_map_keys.unwrap_or_default(),
        }
    }

    fn check(&self, value: &Value, found: &mut Found) {
        if value.is_null() && self.nullable {
            return;
        }
        if let Some(kind) = self.kind.filter(|kind| !kind.holds(value)) {
            return found.report(format!("must be {}", kind.described()));
        }
        if let Some(values) = self.values.as_ref().filter(|it| !it.contains(value)) {
            let values: Vec<String> = values.iter().map(Value::to_string).collect();
            return found.report(format!("{value} is none of {}", values.join(", ")));
        }
        match value {
            Value::Null | Value::Bool(_) => {}
            Value::Number(number) => self.check_number(number, found),
            Value::String(text) => self.check_text(text, found),
            Value::Array(items) => self.check_items(items, found),
            Value::Object(fields) => self.check_fields(fields, found),
        }
    }

    fn check_size(&self, size: usize, of: &str, found: &mut Found) {
        let [least, most] = self.size;
        if let Some(least) = least.filter(|least| size < *least) {
            found.report(format!("has {size} {of}; at least {least} must be given"));
        }
        if let Some(most) = most.filter(|most| size > *most) {
            found.report(format!("has {size} {of}, more than {most}"));
        }
    }

    fn check_number(&self, number: &Number, found: &mut Found) {
        let value = number.as_f64().unwrap_or(f64::NAN);
        let [least, most] = self.range;
        if let Some(least) = least.filter(|least| value < *least) {
            found.report(format!("{number} is less than {least}"));
        }
        if let Some(most) = most.filter(|most| value > *most) {
            found.report(format!("{number} is more than {most}"));
        }
    }

    fn check_text(&self, text: &str, found: &mut Found) {
        // No text has more characters than bytes.
        if self.size[0].is_some() || self.size[1].is_some_and(|most| text.len() > most) {
            self.check_size(text.chars().count(), "characters", found);
        }
        if let Some((pattern, regex)) = &self.pattern
            && !regex.is_match(text)
        {
            found.report(format!("{text:?} does not match {pattern}"));
        }
    }

    fn check_items(&self, items: &[Value], found: &mut Found) {
        self.check_size(items.len(), "items", found);
        for (index, item) in items.iter().enumerate() {
            found.within(Segment::Index(index), |found| {
                if let Some(schema) = &self.items {
                    schema.check(item, found);
                }
                if !self.keys.is_empty() && items[..index].iter().any(|it| self.same(it, item)) {
                    let keys = self.keys.join(", ");
                    found.report(format!("has the same {keys} as an item before it"));
                }
            });
        }
    }

    fn same(&self, one: &Value, other: &Value) -> bool {
        self.keys.iter().all(|key| one.get(key) == other.get(key))
    }

    fn check_fields(&self, fields: &Map<String, Value>, found: &mut Found) {
        self.check_size(fields.len(), "fields", found);
        for field in &self.required {
            if !fields.contains_key(field) {
                let missing = Segment::Key(field.clone());
                found.within(missing, |found| found.report("is missing"));
            }
        }
        for (key, value) in fields {
            let schema = self.properties.get(key).or(self.items.as_deref());
            if let Some(schema) = schema {
                let step = Segment::Key(key.clone());
                found.within(step, |found| schema.check(value, found));
            }
        }
    }
}

impl Kind {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            _ => return None,
        })
    }

    fn holds(self, value: &Value) -> bool {
        let integer = value.is_i64() || value.is_u64();
        match self {
            Self::Object => value.is_object(),
            Self::Array => value.is_array(),
            Self::String => value.is_string(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => integer,
            Self::Number => value.is_number(),
            Self::IntOrString => integer || value.is_string(),
        }
    }

    fn described(self) -> &'static str {
        match self {
            Self::Object => "a map",
            Self::Array => "a list",
            Self::String => "a string",
            Self::Boolean => "true or false",
            Self::Integer => "a whole number",
            Self::Number => "a number",
            Self::IntOrString => "a whole number or a string",
        }
    }
}

impl Patterns {
    fn compiled(&mut self, text: &str) -> Regex {
        let known = self.0.entry(text.to_owned());
        let regex =
            known.or_insert_with(|| Regex::new(text).expect("a test compiles every pattern"));
        regex.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_of_a_list_that_is_a_map_have_different_keys() {
        let schema = json!({
            "type": "array",
            "items": {"type": "object"},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name", "port"],
        });
        let schema = serde_json::from_value(schema).unwrap();
        let schema = Node::new(schema, &mut Patterns::default());
        let problems = |value: Value| {
            let mut found = Found::default();
            schema.check(&value, &mut found);
            let text = |it: &FieldProblem| format!("{}: {}", it.field, it.message);
            found.problems.iter().map(text).collect::<Vec<_>>()
        };
        let one = json!({"name": "a", "port": 1, "more": 1});
        let other = json!({"name": "a", "port": 2});
        let again = json!({"port": 1, "name": "a"});
        assert_eq!(problems(json!([one, other])), Vec::<String>::new());
        assert_eq!(
            problems(json!([one, other, again])),
            ["[2]: has the same name, port as an item before it"]
        );
    }

    #[test]
    fn a_pattern_is_compiled_once() {
        let mut patterns = Patterns::default();
        let schema = || serde_json::from_value(json!({"type": "string", "pattern": "^a$"}));
        for _ in 0..2 {
            let _node = Node::new(schema().unwrap(), &mut patterns);
        }
        assert_eq!(patterns.0.len(), 1);
    }
}
