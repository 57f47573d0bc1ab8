//! What a verified token says.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value};

/// The claims of a token whose signature, times, issuer and audience were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    principal: Option<Box<str>>,
    claims: Map<String, Value>,
}

impl Claims {
    /// The claims of a token that was verified.
    pub(in crate::policy) fn new(claims: Map<String, Value>) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let pair = text("iss").zip(text("sub"));
        let principal = pair.map(|(issuer, subject)| format!("{issuer}/{subject}").into());
        Self { principal, claims }
    }

    /// `issuer/subject`; `None` where one of them is missing.
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_deref()
    }

    /// Any of a claim's values is one of those that are meant. Numbers and booleans are
    /// compared as JSON writes them, lists by their items, and the words of `scope`,
    /// which by RFC 8693 is one text, each.
    pub(in crate::policy) fn any(&self, path: &[Arc<str>], is: impl Fn(&str) -> bool) -> bool {
        let Some(value) = self.find(path) else {
            return false;
        };
        match value {
            Value::String(text) if path.last().is_some_and(|name| &**name == "scope") => {
                is(text) || text.split_ascii_whitespace().any(is)
            }
            Value::Array(items) => items.iter().filter_map(text).any(|item| is(&item)),
            _ => text(value).is_some_and(|text| is(&text)),
        }
    }

    /// The text that a header gets of a claim: strings, numbers and booleans as they are,
    /// of a list its items with commas between them.
    pub fn header(&self, path: &[Arc<str>]) -> Option<String> {
        match self.find(path)? {
            Value::Array(items) => {
                let items: Option<Vec<_>> = items.iter().map(text).collect();
                Some(items?.join(","))
            }
            value => text(value).map(Cow::into_owned),
        }
    }

    fn find(&self, path: &[Arc<str>]) -> Option<&Value> {
        let (first, inner) = path.split_first()?;
        let first = self.claims.get(&**first)?;
        inner
            .iter()
            .try_fold(first, |value, name| value.get(&**name))
    }
}

/// A value that is one text.
fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(bool) => Some(bool.to_string().into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Claims;

    fn claims(text: &str) -> Claims {
        Claims::new(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_principal_needs_issuer_and_subject() {
        let full = claims(r#"{"iss": "https://a", "sub": "joe"}"#);
        assert_eq!(full.principal(), Some("https://a/joe"));
        assert_eq!(claims(r#"{"iss": "https://a"}"#).principal(), None);
        assert_eq!(claims(r#"{"iss": 1, "sub": "joe"}"#).principal(), None);
    }

    #[test]
    fn values_of_claims() {
        let claims = claims(
            r#"{"a": "x y", "n": 7, "t": true, "l": ["p", 8, {}], "o": {"in": {"ner": "v"}},
                "scope": "read write"}"#,
        );
        let any = |path: &[&str], value: &str| {
            let path: Vec<Arc<str>> = path.iter().map(|name| (*name).into()).collect();
            claims.any(&path, |text| text == value)
        };
        for (path, value, expected) in [
            (&["a"][..], "x y", true),
            (&["a"], "x", false),
            (&["n"], "7", true),
            (&["t"], "true", true),
            (&["l"], "p", true),
            (&["l"], "8", true),
            (&["l"], "q", false),
            (&["o", "in", "ner"], "v", true),
            (&["o", "in"], "v", false),
            (&["o", "in", "ner", "x"], "v", false),
            (&["missing"], "", false),
            (&["scope"], "write", true),
            (&["scope"], "read write", true),
        ] {
            assert_eq!(any(path, value), expected, "{path:?} {value}");
        }
    }
}
