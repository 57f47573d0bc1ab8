//! What a directory's files say together: pure, so that every order of edits can be
//! tested without a file system.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::convert::{self, Converter, NetnsFrom};
use super::field::FieldProblem;
use super::manifest::{self, Document, Format, RawObject};
use crate::model::TrustDomain;
use crate::state::{Change, Object, ObjectKey, ObjectKind, Origin, Problem, ROOT_NAMESPACE};

/// A file as it was found.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Its text.
    Text(String),
    /// It is there and can't be read, because of this.
    Unreadable(String),
    /// It is no text, because of this; what of it is one.
    Garbled(String, String),
    /// It is not there any more.
    Gone,
}

/// Finding the line of a problem costs a pass over its document: bytes that are passed
/// over for one file. The problems after that are at the start of their objects.
const SEARCHED: usize = 4 << 20;

/// All files and the objects in them.
#[derive(Debug)]
pub(super) struct Files {
    converter: Converter,
    /// By file name: what each defines.
    defined_by: BTreeMap<Arc<str>, BTreeMap<ObjectKey, Definition>>,
    /// The other way round: which files define an object, in order.
    defined_in: BTreeMap<ObjectKey, BTreeSet<Arc<str>>>,
    /// What the state has been told of.
    applied: BTreeSet<ObjectKey>,
}

/// An object in a file.
#[derive(Debug)]
struct Definition {
    /// Its last good version; `None` where there was none yet.
    object: Option<Object>,
    line: usize,
}

/// What a file says, as far as it can be read.
#[derive(Default)]
struct Parsed {
    objects: BTreeMap<ObjectKey, Definition>,
    problems: Vec<Problem>,
    /// Some of it can't be read at all.
    broken: bool,
    /// Bytes that were passed over to find lines.
    searched: usize,
}

impl Files {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self {
            converter: Converter::new(trust_domain, NetnsFrom::Annotation),
            defined_by: BTreeMap::new(),
            defined_in: BTreeMap::new(),
            applied: BTreeSet::new(),
        }
    }

    /// How many objects of each kind are in force.
    pub(super) fn counts(&self) -> BTreeMap<ObjectKind, usize> {
        let mut counts = BTreeMap::new();
        for key in &self.applied {
            *counts.entry(key.kind).or_default() += 1;
        }
        counts
    }

    /// Takes in what has become of a file, and tells what that changes.
    pub(super) fn update(&mut self, file: &Arc<str>, content: Content) -> Vec<Change> {
        let (problems, definitions) = match content {
            Content::Gone => (Vec::new(), Some(None)),
            Content::Unreadable(message) => (vec![of_file(file, 0, message)], None),
            Content::Garbled(message, text) => {
                let mut parsed = Parsed::default();
                parsed.problems.push(of_file(file, 0, message));
                let keep = self.defined_by.contains_key(file);
                if !keep {
                    for document in manifest::documents(&text, format(file)) {
                        quarantine(file, &document, &mut parsed);
                    }
                }
                (parsed.problems, (!keep).then_some(Some(parsed.objects)))
            }
            Content::Text(text) => {
                let parsed = self.parse(file, &text);
                // With nothing good to fall back on, what can be read is better than nothing.
                let keep = parsed.broken && self.defined_by.contains_key(file);
                (parsed.problems, (!keep).then_some(Some(parsed.objects)))
            }
        };
        let mut changes = vec![Change::Problems {
            owner: Arc::clone(file),
            problems,
        }];
        if let Some(definitions) = definitions {
            changes.extend(self.redefine(file, definitions));
        }
        changes
    }

    fn redefine(
        &mut self,
        file: &Arc<str>,
        new: Option<BTreeMap<ObjectKey, Definition>>,
    ) -> Vec<Change> {
        let exists = new.is_some();
        let mut old = self.defined_by.remove(file).unwrap_or_default();
        let mut new = new.unwrap_or_default();
        for (key, definition) in &mut new {
            if definition.object.is_none() {
                definition.object = old.get_mut(key).and_then(|old| old.object.take());
            }
        }
        let touched: BTreeSet<ObjectKey> = old.keys().chain(new.keys()).cloned().collect();
        for key in &touched {
            let files = self.defined_in.entry(key.clone()).or_default();
            if new.contains_key(key) {
                files.insert(Arc::clone(file));
            } else {
                files.remove(file);
            }
        }
        if exists {
            self.defined_by.insert(Arc::clone(file), new);
        }
        let changes = touched.iter().flat_map(|key| self.resolve(key));
        changes.collect()
    }

    /// Which file's version of an object counts.
    fn resolve(&mut self, key: &ObjectKey) -> Vec<Change> {
        let files = self.defined_in.get(key).cloned().unwrap_or_default();
        if files.is_empty() {
            self.defined_in.remove(key);
        }
        let definition = |file: &Arc<str>| {
            let definition = self.defined_by.get(file)?.get(key)?;
            Some((Arc::clone(file), definition))
        };
        let definitions: Vec<(Arc<str>, &Definition)> =
            files.iter().filter_map(definition).collect();
        let counts = definitions
            .iter()
            .find_map(|(file, definition)| Some((file, definition, definition.object.clone()?)));
        let mut changes = Vec::new();
        let mut problems = Vec::new();
        if let Some((first, definition, object)) = counts {
            let others = definitions.iter().filter(|(file, _)| file != first);
            problems.extend(others.map(|(file, other)| duplicate(key, file, other, first)));
            let origin = Origin {
                file: Arc::clone(first),
                line: definition.line,
            };
            changes.push(Change::Upsert(object, origin));
            self.applied.insert(key.clone());
        } else if self.applied.remove(key) {
            changes.push(Change::Remove(key.clone()));
        }
        changes.push(Change::Problems {
            owner: format!("several definitions of {key}").into(),
            problems,
        });
        changes
    }

    fn parse(&mut self, file: &Arc<str>, text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        for document in manifest::documents(text, format(file)) {
            match document.objects() {
                Ok(objects) => {
                    for raw in objects {
                        self.parse_object(file, &document, raw, &mut parsed);
                    }
                }
                Err(error) => {
                    parsed.broken = true;
                    let message = if self.defined_by.contains_key(file) {
                        format!(
                            "{}; what the file said before stays in force",
                            error.message
                        )
                    } else {
                        error.message
                    };
                    parsed.problems.push(of_file(file, error.line, message));
                    quarantine(file, &document, &mut parsed);
                }
            }
        }
        parsed
    }

    fn parse_object(
        &mut self,
        file: &Arc<str>,
        document: &Document<'_>,
        raw: RawObject,
        parsed: &mut Parsed,
    ) {
        let RawObject { value, path, line } = raw;
        let converted = self.converter.value(&value);
        let name = converted.object_name();
        let old = self.defined_by.get(file).zip(converted.key.as_ref());
        let old = old.and_then(|(old, key)| old.get(key));
        let fate = converted.fate(old.is_some_and(|old| old.object.is_some()));
        for FieldProblem { field, message } in &converted.problems {
            let found = (parsed.searched < SEARCHED).then(|| document.line_of(&path.join(field)));
            parsed.searched = parsed.searched.saturating_add(document.text().len());
            parsed.problems.push(Problem {
                file: file.to_string(),
                line: found.unwrap_or(line),
                kind: converted.kind.to_string(),
                object: name.clone(),
                field: field.to_string(),
                message: format!("{message}{fate}"),
            });
        }
        let Some(key) = converted.key else {
            return;
        };
        if let Some(first) = parsed.objects.get(&key) {
            let message = format!("is also on line {}, which counts", first.line);
            parsed.problems.push(Problem {
                file: file.to_string(),
                line,
                kind: converted.kind.into_owned(),
                object: name,
                field: String::new(),
                message,
            });
            return;
        }
        let object = converted.object;
        parsed.objects.insert(key, Definition { object, line });
    }
}

/// Denies the namespaces that text names which can't be read and speaks of policies.
fn quarantine(file: &Arc<str>, document: &Document<'_>, parsed: &mut Parsed) {
    let text = document.text();
    if !text.contains("AuthorizationPolicy") && !text.contains("MeshPolicy") {
        return;
    }
    let mut namespaces = namespaces_in(text);
    if namespaces.is_empty() {
        namespaces.insert("default");
    }
    let line = document.line;
    let place = format!("{file}:{line}");
    for namespace in namespaces {
        let object = convert::in_place_of_text(namespace, &place);
        let message = match namespace {
            ROOT_NAMESPACE => "seems to hold a policy: the whole mesh is denied".to_owned(),
            _ => format!("seems to hold a policy: namespace {namespace} is denied"),
        };
        parsed.problems.push(of_file(file, line, message));
        let object = Some(object);
        if let Some(key) = object.as_ref().map(Object::key) {
            parsed.objects.insert(key, Definition { object, line });
        }
    }
}

/// The values of every `namespace:` in a text, however it is quoted and indented.
fn namespaces_in(text: &str) -> BTreeSet<&str> {
    let quotes = ['"', '\''];
    let end = |c: char| c.is_whitespace() || quotes.contains(&c) || matches!(c, ',' | '}' | '#');
    let value = |(at, key): (usize, &str)| {
        let after = text[at + key.len()..]
            .trim_start_matches(quotes)
            .trim_start();
        let value = after.strip_prefix(':')?.trim_start_matches([' ', '\t']);
        let value = value.trim_start_matches(quotes).split(end).next()?;
        let whole_word = !text[..at].ends_with(char::is_alphanumeric);
        (whole_word && !value.is_empty()).then_some(value)
    };
    text.match_indices("namespace").filter_map(value).collect()
}

pub(super) fn format(file: &str) -> Format {
    match file.rsplit_once('.') {
        Some((_, "json")) => Format::Json,
        _ => Format::Yaml,
    }
}

fn of_file(file: &str, line: usize, message: String) -> Problem {
    Problem {
        file: file.to_owned(),
        line,
        message,
        ..Problem::default()
    }
}

fn duplicate(key: &ObjectKey, file: &str, definition: &Definition, first: &str) -> Problem {
    Problem {
        file: file.to_owned(),
        line: definition.line,
        kind: key.kind.as_str().to_owned(),
        object: key.object(),
        field: String::new(),
        message: format!("is also in {first}, which counts since its name comes first"),
    }
}
