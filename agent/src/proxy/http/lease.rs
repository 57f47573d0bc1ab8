//! Connections to the endpoints of a Service, within the limits of its traffic policies.

use std::time::Duration;

use tokio::time::timeout;

use super::io::Io;
use super::outbound::{Outbound, Server};
use super::upstream::Dial;
use crate::policy::balance::{Balancer, ConnectionGuard};
use crate::proxy::outcome::{ConnectError, Outcome};

/// What a connection has of its Service.
#[derive(Debug)]
pub(super) struct Lease {
    /// It is one of so many, for as long as it is open.
    _counted: ConnectionGuard,
    /// How long it is kept without a request.
    pub(super) idle: Duration,
}

/// A server that is reached within the limits of a balancer.
pub(super) struct Limited<'a> {
    pub(super) outbound: &'a Outbound,
    pub(super) server: &'a Server,
    pub(super) balancer: &'a Balancer,
}

impl Dial for Limited<'_> {
    async fn dial(&self) -> Result<Io, Outcome> {
        let client = &self.outbound.dialler.client.pod.name;
        let settings = self.balancer.settings();
        let begun = self.outbound.take_counted(&self.server.to, self.balancer);
        let counted = begun.map_or_else(|| self.balancer.connection(client), Ok);
        let counted = counted.map_err(Outcome::CircuitOpen)?;
        let pending = self.balancer.pending().map_err(Outcome::CircuitOpen)?;
        let server = (self.outbound, self.server);
        let dialled = timeout(settings.timeouts.connect, server.dial()).await;
        let io = dialled.map_err(|_elapsed| Outcome::Connect(ConnectError::TimedOut))??;
        drop(pending);
        Ok(io.leased(Lease {
            _counted: counted,
            idle: settings.connections.idle_timeout,
        }))
    }
}
