//! The bytes under HTTP: one stream, counted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::lease::Lease;
use crate::proxy::dial;
use crate::proxy::reach::Stream;
use crate::proxy::record::Moved;
use crate::proxy::tunnel::Under;

/// Bytes of one connection, counted where it is read and written.
#[derive(Debug, Default)]
pub(super) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// As the record of the connection has them: what came from it is outward.
    pub(super) fn moved(&self) -> Moved {
        Moved {
            outward: self.read.load(Ordering::Relaxed),
            homeward: self.written.load(Ordering::Relaxed),
        }
    }
}

/// A stream that HTTP is spoken on. Dropped before its shutdown it is reset.
#[derive(Debug)]
pub(in crate::proxy) struct Io {
    /// Until it is taken out of this.
    stream: Option<Stream>,
    meter: Option<Arc<Meter>>,
    /// It was shut down, so that its close is an end in order.
    shut: bool,
    lease: Option<Lease>,
}

impl Drop for Io {
    fn drop(&mut self) {
        if let (Some(Stream::Hbone(stream)), false) = (&mut self.stream, self.shut) {
            stream.cancel();
        }
    }
}

impl Io {
    pub(in crate::proxy) fn new(stream: Stream) -> Self {
        Self {
            stream: Some(stream),
            meter: None,
            shut: false,
            lease: None,
        }
    }

    /// Its bytes are counted there.
    pub(super) fn metered(stream: Stream, meter: Arc<Meter>) -> Self {
        Self {
            stream: Some(stream),
            meter: Some(meter),
            shut: false,
            lease: None,
        }
    }

    /// Its bytes are counted there.
    pub(super) fn meter(&mut self) -> Arc<Meter> {
        Arc::clone(self.meter.get_or_insert_default())
    }

    /// The same, which is one of those to a Service.
    pub(super) fn leased(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }

    /// How long it is kept without a request, where its Service says so.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.lease.as_ref().map(|lease| lease.idle)
    }

    /// Ends it when its peer acknowledges nothing for so long, where it is not in a tunnel,
    /// which looks by itself. Only for a peer that always reads, as those of HTTP/2 do.
    pub(super) fn give_up_after(&self, limit: Duration) {
        if let Some(Stream::Tcp(stream)) = &self.stream {
            dial::give_up_after(stream, limit);
        }
    }

    /// The tunnel that it is in, which may be retired before it.
    pub(super) fn under(&self) -> Option<Under> {
        match &self.stream {
            Some(Stream::Hbone(stream)) => stream.under(),
            Some(Stream::Tcp(_)) | None => None,
        }
    }

    /// The stream itself, and its place among those to a Service.
    pub(super) fn into_parts(mut self) -> (Stream, Option<Lease>) {
        let stream = self.stream.take();
        (stream.expect("nobody else takes it"), self.lease.take())
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("taken only with all of this")
    }

    fn count_written(&self, written: &Poll<io::Result<usize>>) {
        if let (Some(meter), Poll::Ready(Ok(count))) = (&self.meter, written) {
            let _before = meter.written.fetch_add(*count as u64, Ordering::Relaxed);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match self.stream() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Hbone(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        if let Some(meter) = &self.meter {
            let count = buffer.filled().len() - before;
            let _before = meter.read.fetch_add(count as u64, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = match self.stream() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Hbone(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.count_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match self.stream() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Hbone(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        };
        self.count_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Hbone(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// An end in order: what was written still arrives.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        match self.stream() {
            Stream::Tcp(stream) => {
                dial::send_on_close(stream);
                Pin::new(stream).poll_shutdown(cx)
            }
            Stream::Hbone(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
