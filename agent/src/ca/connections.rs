//! Connections to the service: TLS within a deadline, and no more of them than fit.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::service::Shared;
use super::tls::TlsError;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at once.
const HANDSHAKES: usize = 256;
/// Connections at once, in all and of one address: an agent needs one.
const CONNECTIONS: (usize, usize) = (4096, 64);
/// After an error of `accept` that does not go away at once, such as EMFILE.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Counts the open connections.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn take(self: &Arc<Self>, source: IpAddr) -> Option<Slot> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_source.get(&source).copied().unwrap_or(0);
        if counts.all >= CONNECTIONS.0 || own >= CONNECTIONS.1 {
            return None;
        }
        counts.all += 1;
        counts.by_source.insert(source, own + 1);
        Some(Slot {
            slots: Arc::clone(self),
            source,
        })
    }
}

/// One counted connection.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    source: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(own) = counts.by_source.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                counts.by_source.remove(&self.source);
            }
        }
    }
}

/// The caller's address, for the audit line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) SocketAddr);

/// A connection after its TLS handshake.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// Given back when the connection ends.
    _slot: Slot,
}

/// Connections as they come, after their handshakes. Never ends.
pub(super) fn incoming(
    listener: TcpListener,
    shared: Arc<Shared>,
    slots: Arc<Slots>,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, slots), async |(listener, slots)| {
        let accepted = accept(&listener, &slots).await;
        Some((accepted, (listener, slots)))
    })
    .map(move |(stream, caller, slot)| handshake(Arc::clone(&shared), stream, caller, slot))
    .buffer_unordered(HANDSHAKES)
    .filter_map(async |secured: Option<Connection>| secured.map(Ok))
}

async fn accept(listener: &TcpListener, slots: &Arc<Slots>) -> (TcpStream, Caller, Slot) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                if let Some(slot) = slots.take(address.ip()) {
                    return (stream, Caller(address), slot);
                }
                tracing::debug!(%address, "too many connections: closed");
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    shared: Arc<Shared>,
    stream: TcpStream,
    caller: Caller,
    slot: Slot,
) -> Option<Connection> {
    let local = stream.local_addr().ok()?.ip().to_canonical();
    let config = match shared.tls_config(local) {
        Ok(config) => config,
        Err(error @ TlsError::Absent) => {
            tracing::debug!(caller = %caller.0, %error, "a caller is too early");
            return None;
        }
        Err(error) => {
            tracing::error!(%error, "no TLS certificate for this service");
            return None;
        }
    };
    let accepting = TlsAcceptor::from(config).accept(stream);
    match timeout(HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(stream)) => Some(Connection {
            stream,
            caller,
            _slot: slot,
        }),
        Ok(Err(error)) => {
            tracing::debug!(caller = %caller.0, %error, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!(caller = %caller.0, "TLS handshake took too long");
            None
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
