//! Network namespaces: opening them and working inside.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sys;

/// The cookie of the namespace that the kernel boots with: it counts from 1.
pub(super) const FIRST_COOKIE: u64 = 1;

/// An open network namespace and the way back from it. It lasts at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    /// The path goes when the namespace does.
    followed: bool,
    identity: (u64, u64),
    cookie: u64,
    home: Option<Arc<Netns>>,
}

impl Netns {
    /// The namespace that the calling thread is in.
    pub(crate) fn current() -> io::Result<Self> {
        let path = Path::new("/proc/thread-self/ns/net");
        let file = File::open(path)?;
        let identity = identity(&file)?;
        Ok(Self {
            cookie: cookie_here()?,
            file,
            path: path.to_owned(),
            followed: false,
            identity,
            home: None,
        })
    }

    /// The namespace at `path`; `home` is where the agent's threads return to.
    pub(super) fn open(path: &Path, home: &Arc<Self>) -> io::Result<Self> {
        // A path that is no namespace, a pipe for instance, must not block.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file =
            std::os::unix::fs::OpenOptionsExt::custom_flags(OpenOptions::new().read(true), flags)
                .open(path)?;
        Self::from_file(file, path.to_owned(), home)
    }

    /// The namespace whose open file this is; `path` only says where it came from.
    pub(super) fn from_file(file: File, path: PathBuf, home: &Arc<Self>) -> io::Result<Self> {
        let identity = identity(&file)?;
        let cookie = inside(file.as_fd(), home, cookie_here)??;
        Ok(Self {
            file,
            path,
            followed: true,
            identity,
            cookie,
            home: Some(Arc::clone(home)),
        })
    }

    /// The kernel's name for it: never used twice before the next boot.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Device and inode of its file.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Where it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, with a path that says nothing of whether it is still there.
    pub(super) fn held(self) -> Self {
        Self {
            followed: false,
            ..self
        }
    }

    /// The path by which to see that it goes, where there is one.
    pub(super) fn anchor(&self) -> Option<&Path> {
        self.followed.then_some(&self.path)
    }

    /// The path leads to this namespace.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity)
    }

    /// Runs `work` with the calling thread inside the namespace.
    ///
    /// The thread is back when this returns or unwinds. `work` makes system calls
    /// only: sockets stay in the namespace that they were made in.
    pub(super) fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.home {
            Some(home) => inside(self.file.as_fd(), home, work)?,
            None => work(),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|data| (data.dev(), data.ino()))
}

/// A socket of any kind has the cookie of its namespace.
fn cookie_here() -> io::Result<u64> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    sys::netns_cookie(socket.as_fd())
}

fn inside<T>(namespace: BorrowedFd<'_>, home: &Netns, work: impl FnOnce() -> T) -> io::Result<T> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let _back = Back(home);
    Ok(work())
}

/// Brings the thread home when dropped.
struct Back<'home>(&'home Netns);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let result = move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network));
        if let Err(error) = result {
            // A thread that stays in a pod's namespace would serve other pods from
            // there, with that pod's address and identity.
            tracing::error!(%error, "cannot return from a pod's network namespace; aborting");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    /// Set for the process that must not survive.
    const LOST: &str = "FAIRLEAD_TEST_LOST";

    /// This test starts itself again, as the process with the thread that can't return.
    #[test]
    fn a_thread_that_cannot_return_ends_the_agent() {
        if std::env::var_os(LOST).is_some() {
            let file = File::open("/dev/null").unwrap();
            let no_namespace = Netns {
                identity: identity(&file).unwrap(),
                file,
                path: PathBuf::new(),
                followed: false,
                cookie: 0,
                home: None,
            };
            // As work in a pod's namespace that panics.
            let _caught = std::panic::catch_unwind(|| {
                let _back = Back(&no_namespace);
                panic!("inside");
            });
            return;
        }
        let name = "redirect::netns::tests::a_thread_that_cannot_return_ends_the_agent";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name]).env(LOST, "1").output();
        let status = output.unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
    }
}
