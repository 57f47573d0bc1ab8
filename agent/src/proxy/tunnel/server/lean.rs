//! Requests that come one after the other, by the leaner protocol.

use http::StatusCode;

use super::Tunnel;
use super::arrivals::Place;
use super::hbone::status;
use crate::proxy::dial;
use crate::proxy::outcome::Outcome;
use crate::proxy::record::Near;
use crate::proxy::relay::{Pair, relay};
use crate::proxy::tunnel::hbone::Asked;
use crate::proxy::tunnel::lean::{Code, LeanStream};

/// Takes requests until the tunnel ends. Its place among the handshakes is given back
/// with the first request: until then the peer has done nothing that costs it anything.
pub(super) async fn run(tunnel: Tunnel, mut stream: LeanStream, mut place: Option<Place>) {
    let config = &tunnel.shared.config.tunnel;
    loop {
        let patience = if place.is_some() {
            config.handshake_timeout
        } else {
            config.server_idle
        };
        let peer = tunnel.peer.address.ip();
        let asked = tokio::select! {
            biased;
            asked = tokio::time::timeout(patience, stream.next(peer)) => asked,
            // Idle: the peer finds it closed, and uses another.
            () = tunnel.pod.leaving.cancelled() => return,
        };
        let Ok(Some(asked)) = asked else {
            return;
        };
        drop(place.take());
        if !tunnel.serve_lean(asked, &mut stream).await {
            return;
        }
    }
}

impl Tunnel {
    /// Serves one request, to the end of its connection. Whether there may be another.
    async fn serve_lean(
        &self,
        asked: Result<Asked, &'static str>,
        stream: &mut LeanStream,
    ) -> bool {
        let mut record = self.begin(&asked);
        // Who does not keep to the protocol is not listened to any longer.
        let sound = asked.is_ok();
        let (outcome, again) = match self.connect(asked, &mut record).await {
            Ok((near, permit)) => {
                if stream.answer(Code::Connected, "").await.is_err() {
                    dial::reset(near);
                    (Outcome::ClientReset, false)
                } else {
                    let pair = Pair {
                        near,
                        near_is: Near::Server,
                        network: &*self.pod.network,
                        far: &mut *stream,
                    };
                    let config = &self.shared.config;
                    let outcome = relay(pair, permit, &mut record, config).await;
                    (outcome, stream.is_reusable())
                }
            }
            Err(outcome) => {
                let reason = outcome.close_reason();
                let again = stream.answer(code(&outcome), &reason).await.is_ok();
                (outcome, again && sound)
            }
        };
        record.end(outcome);
        again
    }
}

fn code(outcome: &Outcome) -> Code {
    match status(outcome) {
        StatusCode::BAD_REQUEST => Code::BadRequest,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Code::Denied,
        _ => Code::Unavailable,
    }
}
