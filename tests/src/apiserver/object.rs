//! One object, as the text that is sent.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};

use super::kind::Kind;

/// Namespace and name; the namespace is empty for a kind without one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Name {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An object at one version.
#[derive(Debug)]
pub(super) struct Stored {
    /// The whole, with kind and API version in front.
    text: Bytes,
    /// Where in `text` the rest begins, which is what lists of built-in kinds have.
    rest: usize,
    pub(super) name: Name,
    pub(super) version: u64,
    labels: Box<[(Box<str>, Box<str>)]>,
    fields: Box<[(&'static str, Box<str>)]>,
}

impl Stored {
    pub(super) fn new(kind: &Kind, name: &Name, mut object: Value, version: u64) -> Self {
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if let Value::Object(map) = &mut object {
            let _types = (map.remove("kind"), map.remove("apiVersion"));
        }
        let labels = object["metadata"]["labels"].as_object();
        let labels = labels.into_iter().flatten();
        let labels =
            labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())));
        let (labels, fields) = (labels.collect(), fields(kind, &object));
        let head = head(kind);
        let mut text = BytesMut::with_capacity(head.len());
        text.put_slice(head.as_bytes());
        // What follows begins with a brace that `head` has already.
        text.put_slice(&object.to_string().as_bytes()[1..]);
        Self {
            text: text.freeze(),
            rest: head.len(),
            name: name.clone(),
            version,
            labels,
            fields,
        }
    }

    /// Of text that is known to be such an object, for clusters of sizes at which making
    /// it of values would take minutes. `text` has no kind and no API version.
    pub(super) fn of_text(
        kind: &Kind,
        (namespace, name): (&str, &str),
        selected_by: &[(&'static str, &str)],
        (text, version): (&str, u64),
    ) -> Self {
        let head = head(kind);
        let mut whole = BytesMut::with_capacity(head.len() + text.len());
        whole.put_slice(head.as_bytes());
        whole.put_slice(&text.as_bytes()[1..]);
        let fields = selected_by.iter();
        Self {
            text: whole.freeze(),
            rest: head.len(),
            name: Name::new(namespace, name),
            version,
            labels: Box::default(),
            fields: fields.map(|(key, value)| (*key, (*value).into())).collect(),
        }
    }

    /// The whole object.
    pub(super) fn text(&self) -> &Bytes {
        &self.text
    }

    /// As an item of a list: built-in kinds are listed without kind and API version.
    pub(super) fn write_item(&self, kind: &Kind, out: &mut BytesMut) {
        if kind.custom {
            out.put_slice(&self.text);
        } else {
            out.put_u8(b'{');
            out.put_slice(&self.text[self.rest..]);
        }
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.text).expect("it was made of JSON")
    }

    /// `other` says the same, whatever version it says that it is.
    pub(super) fn says(&self, other: &Value) -> bool {
        let mut own = self.value();
        own["metadata"]["resourceVersion"] = other["metadata"]["resourceVersion"].clone();
        let both_named = ["kind", "apiVersion"]
            .iter()
            .all(|key| other.get(key).is_none_or(|value| *value == own[key]));
        if let Value::Object(map) = &mut own {
            map.retain(|key, _| !matches!(key.as_str(), "kind" | "apiVersion"));
        }
        let mut other = other.clone();
        if let Value::Object(map) = &mut other {
            map.retain(|key, _| !matches!(key.as_str(), "kind" | "apiVersion"));
        }
        both_named && own == other
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        labels
            .find(|(own, _)| **own == *key)
            .map(|(_, value)| &**value)
    }

    /// A value that field selectors can ask for; of one that is not set, the empty one.
    pub(super) fn field(&self, key: &str) -> Option<&str> {
        match key {
            "metadata.name" => Some(&self.name.name),
            "metadata.namespace" => Some(&self.name.namespace),
            _ => {
                let mut fields = self.fields.iter();
                fields
                    .find(|(own, _)| *own == key)
                    .map(|(_, value)| &**value)
            }
        }
    }
}

fn head(kind: &Kind) -> String {
    let (name, version) = (json!(*kind.kind), json!(kind.api_version()));
    format!("{{\"kind\":{name},\"apiVersion\":{version},")
}

/// The fields that selectors of a kind may name, beside those of the metadata.
pub(super) fn selectable(kind: &Kind) -> &'static [(&'static str, &'static str)] {
    match &*kind.kind {
        "Pod" => &[
            ("spec.nodeName", "/spec/nodeName"),
            ("status.phase", "/status/phase"),
            ("status.podIP", "/status/podIP"),
        ],
        "Secret" => &[("type", "/type")],
        _ => &[],
    }
}

fn fields(kind: &Kind, object: &Value) -> Box<[(&'static str, Box<str>)]> {
    let value = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    selectable(kind)
        .iter()
        .map(|(field, pointer)| (*field, value(pointer).unwrap_or_default().into()))
        .collect()
}
