//! The TCP connection under TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use crate::proxy::dial;

/// Size of a read ahead.
const AHEAD: usize = 64 << 10;

/// A TCP connection that reads ahead while there is much to read.
///
/// TLS asks for 4 KiB at a time, which is four system calls for one record of a bulk
/// transfer. Once it was given all that it asked for, the next read takes what there is.
/// Memory for that is held only until a read finds nothing.
#[derive(Debug)]
pub(super) struct TunnelIo {
    stream: TcpStream,
    ahead: BytesMut,
    bulk: bool,
}

impl TunnelIo {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            ahead: BytesMut::new(),
            bulk: false,
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Fills the memory ahead with one read.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ahead.reserve(AHEAD);
        let read = poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.ahead);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
            self.bulk = false;
        }
        read.map_ok(drop)
    }
}

impl AsyncRead for TunnelIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            if !this.bulk {
                let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
                this.bulk = buffer.remaining() == 0;
                return read;
            }
            ready!(this.poll_ahead(cx))?;
        }
        let count = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead[..count]);
        this.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// An end in order: unlike any other, it leaves what the kernel has not sent yet alone.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        dial::send_on_close(&self.stream);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn every_byte_is_read_once_and_no_memory_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent: Vec<u8> = (0..251).cycle().take(1_000_003).collect();
        let bytes = sent.clone();
        let sender = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            stream
        });
        let (stream, _) = listener.accept().await.unwrap();
        let mut io = TunnelIo::new(stream);
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        while received.len() < sent.len() {
            let count = io.read(&mut chunk).await.unwrap();
            received.extend_from_slice(&chunk[..count]);
        }
        assert!(received == sent);
        let more = std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut chunk);
            Poll::Ready(Pin::new(&mut io).poll_read(cx, &mut buffer).is_ready())
        });
        assert!(!more.await);
        assert_eq!(io.ahead.capacity(), 0);
        drop(sender.await.unwrap());
        assert_eq!(io.read(&mut chunk).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn an_end_in_order_leaves_the_last_bytes_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        dial::reset_on_close(&stream);
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut io = TunnelIo::new(stream);
        let mut sent = 0;
        let chunk = vec![1; 1 << 20];
        let patience = std::time::Duration::from_millis(100);
        while let Ok(count) = tokio::time::timeout(patience, io.write(&chunk)).await {
            sent += count.unwrap();
        }
        io.shutdown().await.unwrap();
        drop(io);
        let mut received = Vec::new();
        let _count = peer.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), sent);
    }
}
