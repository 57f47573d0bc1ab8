//! `ReferenceGrant`s. What of one is not understood permits nothing.

use std::sync::Arc;

use serde_json::Value;

use super::reader::Reader;
use super::{Converted, FieldPath};
use crate::state::{GrantFrom, GrantTo, Object, ObjectKind, ReferenceGrant};

/// Reads a `ReferenceGrant`.
pub(super) fn convert(converted: &mut Converted, value: &Value) {
    let name = match super::name(value, true) {
        Ok(name) => name,
        Err(problem) => return converted.problems.push(problem),
    };
    converted.is(ObjectKind::ReferenceGrant, name.clone());
    let mut reader = Reader::default();
    let mut grant = ReferenceGrant {
        name,
        from: Vec::new(),
        to: Vec::new(),
    };
    let path = FieldPath::of(&["spec"]);
    let spec = value.get("spec").unwrap_or(&Value::Null);
    for (key, value, path) in reader.fields(spec, &path, &["from", "to"]) {
        for (value, path) in reader.items(value, &path) {
            let before = reader.problems.len();
            let known = match key {
                "from" => ["group", "kind", "namespace"],
                _ => ["group", "kind", "name"],
            };
            let text = |fields: &[(&str, &Value, FieldPath)], key: &str| {
                let found = fields.iter().find(|(name, ..)| *name == key);
                found.and_then(|(_, value, _)| value.as_str().map(Arc::from))
            };
            let fields = reader.fields(value, &path, &known);
            for (_, value, path) in &fields {
                if !value.is_string() {
                    reader.report(path, "must be a string");
                }
            }
            let [group, kind, last] = known.map(|key| text(&fields, key));
            if kind.is_none() {
                reader.report(&path.key("kind"), "is missing");
            }
            if key == "from" && last.is_none() {
                reader.report(&path.key("namespace"), "is missing");
            }
            if reader.problems.len() > before {
                continue;
            }
            let (group, kind) = (group.unwrap_or_default(), kind.unwrap_or_default());
            match (key, last) {
                ("from", Some(namespace)) => grant.from.push(GrantFrom {
                    group,
                    kind,
                    namespace,
                }),
                ("from", None) => {}
                (_, name) => grant.to.push(GrantTo { group, kind, name }),
            }
        }
    }
    converted.problems.append(&mut reader.problems);
    converted.object = Some(Object::ReferenceGrant(grant));
}
