//! Patches: merge, JSON and strategic ones, and server-side apply as far as one
//! manager's fields are told from another's.

use serde_json::{Map, Value, json};

use super::failure::Failure;

/// A JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    merge_with(target, patch, false);
}

/// A merge patch in which lists of named items are merged item by item.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    merge_with(target, patch, true);
}

fn merge_with(target: &mut Value, patch: &Value, by_key: bool) {
    match (&mut *target, patch) {
        (_, Value::Object(patch)) => {
            if !target.is_object() {
                *target = json!({});
            }
            let Value::Object(target) = target else {
                return;
            };
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge_with(target.entry(key).or_insert(Value::Null), value, by_key);
                }
            }
        }
        (Value::Array(items), Value::Array(patch)) if by_key && key_of(patch).is_some() => {
            merge_items(items, patch);
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// The field by which the items of a list are told apart.
fn key_of(items: &[Value]) -> Option<&'static str> {
    // A field that two items share tells nothing apart, such as the type of a column.
    let has = |key: &str| {
        let values: Vec<&Value> = items.iter().filter_map(|item| item.get(key)).collect();
        let distinct = |(at, value): (usize, &&Value)| !values[..at].contains(value);
        values.len() == items.len() && values.iter().enumerate().all(distinct)
    };
    ["type", "key", "name", "uid", "port"]
        .into_iter()
        .find(|key| !items.is_empty() && has(key))
}

fn merge_items(items: &mut Vec<Value>, patch: &[Value]) {
    let Some(key) = key_of(patch) else {
        return;
    };
    for new in patch {
        let found = items.iter().position(|item| item.get(key) == new.get(key));
        match (found, new.get("$patch").and_then(Value::as_str)) {
            (Some(at), Some("delete")) => drop(items.remove(at)),
            (None, Some("delete")) => {}
            (Some(at), _) => merge_with(&mut items[at], new, true),
            (None, _) => items.push(new.clone()),
        }
    }
}

/// A JSON patch (RFC 6902): add, remove, replace and test.
pub(super) fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Failure> {
    let operations = patch.as_array();
    let operations = operations.ok_or_else(|| Failure::bad_request("a JSON patch is a list"))?;
    for operation in operations {
        let pointer = operation["path"].as_str().unwrap_or_default();
        apply_operation(target, operation, pointer).ok_or_else(|| {
            let message = format!("the server rejected our request due to an error in {operation}");
            Failure::new(422, "Invalid", message)
        })?;
    }
    Ok(())
}

fn apply_operation(target: &mut Value, operation: &Value, path: &str) -> Option<()> {
    let value = operation["value"].clone();
    let (parent, last) = path.rsplit_once('/')?;
    let last = last.replace("~1", "/").replace("~0", "~");
    match (operation["op"].as_str()?, target.pointer_mut(parent)?) {
        ("test", parent) => {
            let found = match parent {
                Value::Array(items) => items.get(last.parse::<usize>().ok()?),
                other => other.get(&last),
            };
            (found.unwrap_or(&Value::Null) == &value).then_some(())
        }
        ("add", Value::Array(items)) if last == "-" => {
            items.push(value);
            Some(())
        }
        ("add", Value::Array(items)) => {
            let at = last.parse().ok().filter(|at| *at <= items.len())?;
            items.insert(at, value);
            Some(())
        }
        ("add", Value::Object(map)) => {
            map.insert(last, value);
            Some(())
        }
        ("replace", Value::Array(items)) => {
            *items.get_mut(last.parse::<usize>().ok()?)? = value;
            Some(())
        }
        ("replace", Value::Object(map)) => {
            *map.get_mut(&last)? = value;
            Some(())
        }
        ("remove", Value::Array(items)) => {
            let at = last.parse().ok().filter(|at| *at < items.len())?;
            items.remove(at);
            Some(())
        }
        ("remove", Value::Object(map)) => map.remove(&last).map(drop),
        _ => None,
    }
}

/// What one manager has applied of an object.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) manager: String,
    pub(super) subresource: String,
    pub(super) fields: Value,
}

/// Server-side apply: what the manager says now holds, what it no longer says goes
/// unless another says it, and what another says differently is a conflict.
pub(super) fn apply(
    target: &mut Value,
    new: &Applied,
    before: &[Applied],
    force: bool,
) -> Result<(), Failure> {
    let same = |one: &Applied| one.manager == new.manager && one.subresource == new.subresource;
    let others: Vec<&Applied> = before.iter().filter(|one| !same(one)).collect();
    for other in others.iter().filter(|_| !force) {
        if let Some(field) = conflict(&new.fields, &other.fields, "") {
            let manager = &other.manager;
            let message =
                format!("Apply failed with 1 conflict: conflict with \"{manager}\": {field}");
            return Err(Failure::new(409, "Conflict", message));
        }
    }
    if let Some(old) = before.iter().find(|one| same(one)) {
        let kept: Vec<&Value> = others.iter().map(|other| &other.fields).collect();
        remove(target, &old.fields, &new.fields, &kept);
    }
    strategic(target, &new.fields);
    Ok(())
}

/// The first field that both have, with different values.
fn conflict(new: &Value, other: &Value, path: &str) -> Option<String> {
    match (new, other) {
        (Value::Object(new), Value::Object(other)) => new.iter().find_map(|(key, value)| {
            let other = other.get(key)?;
            conflict(value, other, &format!("{path}.{key}"))
        }),
        (Value::Array(new), Value::Array(other)) if key_of(new).is_some() => {
            let key = key_of(new)?;
            new.iter().find_map(|item| {
                let other = other.iter().find(|other| other.get(key) == item.get(key))?;
                conflict(item, other, &format!("{path}[{key}={}]", item[key]))
            })
        }
        (new, other) => (new != other).then(|| path.to_owned()),
    }
}

/// Takes out what `old` has and neither `new` nor anyone else.
fn remove(target: &mut Value, old: &Value, new: &Value, others: &[&Value]) {
    match (target, old) {
        (Value::Object(target), Value::Object(old)) => {
            for (key, old) in old {
                let others: Vec<&Value> = others.iter().filter_map(|it| it.get(key)).collect();
                remove_entry(target, key, (old, new.get(key)), &others);
            }
        }
        (Value::Array(items), Value::Array(old)) => {
            let Some(key) = key_of(old) else {
                return;
            };
            let lists = |list: &Value, item: &Value| {
                let list = list.as_array().into_iter().flatten();
                list.clone().any(|other| other.get(key) == item.get(key))
            };
            items.retain(|item| {
                let had = old.iter().any(|other| other.get(key) == item.get(key));
                !had || lists(new, item) || others.iter().any(|other| lists(other, item))
            });
        }
        _ => {}
    }
}

fn remove_entry(
    target: &mut Map<String, Value>,
    key: &str,
    (old, new): (&Value, Option<&Value>),
    others: &[&Value],
) {
    match new {
        None if others.is_empty() && !old.is_object() => drop(target.remove(key)),
        _ => {
            if let Some(inner) = target.get_mut(key) {
                remove(inner, old, new.unwrap_or(&Value::Null), others);
            }
        }
    }
}

/// The fields of a value, as `managedFields` lists them.
pub(super) fn fields_v1(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| (format!("f:{key}"), fields_v1(value));
            Value::Object(map.iter().map(entry).collect())
        }
        Value::Array(items) => match key_of(items) {
            Some(key) => {
                let entry = |item: &Value| {
                    let name = format!("k:{}", json!({key: item[key]}));
                    (name, fields_v1(item))
                };
                Value::Object(items.iter().map(entry).collect())
            }
            None => json!({}),
        },
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Applied, apply, json_patch, merge};

    fn applied(manager: &str, fields: Value) -> Applied {
        Applied {
            manager: manager.to_owned(),
            subresource: String::new(),
            fields,
        }
    }

    #[test]
    fn a_merge_patch_adds_replaces_and_removes() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "list": [1]});
        merge(
            &mut target,
            &json!({"a": {"b": null, "d": 3}, "list": [2, 3]}),
        );
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "list": [2, 3]}));
    }

    #[test]
    fn a_json_patch_tests_before_it_writes() {
        let mut target = json!({"spec": {"taints": [{"key": "a"}, {"key": "b"}]}});
        let patch = |key: &str| {
            json!([
                {"op": "test", "path": "/spec/taints/1/key", "value": key},
                {"op": "remove", "path": "/spec/taints/1"},
            ])
        };
        assert!(json_patch(&mut target, &patch("other")).is_err());
        json_patch(&mut target, &patch("b")).unwrap();
        assert_eq!(target, json!({"spec": {"taints": [{"key": "a"}]}}));
    }

    #[test]
    fn what_a_manager_no_longer_applies_goes() {
        let mut target = json!({"spec": {"x": 1}});
        let conditions = |types: &[&str]| {
            let items: Vec<Value> = types.iter().map(|it| json!({"type": it})).collect();
            applied(
                "me",
                json!({"status": {"conditions": items}, "labels": {"a": "b"}}),
            )
        };
        let first = conditions(&["Accepted", "ResolvedRefs"]);
        apply(&mut target, &first, &[], false).unwrap();
        let other = applied(
            "you",
            json!({"status": {"conditions": [{"type": "Ready"}]}}),
        );
        apply(&mut target, &other, std::slice::from_ref(&first), false).unwrap();
        let second = applied(
            "me",
            json!({"status": {"conditions": [{"type": "Accepted"}]}}),
        );
        apply(&mut target, &second, &[first, other], false).unwrap();
        assert_eq!(target["spec"], json!({"x": 1}));
        assert_eq!(target["labels"], json!({}));
        let types = json!([{"type": "Accepted"}, {"type": "Ready"}]);
        assert_eq!(target["status"]["conditions"], types);
    }

    #[test]
    fn another_managers_field_is_a_conflict_unless_forced() {
        let mut target = json!({"spec": {"x": 1}});
        let mine = applied("me", json!({"spec": {"x": 1}}));
        let yours = applied("you", json!({"spec": {"x": 2}}));
        let refused = apply(&mut target, &yours, std::slice::from_ref(&mine), false);
        assert_eq!(refused.unwrap_err().code, 409);
        apply(&mut target, &yours, &[mine], true).unwrap();
        assert_eq!(target, json!({"spec": {"x": 2}}));
    }
}
