//! The dialling end of a tunnel: sets a connection up, then drives it to its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::TunnelError;
use super::hop::{EndHop, Hop};
use super::io::TunnelIo;
use super::keepalive;
use super::link::{Link, State};
use super::pool::Pool;
use crate::identity::{PeerIdentity, peer_identity, server_name};
use crate::proxy::config::{Config, KNOWN_RESETS, PEER_ERRORS, TunnelConfig, frame_budget};
use crate::proxy::cork::{Cork, Corked};
use crate::proxy::dial;
use crate::proxy::network::PodNetwork;

/// Where to, and as whom.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) network: Arc<dyn PodNetwork>,
    pub(super) source_ip: Option<IpAddr>,
    pub(super) to: SocketAddr,
    pub(super) tls: Arc<ClientConfig>,
}

/// A connection that is set up.
#[derive(Debug)]
struct Ready {
    sender: SendRequest<Bytes>,
    /// Boxed, so that the future which waits for it stays small.
    connection: Box<Http2>,
    cork: Cork<Secure>,
    end: EndHop,
    peer: PeerIdentity,
}

type Secure = TlsStream<TunnelIo>;
type Http2 = Connection<Corked<Secure>, Bytes>;

/// Sets the connection up, tells those who wait, and drives it until it ends.
pub(super) async fn drive(
    pool: &Pool,
    dial: Dial,
    link: &Arc<Link>,
    publish: &watch::Sender<State>,
) {
    let config = pool.config();
    let ready = match Box::pin(connect(&dial, config)).await {
        Ok(ready) => ready,
        Err(error) => {
            tracing::debug!(to = %dial.to, %error, "no tunnel");
            // Nobody is to find it once it is known to have failed.
            pool.drop_link(link);
            let _connecting = publish.send_replace(State::Failed(error));
            return;
        }
    };
    let Ready {
        sender,
        connection,
        cork,
        end,
        peer,
    } = ready;
    link.believe_until(peer.not_after);
    link.lower_limit(sender.current_max_send_streams());
    let _connecting = publish.send_replace(State::Ready(sender, Arc::clone(&end.0)));
    serve(pool, link, publish, (connection, cork)).await;
    drop(end);
    pool.drop_link(link);
    let _ready = publish.send_replace(State::Closed);
}

/// Drives an open connection until it has ended, or its last stream and its use have.
async fn serve(
    pool: &Pool,
    link: &Arc<Link>,
    publish: &watch::Sender<State>,
    (mut connection, cork): (Box<Http2>, Cork<Secure>),
) {
    let config = &pool.config().tunnel;
    let pings = connection.ping_pong();
    let gone = async move {
        match pings {
            Some(pings) => {
                keepalive::until_gone(pings, config.ping_interval, config.ping_timeout).await;
            }
            None => std::future::pending().await,
        }
    };
    let mut gone = std::pin::pin!(gone);
    let mut look = tokio::time::interval(config.ping_interval.min(config.idle_release));
    loop {
        tokio::select! {
            biased;
            ended = cork.drive(&mut connection) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a tunnel ended");
                }
                return;
            }
            () = &mut gone => return,
            () = link.finished.notified() => {
                // A request that got its place before the link was retired comes first.
                if !link.has_streams() {
                    // Without senders and streams the connection ends by itself.
                    let _ready = publish.send_replace(State::Closed);
                }
            }
            _now = look.tick() => pool.release_if_idle(link),
        }
    }
}

/// TCP, TLS and HTTP/2.
async fn connect(dial: &Dial, config: &Config) -> Result<Ready, TunnelError> {
    let stream = dial::network(&*dial.network, dial.source_ip, dial.to, config).await;
    let stream = stream.map_err(TunnelError::Connect)?;
    let secure = async {
        let hop = Hop::of(&stream).map_err(|error| TunnelError::Connect(error.into()))?;
        let connector = TlsConnector::from(Arc::clone(&dial.tls));
        let stream = connector
            .connect(server_name(), TunnelIo::new(stream))
            .await;
        let stream = stream.map_err(|error| TunnelError::Tls(Arc::new(error)))?;
        // The handshake has verified it.
        let peer = peer_identity(stream.get_ref().1).ok_or(TunnelError::Closed)?;
        let end = EndHop(Arc::new(hop));
        dial::give_up_after(stream.get_ref().0.stream(), config.tunnel.ping_interval);
        let (cork, corked) = Cork::new(stream);
        let handshake = builder(&config.tunnel).handshake::<_, Bytes>(corked);
        let (sender, connection) = handshake.await?;
        Ok(Ready {
            sender,
            connection: Box::new(connection),
            cork,
            end,
            peer,
        })
    };
    let secured = tokio::time::timeout(config.tunnel.handshake_timeout, secure).await;
    secured.map_err(|_elapsed| TunnelError::TimedOut)?
}

fn builder(config: &TunnelConfig) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    let _same = builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .data_frame_budget(frame_budget(config.connection_window))
        .max_concurrent_reset_streams(KNOWN_RESETS)
        .max_local_error_reset_streams(Some(PEER_ERRORS))
        .max_frame_size(config.frame_size)
        .max_send_buffer_size(config.send_buffer)
        .max_header_list_size(config.header_list)
        .enable_push(false);
    builder
}
