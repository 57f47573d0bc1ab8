//! Create, update, patch and delete.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::failure::Failure;
use super::kind::Kind;
use super::merge::{self, Applied};
use super::object::{Name, Stored};
use super::request::{ResourcePath, Target};
use super::store::Store;

/// Who has applied what, of which object.
#[derive(Debug, Default)]
pub(super) struct Managers(Mutex<HashMap<String, Vec<Applied>>>);

/// One writing request.
#[derive(Debug)]
pub(super) struct Write<'a> {
    pub(super) store: &'a Store,
    pub(super) managers: &'a Managers,
    pub(super) kind: &'a Kind,
    pub(super) path: &'a ResourcePath,
    pub(super) target: &'a Target,
    pub(super) content_type: &'a str,
    pub(super) body: &'a [u8],
}

/// A body as an object.
pub(super) fn parse(body: &[u8]) -> Result<Value, Failure> {
    let value: Result<Value, _> = serde_json::from_slice(body);
    let value = value.map_err(|error| Failure::bad_request(error.to_string()))?;
    if value.is_object() || value.is_array() {
        Ok(value)
    } else {
        Err(Failure::bad_request("the body is no object"))
    }
}

/// As objects carry it.
pub(super) fn timestamp(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl Write<'_> {
    pub(super) fn create(&self) -> Result<Arc<Stored>, Failure> {
        let mut object = self.typed(parse(self.body)?)?;
        let generate = object["metadata"]["generateName"].as_str();
        if object["metadata"]["name"]
            .as_str()
            .is_none_or(str::is_empty)
            && let Some(prefix) = generate
        {
            object["metadata"]["name"] = format!("{prefix}{:05x}", self.store.version()).into();
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Err(Failure::invalid(
                "metadata.name: Required value: name or generateName",
            ));
        }
        let name = Name::new(&self.path.namespace, name);
        self.check_namespace()?;
        if self.kind.status {
            without(&mut object, &["status"]);
        }
        let written = self.store.write(self.kind, &name, |old| {
            if old.is_some() {
                return Err(Failure::already_exists(&self.kind.qualified(), &name.name));
            }
            Ok(Some(stamp(self.kind, &name, None, object)))
        });
        written?.ok_or_else(|| self.not_found(&name))
    }

    pub(super) fn update(&self) -> Result<Arc<Stored>, Failure> {
        let object = self.typed(parse(self.body)?)?;
        self.change(|_| Ok(object))
    }

    pub(super) fn patch(&self) -> Result<Arc<Stored>, Failure> {
        match self.content_type.split(';').next().unwrap_or_default() {
            "application/merge-patch+json" => {
                let patch = parse(self.body)?;
                self.change(|mut object| {
                    merge::merge(&mut object, &patch);
                    Ok(object)
                })
            }
            "application/strategic-merge-patch+json" if !self.kind.custom => {
                let patch = parse(self.body)?;
                self.change(|mut object| {
                    merge::strategic(&mut object, &patch);
                    Ok(object)
                })
            }
            "application/json-patch+json" => {
                let patch = parse(self.body)?;
                self.change(|mut object| {
                    merge::json_patch(&mut object, &patch)?;
                    Ok(object)
                })
            }
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => self.apply(),
            other => {
                let message = format!("the body of the request was in an unknown format: {other}");
                Err(Failure::new(415, "UnsupportedMediaType", message))
            }
        }
    }

    /// Server-side apply; the body is JSON, which is YAML too.
    fn apply(&self) -> Result<Arc<Stored>, Failure> {
        let manager = self.target.text("fieldManager").to_owned();
        if manager.is_empty() {
            return Err(Failure::bad_request(
                "fieldManager is required for apply patch",
            ));
        }
        let mut fields = self.typed(parse(self.body)?)?;
        if let Value::Object(map) = &mut fields {
            map.retain(|key, _| !matches!(key.as_str(), "kind" | "apiVersion"));
            if let Some(Value::Object(metadata)) = map.get_mut("metadata") {
                let named = |key: &str| matches!(key, "name" | "namespace" | "resourceVersion");
                metadata.retain(|key, _| !named(key));
            }
        }
        let new = Applied {
            manager,
            subresource: self.path.subresource.clone(),
            fields,
        };
        let key = format!("{} {}", self.kind.qualified(), self.name());
        let mut all = self
            .managers
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = all.get(&key).cloned().unwrap_or_default();
        let force = self.target.flag("force");
        if self.store.get(self.kind, &self.name()).is_none() && new.subresource.is_empty() {
            self.check_namespace()?;
            let body = json!({"metadata": {"name": self.path.name}});
            let name = self.name();
            self.store.write(self.kind, &name, |_| {
                Ok(Some(stamp(self.kind, &name, None, body)))
            })?;
        }
        let written = self.change(|mut object| {
            merge::apply(&mut object, &new, &before, force)?;
            note_manager(&mut object, &new);
            Ok(object)
        })?;
        let mut after = before;
        after.retain(|one| one.manager != new.manager || one.subresource != new.subresource);
        after.push(new);
        all.insert(key, after);
        Ok(written)
    }

    /// Deletes the object, or marks it where finalizers hold it.
    pub(super) fn delete(&self) -> Result<Arc<Stored>, Failure> {
        let name = self.name();
        let options = if self.body.is_empty() {
            json!({})
        } else {
            parse(self.body)?
        };
        let written = self.store.write(self.kind, &name, |old| {
            let mut object = old.ok_or_else(|| self.not_found(&name))?.value();
            let metadata = &mut object["metadata"];
            for key in ["uid", "resourceVersion"] {
                let wanted = &options["preconditions"][key];
                if !wanted.is_null() && *wanted != metadata[key] {
                    return Err(Failure::outdated(&self.kind.qualified(), &name.name));
                }
            }
            if !has_finalizers(metadata) {
                return Ok(None);
            }
            if metadata["deletionTimestamp"].is_null() {
                metadata["deletionTimestamp"] = timestamp(SystemTime::now()).into();
            }
            Ok(Some(object))
        });
        written?.ok_or_else(|| self.not_found(&name))
    }

    /// Puts what `change` makes of the object in its place, if it is still the version
    /// that the client speaks of.
    fn change(
        &self,
        change: impl FnOnce(Value) -> Result<Value, Failure>,
    ) -> Result<Arc<Stored>, Failure> {
        let name = self.name();
        let written = self.store.write(self.kind, &name, |old| {
            let old = old.ok_or_else(|| self.not_found(&name))?;
            let current = old.value();
            let new = change(current.clone())?;
            let version = new["metadata"]["resourceVersion"].as_str();
            let version = version.unwrap_or_default();
            if !version.is_empty() && version != old.version.to_string() {
                return Err(Failure::outdated(&self.kind.qualified(), &name.name));
            }
            let new = self.only_what_the_path_is_for(&current, new);
            let deleted = !new["metadata"]["deletionTimestamp"].is_null()
                && !current["metadata"]["deletionTimestamp"].is_null();
            if deleted && !has_finalizers(&new["metadata"]) {
                return Ok(None);
            }
            Ok(Some(stamp(self.kind, &name, Some(&current), new)))
        });
        written?.ok_or_else(|| self.not_found(&name))
    }

    /// The status is written by its own path alone, and nothing else is by that.
    fn only_what_the_path_is_for(&self, old: &Value, mut new: Value) -> Value {
        if !self.kind.status {
            return new;
        }
        if self.path.subresource == "status" {
            let mut kept = old.clone();
            kept["status"] = new["status"].take();
            kept["metadata"]["managedFields"] = new["metadata"]["managedFields"].take();
            without_nulls(&mut kept, &["status"]);
            without_nulls(&mut kept["metadata"], &["managedFields"]);
            return kept;
        }
        new["status"] = old["status"].clone();
        without_nulls(&mut new, &["status"]);
        new
    }

    fn name(&self) -> Name {
        Name::new(&self.path.namespace, &self.path.name)
    }

    /// The body is of the path's kind, namespace and name, as far as it says so.
    fn typed(&self, mut object: Value) -> Result<Value, Failure> {
        let expected = [
            ("/kind", &*self.kind.kind),
            ("/apiVersion", &self.kind.api_version()),
            ("/metadata/namespace", &self.path.namespace),
            ("/metadata/name", &self.path.name),
        ];
        for (pointer, expected) in expected {
            let found = object.pointer(pointer).and_then(Value::as_str);
            let found = found.unwrap_or_default();
            if !found.is_empty() && !expected.is_empty() && found != expected {
                let message = format!("{pointer} is {found}, and the URL says {expected}");
                return Err(Failure::bad_request(message));
            }
        }
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        Ok(object)
    }

    fn check_namespace(&self) -> Result<(), Failure> {
        if !self.kind.namespaced {
            return Ok(());
        }
        let namespaces = self.store.kind("", "namespaces");
        let name = Name::new("", &self.path.namespace);
        let found = namespaces.and_then(|kind| self.store.get(&kind, &name));
        match found {
            Some(_) => Ok(()),
            None => Err(Failure::not_found("namespaces", &self.path.namespace)),
        }
    }

    fn not_found(&self, name: &Name) -> Failure {
        Failure::not_found(&self.kind.qualified(), &name.name)
    }
}

/// What the API server writes in the metadata.
pub(super) fn stamp(kind: &Kind, name: &Name, old: Option<&Value>, mut object: Value) -> Value {
    let first = json!({"metadata": {
        "uid": fresh_uid(), "creationTimestamp": timestamp(SystemTime::now()),
    }});
    let spec = |of: &Value| {
        let mut of = of.clone();
        without(&mut of, &["metadata", "status", "kind", "apiVersion"]);
        of
    };
    let kept = old.unwrap_or(&first);
    let generation = match old {
        Some(old) => {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
            generation + i64::from(spec(old) != spec(&object))
        }
        None => 1,
    };
    let metadata = &mut object["metadata"];
    metadata["name"] = (*name.name).into();
    if kind.namespaced {
        metadata["namespace"] = (*name.namespace).into();
    }
    for key in ["uid", "creationTimestamp"] {
        let given = old.is_none() && !metadata[key].is_null();
        if !given {
            metadata[key] = kept["metadata"][key].clone();
        }
    }
    if kind.custom || !matches!(&*kind.kind, "ConfigMap" | "Secret" | "Event" | "Lease") {
        metadata["generation"] = generation.into();
    }
    object
}

fn has_finalizers(metadata: &Value) -> bool {
    let finalizers = metadata["finalizers"].as_array();
    finalizers.is_some_and(|list| !list.is_empty())
}

fn without(object: &mut Value, keys: &[&str]) {
    if let Value::Object(map) = object {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

fn without_nulls(object: &mut Value, keys: &[&str]) {
    if let Value::Object(map) = object {
        map.retain(|key, value| !(value.is_null() && keys.contains(&key.as_str())));
    }
}

fn note_manager(object: &mut Value, applied: &Applied) {
    let mut entry = json!({
        "manager": applied.manager, "operation": "Apply",
        "time": timestamp(SystemTime::now()), "fieldsType": "FieldsV1",
        "fieldsV1": merge::fields_v1(&applied.fields),
    });
    if !applied.subresource.is_empty() {
        entry["subresource"] = applied.subresource.clone().into();
    }
    let same = |one: &Value| {
        one["manager"] == entry["manager"] && one["subresource"] == entry["subresource"]
    };
    let list = object["metadata"]["managedFields"].take();
    let mut list = match list {
        Value::Array(list) => list,
        _ => Vec::new(),
    };
    match list.iter_mut().find(|one| same(one)) {
        // What is applied again as it was is no change, and so has no new time.
        Some(old) if old["fieldsV1"] == entry["fieldsV1"] => {}
        Some(old) => *old = entry,
        None => list.push(entry),
    }
    object["metadata"]["managedFields"] = list.into();
}

/// Of the form of a UUID, and never the same twice.
fn fresh_uid() -> String {
    let [high, low]: [u64; 2] = std::array::from_fn(|_| rand::random());
    format!(
        "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        low >> 52,
        low & 0xffff_ffff_ffff
    )
}
