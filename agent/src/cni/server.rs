//! The agent's end of the socket.

use std::fs::{self, Permissions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::protocol::{MAX_LINE_BYTES, Reply, Request, SOCKET};

/// Calls that wait to be looked at.
const QUEUE: usize = 256;
/// Answers to one call.
const ANSWERS: usize = 4;
/// A plugin says what it wants at once.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked at whose the socket's file is.
const LOOK: Duration = Duration::from_secs(1);
/// Before accepting again where the kernel had no descriptor.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Why the socket can't be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} {path}")]
pub struct SocketError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// One call of the plugin.
#[derive(Debug)]
pub struct Call {
    /// What it asks.
    pub request: Request,
    /// The network namespace that it is about.
    pub netns: Option<OwnedFd>,
    /// Where it waits, for one answer and before it [`Reply::wait`]; closed when it does
    /// not wait any more.
    pub reply: mpsc::Sender<Reply>,
}

/// Listens for the plugin. The file is this agent's until another one replaces it, and again
/// where that one ends.
#[derive(Debug)]
pub struct Server {
    door: Door,
    calls: mpsc::Sender<Call>,
}

/// The open socket.
#[derive(Debug)]
struct Door {
    file: SocketFile,
    listener: UnixListener,
}

/// Removes the socket's file, unless a successor has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    fn is_held(&self) -> bool {
        inode(&self.path).is_ok_and(|now| now == self.inode)
    }

    fn remove(&self) {
        if self.is_held() {
            // Nothing can be done about a file that does not go; the next agent replaces it.
            fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Server {
    /// Opens the socket in the run directory, which is there, in place of whatever agent's
    /// was there before. Must be called inside the runtime.
    pub fn bind(run_dir: &Path) -> Result<(Self, mpsc::Receiver<Call>), SocketError> {
        let door = Door::open(run_dir.join(SOCKET))?;
        let (calls, queue) = mpsc::channel(QUEUE);
        Ok((Self { door, calls }, queue))
    }

    /// Serves until it is dropped. As long as `in_force`, the plugin is not left without an
    /// agent: a socket whose own agent has ended is replaced.
    pub async fn run(mut self, in_force: impl Fn() -> bool) {
        let mut open = JoinSet::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while open.try_join_next().is_some() {}
            tokio::select! {
                accepted = self.door.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let calls = self.calls.clone();
                        drop(open.spawn(serve(stream, calls)));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a call of the CNI plugin");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                },
                _ = look.tick() => self.door.look(in_force()).await,
            }
        }
    }
}

impl Door {
    fn open(path: PathBuf) -> Result<Self, SocketError> {
        let process = std::process::id();
        let fresh = path.with_file_name(format!(".{SOCKET}.{process}"));
        let failed = |step, path: &Path| {
            let path = path.to_owned();
            move |source| SocketError { step, path, source }
        };
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &fresh)(error));
            }
            Ok(()) | Err(_) => {}
        }
        // Made under another name and moved, so that it never exists with open access.
        let listener = UnixListener::bind(&fresh).map_err(failed("listen on", &fresh))?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))
            .map_err(failed("restrict", &fresh))?;
        let inode = inode(&fresh).map_err(failed("read", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("create", &path))?;
        let file = SocketFile { path, inode };
        Ok(Self { file, listener })
    }

    /// Opens the socket again where another agent has replaced it and ended before its time.
    /// One that has taken over finds the place free.
    async fn look(&mut self, in_force: bool) {
        if !in_force {
            self.file.remove();
        } else if !self.file.is_held() && is_dead(&self.file.path).await {
            match Self::open(self.file.path.clone()) {
                Ok(door) => {
                    tracing::warn!("nobody answered the CNI plugin; this agent does again");
                    *self = door;
                }
                Err(error) => tracing::warn!(%error, "cannot answer the CNI plugin"),
            }
        }
    }
}

/// Nobody listens there.
async fn is_dead(path: &Path) -> bool {
    let error = UnixStream::connect(path).await.err();
    error.is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        )
    })
}

async fn serve(stream: UnixStream, calls: mpsc::Sender<Call>) {
    if let Err(error) = answer_one(stream, calls).await {
        tracing::debug!(%error, "a call of the CNI plugin came to nothing");
    }
}

async fn answer_one(stream: UnixStream, calls: mpsc::Sender<Call>) -> io::Result<()> {
    let (line, netns) = timeout(READ_LIMIT, receive(&stream)).await??;
    let request: Request = serde_json::from_slice(&line)?;
    let patience = request.patience();
    let (reply, mut answers) = mpsc::channel(ANSWERS);
    let call = Call {
        request,
        netns,
        reply,
    };
    if calls.send(call).await.is_err() {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    let answer = async {
        while let Some(answer) = answers.recv().await {
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            stream.writable().await?;
            let _length = stream.try_write(&line)?;
        }
        Ok(())
    };
    tokio::select! {
        answered = timeout(patience, answer) => answered?,
        () = ended(&stream) => Ok(()),
    }
}

/// Waits until the other end says nothing more. It has said all that it had to.
async fn ended(stream: &UnixStream) {
    loop {
        let ready = stream.readable().await;
        match stream.try_read(&mut [0]) {
            Err(error) if ready.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// One line, and the descriptor that came with it.
async fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut line = Vec::new();
    let mut netns = None;
    loop {
        stream.readable().await?;
        let received = stream.try_io(Interest::READABLE, || receive_some(stream, &mut line));
        match received {
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, descriptor)) => netns = netns.or(descriptor),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if line.last() == Some(&b'\n') {
            return Ok((line, netns));
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn receive_some(stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut bytes)],
        &mut beside,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    line.extend_from_slice(bytes.get(..received.bytes).unwrap_or_default());
    let descriptors = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((received.bytes, descriptors.last()))
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::symlink_metadata(path).map(|data| data.ino())
}
