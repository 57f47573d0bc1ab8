//! TCP to TCP, and the buffer that all reads of a thread share.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::{BATCH, Broken, Far, is_gone};
use crate::flow::KernelStats;
use crate::proxy::dial;
use crate::proxy::network::PodNetwork;

thread_local! {
    /// Where a read lands until it is written or taken over, in the same poll: one for a
    /// thread, instead of one for a connection.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BATCH].into());
}

/// Lends the thread's buffer. Not to be nested.
pub(in crate::proxy) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| use_it(buffer))
}

/// A far side that is a TCP connection too.
#[derive(Debug)]
pub(in crate::proxy) struct TcpFar {
    stream: TcpStream,
    outward: Held,
    homeward: Held,
    /// It crosses the network, rather than to an application of this node.
    network_hop: bool,
}

/// What was read and not yet taken by the other side. Empty, and without memory, unless
/// the other side is slower.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    taken: usize,
}

impl TcpFar {
    /// Over the network, or to an application of this node.
    pub(in crate::proxy) fn new(stream: TcpStream, network_hop: bool) -> Self {
        Self {
            stream,
            outward: Held::default(),
            homeward: Held::default(),
            network_hop,
        }
    }
}

impl Far for TcpFar {
    fn poll_outward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        poll_copy(cx, near, &mut self.stream, &mut self.outward, moved)
    }

    fn poll_homeward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        poll_copy(cx, &mut self.stream, near, &mut self.homeward, moved)
    }

    fn is_gone(&self) -> bool {
        is_gone(&self.stream)
    }

    fn kernel_stats(&self, network: &dyn PodNetwork) -> Option<KernelStats> {
        let info = self
            .network_hop
            .then(|| network.tcp_info(self.stream.as_fd()));
        info.flatten().map(|info| info.stats)
    }

    fn close(self) {
        dial::close(self.stream);
    }

    async fn reset_when_sent(self, network: &dyn PodNetwork) {
        dial::reset_when_sent(self.stream, network).await;
    }

    fn reset(self) {
        dial::reset(self.stream);
    }
}

/// Copies until the FIN of `from`, and passes it on.
fn poll_copy(
    cx: &mut Context<'_>,
    from: &mut TcpStream,
    to: &mut TcpStream,
    held: &mut Held,
    moved: &mut u64,
) -> Poll<Result<(), Broken>> {
    loop {
        while held.taken < held.bytes.len() {
            let rest = &held.bytes[held.taken..];
            match ready!(Pin::new(&mut *to).poll_write(cx, rest)) {
                Ok(count) => {
                    held.taken += count;
                    *moved += count as u64;
                }
                Err(_reset) => return Poll::Ready(Err(Broken::Sink)),
            }
        }
        held.bytes.clear();
        held.taken = 0;
        let step = with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Pending => Step::Idle,
                Poll::Ready(Err(_reset)) => Step::Broken(Broken::Source),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => Step::Fin,
                Poll::Ready(Ok(())) => write_or_hold(cx, buffer.filled(), to, held, moved),
            }
        });
        match step {
            Step::More => {}
            Step::Idle => {
                held.bytes = Vec::new();
                return Poll::Pending;
            }
            Step::Fin => {
                return Pin::new(to)
                    .poll_shutdown(cx)
                    .map_err(|_reset| Broken::Sink);
            }
            Step::Broken(broken) => return Poll::Ready(Err(broken)),
        }
    }
}

/// What one read led to.
enum Step {
    More,
    Idle,
    Fin,
    Broken(Broken),
}

/// Writes what was read, and keeps what the other side does not take yet.
fn write_or_hold(
    cx: &mut Context<'_>,
    read: &[u8],
    to: &mut TcpStream,
    held: &mut Held,
    moved: &mut u64,
) -> Step {
    let count = match Pin::new(to).poll_write(cx, read) {
        Poll::Ready(Ok(count)) => count,
        Poll::Ready(Err(_reset)) => return Step::Broken(Broken::Sink),
        Poll::Pending => 0,
    };
    *moved += count as u64;
    held.bytes.extend_from_slice(&read[count..]);
    Step::More
}
