//! Requests that come as HTTP/2 CONNECT.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;

use super::arrivals::Place;
use super::{Http2, Secure, Tunnel};
use crate::proxy::config::{KNOWN_RESETS, PEER_ERRORS, TunnelConfig, frame_budget};
use crate::proxy::cork::Cork;
use crate::proxy::outcome::{ConnectError, Outcome};
use crate::proxy::reach::Stream;
use crate::proxy::tunnel::hbone;
use crate::proxy::tunnel::hop::{EndHop, Hop};
use crate::proxy::tunnel::keepalive;
use crate::proxy::tunnel::stream::HboneStream;

pub(super) fn builder(config: &TunnelConfig) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    let _same = builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.connection_window)
        .data_frame_budget(frame_budget(config.connection_window))
        .max_concurrent_reset_streams(KNOWN_RESETS)
        .max_local_error_reset_streams(Some(PEER_ERRORS))
        .max_frame_size(config.frame_size)
        .max_send_buffer_size(config.send_buffer)
        .max_header_list_size(config.header_list)
        .max_concurrent_streams(config.max_concurrent_streams);
    builder
}

/// Takes requests until the tunnel ends. Its place among the handshakes is given back
/// with the first request: until then the peer has done nothing that costs it anything.
pub(super) async fn run(
    tunnel: Tunnel,
    (mut http2, cork): (Box<Http2>, Cork<Secure>),
    end: EndHop,
    mut place: Option<Place>,
) {
    let config = &tunnel.shared.config.tunnel;
    let pings = http2.ping_pong();
    let mut gone = pin!(async move {
        match pings {
            Some(pings) => {
                keepalive::until_gone(pings, config.ping_interval, config.ping_timeout).await;
            }
            None => std::future::pending().await,
        }
    });
    // One receiver for each stream: how many are open, and when the last one ended.
    let streams = watch::Sender::new(());
    let mut idle = pin!(tokio::time::sleep(config.handshake_timeout));
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            request = cork.drive(http2.accept()) => match request {
                Some(Ok((request, respond))) => {
                    drop(place.take());
                    let one = tunnel.clone();
                    let hop = Arc::clone(&end.0);
                    let open = streams.subscribe();
                    tunnel.shared.tasks.spawn(async move {
                        one.serve_hbone(request, respond, hop).await;
                        drop(open);
                    });
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %tunnel.peer.address, %error, "a tunnel ended");
                    return;
                }
                None => return,
            },
            () = &mut gone => return,
            () = tunnel.pod.leaving.cancelled(), if !closing => {
                // Tells the peer to use another connection; the streams go on.
                closing = true;
                http2.graceful_shutdown();
            }
            () = &mut idle => {
                if streams.receiver_count() > 0 {
                    idle.as_mut().reset(Instant::now() + config.server_idle);
                } else if place.is_some() || closing {
                    return;
                } else {
                    closing = true;
                    http2.graceful_shutdown();
                    idle.as_mut().reset(Instant::now() + config.handshake_timeout);
                }
            }
        }
    }
}

impl Tunnel {
    /// Serves one request, to the end of its connection.
    async fn serve_hbone(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        hop: Arc<Hop>,
    ) {
        let asked = hbone::read(&request, self.peer.address.ip());
        let mut record = self.begin(&asked);
        let outcome = match Box::pin(self.connect(asked, &mut record)).await {
            Ok((arrival, admitted)) => {
                let answer = hbone::answer(StatusCode::OK, None);
                match respond.send_response(answer, false) {
                    Ok(send) => {
                        let buffer = self.shared.config.tunnel.send_buffer;
                        let peer = (send, request.into_body());
                        let client = HboneStream::new(peer, buffer, hop, None);
                        let client = Stream::Hbone(Box::new(client));
                        let opened = arrival.open(client, admitted, &mut record);
                        match Box::pin(opened).await {
                            Ok(opened) => {
                                let (network, config) = (&*self.pod.network, &self.shared.config);
                                opened.relay(network, &mut record, config).await
                            }
                            Err(outcome) => outcome,
                        }
                    }
                    // What was dialled is reset with its socket.
                    Err(_reset) => Outcome::ClientReset,
                }
            }
            Err(outcome) => {
                let reason = outcome.close_reason();
                let answer = hbone::answer(status(&outcome), Some(&reason));
                if let Err(error) = respond.send_response(answer, true) {
                    tracing::debug!(%error, "a refusal was not delivered");
                }
                outcome
            }
        };
        record.end(outcome);
    }
}

/// What the peer is answered.
fn status(outcome: &Outcome) -> StatusCode {
    match outcome {
        Outcome::BadRequest(_) | Outcome::WrongAddress | Outcome::ReservedPort => {
            StatusCode::BAD_REQUEST
        }
        Outcome::Denied { .. } | Outcome::DeniedByPeer(_) => StatusCode::UNAUTHORIZED,
        Outcome::IdentityMismatch
        | Outcome::UnknownPeer
        | Outcome::CertificateExpired
        | Outcome::Handshake(_) => StatusCode::FORBIDDEN,
        Outcome::Connect(
            ConnectError::Refused
            | ConnectError::Reset
            | ConnectError::TimedOut
            | ConnectError::Unreachable
            | ConnectError::Io(_),
        )
        | Outcome::Closed
        | Outcome::ClientReset
        | Outcome::ServerReset
        | Outcome::IdleTimeout
        | Outcome::HalfOpenTimeout
        | Outcome::PodRemoved
        | Outcome::AgentStopped
        | Outcome::Unavailable(_)
        | Outcome::NotRedirected
        | Outcome::DestinationNotServed
        | Outcome::TooManyConnections
        | Outcome::CircuitOpen(_)
        | Outcome::Certificate(_)
        | Outcome::Tunnel(_)
        | Outcome::System(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
