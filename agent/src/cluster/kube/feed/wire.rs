//! What an API server sends: events of a watch, pages of a list, refusals.
//!
//! Objects are left as the text that they are, so that each is read once, into what is
//! kept of it.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// One line of a watch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'t> {
    /// The object is new or differs.
    Put(&'t str),
    /// The object is gone; this is what it was.
    Gone(&'t str),
    /// Nothing happened up to this version.
    Bookmark {
        /// To go on from.
        version: String,
        /// Everything that there was at the start has been sent.
        complete: bool,
    },
    /// The watch ends, for this reason.
    Error(Refusal),
}

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<'t> {
    /// The version of the whole list.
    pub(super) version: String,
    /// Asks for the next page; empty on the last one.
    pub(super) next: String,
    pub(super) items: Vec<&'t str>,
}

/// Why the API server says no: its `Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    /// As in HTTP.
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    details: Option<Details>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: Option<u64>,
}

/// It is not what an API server sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server sent what is not understood: {0}")]
pub(super) struct Garbage(pub(super) String);

/// The annotation of the bookmark after the last of the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Refusal {
    /// Of a response that is not a `Status`, such as a proxy's.
    pub(super) fn of(code: u16, body: &str) -> Self {
        let status = serde_json::from_str::<Self>(body).ok();
        let status = status.filter(|status| status.code != 0);
        status.unwrap_or_else(|| Self {
            code,
            message: body.trim().chars().take(200).collect(),
            ..Self::default()
        })
    }

    /// What it asks a client to wait, in seconds.
    pub(super) fn retry_after_seconds(&self) -> Option<u64> {
        self.details.as_ref()?.retry_after_seconds
    }
}

/// Reads one line of a watch.
pub(super) fn event(line: &str) -> Result<Event<'_>, Garbage> {
    let (mut kind, mut object) = (None, None);
    for (key, value) in members(line)? {
        match &*key {
            "type" => kind = Some(value),
            "object" => object = Some(value),
            _ => {}
        }
    }
    let (Some(kind), Some(object)) = (kind, object) else {
        return Err(Garbage("an event without type or object".to_owned()));
    };
    match kind {
        r#""ADDED""# | r#""MODIFIED""# => Ok(Event::Put(object)),
        r#""DELETED""# => Ok(Event::Gone(object)),
        r#""BOOKMARK""# => bookmark(object),
        r#""ERROR""# => Ok(Event::Error(Refusal::of(500, object))),
        other => Err(Garbage(format!("an event of type {other}"))),
    }
}

fn bookmark(object: &str) -> Result<Event<'_>, Garbage> {
    #[derive(Deserialize)]
    struct Bookmark<'t> {
        #[serde(borrow)]
        metadata: Metadata<'t>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata<'t> {
        #[serde(borrow)]
        resource_version: Cow<'t, str>,
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    let bookmark: Bookmark<'_> = serde_json::from_str(object)?;
    let annotations = bookmark.metadata.annotations.unwrap_or_default();
    let end = annotations.get(INITIAL_EVENTS_END);
    Ok(Event::Bookmark {
        version: bookmark.metadata.resource_version.into_owned(),
        complete: end.is_some_and(|value| value == "true"),
    })
}

/// Reads a page of a list.
pub(super) fn page(text: &str) -> Result<Page<'_>, Garbage> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        resource_version: String,
        #[serde(rename = "continue")]
        next: Option<String>,
    }
    let mut metadata = Metadata::default();
    let mut all = Vec::new();
    for (key, value) in members(text)? {
        match &*key {
            "metadata" => metadata = serde_json::from_str(value)?,
            "items" if value != "null" => all = items(value)?,
            _ => {}
        }
    }
    if metadata.resource_version.is_empty() {
        return Err(Garbage("a list without a resourceVersion".to_owned()));
    }
    Ok(Page {
        version: metadata.resource_version,
        next: metadata.next.unwrap_or_default(),
        items: all,
    })
}

/// The plurals in a list of the resources of a group's version.
pub(super) fn resources(text: &str) -> Result<Vec<String>, Garbage> {
    #[derive(Deserialize)]
    struct Resources {
        resources: Vec<Resource>,
    }
    #[derive(Deserialize)]
    struct Resource {
        name: String,
    }
    let list: Resources = serde_json::from_str(text)?;
    Ok(list.resources.into_iter().map(|it| it.name).collect())
}

/// The members of an object, each value as its text.
fn members(text: &str) -> Result<Vec<(Cow<'_, str>, &str)>, Garbage> {
    let mut found = Vec::new();
    let mut rest = after(text, '{')?;
    while !rest.starts_with('}') {
        if !found.is_empty() {
            rest = after(rest, ',')?;
        }
        let (key, behind) = value(rest)?;
        let key = serde_json::from_str(key).map(|Key(key)| key);
        let (value, behind) = value(after(behind, ':')?)?;
        found.push((key?, value));
        rest = behind.trim_start();
    }
    Ok(found)
}

/// Text as the key of a member, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'t>(#[serde(borrow)] Cow<'t, str>);

/// The items of a list, each as its text.
fn items(text: &str) -> Result<Vec<&str>, Garbage> {
    let mut found = Vec::new();
    let mut rest = after(text, '[')?;
    while !rest.starts_with(']') {
        if !found.is_empty() {
            rest = after(rest, ',')?;
        }
        let (item, behind) = value(rest)?;
        found.push(item);
        rest = behind.trim_start();
    }
    Ok(found)
}

/// The text of the first value, and what is behind it.
fn value(text: &str) -> Result<(&str, &str), Garbage> {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(IgnoredAny)) => Ok(text.split_at(values.byte_offset())),
        Some(Err(error)) => Err(error.into()),
        None => Err(Garbage("it ends where a value should be".to_owned())),
    }
}

fn after(text: &str, expected: char) -> Result<&str, Garbage> {
    let rest = text.trim_start().strip_prefix(expected);
    let rest = rest.ok_or_else(|| Garbage(format!("a '{expected}' is missing")))?;
    Ok(rest.trim_start())
}

impl From<serde_json::Error> for Garbage {
    fn from(error: serde_json::Error) -> Self {
        Self(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events() {
        let line = r#" {"type":"ADDED","object":{"a":[1,{"b":"}\"]"}],"c":null}} "#;
        let object = r#"{"a":[1,{"b":"}\"]"}],"c":null}"#;
        assert_eq!(event(line), Ok(Event::Put(object)));
        assert_eq!(
            event(r#"{ "object" : {} , "x": 1.5, "type" : "DELETED" }"#),
            Ok(Event::Gone("{}"))
        );
        let end = r#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"7",
            "annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        let bookmark = |complete| Event::Bookmark {
            version: "7".to_owned(),
            complete,
        };
        assert_eq!(event(end), Ok(bookmark(true)));
        let plain = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#;
        assert_eq!(event(plain), Ok(bookmark(false)));
    }

    #[test]
    fn errors_say_why() {
        let line = r#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"status":"Failure",
            "message":"too old resource version","reason":"Expired","code":410}}"#;
        let Ok(Event::Error(refusal)) = event(line) else {
            panic!("{line}");
        };
        assert_eq!((refusal.code, &*refusal.reason), (410, "Expired"));
        let busy = r#"{"code":429,"details":{"retryAfterSeconds":3}}"#;
        assert_eq!(Refusal::of(429, busy).retry_after_seconds(), Some(3));
        let proxy = Refusal::of(502, " <html>Bad Gateway ");
        assert_eq!((proxy.code, &*proxy.message), (502, "<html>Bad Gateway"));
    }

    #[test]
    fn pages() {
        let text = r#"{"kind":"PodList","metadata":{"resourceVersion":"9","continue":"abc=",
            "remainingItemCount":2},"items":[{"a":1}, {"b":[]}]}"#;
        let expected = Page {
            version: "9".to_owned(),
            next: "abc=".to_owned(),
            items: vec![r#"{"a":1}"#, r#"{"b":[]}"#],
        };
        assert_eq!(page(text), Ok(expected));
        let empty = page(r#"{"metadata":{"resourceVersion":"9"},"items":null}"#).unwrap();
        assert!(empty.items.is_empty() && empty.next.is_empty());
    }

    #[test]
    fn what_is_nested_deep_is_passed_on() {
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        let line = format!(r#"{{"type":"ADDED","object":{deep}}}"#);
        assert_eq!(event(&line), Ok(Event::Put(&deep)));
    }

    #[test]
    fn refuses_what_is_cut_off_or_wrong() {
        let line = r#"{"type":"ADDED","object":{"a":1}}"#;
        for end in 0..line.len() {
            assert!(event(&line[..end]).is_err(), "{}", &line[..end]);
        }
        for line in [
            "null",
            "[]",
            r#"{"type":"ADDED"}"#,
            r#"{"type":"X","object":{}}"#,
        ] {
            assert!(event(line).is_err(), "{line}");
        }
        assert!(page(r#"{"metadata":{},"items":[]}"#).is_err());
        assert!(page(r#"{"metadata":{"resourceVersion":"1"},"items":[{},]}"#).is_err());
    }

    #[test]
    fn resources_of_a_group() {
        let text = r#"{"kind":"APIResourceList","resources":[{"name":"meshpolicies","kind":"MeshPolicy"}]}"#;
        assert_eq!(resources(text).unwrap(), ["meshpolicies"]);
    }
}
