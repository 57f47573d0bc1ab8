//! One write for what one poll of a connection has to say.
//!
//! An HTTP/2 connection writes each larger frame by itself: the head of an answer with its
//! first bytes, then its trailers, then the next stream's. Each write is a system call, in a
//! tunnel a record of TLS too, and wakes the peer. Held back until the connection waits again,
//! they leave together.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::lock::lock;

/// Held back at most, in bytes. More than that is as well written at once, and one record of
/// TLS has no more.
const HELD: usize = 16 << 10;
/// Slices of one write: what was held, the head of a frame and its payload.
const SLICES: usize = 4;

/// Holds small writes to a stream back while its connection is polled.
#[derive(Debug)]
pub(in crate::proxy) struct Cork<T>(Arc<Mutex<Held<T>>>);

/// The stream, as the connection has it. Nobody else polls it: its lock is always free.
#[derive(Debug)]
pub(in crate::proxy) struct Corked<T>(Arc<Mutex<Held<T>>>);

#[derive(Debug)]
struct Held<T> {
    stream: T,
    bytes: BytesMut,
    /// The connection is being polled.
    holding: bool,
    /// Something was written and not flushed.
    dirty: bool,
    /// What became of a write that the connection has taken for done.
    error: Option<io::Error>,
}

impl<T: AsyncWrite + Unpin> Cork<T> {
    /// Outside of [`Self::drive`], so during a handshake, nothing is held back.
    pub(in crate::proxy) fn new(stream: T) -> (Self, Corked<T>) {
        let held = Arc::new(Mutex::new(Held {
            stream,
            bytes: BytesMut::new(),
            holding: false,
            dirty: false,
            error: None,
        }));
        (Self(Arc::clone(&held)), Corked(held))
    }

    /// Waits for the connection, or for what comes on it. As cancel safe as that is.
    pub(in crate::proxy) async fn drive<F: Future>(&self, connection: F) -> F::Output {
        let mut connection = pin!(connection);
        poll_fn(|cx| self.poll(cx, |cx| connection.as_mut().poll(cx))).await
    }

    /// Polls the connection; where that is pending, writes what it had to say.
    fn poll<R>(
        &self,
        cx: &mut Context<'_>,
        connection: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<R> {
        lock(&self.0).holding = true;
        let polled = connection(cx);
        let mut held = lock(&self.0);
        held.holding = false;
        // Who was given a request asks for the next one at once. A connection that has ended in
        // order has flushed by itself; nothing more is owed to the peer of a broken one.
        if polled.is_pending()
            && let Poll::Ready(Err(error)) = held.poll_flush(cx)
        {
            held.error = Some(error);
            cx.waker().wake_by_ref();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> Held<T> {
    fn check(&mut self) -> io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    /// Writes what was held, and has it leave.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.bytes.advance(count),
            }
        }
        // An idle connection has no memory for this.
        self.bytes = BytesMut::new();
        if self.dirty {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        self.dirty = true;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if self.holding && self.bytes.len() + total <= HELD {
            for slice in slices {
                self.bytes.extend_from_slice(slice);
            }
            return Poll::Ready(Ok(total));
        }
        while !self.bytes.is_empty() {
            let mut all = [IoSlice::new(&[]); SLICES];
            all[0] = IoSlice::new(&self.bytes);
            for (place, slice) in all[1..].iter_mut().zip(slices) {
                *place = IoSlice::new(slice);
            }
            let count = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &all))?;
            let before = self.bytes.len();
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(count.min(before));
            if count > before {
                return Poll::Ready(Ok(count - before));
            }
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut held = lock(&self.0);
        if let Some(error) = held.error.take() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut held.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done at the end of the connection's poll.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = lock(&self.0);
        held.check()?;
        if held.holding {
            return Poll::Ready(Ok(()));
        }
        held.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = lock(&self.0);
        held.check()?;
        ready!(held.poll_flush(cx))?;
        Pin::new(&mut held.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use bytes::Bytes;
    use http::{HeaderMap, Response};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// What the peer has received by now.
    fn received(peer: &mut DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut chunk = [0; 4 << 10];
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut *peer).poll_read(&mut cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    bytes.extend_from_slice(buffer.filled());
                }
                _ => return bytes,
            }
        }
    }

    #[tokio::test]
    async fn what_one_poll_writes_leaves_at_its_end() {
        let (near, mut peer) = duplex(1 << 20);
        let (cork, mut corked) = Cork::new(near);
        corked.write_all(b"handshake ").await.unwrap();
        assert_eq!(received(&mut peer), b"handshake ");
        let mut cx = Context::from_waker(Waker::noop());
        let pending: Poll<()> = cork.poll(&mut cx, |cx| {
            for piece in [&b"head "[..], b"body ", b"trailers"] {
                assert!(pin!(corked.write_all(piece)).poll(cx).is_ready());
                assert!(pin!(corked.flush()).poll(cx).is_ready());
            }
            assert_eq!(received(&mut peer), b"");
            Poll::Pending
        });
        assert!(pending.is_pending());
        assert_eq!(received(&mut peer), b"head body trailers");
        assert_eq!(lock(&cork.0).bytes.capacity(), 0);
    }

    /// A stream that notes how long each write was.
    struct Noting {
        stream: DuplexStream,
        writes: Arc<Mutex<Vec<usize>>>,
    }

    impl AsyncRead for Noting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            lock(&self.writes).push(bytes.len());
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn an_answer_of_http2_leaves_in_one_write() {
        let (stream, mut peer) = duplex(1 << 20);
        let writes = Arc::new(Mutex::new(Vec::new()));
        let near = Noting {
            stream,
            writes: Arc::clone(&writes),
        };
        // The preface, no settings, and GET http://a/ on stream 1.
        peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        let get = [0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'a'];
        peer.write_all(&get).await.unwrap();
        let (cork, corked) = Cork::new(near);
        let mut server = h2::server::handshake(corked).await.unwrap();
        let accepted = cork.drive(server.accept()).await;
        let (_request, mut respond) = accepted.unwrap().unwrap();
        // What is owed for the settings leaves first.
        let mut cx = Context::from_waker(Waker::noop());
        assert!(pin!(cork.drive(server.accept())).poll(&mut cx).is_pending());
        lock(&writes).clear();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from(vec![0; 2000]), false).unwrap();
        send.send_trailers(HeaderMap::new()).unwrap();
        assert!(pin!(cork.drive(server.accept())).poll(&mut cx).is_pending());
        let bytes = received(&mut peer);
        // The trailers are the last frame: no bytes, the ends of headers and stream.
        assert_eq!(bytes[bytes.len() - 9..], [0, 0, 0, 1, 5, 0, 0, 0, 1]);
        let writes = lock(&writes);
        assert!(matches!(writes[..], [one] if one > 2000), "{writes:?}");
    }

    /// Of all sizes, each in two slices.
    async fn write_in_pieces(mut corked: Corked<DuplexStream>, bytes: Vec<u8>) -> io::Result<()> {
        let mut left = &bytes[..];
        let mut sizes = [9, 5000, 20_000, 1].into_iter().cycle();
        while !left.is_empty() {
            let size = sizes.next().unwrap_or(1).min(left.len());
            let (one, other) = left[..size].split_at(size / 2);
            let slices = [IoSlice::new(one), IoSlice::new(other)];
            let wrote = poll_fn(|cx| Pin::new(&mut corked).poll_write_vectored(cx, &slices));
            left = &left[wrote.await?..];
        }
        corked.shutdown().await
    }

    #[tokio::test]
    async fn more_than_fits_leaves_at_once_and_in_order() {
        // Room for a part of what is written, again and again.
        let (near, mut peer) = duplex(1000);
        let (cork, corked) = Cork::new(near);
        let sent: Vec<u8> = (0..251).cycle().take(100_003).collect();
        let pieces = write_in_pieces(corked, sent.clone());
        let writer = tokio::spawn(async move { cork.drive(pieces).await });
        let mut received = Vec::new();
        let _count = peer.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_learns_what_became_of_its_last_write() {
        let (near, peer) = duplex(1000);
        let (cork, mut corked) = Cork::new(near);
        drop(peer);
        let mut wrote = false;
        let connection = poll_fn(|cx| {
            if !wrote {
                wrote = pin!(corked.write_all(b"last")).poll(cx).is_ready();
                return Poll::Pending;
            }
            Pin::new(&mut corked).poll_read(cx, &mut ReadBuf::new(&mut [0; 8]))
        });
        let ended = cork.drive(connection).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
