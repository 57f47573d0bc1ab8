//! One connection of the leaner protocol, as the far side of a relay.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsStream;

use super::frame::{self, Code, HEADER, Kind};
use crate::flow::KernelStats;
use crate::proxy::dial;
use crate::proxy::network::PodNetwork;
use crate::proxy::relay::{Broken, Far, is_gone, with_scratch};
use crate::proxy::tunnel::error::TunnelError;
use crate::proxy::tunnel::hbone::{Asked, Connect};
use crate::proxy::tunnel::io::TunnelIo;

/// How long a reset waits for what was written before it.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// One connection of the leaner protocol.
#[derive(Debug)]
pub(in crate::proxy) struct LeanStream {
    tls: Box<TlsStream<TunnelIo>>,
    /// Frames that TLS has not taken yet. Empty, and without memory, unless the network
    /// is slower than the application.
    held: Vec<u8>,
    held_taken: usize,
    /// The header being read.
    head: [u8; HEADER],
    head_read: usize,
    /// Bytes of the DATA frame being read that are still to come.
    data_left: usize,
    fin_sent: bool,
    fin_received: bool,
    /// Ended by a reset, or out of step: not to be used again.
    broken: bool,
    /// When it was last put aside.
    pub(in crate::proxy::tunnel) idle_since: Instant,
}

impl LeanStream {
    pub(in crate::proxy::tunnel) fn new(tls: TlsStream<TunnelIo>) -> Self {
        Self {
            tls: Box::new(tls),
            held: Vec::new(),
            held_taken: 0,
            head: [0; HEADER],
            head_read: 0,
            data_left: 0,
            fin_sent: false,
            fin_received: false,
            broken: false,
            idle_since: Instant::now(),
        }
    }

    /// Client: asks for an application's connection.
    pub(in crate::proxy::tunnel) async fn open(
        &mut self,
        connect: &Connect,
    ) -> Result<(), TunnelError> {
        self.begin();
        let open = frame::open(connect.id, connect.to, connect.client);
        self.write_control(open).await.map_err(closed)?;
        let (kind, body) = self.read_control().await.map_err(closed)?;
        if kind != Kind::Status {
            self.broken = true;
            return Err(TunnelError::Closed);
        }
        let (code, reason) = frame::read_status(&body).ok_or(TunnelError::Closed)?;
        let reason = (!reason.is_empty()).then(|| reason.into());
        if code != Code::Connected {
            // Nothing was begun, so nothing is to be ended: ready for the next.
            self.fin_sent = true;
            self.fin_received = true;
        }
        match code {
            Code::Connected => Ok(()),
            Code::Denied => Err(TunnelError::Denied(reason)),
            Code::Unavailable => Err(TunnelError::Unavailable(reason)),
            Code::BadRequest => Err(TunnelError::Status(http::StatusCode::BAD_REQUEST)),
        }
    }

    /// Server: waits for the next request. `None` at the end of the connection.
    pub(in crate::proxy::tunnel) async fn next(
        &mut self,
        peer: IpAddr,
    ) -> Option<Result<Asked, &'static str>> {
        let (kind, body) = self.read_control().await.ok()?;
        if kind != Kind::Open {
            return None;
        }
        self.begin();
        Some(frame::read_open(&body, peer).ok_or("an OPEN that can't be read"))
    }

    /// Server: answers a request.
    pub(in crate::proxy::tunnel) async fn answer(
        &mut self,
        code: Code,
        reason: &str,
    ) -> io::Result<()> {
        if code != Code::Connected {
            // Nothing was begun, so nothing is to be ended.
            self.fin_sent = true;
            self.fin_received = true;
        }
        self.write_control(frame::status(code, reason)).await
    }

    /// Both directions of the last use have ended in order, so that there may be another.
    pub(in crate::proxy) fn is_reusable(&self) -> bool {
        self.fin_sent && self.fin_received && !self.broken
    }

    /// Puts it aside: nothing of its last use may stay.
    pub(in crate::proxy::tunnel) fn rest(&mut self) {
        self.idle_since = Instant::now();
    }

    /// The other end has not closed it while it was idle.
    pub(in crate::proxy::tunnel) fn is_alive(&mut self) -> bool {
        // Nothing is to come on an idle connection but its end.
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut *self.tls).poll_fill_buf(&mut cx).is_pending()
    }

    /// The certificate of the peer is valid until then.
    pub(in crate::proxy::tunnel) fn peer_not_after(&self) -> Option<SystemTime> {
        let (_io, common) = self.tls.get_ref();
        crate::identity::peer_identity(common).map(|peer| peer.not_after)
    }

    fn begin(&mut self) {
        self.fin_sent = false;
        self.fin_received = false;
    }

    async fn write_control(&mut self, frame: Vec<u8>) -> io::Result<()> {
        self.held = frame;
        self.held_taken = 0;
        poll_fn(|cx| self.poll_push(cx)).await
    }

    /// Reads one frame that is not DATA.
    async fn read_control(&mut self) -> io::Result<(Kind, Vec<u8>)> {
        let (kind, length) = poll_fn(|cx| self.poll_header(cx)).await?;
        if matches!(kind, Kind::Data) {
            self.broken = true;
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = Vec::with_capacity(length);
        while body.len() < length {
            let wanted = length - body.len();
            poll_fn(|cx| {
                let bytes = ready!(Pin::new(&mut *self.tls).poll_fill_buf(cx))?;
                if bytes.is_empty() {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof)));
                }
                let count = bytes.len().min(wanted);
                body.extend_from_slice(&bytes[..count]);
                Pin::new(&mut *self.tls).consume(count);
                Poll::Ready(Ok(()))
            })
            .await?;
        }
        Ok((kind, body))
    }

    /// Reads a header, in as many pieces as it comes. Cancel safe.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Kind, usize)>> {
        while self.head_read < HEADER {
            let bytes = ready!(Pin::new(&mut *self.tls).poll_fill_buf(cx))?;
            if bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let count = bytes.len().min(HEADER - self.head_read);
            self.head[self.head_read..self.head_read + count].copy_from_slice(&bytes[..count]);
            self.head_read += count;
            Pin::new(&mut *self.tls).consume(count);
        }
        self.head_read = 0;
        let header = frame::read_header(self.head);
        Poll::Ready(header.ok_or_else(|| {
            self.broken = true;
            io::ErrorKind::InvalidData.into()
        }))
    }

    /// Hands what is held to TLS, and what TLS holds to the kernel.
    fn poll_push(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held_taken < self.held.len() {
            let rest = &self.held[self.held_taken..];
            self.held_taken += ready!(Pin::new(&mut *self.tls).poll_write(cx, rest))?;
        }
        self.held.clear();
        self.held_taken = 0;
        Pin::new(&mut *self.tls).poll_flush(cx)
    }

    /// Reads from the application and frames what there is.
    fn poll_frame(&mut self, cx: &mut Context<'_>, near: &mut TcpStream) -> Poll<Read> {
        with_scratch(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[HEADER..]);
            if ready!(Pin::new(near).poll_read(cx, &mut buffer)).is_err() {
                return Poll::Ready(Read::Broken(Broken::Source));
            }
            let count = buffer.filled().len();
            if count == 0 {
                return Poll::Ready(Read::Fin);
            }
            scratch[..HEADER].copy_from_slice(&frame::header(Kind::Data, count));
            let frame = &scratch[..HEADER + count];
            let taken = match Pin::new(&mut *self.tls).poll_write(cx, frame) {
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(_gone)) => return Poll::Ready(Read::Broken(Broken::Sink)),
                Poll::Pending => 0,
            };
            self.held.extend_from_slice(&frame[taken..]);
            Poll::Ready(Read::Data(count))
        })
    }

    /// With the peer's FIN received, only its refusal of the rest can come.
    fn poll_refused(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if !self.fin_received {
            return Poll::Pending;
        }
        let ended = Pin::new(&mut *self.tls).poll_fill_buf(cx);
        ended.map(|_reset_or_end| {
            self.broken = true;
            Err(Broken::Sink)
        })
    }

    fn broken(&mut self, broken: Broken) -> Poll<Result<(), Broken>> {
        self.broken = true;
        Poll::Ready(Err(broken))
    }
}

impl Drop for LeanStream {
    /// Between two uses it ends in order: the last one's bytes may not have left yet.
    fn drop(&mut self) {
        if self.is_reusable() {
            dial::send_on_close(self.tls.get_ref().0.stream());
        }
    }
}

/// What one read from the application was.
enum Read {
    Data(usize),
    Fin,
    Broken(Broken),
}

fn closed(_error: io::Error) -> TunnelError {
    TunnelError::Closed
}

impl Far for &mut LeanStream {
    fn poll_outward(
        &mut self,
        cx: &mut Context<'_>,
        near: &mut TcpStream,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if ready!(self.poll_push(cx)).is_err() {
                return self.broken(Broken::Sink);
            }
            if self.fin_sent {
                return Poll::Ready(Ok(()));
            }
            match self.poll_frame(cx, near) {
                Poll::Ready(Read::Data(count)) => *moved += count as u64,
                Poll::Ready(Read::Fin) => {
                    self.held.extend_from_slice(&frame::header(Kind::Fin, 0));
                    self.fin_sent = true;
                }
                Poll::Ready(Read::Broken(broken)) => return self.broken(broken),
                Poll::Pending => {
                    self.held = Vec::new();
                    return self.poll_refused(cx);
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
            while self.data_left > 0 {
                let bytes = match ready!(Pin::new(&mut *self.tls).poll_fill_buf(cx)) {
                    Ok(bytes) if !bytes.is_empty() => bytes,
                    Ok(_) | Err(_) => return self.broken(Broken::Source),
                };
                let bytes = &bytes[..bytes.len().min(self.data_left)];
                match ready!(Pin::new(&mut *near).poll_write(cx, bytes)) {
                    Ok(count) => {
                        Pin::new(&mut *self.tls).consume(count);
                        self.data_left -= count;
                        *moved += count as u64;
                    }
                    Err(_reset) => return self.broken(Broken::Sink),
                }
            }
            match ready!(self.poll_header(cx)) {
                Ok((Kind::Data, length)) => self.data_left = length,
                Ok((Kind::Fin, _)) => {
                    self.fin_received = true;
                    let finished = Pin::new(near).poll_shutdown(cx);
                    return finished.map_err(|_reset| {
                        self.broken = true;
                        Broken::Sink
                    });
                }
                Ok((Kind::Reset | Kind::Open | Kind::Status, _)) | Err(_) => {
                    return self.broken(Broken::Source);
                }
            }
        }
    }

    fn is_gone(&self) -> bool {
        is_gone(self.tls.get_ref().0.stream())
    }

    fn kernel_stats(&self, network: &dyn PodNetwork) -> Option<KernelStats> {
        let info = network.tcp_info(self.tls.get_ref().0.as_fd());
        info.map(|info| info.stats)
    }

    fn close(self) {}

    async fn reset_when_sent(self, network: &dyn PodNetwork) {
        self.broken = true;
        self.held.extend_from_slice(&frame::header(Kind::Reset, 0));
        let sent = poll_fn(|cx| self.poll_push(cx));
        if let Ok(Ok(())) = tokio::time::timeout(LAST_BYTES, sent).await {
            // With the kernel, which discards it when the socket is closed.
            dial::until_sent(self.tls.get_ref().0.stream(), network).await;
        }
    }

    fn reset(self) {
        self.broken = true;
        dial::reset_on_close(self.tls.get_ref().0.stream());
    }
}
