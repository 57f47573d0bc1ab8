//! The end of an agent that was asked to stop.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::flow::FlowSender;
use crate::proxy::Proxy;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// For records of connections that were cut off to reach those who follow.
const LAST_RECORDS: Duration = Duration::from_millis(500);

/// Takes no new connection, lets open ones end for as long as `grace`, and waits for
/// their records.
pub(super) async fn drain(proxy: &Proxy, flows: &FlowSender, grace: Duration) {
    tracing::info!(
        open = flows.open_connections(),
        ?grace,
        "draining; meshed pods stay guarded: until an agent runs again their connections are \
         refused, never sent in plaintext (`fairlead cleanup` takes them out of the mesh)"
    );
    proxy.remove_all(grace);
    let end = Instant::now() + grace + LAST_RECORDS;
    while flows.open_connections() > 0 && Instant::now() < end {
        sleep(LOOK).await;
    }
    while flows.waiting() > 0 && Instant::now() < end {
        sleep(LOOK).await;
    }
    // What the hub has just taken is not with the writer yet.
    sleep(LOOK).await;
    while flows.lines_waiting() > 0 && Instant::now() < end {
        sleep(LOOK).await;
    }
    tracing::info!(cut = flows.open_connections(), "stopped");
}
