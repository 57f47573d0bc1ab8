//! Small maps that many objects have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Index;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// A map from text, in order, that never changes: labels, named ports. One word for
/// an empty one's content, and one allocation for all objects that share it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dict<V>(Option<Arc<[Entry<V>]>>);

type Entry<V> = (Arc<str>, V);

impl<V> Dict<V> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&V> {
        let entries = self.entries();
        let at = entries.binary_search_by(|(other, _)| (**other).cmp(key));
        at.ok().map(|at| &entries[at].1)
    }

    /// There is a value for the key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The entries, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &V)> {
        self.entries().iter().map(|(key, value)| (key, value))
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// It has no entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Nobody else has this very allocation, or there is none.
    pub(super) fn is_unshared(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|entries| Arc::strong_count(entries) == 1)
    }

    fn entries(&self) -> &[Entry<V>] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl<V: PartialEq> Dict<V> {
    /// It has every entry of `other`.
    pub fn contains(&self, other: &Self) -> bool {
        other
            .iter()
            .all(|(key, value)| self.get(key) == Some(value))
    }
}

impl<V> Default for Dict<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: fmt::Debug> fmt::Debug for Dict<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V> Index<&str> for Dict<V> {
    type Output = V;

    fn index(&self, key: &str) -> &V {
        self.get(key).expect("the key is in the map")
    }
}

impl<K: Into<Arc<str>>, T: Into<V>, V> FromIterator<(K, T)> for Dict<V> {
    /// Of several values of one key the last one counts.
    fn from_iter<I: IntoIterator<Item = (K, T)>>(entries: I) -> Self {
        let owned = |(key, value): (K, T)| (key.into(), value.into());
        let mut entries: Vec<(Arc<str>, V)> = entries.into_iter().map(owned).collect();
        // The sort is stable, so that the last of equal keys comes first once reversed.
        entries.reverse();
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        entries.dedup_by(|(later, _), (earlier, _)| later == earlier);
        Self((!entries.is_empty()).then(|| entries.into()))
    }
}

impl<K: Into<Arc<str>>, T: Into<V>, V> From<BTreeMap<K, T>> for Dict<V> {
    fn from(entries: BTreeMap<K, T>) -> Self {
        entries.into_iter().collect()
    }
}

impl<V: Serialize> Serialize for Dict<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Dict<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

struct Entries<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
    type Value = Dict<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dict<V>, A::Error> {
        let mut entries: Vec<(Arc<str>, V)> = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(entries.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Dict};

    #[test]
    fn finds_what_it_was_made_of() {
        let dict: Dict<u16> = [("web", 80_u16), ("admin", 90), ("web", 81)]
            .into_iter()
            .collect();
        assert_eq!(dict.len(), 2);
        assert_eq!(dict.get("web"), Some(&81));
        assert_eq!(dict["admin"], 90);
        assert!(!dict.contains_key("other"));
        let keys: Vec<&str> = dict.iter().map(|(key, _)| &**key).collect();
        assert_eq!(keys, ["admin", "web"]);
    }

    #[test]
    fn contains_what_has_no_other_entry() {
        let of = |pairs: &[(&str, &str)]| -> Dict<Arc<str>> { pairs.iter().copied().collect() };
        let labels = of(&[("app", "web"), ("tier", "front")]);
        assert!(labels.contains(&of(&[("app", "web")])));
        assert!(labels.contains(&Dict::default()));
        assert!(!labels.contains(&of(&[("app", "db")])));
        assert!(!of(&[]).contains(&labels));
    }

    #[test]
    fn is_a_map_in_json() {
        let text = r#"{"app":"web","tier":"front"}"#;
        let labels: Dict<Arc<str>> = serde_json::from_str(text).unwrap();
        assert_eq!(&*labels["tier"], "front");
        assert_eq!(serde_json::to_string(&labels).unwrap(), text);
        assert!(serde_json::from_str::<Dict<Arc<str>>>("[]").is_err());
    }
}
