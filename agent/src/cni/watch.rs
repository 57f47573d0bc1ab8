//! Keeps the plugin where it was put, whatever other installers do.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::install::{InstallError, Installer, Stamp};

/// How often it is looked at, besides whenever something changes there.
const LOOK: Duration = Duration::from_secs(10);
/// An edit is over when nothing happened for so long.
const QUIET: Duration = Duration::from_millis(50);
/// An edit that goes on is not waited for longer than this many times.
const RESTLESS: usize = 20;

/// Installs the plugin, and again whenever it is not as it should be. `program` is what
/// the runtime is to run; `trouble` has why it can't be, if so. Never returns.
pub async fn keep_installed(
    installer: Installer,
    program: &'static Path,
    trouble: watch::Sender<Option<String>>,
) {
    let changed = Arc::new(Notify::new());
    let mut watcher = None;
    let mut binary = None;
    loop {
        if watcher.is_none() {
            watcher = installer
                .conf_dir
                .as_deref()
                .and_then(|path| watch_directory(path, &changed));
        }
        let look = installer.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let result = install(&look, program, &mut binary);
            (result, binary)
        });
        let Ok((result, seen)) = looked.await else {
            // It panicked or the runtime ends: whoever owns this task sees it end.
            return;
        };
        binary = seen;
        let now = result.err().map(|error| in_one_line(&error));
        let _differs = trouble.send_if_modified(|before| {
            let differs = *before != now;
            if differs && let Some(text) = &now {
                tracing::warn!(error = text, "the CNI plugin is not in place");
            }
            *before = now;
            differs
        });
        if timeout(LOOK, changed.notified()).await.is_ok() {
            settle(&changed).await;
        }
    }
}

/// `binary` is what was seen of the installed program: it is compared only where that has
/// changed.
fn install(
    installer: &Installer,
    program: &Path,
    binary: &mut Option<Stamp>,
) -> Result<(), InstallError> {
    if binary.is_none() || *binary != installer.binary_stamp() {
        if installer.install_binary(program)? {
            tracing::info!(directory = ?installer.bin_dir, "installed the CNI plugin");
        }
        *binary = installer.binary_stamp();
    }
    if let Some(path) = installer.install_configuration()? {
        tracing::info!(path = %path.display(), "added the CNI plugin to the node's network");
    }
    Ok(())
}

/// An error with its causes, in one line.
fn in_one_line(error: &InstallError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn watch_directory(path: &Path, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading files is an event too, and would lead to reading them again.
        if !event.is_ok_and(|event| event.kind.is_access() && !event.need_rescan()) {
            changed.notify_one();
        }
    })
    .ok()?;
    watcher.watch(path, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// Waits for the end of an edit.
async fn settle(changed: &Notify) {
    for _ in 0..RESTLESS {
        tokio::select! {
            () = changed.notified() => {}
            () = sleep(QUIET) => return,
        }
    }
}
