//! Connections that both ends have agreed to speak something else on: from then on they are
//! relayed as any other, with the same limits, for as long as the request may be that has
//! led there. Its record ends with them, and has their bytes.

use std::future::Future;
use std::pin::pin;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::guard::Guard;
use super::io::Io;
use super::server::Upgrade;
use crate::proxy::config::Config;
use crate::proxy::network::PodNetwork;
use crate::proxy::outcome::Outcome;
use crate::proxy::reach::Stream;
use crate::proxy::record::{Moved, Near, Record};
use crate::proxy::relay::{NearSide, TcpFar, relay_until};

/// One such connection.
#[derive(Debug)]
pub(super) struct Switched {
    /// The client's end.
    pub(super) near: Io,
    /// Read of it behind the request.
    pub(super) said: Bytes,
    /// The server's end.
    pub(super) upgrade: Box<Upgrade>,
}

impl Switched {
    /// Relays it to its end, or until `revoked` says why it must.
    pub(super) async fn relay(
        self,
        revoked: impl Future<Output = Outcome> + Send,
        (network, config): (&dyn PodNetwork, &Config),
        record: &mut Record,
    ) -> Outcome {
        let Self {
            mut near,
            said,
            upgrade,
        } = self;
        let Upgrade {
            io: mut far,
            read,
            mut exchange,
        } = *upgrade;
        let mut guard = std::mem::replace(&mut exchange.guard, Guard::Silent);
        let mut revoked = pin!(async {
            tokio::select! {
                biased;
                outcome = revoked => outcome,
                outcome = guard.revoked() => outcome,
            }
        });
        let (sent, received) = record.bytes();
        let handed_over = async {
            far.write_all(&said).await?;
            near.write_all(&read).await
        };
        let handed_over = timeout(config.http.body_idle, handed_over);
        let refused = tokio::select! {
            biased;
            outcome = &mut revoked => Some(outcome),
            done = handed_over => match done {
                Ok(Ok(())) => None,
                Ok(Err(_reset)) => Some(Outcome::ClientReset),
                Err(_elapsed) => Some(Outcome::IdleTimeout),
            },
        };
        let outcome = if let Some(outcome) = refused {
            outcome
        } else {
            record.moved.homeward += read.len() as u64;
            between((near, far), revoked, (network, config), record).await
        };
        let (sent_since, received_since) = record.bytes();
        let sent = sent_since - sent + said.len() as u64;
        exchange.switched(&outcome, (sent, received_since - received));
        outcome
    }
}

/// Relays between the client's end and the server's.
async fn between(
    (near, far): (Io, Io),
    revoked: impl Future<Output = Outcome> + Send,
    (network, config): (&dyn PodNetwork, &Config),
    record: &mut Record,
) -> Outcome {
    let (near, _client) = near.into_parts();
    // Its place among the connections of its Service is held to the end.
    let (far, _lease) = far.into_parts();
    let (stream, is, far) = match (near, far) {
        (Stream::Tcp(client), server) => (client, Near::Client, server),
        (client @ Stream::Hbone(_), Stream::Tcp(server)) => {
            let Moved { outward, homeward } = record.moved;
            record.moved = Moved {
                outward: homeward,
                homeward: outward,
            };
            (server, Near::Server, client)
        }
        (client @ Stream::Hbone(_), server @ Stream::Hbone(_)) => {
            client.reset();
            server.reset();
            return Outcome::BadRequest("from a tunnel into another");
        }
    };
    let near = NearSide {
        stream,
        is,
        network,
    };
    match far {
        Stream::Tcp(far) => {
            let far = TcpFar::new(far, false);
            relay_until(near, far, || revoked, record, config).await
        }
        Stream::Hbone(far) => relay_until(near, *far, || revoked, record, config).await,
    }
}
