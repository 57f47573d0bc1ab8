//! The unix socket: private, and of one agent only.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The socket's name in the run directory.
pub(super) const SOCKET: &str = "agent.sock";

/// Why the socket can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers there.
    #[error("an agent is already running on {}; stop it, or give this one its own --run-dir", .0.display())]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A listening socket. Its drop removes the file, unless a successor has replaced it.
#[derive(Debug)]
pub struct SocketListener {
    /// The listener.
    pub(super) listener: UnixListener,
    /// Removes the file.
    pub(super) file: SocketFile,
}

/// The socket's file, as it was when it was made.
#[derive(Clone, Debug)]
pub struct SocketPlace {
    path: PathBuf,
    inode: Option<u64>,
}

impl SocketPlace {
    /// No other agent has put its own socket there.
    pub fn is_held(&self) -> bool {
        inode(&self.path) == self.inode
    }
}

/// The socket's file, by its inode.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            // Nothing can be done about a file that does not go; the next agent replaces it.
            fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

impl SocketListener {
    /// Opens `agent.sock` in `run_dir`, which is made if it is not there. A socket that
    /// nobody listens on any more is replaced. Must be called inside the runtime.
    pub fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        if is_served(run_dir) {
            return Err(SocketError::InUse(run_dir.join(SOCKET)));
        }
        Self::replace(run_dir)
    }

    /// As [`SocketListener::bind`], also where another agent listens: from then on the
    /// file is this one's, which the other can tell by [`SocketPlace::is_held`].
    pub fn replace(run_dir: &Path) -> Result<Self, SocketError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError::Io {
                action,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(run_dir)
            .map_err(failed("create the directory", run_dir))?;
        let path = run_dir.join(SOCKET);
        // Made under another name and moved, so that it never exists with open access.
        let fresh = run_dir.join(format!(".{SOCKET}.{}", std::process::id()));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &fresh)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed("listen on", &fresh))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .map_err(failed("restrict", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("create", &path))?;
        let inode = inode(&path);
        let file = SocketFile { path, inode };
        Ok(Self { listener, file })
    }

    /// The place of its file.
    pub fn place(&self) -> SocketPlace {
        SocketPlace {
            path: self.file.path.clone(),
            inode: self.file.inode,
        }
    }
}

/// An agent answers in this run directory.
pub fn is_served(run_dir: &Path) -> bool {
    UnixStream::connect(run_dir.join(SOCKET)).is_ok()
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).map(|meta| meta.ino()).ok()
}
