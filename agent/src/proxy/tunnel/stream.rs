//! One stream of an HTTP/2 connection: as the far side of a relay, and as a stream of bytes
//! that HTTP is spoken on.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::hop::Hop;
use super::link::{Lease, Link};
use crate::flow::KernelStats;
use crate::proxy::network::PodNetwork;
use crate::proxy::relay::{BATCH, Broken, Far, with_scratch};

/// Reads of at least this size announce more of them: the next goes into memory that is
/// handed on as it is, instead of being copied out of the thread's buffer.
const BULK: usize = 16 << 10;
/// How long a reset waits for what was written before it.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// One stream of a tunnel.
pub(in crate::proxy) struct HboneStream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Read from the application, waiting for the peer's window.
    outgoing: Bytes,
    /// Received, not yet taken by the application.
    incoming: Bytes,
    bulk: bool,
    /// The end was sent.
    finished: bool,
    send_buffer: usize,
    hop: Arc<Hop>,
    /// The client's place on a pooled connection.
    lease: Option<Lease>,
}

/// The connection that a stream is on.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Under(Arc<Link>);

impl Under {
    /// It takes new streams still: what is kept on it between requests must not outlive the
    /// certificates that it was opened with.
    pub(in crate::proxy) fn is_current(&self) -> bool {
        self.0.is_current()
    }
}

impl std::fmt::Debug for HboneStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HboneStream")
            .field("id", &self.send.stream_id())
            .finish_non_exhaustive()
    }
}

impl HboneStream {
    /// Both halves of an open stream. `send_buffer` is what the connection was set up with.
    pub(super) fn new(
        (send, receive): (SendStream<Bytes>, RecvStream),
        send_buffer: usize,
        hop: Arc<Hop>,
        lease: Option<Lease>,
    ) -> Self {
        Self {
            send,
            receive,
            outgoing: Bytes::new(),
            incoming: Bytes::new(),
            bulk: false,
            finished: false,
            send_buffer,
            hop,
            lease,
        }
    }

    /// Ends it with a reset, at once.
    pub(in crate::proxy) fn cancel(&mut self) {
        self.send.send_reset(h2::Reason::CANCEL);
    }

    /// The pooled connection under it.
    pub(in crate::proxy) fn under(&self) -> Option<Under> {
        let lease = self.lease.as_ref()?;
        Some(Under(Arc::clone(&lease.0)))
    }

    /// What the peer has sent and nobody has taken, once that is more than `known` bytes or
    /// the end. It stays to be taken.
    pub(in crate::proxy) fn poll_peek(
        &mut self,
        cx: &mut Context<'_>,
        known: usize,
    ) -> Poll<io::Result<&[u8]>> {
        while self.incoming.len() <= known {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(bytes)) if self.incoming.is_empty() => self.incoming = bytes,
                Some(Ok(bytes)) => self.incoming = [&self.incoming[..], &bytes].concat().into(),
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => break,
            }
        }
        Poll::Ready(Ok(&self.incoming))
    }

    /// How much the peer takes now, of what is wanted; never 0.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.send.capacity() == 0 {
            self.send.reserve_capacity(wanted);
        }
        loop {
            match self.send.capacity() {
                0 => match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                room => return Poll::Ready(Ok(room)),
            }
        }
    }

    /// Hands what was read to the connection, as far as the peer's window goes.
    fn poll_give(&mut self, cx: &mut Context<'_>, moved: &mut u64) -> Poll<Result<(), Broken>> {
        while !self.outgoing.is_empty() {
            if self.send.capacity() == 0 {
                self.send.reserve_capacity(self.outgoing.len());
            }
            let capacity = match self.send.capacity() {
                0 => match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(_)) | None => return Poll::Ready(Err(Broken::Sink)),
                },
                capacity => capacity,
            };
            let chunk = self.outgoing.split_to(capacity.min(self.outgoing.len()));
            let count = chunk.len() as u64;
            if self.send.send_data(chunk, false).is_err() {
                return Poll::Ready(Err(Broken::Sink));
            }
            *moved += count;
        }
        // An empty rest would keep the memory alive that it was split from.
        self.outgoing = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Reads from the application: `None` at its FIN.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
    ) -> Poll<io::Result<Option<Bytes>>> {
        if self.bulk {
            let mut memory = BytesMut::with_capacity(BATCH);
            let count = ready!(poll_read_buf(Pin::new(near), cx, &mut memory))?;
            self.bulk = count >= BULK;
            return Poll::Ready(Ok((count > 0).then(|| memory.freeze())));
        }
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(near).poll_read(cx, &mut buffer))?;
            let read = buffer.filled();
            self.bulk = read.len() >= BULK;
            Poll::Ready(Ok((!read.is_empty()).then(|| Bytes::copy_from_slice(read))))
        })
    }

    /// Everything that was written has left for the network.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // With nothing waiting, all of the send buffer can be had; a peer that keeps its
        // window shorter than that makes this wait in vain, which the caller bounds.
        self.send.reserve_capacity(self.send_buffer);
        while self.send.capacity() < self.send_buffer {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }
}

impl Far for HboneStream {
    fn poll_outward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        loop {
            ready!(self.poll_give(cx, moved))?;
            match self.poll_read(cx, near) {
                Poll::Ready(Ok(Some(bytes))) => self.outgoing = bytes,
                Poll::Ready(Ok(None)) => {
                    let finished = self.send.send_data(Bytes::new(), true);
                    return Poll::Ready(finished.map_err(|_reset| Broken::Sink));
                }
                Poll::Ready(Err(_reset)) => return Poll::Ready(Err(Broken::Source)),
                Poll::Pending => {
                    self.bulk = false;
                    // The peer may refuse more while the application is silent.
                    return self.send.poll_reset(cx).map(|_reason| Err(Broken::Sink));
                }
            }
        }
    }

    fn poll_homeward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        loop {
            while !self.incoming.is_empty() {
                match ready!(Pin::new(&mut *near).poll_write(cx, &self.incoming)) {
                    Ok(count) => {
                        self.incoming.advance(count);
                        *moved += count as u64;
                        // Fails only for more than was received.
                        let _done = self.receive.flow_control().release_capacity(count);
                    }
                    Err(_reset) => return Poll::Ready(Err(Broken::Sink)),
                }
            }
            // An empty rest would keep alive what the connection has read: 16 KiB and more.
            self.incoming = Bytes::new();
            self.incoming = match ready!(self.receive.poll_data(cx)) {
                Some(Ok(bytes)) => bytes,
                Some(Err(_reset)) => return Poll::Ready(Err(Broken::Source)),
                None => {
                    let finished = Pin::new(near).poll_shutdown(cx);
                    return finished.map_err(|_reset| Broken::Sink);
                }
            };
        }
    }

    fn is_gone(&self) -> bool {
        // Either direction that is still open hears of it.
        false
    }

    fn kernel_stats(&self, network: &dyn PodNetwork) -> Option<KernelStats> {
        self.hop.kernel_stats(network)
    }

    fn close(self) {}

    async fn reset_when_sent(mut self, _network: &dyn PodNetwork) {
        let sent = poll_fn(|cx| self.poll_sent(cx));
        if tokio::time::timeout(LAST_BYTES, sent).await.is_err() {
            tracing::debug!("a tunnel's last bytes are given up");
        }
        self.reset();
    }

    fn reset(mut self) {
        self.cancel();
    }
}

impl AsyncRead for HboneStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.incoming.is_empty() {
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(bytes)) => this.incoming = bytes,
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.incoming.len().min(buffer.remaining());
        buffer.put_slice(&this.incoming[..count]);
        this.incoming.advance(count);
        if this.incoming.is_empty() {
            // An empty rest would keep alive what the connection has read.
            this.incoming = Bytes::new();
        }
        // Fails only for more than was received.
        let _done = this.receive.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HboneStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, wanted))?;
        let count = room.min(wanted);
        let mut chunk = BytesMut::with_capacity(count);
        for slice in slices {
            let rest = count - chunk.len();
            chunk.extend_from_slice(&slice[..slice.len().min(rest)]);
        }
        let sent = self.send.send_data(chunk.freeze(), false);
        Poll::Ready(sent.map(|()| count).map_err(reset))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is the connection's to send.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(reset))
    }
}

fn reset(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
