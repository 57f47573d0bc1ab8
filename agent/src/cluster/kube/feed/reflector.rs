//! What is known of the objects of one kind, and what an event changes of it. Pure.
//!
//! ```text
//!          begin                 finish
//!   Idle ─────────► First/Again ────────► Idle    (an attempt that fails begins again)
//!    │ put, gone: at once          │ First: put and gone at once, nobody sees it yet
//!    ▼                             │ Again: collected; `finish` makes one step of it
//! ```
//!
//! Invariant: between two changes of `out` that are applied together, no object is
//! missing that was there before and is there after.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::cluster::convert::Received;
use crate::cluster::field::FieldProblem;
use crate::model::NamespacedName;
use crate::state::{Change, ObjectKey, ObjectKind, Origin, Problem};

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Reflector {
    kind: ObjectKind,
    known: BTreeMap<NamespacedName, Known>,
    in_force: usize,
    stage: Stage,
    /// Counts the lists, so that what one did not have is found.
    pass: u32,
    /// A list has been taken in from its start to its end.
    complete: bool,
    buried: Buried,
    version: Option<String>,
}

/// What is kept of an object beside the state's own.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    version: Option<Version>,
    /// The last list that had it.
    pass: u32,
    /// The state has it, perhaps as it was before.
    in_force: bool,
    flawed: bool,
}

#[derive(Debug)]
enum Stage {
    /// Events follow what is known.
    Idle,
    /// The first list is being read.
    First,
    /// A list is being read once more; what it has that differs.
    Again(BTreeMap<NamespacedName, Received>),
}

/// A `resourceVersion` that can be compared. Kubernetes promises an order for those that
/// are decimal numbers (KEP-5504); any other is only good for handing it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(std::num::NonZeroU64);

impl Version {
    fn of(text: &str) -> Option<Self> {
        let decimal = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| decimal)?;
        std::num::NonZeroU64::new(number).map(Self)
    }
}

impl Reflector {
    /// Of which nothing is known.
    pub(super) fn new(kind: ObjectKind) -> Self {
        Self {
            kind,
            known: BTreeMap::new(),
            in_force: 0,
            stage: Stage::Idle,
            pass: 0,
            complete: false,
            buried: Buried::default(),
            version: None,
        }
    }

    /// How many objects are in force.
    pub(super) fn len(&self) -> usize {
        self.in_force
    }

    /// The version from which a watch can go on; `None` where it takes a list.
    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The version is no longer good for anything.
    pub(super) fn expire(&mut self) {
        self.version = None;
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.pass = self.pass.wrapping_add(1);
        self.version = None;
        self.stage = if self.complete {
            Stage::Again(BTreeMap::new())
        } else {
            Stage::First
        };
    }

    /// An object of a list, or one that is new or differs.
    pub(super) fn put(&mut self, received: Received, out: &mut Vec<Change>) {
        let version = Version::of(&received.version);
        let known = self.known.get_mut(&received.name);
        let same = |known: &Known| version.is_some() && known.version == version;
        match &mut self.stage {
            Stage::First | Stage::Again(_) if known.as_deref().is_some_and(same) => {
                if let Some(known) = known {
                    known.pass = self.pass;
                }
            }
            Stage::First => self.apply(received, version, out),
            Stage::Again(collected) => {
                let later = collected.get(&received.name);
                let later = later.and_then(|other| Version::of(&other.version));
                if version.is_none() || later.is_none() || later < version {
                    collected.insert(received.name.clone(), received);
                }
            }
            Stage::Idle => {
                let last = match known {
                    Some(known) => known.version,
                    None => self.buried.version(&received.name),
                };
                self.advance(&received.version);
                // One that comes twice or late says nothing.
                if version.is_none() || last.is_none() || last < version {
                    self.apply(received, version, out);
                }
            }
        }
    }

    /// An object is gone since `version`.
    pub(super) fn gone(&mut self, name: &NamespacedName, version: &str, out: &mut Vec<Change>) {
        if let Stage::Again(collected) = &mut self.stage {
            collected.remove(name);
            if let Some(known) = self.known.get_mut(name) {
                known.pass = self.pass.wrapping_sub(1);
            }
            return;
        }
        let number = Version::of(version);
        let last = self.known.get(name).and_then(|known| known.version);
        if let Stage::Idle = self.stage {
            self.advance(version);
        }
        // It came back since.
        if number.is_some() && last.is_some() && number < last {
            return;
        }
        self.remove(name, out);
        self.buried.add(name, number);
    }

    /// Nothing happened up to `version`. False where the API server's history went back,
    /// such as by a restored back-up: then only a list tells what is.
    pub(super) fn bookmark(&mut self, version: &str) -> bool {
        let last = self.version.as_deref().and_then(Version::of);
        let back = last > Version::of(version) && Version::of(version).is_some();
        if !back && matches!(self.stage, Stage::Idle) {
            self.version = Some(version.to_owned());
        }
        !back
    }

    /// The list is complete, as of `version`. What it did not have is gone.
    pub(super) fn finish(&mut self, version: &str, out: &mut Vec<Change>) {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        let collected = match stage {
            Stage::Again(collected) => collected,
            Stage::First | Stage::Idle => BTreeMap::new(),
        };
        let missing = self
            .known
            .iter()
            .filter(|(name, known)| known.pass != self.pass && !collected.contains_key(name));
        let missing: Vec<NamespacedName> = missing.map(|(name, _)| name.clone()).collect();
        for name in &missing {
            self.remove(name, out);
        }
        for received in collected.into_values() {
            let version = Version::of(&received.version);
            self.apply(received, version, out);
        }
        self.buried = Buried::default();
        self.complete = true;
        self.version = Some(version.to_owned());
    }

    /// There is no such kind any more.
    pub(super) fn vanish(&mut self, out: &mut Vec<Change>) {
        self.begin();
        self.finish("", out);
        self.version = None;
    }

    fn apply(&mut self, received: Received, version: Option<Version>, out: &mut Vec<Change>) {
        let Received {
            name, converted, ..
        } = received;
        let old = self.known.get(&name).copied().unwrap_or_default();
        let fate = converted.fate(old.in_force);
        let problem = |of: &FieldProblem| Problem {
            kind: self.kind.as_str().to_owned(),
            object: converted.object_name(),
            field: of.field.to_string(),
            message: format!("{}{fate}", of.message),
            ..Problem::default()
        };
        let problems: Vec<Problem> = converted.problems.iter().map(problem).collect();
        let new = Known {
            version,
            pass: self.pass,
            in_force: old.in_force || converted.object.is_some(),
            flawed: !problems.is_empty(),
        };
        if old.flawed || new.flawed {
            let owner = self.owner(&name);
            out.push(Change::Problems { owner, problems });
        }
        if let Some(object) = converted.object {
            out.push(Change::Upsert(object, Origin::default()));
        }
        self.in_force += usize::from(new.in_force && !old.in_force);
        self.known.insert(name, new);
    }

    fn remove(&mut self, name: &NamespacedName, out: &mut Vec<Change>) {
        let Some(known) = self.known.remove(name) else {
            return;
        };
        if known.in_force {
            self.in_force -= 1;
            out.push(Change::Remove(ObjectKey {
                kind: self.kind,
                name: name.clone(),
            }));
        }
        if known.flawed {
            out.push(Change::Problems {
                owner: self.owner(name),
                problems: Vec::new(),
            });
        }
    }

    fn owner(&self, name: &NamespacedName) -> Arc<str> {
        format!("{} {name}", self.kind.as_str()).into()
    }

    /// To go on from the latest of all versions that were seen.
    fn advance(&mut self, version: &str) {
        let last = self.version.as_deref().and_then(Version::of);
        let next = Version::of(version);
        if !version.is_empty() && (last.is_none() || next.is_none() || last < next) {
            self.version = Some(version.to_owned());
        }
    }
}

/// So many objects that are gone are remembered.
const BURIED: usize = 1024;

/// Objects that are gone, so that a late event does not bring one back.
#[derive(Debug, Default)]
struct Buried {
    versions: BTreeMap<NamespacedName, Version>,
    order: VecDeque<NamespacedName>,
}

impl Buried {
    fn version(&self, name: &NamespacedName) -> Option<Version> {
        self.versions.get(name).copied()
    }

    fn add(&mut self, name: &NamespacedName, version: Option<Version>) {
        let Some(version) = version else {
            return;
        };
        if self.versions.insert(name.clone(), version).is_none() {
            self.order.push_back(name.clone());
        }
        if self.order.len() > BURIED
            && let Some(oldest) = self.order.pop_front()
        {
            self.versions.remove(&oldest);
        }
    }
}
