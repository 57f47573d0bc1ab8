//! Where in an object something is.

use std::fmt;

/// The path of a field, such as `spec.rules[0].from`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FieldPath(pub Vec<Segment>);

/// One step of a [`FieldPath`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// Into a map.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// The field; empty for the whole object.
    pub field: FieldPath,
    /// What is wrong and what to do.
    pub message: String,
}

impl FieldPath {
    /// The path of these keys.
    pub fn of(keys: &[&str]) -> Self {
        Self(
            keys.iter()
                .map(|&key| Segment::Key(key.to_owned()))
                .collect(),
        )
    }

    /// One key further.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Segment::Key(key.to_owned()))
    }

    /// One list item further.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Segment::Index(index))
    }

    /// Another path further.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&other.0).cloned().collect())
    }

    fn then(&self, segment: Segment) -> Self {
        let mut path = self.clone();
        path.0.push(segment);
        path
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as Theirs;
        let segment = |segment: &Theirs| match segment {
            Theirs::Seq { index } => Some(Segment::Index(*index)),
            Theirs::Map { key } => Some(Segment::Key(key.clone())),
            Theirs::Enum { .. } | Theirs::Unknown => None,
        };
        Self(path.iter().filter_map(segment).collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if key.contains(['.', '/', '[', '"']) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}
