//! PINGs, so that a peer which is gone is found before an application waits for it.

use std::time::Duration;

use h2::{Ping, PingPong};

/// Sends PINGs for as long as they are answered. Returns when the peer is gone.
pub(super) async fn until_gone(mut pings: PingPong, interval: Duration, timeout: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_pong)) => {}
            Ok(Err(_closed)) => return,
            Err(_elapsed) => {
                tracing::debug!("a tunnel's peer does not answer a PING");
                return;
            }
        }
    }
}
