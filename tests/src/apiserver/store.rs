//! The objects and their history.
//!
//! An object is kept as the text that is sent. Every collection is a persistent map, so
//! that a list of any length is one consistent version while writes go on, and keeps
//! its last changes for watches that come back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use imbl::OrdMap;
use serde_json::Value;
use tokio::sync::watch;

use super::failure::Failure;
use super::kind::{Kind, Resource};
use super::object::{Name, Stored};

/// Changes that a collection remembers for watches.
const HISTORY: usize = 20_000;
/// Older versions of a collection that lists are being read from.
const PAGED: usize = 64;

/// All objects.
#[derive(Debug)]
pub(super) struct Store(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    version: u64,
    /// Changes up to this version are not told any more.
    compacted: u64,
    collections: BTreeMap<Resource, Collection>,
}

#[derive(Debug)]
struct Collection {
    kind: Arc<Kind>,
    objects: Objects,
    history: VecDeque<Event>,
    /// The newest version that is not in the history any more.
    forgotten: u64,
    paged: VecDeque<(u64, Objects)>,
    /// The version of the last change.
    changed: watch::Sender<u64>,
    /// Its definition has gone: it is only there for those who watched it.
    gone: bool,
}

/// The objects of one kind at one version.
pub(super) type Objects = OrdMap<Name, Arc<Stored>>;

/// A change.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    pub(super) old: Option<Arc<Stored>>,
    /// As it is now; for one that was deleted, as it was, with the version of its end.
    pub(super) object: Arc<Stored>,
    pub(super) deleted: bool,
}

/// What happened since a version.
#[derive(Debug)]
pub(super) struct Since {
    pub(super) events: Vec<Event>,
    /// Everything up to here is in it.
    pub(super) version: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        let mut inner = Inner {
            version: 1,
            compacted: 0,
            collections: BTreeMap::new(),
        };
        for kind in Kind::built_in() {
            inner.define(kind);
        }
        Self(Mutex::new(inner))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the last change of all.
    pub(super) fn version(&self) -> u64 {
        self.inner().version
    }

    /// The kind that is served at this path.
    pub(super) fn kind(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        let inner = self.inner();
        let collection = inner.collections.get(&(group.into(), plural.into()))?;
        (!collection.gone).then(|| Arc::clone(&collection.kind))
    }

    /// The kind that an object says that it is of.
    pub(super) fn kind_of(&self, object: &Value) -> Option<Arc<Kind>> {
        self.kinds().into_iter().find(|kind| {
            object["kind"] == *kind.kind && object["apiVersion"] == kind.api_version().as_str()
        })
    }

    pub(super) fn kinds(&self) -> Vec<Arc<Kind>> {
        let inner = self.inner();
        let kinds = inner.collections.values();
        kinds
            .filter(|collection| !collection.gone)
            .map(|collection| Arc::clone(&collection.kind))
            .collect()
    }

    /// Serves a kind from now on.
    pub(super) fn define(&self, kind: Kind) {
        self.inner().define(kind);
    }

    /// Deletes all objects of a kind, tells those who watch them, and serves it no more.
    pub(super) fn undefine(&self, kind: &Kind) {
        let mut inner = self.inner();
        let names = inner.collections.get(&kind.resource());
        let names: Vec<Name> = names
            .map(|collection| collection.objects.keys().cloned().collect())
            .unwrap_or_default();
        for name in names {
            inner.remove(kind, &name);
        }
        if let Some(collection) = inner.collections.get_mut(&kind.resource()) {
            collection.gone = true;
            // Those who watch see the sender go, and still find what it told of.
            collection.changed = watch::Sender::new(0);
        }
    }

    pub(super) fn get(&self, kind: &Kind, name: &Name) -> Option<Arc<Stored>> {
        let inner = self.inner();
        let collection = inner.collections.get(&kind.resource())?;
        collection.objects.get(name).cloned()
    }

    /// Puts what `change` makes of an object in its place; `None` deletes it. What it
    /// leaves as it was is no change. Returns what is there now, or was.
    pub(super) fn write(
        &self,
        kind: &Kind,
        name: &Name,
        change: impl FnOnce(Option<&Stored>) -> Result<Option<Value>, Failure>,
    ) -> Result<Option<Arc<Stored>>, Failure> {
        let mut inner = self.inner();
        let collection = inner.collections.get(&kind.resource());
        let old = collection.and_then(|collection| collection.objects.get(name).cloned());
        match (change(old.as_deref())?, old) {
            (Some(new), old) => {
                let version = inner.version + 1;
                if let Some(old) = old.as_ref().filter(|old| old.says(&new)) {
                    return Ok(Some(Arc::clone(old)));
                }
                Ok(inner.insert(kind, name, Stored::new(kind, name, new, version)))
            }
            (None, Some(_)) => Ok(inner.remove(kind, name)),
            (None, None) => Ok(None),
        }
    }

    /// Puts an object in place that `make` makes for its version.
    pub(super) fn put(&self, kind: &Kind, make: impl FnOnce(u64) -> Stored) -> u64 {
        let mut inner = self.inner();
        let version = inner.version + 1;
        let object = make(version);
        let name = object.name.clone();
        inner.insert(kind, &name, object);
        version
    }

    /// All objects of a kind, and the version that they are.
    pub(super) fn list(&self, kind: &Kind) -> Option<(Objects, u64)> {
        let inner = self.inner();
        let collection = inner.collections.get(&kind.resource())?;
        Some((collection.objects.clone(), inner.version))
    }

    /// Keeps a version for those who read on in it.
    pub(super) fn keep(&self, kind: &Kind, objects: Objects, version: u64) {
        let mut inner = self.inner();
        let Some(collection) = inner.collections.get_mut(&kind.resource()) else {
            return;
        };
        if !collection.paged.iter().any(|(kept, _)| *kept == version) {
            collection.paged.push_back((version, objects));
        }
        if collection.paged.len() > PAGED {
            collection.paged.pop_front();
        }
    }

    /// A version that was kept.
    pub(super) fn kept(&self, kind: &Kind, version: u64) -> Result<Objects, Failure> {
        let inner = self.inner();
        let collection = inner.collections.get(&kind.resource());
        let mut kept = collection.into_iter().flat_map(|all| &all.paged);
        let found = kept.find(|(kept, _)| *kept == version);
        found.map(|(_, objects)| objects.clone()).ok_or_else(|| {
            let message = "The provided continue parameter is too old to display a consistent \
                           list result. You can start a new list without the continue parameter.";
            Failure::new(410, "Expired", message)
        })
    }

    /// Tells of changes from now on; its end is the end of the kind.
    pub(super) fn follow(&self, kind: &Kind) -> Option<watch::Receiver<u64>> {
        let inner = self.inner();
        let collection = inner.collections.get(&kind.resource())?;
        Some(collection.changed.subscribe())
    }

    /// Whether a watch may begin at a version.
    pub(super) fn check(&self, version: u64) -> Result<(), Failure> {
        let inner = self.inner();
        if version < inner.compacted {
            return Err(Failure::expired(version, inner.compacted));
        }
        if version > inner.version {
            return Err(Failure::from_the_future(version, inner.version));
        }
        Ok(())
    }

    /// The next changes after a version, at most `limit`; none is left out.
    pub(super) fn since(&self, kind: &Kind, version: u64, limit: usize) -> Result<Since, Failure> {
        let inner = self.inner();
        let Some(collection) = inner.collections.get(&kind.resource()) else {
            return Ok(Since {
                events: Vec::new(),
                version,
            });
        };
        if version < collection.forgotten {
            return Err(Failure::expired(version, collection.forgotten));
        }
        let history = &collection.history;
        let from = history.partition_point(|event| event.version <= version);
        let events: Vec<Event> = history.iter().skip(from).take(limit).cloned().collect();
        let rest = history.len() - from - events.len();
        let reached = match events.last() {
            Some(last) if rest > 0 => last.version,
            _ => inner.version,
        };
        Ok(Since {
            events,
            version: reached,
        })
    }

    /// Forgets all history, as etcd does when it is compacted.
    pub(super) fn compact(&self) {
        let mut inner = self.inner();
        inner.compacted = inner.version;
        for collection in inner.collections.values_mut() {
            if let Some(last) = collection.history.back() {
                collection.forgotten = last.version;
            }
            collection.history.clear();
            collection.paged.clear();
        }
    }
}

impl Inner {
    fn define(&mut self, kind: Kind) {
        let version = self.version;
        let collection = self.collections.entry(kind.resource());
        let collection = collection.or_insert_with(|| Collection {
            kind: Arc::new(kind.clone()),
            objects: Objects::new(),
            history: VecDeque::new(),
            forgotten: 0,
            paged: VecDeque::new(),
            changed: watch::Sender::new(version),
            gone: false,
        });
        collection.kind = Arc::new(kind);
        collection.gone = false;
    }

    fn insert(&mut self, kind: &Kind, name: &Name, object: Stored) -> Option<Arc<Stored>> {
        self.version += 1;
        let (version, object) = (self.version, Arc::new(object));
        let collection = self.collections.get_mut(&kind.resource())?;
        let old = collection.objects.insert(name.clone(), Arc::clone(&object));
        collection.remember(Event {
            version,
            old,
            object: Arc::clone(&object),
            deleted: false,
        });
        Some(object)
    }

    fn remove(&mut self, kind: &Kind, name: &Name) -> Option<Arc<Stored>> {
        let collection = self.collections.get_mut(&kind.resource())?;
        let old = collection.objects.remove(name)?;
        self.version += 1;
        let last = Stored::new(kind, name, old.value(), self.version);
        let object = Arc::new(last);
        collection.remember(Event {
            version: self.version,
            old: Some(old),
            object: Arc::clone(&object),
            deleted: true,
        });
        Some(object)
    }
}

impl Collection {
    fn remember(&mut self, event: Event) {
        let version = event.version;
        self.history.push_back(event);
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.forgotten = oldest.version;
        }
        self.changed.send_replace(version);
    }
}
