//! Files of manifests: text to objects, and fields back to lines.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use super::field::{FieldPath, Segment};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A part of a file that is read on its own: one document of a YAML stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    text: &'a str,
    format: Format,
    /// The line of the file at which it starts, from 1.
    pub(super) line: usize,
}

/// An object as it was written.
#[derive(Debug)]
pub(super) struct RawObject {
    pub(super) value: Value,
    /// Where it is in its document: empty, or an item of a list.
    pub(super) path: FieldPath,
    /// The line of the file at which it starts; for one of very many items of a list,
    /// that of the list.
    pub(super) line: usize,
}

/// Why a document can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// From 1.
    pub(super) line: usize,
    pub(super) message: String,
}

/// Finding a line costs a pass over the document, so that a list of more items than
/// these is not searched for the start of each.
const LOCATED_ITEMS: usize = 64;

/// What the aliases of a document may add to it: values, and bytes of text in them. An
/// alias of a few bytes stands for all that its anchor has, so that a small file could
/// come to more than there is memory.
const ALIASED: usize = 1 << 20;

/// Whole numbers up to this are exact as floating point.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The documents of a file.
pub(super) fn documents(text: &str, format: Format) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut start = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if format == Format::Yaml && is_marker(line) && offset > start.0 {
            documents.push((start, offset));
            start = (offset, index + 1);
        }
        offset += line.len();
    }
    documents.push((start, offset));
    let document = |((from, line), to): ((usize, usize), usize)| Document {
        text: &text[from..to],
        format,
        line,
    };
    documents.into_iter().map(document).collect()
}

/// `---` at the start of a line starts a document, wherever it stands.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

impl Document<'_> {
    /// Its text.
    pub(super) fn text(&self) -> &str {
        self.text
    }

    /// The objects in it, with those of lists one by one.
    pub(super) fn objects(&self) -> Result<Vec<RawObject>, SyntaxError> {
        let values = match self.format {
            Format::Json => vec![self.json()?],
            Format::Yaml => self.yaml()?,
        };
        let mut objects = Vec::new();
        for value in values {
            if !value.is_null() {
                self.expand(value, &mut objects);
            }
        }
        Ok(objects)
    }

    /// The line of the file at which a field of the document is, or else the closest
    /// field around it.
    pub(super) fn line_of(&self, path: &FieldPath) -> usize {
        let seed = Locate(&path.0);
        let found = match self.format {
            Format::Json => {
                let mut json = serde_json::Deserializer::from_str(self.text);
                seed.deserialize(&mut json).err().map(|error| error.line())
            }
            Format::Yaml => serde_yaml_ng::Deserializer::from_str(self.text)
                .next()
                .and_then(|yaml| seed.deserialize(yaml).err())
                .and_then(|error| error.location())
                .map(|location| location.line()),
        };
        self.line + found.unwrap_or(1).max(1) - 1
    }

    fn json(&self) -> Result<Value, SyntaxError> {
        if self.text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(self.text).map_err(|error| SyntaxError {
            line: error.line(),
            message: error.to_string(),
        })
    }

    fn yaml(&self) -> Result<Vec<Value>, SyntaxError> {
        yaml_values(self.text).map_err(|error| {
            // Once more with the lines before it, so that the message tells lines of the file.
            let padded = "\n".repeat(self.line - 1) + self.text;
            let error = yaml_values(&padded).err().unwrap_or(error);
            SyntaxError {
                line: error.0.unwrap_or(self.line),
                message: error.1,
            }
        })
    }

    fn expand(&self, mut value: Value, objects: &mut Vec<RawObject>) {
        let list_of = value
            .get("kind")
            .and_then(Value::as_str)
            .and_then(|kind| kind.strip_suffix("List"))
            .map(str::to_owned);
        let Some((list_of, Value::Array(items))) =
            list_of.zip(value.get_mut("items").map(Value::take))
        else {
            let path = FieldPath::default();
            objects.push(RawObject {
                value,
                line: self.line_of(&path),
                path,
            });
            return;
        };
        let locate = items.len() <= LOCATED_ITEMS;
        for (index, mut item) in items.into_iter().enumerate() {
            let path = FieldPath::of(&["items"]).index(index);
            inherit(&mut item, &value, &list_of);
            objects.push(RawObject {
                value: item,
                line: if locate {
                    self.line_of(&path)
                } else {
                    self.line
                },
                path,
            });
        }
    }
}

/// Items of a typed list, such as a `PodList`, may leave out what they are.
fn inherit(item: &mut Value, list: &Value, kind: &str) {
    if kind.is_empty() {
        return;
    }
    if let (Value::Object(item), Some(version)) = (item, list.get("apiVersion")) {
        item.entry("apiVersion").or_insert_with(|| version.clone());
        item.entry("kind").or_insert_with(|| kind.into());
    }
}

type YamlError = (Option<usize>, String);

fn yaml_values(text: &str) -> Result<Vec<Value>, YamlError> {
    let fail = |error: serde_yaml_ng::Error| {
        let line = error.location().map(|location| location.line());
        (line, error.to_string())
    };
    if text.contains('&') && text.contains('*') {
        // Without aliases no text comes to more than this.
        let mut left = ALIASED + text.len().saturating_mul(4);
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            Weigh(&mut left).deserialize(document).map_err(fail)?;
        }
    }
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| {
            let mut value = serde_yaml_ng::Value::deserialize(document).map_err(fail)?;
            value.apply_merge().map_err(fail)?;
            json(value).map_err(|message| (None, message))
        })
        .collect()
}

/// The JSON that an API server would be sent for it.
fn json(value: serde_yaml_ng::Value) -> Result<Value, String> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => value.into(),
        Yaml::String(value) => value.into(),
        Yaml::Number(number) => json_number(&number)?,
        Yaml::Sequence(items) => {
            Value::Array(items.into_iter().map(json).collect::<Result<_, _>>()?)
        }
        Yaml::Mapping(map) => {
            let entries = map.into_iter().map(|(key, value)| {
                let key = json_key(key)?;
                Ok::<_, String>((key, json(value)?))
            });
            Value::Object(entries.collect::<Result<_, _>>()?)
        }
        Yaml::Tagged(tagged) => return Err(format!("tag {} has no meaning here", tagged.tag)),
    })
}

fn json_number(number: &serde_yaml_ng::Number) -> Result<Value, String> {
    if let Some(number) = number.as_u64() {
        return Ok(number.into());
    }
    if let Some(number) = number.as_i64() {
        return Ok(number.into());
    }
    let number = number.as_f64().unwrap_or(f64::NAN);
    // 80.0 is sent as 80, up to where whole numbers have gaps.
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and fits")]
        return Ok((number as i64).into());
    }
    serde_json::Number::from_f64(number)
        .map(Value::Number)
        .ok_or_else(|| "infinity and not-a-number have no meaning here".to_owned())
}

fn json_key(key: serde_yaml_ng::Value) -> Result<String, String> {
    use serde_yaml_ng::Value as Yaml;
    match key {
        Yaml::String(key) => Ok(key),
        Yaml::Number(key) => Ok(key.to_string()),
        Yaml::Bool(key) => Ok(key.to_string()),
        Yaml::Null | Yaml::Sequence(_) | Yaml::Mapping(_) | Yaml::Tagged(_) => {
            Err("a key must be a string".to_owned())
        }
    }
}

/// Visits everything that a document comes to, and fails where that is too much.
struct Weigh<'a>(&'a mut usize);

impl Weigh<'_> {
    fn take<E: de::Error>(&mut self, weight: usize) -> Result<(), E> {
        let left = self.0.checked_sub(weight);
        *self.0 = left.ok_or_else(|| E::custom("its aliases repeat too much"))?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E: de::Error>(mut self) -> Result<(), E> {
        self.take(1)
    }

    fn visit_bool<E: de::Error>(mut self, _value: bool) -> Result<(), E> {
        self.take(1)
    }

    fn visit_u64<E: de::Error>(mut self, _value: u64) -> Result<(), E> {
        self.take(1)
    }

    fn visit_i64<E: de::Error>(mut self, _value: i64) -> Result<(), E> {
        self.take(1)
    }

    fn visit_f64<E: de::Error>(mut self, _value: f64) -> Result<(), E> {
        self.take(1)
    }

    fn visit_str<E: de::Error>(mut self, text: &str) -> Result<(), E> {
        self.take(1 + text.len())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.take(1)?;
        while seq.next_element_seed(Weigh(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.take(1)?;
        while map.next_key_seed(Weigh(self.0))?.is_some() {
            map.next_value_seed(Weigh(self.0))?;
        }
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(mut self, tagged: A) -> Result<(), A::Error> {
        self.take(1)?;
        let (_tag, content) = tagged.variant::<String>()?;
        content.newtype_variant_seed(Weigh(self.0))
    }
}

/// Walks to a field and fails there: both parsers note the line of an error, and of
/// nothing else.
struct Locate<'a>(&'a [Segment]);

/// The key to look for, and whether it is the end of the path.
struct LocateKey<'a> {
    wanted: &'a str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.0.split_first() else {
            return Err(here());
        };
        let last = rest.is_empty();
        while let Some(found) = map.next_key_seed(LocateKey { wanted, last })? {
            if found {
                map.next_value_seed(Locate(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Err(here())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.0.split_first() else {
            return Err(here());
        };
        for _ in 0..*wanted {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Err(here());
            }
        }
        seq.next_element_seed(Locate(rest))?;
        Err(here())
    }
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LocateKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        if key == self.wanted && self.last {
            return Err(here());
        }
        Ok(key == self.wanted)
    }
}

fn here<E: de::Error>() -> E {
    E::custom("here")
}
