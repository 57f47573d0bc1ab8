//! An authority whose files may be replaced while it is used.

use std::path::PathBuf;
use std::sync::Arc;

use super::authority::{Authority, AuthorityError};
use super::clock::Clock;
use super::directory::{self, Stamp};

/// An [`Authority`] that follows its directory: files that change are opened again, and
/// where that fails the last good ones stay in force.
#[derive(Debug)]
pub struct AuthorityDir {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    stamps: [Option<Stamp>; 4],
    current: Arc<Authority>,
}

impl AuthorityDir {
    /// Opens the directory, as [`Authority::open_at`].
    pub fn open(dir: PathBuf, clock: Arc<dyn Clock>) -> Result<Self, AuthorityError> {
        let mut stamps = directory::stamps(&dir);
        let mut current = Authority::open_at(&dir, Arc::clone(&clock))?;
        let after = directory::stamps(&dir);
        if stamps != after {
            // It was created just now, or written to while it was read.
            stamps = after;
            current = Authority::open_at(&dir, Arc::clone(&clock))?;
        }
        Ok(Self {
            dir,
            clock,
            stamps,
            current: Arc::new(current),
        })
    }

    /// The authority in force.
    pub fn current(&self) -> &Arc<Authority> {
        &self.current
    }

    /// Looks at the files. True where a new authority is in force.
    pub fn refresh(&mut self) -> bool {
        let stamps = directory::stamps(&self.dir);
        if stamps == self.stamps {
            return false;
        }
        if stamps.iter().all(Option::is_none) {
            // Not taken for a wish to have a new root: that is for a start.
            self.stamps = stamps;
            tracing::error!(dir = %self.dir.display(), "the CA directory is empty; the last good one stays in force");
            return false;
        }
        self.stamps = stamps;
        match Authority::open_at(&self.dir, Arc::clone(&self.clock)) {
            Ok(authority) => {
                tracing::info!(dir = %self.dir.display(), "the CA directory changed and was read");
                self.current = Arc::new(authority);
                true
            }
            Err(error) => {
                tracing::error!(%error, "the CA directory changed; the last good one stays in force");
                false
            }
        }
    }
}
