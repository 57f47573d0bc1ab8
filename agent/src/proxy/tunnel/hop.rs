//! The socket under a tunnel, for what the kernel counts on it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use tokio::net::TcpStream;

use crate::flow::KernelStats;
use crate::proxy::lock::lock;
use crate::proxy::network::PodNetwork;

/// The socket under a tunnel. TLS and HTTP/2 own the connection; this is a second
/// descriptor of it, closed by [`Hop::end`] together with the first.
#[derive(Debug)]
pub(super) struct Hop(Mutex<Option<OwnedFd>>);

impl Hop {
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self(Mutex::new(Some(stream.as_fd().try_clone_to_owned()?))))
    }

    /// The connection has ended.
    pub(super) fn end(&self) {
        drop(self.socket().take());
    }

    pub(super) fn kernel_stats(&self, network: &dyn PodNetwork) -> Option<KernelStats> {
        let socket = self.socket();
        let info = network.tcp_info(socket.as_ref()?.as_fd());
        info.map(|info| info.stats)
    }

    fn socket(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        // A descriptor can't be half changed.
        lock(&self.0)
    }
}

/// Ends the hop when the task that drives the connection ends, however it does.
#[derive(Debug)]
pub(super) struct EndHop(pub(super) std::sync::Arc<Hop>);

impl Drop for EndHop {
    fn drop(&mut self) {
        self.0.end();
    }
}
