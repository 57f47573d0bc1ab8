//! The endpoint of a connection in which nobody looks for requests.
//!
//! In: a Service's port and who dials. Out: an endpoint, by the same rules as of requests, and
//! a place among the connections to the Service, where there is one: connections that carry
//! requests are counted with it.

use std::time::Duration;

use http::HeaderMap;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::http::Speaks;
use super::http::detect::of_socket;
use super::outcome::Outcome;
use super::reach::Dialler;
use crate::model::NamespacedName;
use crate::policy::balance::{self, Ask, Balancer, Carried, Circuit, ConnectionGuard, hash_of};
use crate::policy::{Route, Table};

/// An endpoint, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Endpoint {
    carried: Carried,
    balancer: Balancer,
    /// Its place among the connections to the Service, once it is dialled.
    counted: Option<ConnectionGuard>,
}

/// There are as many connections to the Service as there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Full {
    circuit: Circuit,
    /// How long one may take that there is no room for.
    patience: Duration,
}

impl Endpoint {
    /// One of a Service's endpoints, by its traffic policies, for who dials `v6` or not.
    pub(super) fn choose(
        dialler: &Dialler,
        table: &Table,
        (service, port): (&NamespacedName, u16),
        v6: bool,
        random: u64,
    ) -> Option<(Route, Self)> {
        let Dialler {
            shared,
            client,
            peer,
        } = dialler;
        let now = Instant::now().into_std();
        let clusters = &shared.clusters;
        let balancer = clusters.balancer(table, (service, port), v6, now);
        let settings = balancer.settings();
        let hash = settings.load_balancing.hash.as_ref();
        let client = &client.pod.name;
        let ask = Ask {
            client,
            hash: hash.and_then(|hash| hash_of(&hash.key, &HeaderMap::new(), None, peer.ip())),
            prefer: None,
            open: None,
            exclude: &[],
            random,
        };
        let carried = balancer.carry(&ask, now)?;
        let route = table.route_endpoint(carried.address(), service);
        drop(settings);
        let endpoint = Self {
            carried,
            balancer,
            counted: None,
        };
        Some((route, endpoint))
    }

    /// Takes a place for the connection, which is about to be dialled.
    pub(super) fn count(&mut self, client: &NamespacedName) -> Result<(), Full> {
        if self.counted.is_none() {
            let counted = self.balancer.connection(client);
            self.counted = Some(counted.map_err(|circuit| Full {
                circuit,
                patience: self.balancer.settings().timeouts.connect,
            })?);
        }
        Ok(())
    }

    /// The place that was taken.
    pub(super) fn into_counted(self) -> Option<ConnectionGuard> {
        self.counted
    }

    /// Tells how the endpoint took the connection, as far as is known: what a request on it
    /// comes to is told by that.
    pub(super) fn note(&self, failed: Option<&Outcome>, took: Duration) {
        let outcome = match failed {
            None => balance::Outcome::Success,
            Some(failed) if failed.is_of_endpoint() => balance::Outcome::Failed,
            Some(_) => return,
        };
        let now = Instant::now().into_std();
        self.carried.sample(outcome, took, now);
    }
}

impl From<Full> for Outcome {
    fn from(full: Full) -> Self {
        Self::CircuitOpen(full.circuit)
    }
}

impl Full {
    /// Nothing is dialled, but a client that speaks HTTP may go on. Looks at `near`, where it is
    /// looked at at all, for no longer than a connection may take.
    pub(super) async fn requests_only(self, near: Option<&TcpStream>) -> Result<Speaks, Outcome> {
        let speaks = match near {
            Some(near) => speaks_http(near, self.patience).await,
            None => None,
        };
        speaks.ok_or(self.into())
    }
}

/// Whether a client speaks HTTP, where there is nothing to dial for it: each of its requests is
/// answered by itself then, and there may be a connection that takes it.
pub(super) async fn speaks_http(near: &TcpStream, patience: Duration) -> Option<Speaks> {
    match timeout(patience, of_socket(near)).await {
        Ok(speaks @ (Speaks::Http1 | Speaks::Http2)) => Some(speaks),
        Ok(Speaks::Other) | Err(_) => None,
    }
}
