//! The directory source: files of manifests, watched.
//!
//! ```text
//! notify ─┐
//!         ├─► (quiet for a moment) ─► scan: list, read what changed ─► Files ─► Writer ─► watch
//! timer  ─┘
//! ```
//!
//! What inotify does not tell (a lost watch, the target of a symbolic link, a file
//! system without it) the timer finds. A directory that can't be read leaves
//! everything as it is, and says so in the [`Health`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use jiff::Timestamp;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::files::{Content, Files};
use super::source::{Health, Source, SourceError, log};
use crate::model::TrustDomain;
use crate::state::{Change, ObjectKind, Snapshot, Writer};

/// What the source needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory.
    pub path: PathBuf,
    /// Of the identities that its pods have.
    pub trust_domain: TrustDomain,
    /// The blocks of which external addresses of Services may be.
    pub external_ips: Vec<IpNet>,
}

/// Quiet for so long, and an edit is taken to be complete.
const QUIET: Duration = Duration::from_millis(50);
/// Even where it is never quiet, the directory is read after so many edits.
const RESTLESS: usize = 10;
/// How often the directory is read where changes are noticed,
const RESCAN: Duration = Duration::from_secs(10);
/// and where they are not.
const RESCAN_UNWATCHED: Duration = Duration::from_secs(1);
/// A file that changed so recently may change again within the same tick of the file
/// system's clock, so it is read again whatever its time says.
const RACY: Duration = Duration::from_secs(1);
/// A larger file is not a manifest.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// Starts the source. Nothing happens unless the future is polled; it never ends.
pub fn start(config: Config) -> (Source, impl Future<Output = ()> + Send + 'static) {
    let (snapshots, snapshot_receiver) = watch::channel(Snapshot::default());
    let (health, health_receiver) = watch::channel(Health {
        source: format!("dir:{}", config.path.display()),
        healthy: false,
        last_sync: None,
        last_error: None,
        watching: false,
        lost: None,
        objects: BTreeMap::new(),
        kinds: Vec::new(),
        problems: 0,
    });
    let source = Source {
        snapshots: snapshot_receiver,
        health: health_receiver,
    };
    let directory = Directory {
        path: config.path,
        files: Files::new(config.trust_domain),
        seen: BTreeMap::new(),
    };
    let writer = Writer::with_external_ips(config.external_ips);
    (source, run(directory, writer, snapshots, health))
}

async fn run(
    mut directory: Directory,
    mut writer: Writer,
    snapshots: watch::Sender<Snapshot>,
    health: watch::Sender<Health>,
) {
    let dirty = Arc::new(Notify::new());
    let mut watching = Watching::default();
    loop {
        watching.renew(&directory.path, &dirty);
        let scan = tokio::task::spawn_blocking(move || {
            let changes = directory.scan();
            (directory, changes)
        });
        let Ok((returned, changes)) = scan.await else {
            // The scan panicked or the runtime ends: whoever owns this task sees it end.
            return;
        };
        directory = returned;
        let outcome = changes.map(|changes| {
            for change in changes {
                writer.apply(change);
            }
            if let Some(snapshot) = writer.publish() {
                log(&snapshots.borrow(), &snapshot);
                snapshots.send_replace(snapshot);
            }
        });
        report(&health, &outcome, &directory, watching.active(), &snapshots);
        let rescan = if watching.active() {
            RESCAN
        } else {
            RESCAN_UNWATCHED
        };
        if timeout(rescan, dirty.notified()).await.is_ok() {
            settle(&dirty).await;
        }
    }
}

/// Waits for the end of an edit.
async fn settle(dirty: &Notify) {
    for _ in 0..RESTLESS {
        tokio::select! {
            () = dirty.notified() => {}
            () = sleep(QUIET) => return,
        }
    }
}

fn report(
    health: &watch::Sender<Health>,
    outcome: &io::Result<()>,
    directory: &Directory,
    watching: bool,
    snapshots: &watch::Sender<Snapshot>,
) {
    let now = Timestamp::now();
    health.send_modify(|health| {
        health.watching = watching;
        match outcome {
            Ok(()) => {
                health.healthy = true;
                health.last_sync = Some(now);
            }
            Err(error) => {
                let message = format!("{}: {error}", directory.path.display());
                if health.healthy || health.last_error.is_none() {
                    tracing::warn!(
                        source = health.source,
                        error = message,
                        "can't read the source"
                    );
                }
                health.healthy = false;
                health.last_error = Some(SourceError { time: now, message });
            }
        }
        let counts = directory.files.counts().into_iter();
        health.objects = counts
            .map(|(kind, count): (ObjectKind, usize)| (kind.as_str(), count))
            .collect();
        health.problems = snapshots.borrow().problems.len();
    });
}

/// The watch on the directory, renewed when another directory takes its place.
#[derive(Debug, Default)]
struct Watching {
    current: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watching {
    fn active(&self) -> bool {
        self.current.is_some()
    }

    fn renew(&mut self, path: &Path, dirty: &Arc<Notify>) {
        let identity = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        let Ok(identity) = identity else {
            self.current = None;
            return;
        };
        if self
            .current
            .as_ref()
            .is_some_and(|(_, watched)| *watched == identity)
        {
            return;
        }
        self.current = watcher(path, dirty)
            .inspect_err(|error| {
                tracing::debug!(%error, "can't watch the directory, it is read every second");
            })
            .ok()
            .map(|watcher| (watcher, identity));
    }
}

fn watcher(path: &Path, dirty: &Arc<Notify>) -> notify::Result<RecommendedWatcher> {
    let dirty = Arc::clone(dirty);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading files is an event too, and would lead to reading them again.
        if event.is_ok_and(|event| event.kind.is_access() && !event.need_rescan()) {
            return;
        }
        dirty.notify_one();
    })?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// What is known of the directory.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    files: Files,
    /// The files that have been taken in; no stamp: to be read again anyway.
    seen: BTreeMap<String, Option<Stamp>>,
}

/// By this a changed file is told from one that has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Directory {
    /// Reads what changed. An error leaves everything as it was.
    fn scan(&mut self) -> io::Result<Vec<Change>> {
        let listed = list(&self.path)?;
        let mut changes = Vec::new();
        let names: BTreeSet<&String> = listed.iter().map(|(name, _)| name).collect();
        let gone = self.seen.keys().filter(|name| !names.contains(name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.seen.remove(&name);
            changes.extend(self.files.update(&name.into(), Content::Gone));
        }
        for (name, path) in listed {
            changes.extend(self.scan_file(name, &path));
        }
        Ok(changes)
    }

    fn scan_file(&mut self, name: String, path: &Path) -> Vec<Change> {
        let stamp = stamp(path);
        let seen = self.seen.get(&name).copied().flatten();
        if seen.is_some() && seen == stamp.as_ref().ok().copied().flatten() {
            return Vec::new();
        }
        let file = Arc::from(name.as_str());
        let (stamp, content) = match stamp.and_then(|stamp| Ok((stamp, read(path)?))) {
            Ok(found) => found,
            // It vanished after it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.seen.remove(&name);
                return self.files.update(&file, Content::Gone);
            }
            Err(error) => (None, Content::Unreadable(error.to_string())),
        };
        self.seen.insert(name, stamp);
        self.files.update(&file, content)
    }
}

/// The manifests of a directory by file name, or the one file that `path` is.
pub(super) fn list(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    if fs::metadata(path)?.is_file() {
        let name = name(path).unwrap_or_else(|| path.display().to_string());
        return Ok(vec![(name, path.to_owned())]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if let Some(name) = name(&path).filter(|name| is_manifest(name)) {
            files.push((name, path));
        }
    }
    files.sort();
    Ok(files)
}

/// Not the files that editors and atomic writers keep beside it.
fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The stamp of a file; `None` where the file is too recent for its stamp to be trusted.
fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
    let metadata = fs::metadata(path)?;
    let stamp = Stamp {
        inode: (metadata.dev(), metadata.ino()),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    };
    let age = SystemTime::now().duration_since(metadata.modified()?);
    Ok(age.is_ok_and(|age| age >= RACY).then_some(stamp))
}

/// A file's content, if it is a file of a size that a manifest can have.
pub(super) fn read(path: &Path) -> io::Result<Content> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(Content::Unreadable("is not a file".to_owned()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        let limit = MAX_FILE_BYTES >> 20;
        return Ok(Content::Unreadable(format!("is larger than {limit} MiB")));
    }
    Ok(content(fs::read(path)?))
}

/// As what bytes are taken.
pub(super) fn content(bytes: Vec<u8>) -> Content {
    match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => {
            let message = format!("is not UTF-8: {}", error.utf8_error());
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            Content::Garbled(message, text)
        }
    }
}
