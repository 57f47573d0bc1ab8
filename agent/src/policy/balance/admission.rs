//! Circuit breakers: how much may be in flight at once, of all pods of the node and of each.
//!
//! Envoy's circuit breakers (`ResourceManager`: connections, pending requests, requests,
//! retries), with bulkheads per client beside them. What is counted is held by guards: it
//! is given back when they are dropped, whatever ends a request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use super::Circuit;
use crate::model::NamespacedName;
use crate::policy::traffic::{Connections, Requests};

/// Clients without anything in flight are forgotten once there are so many.
const CLIENTS: usize = 256;

/// What is in flight.
#[derive(Debug, Default)]
pub(super) struct Admission {
    connections: AtomicU32,
    pending: AtomicU32,
    pub(super) requests: AtomicU32,
    retries: AtomicU32,
    clients: Mutex<HashMap<NamespacedName, Arc<Client>>>,
}

/// What is in flight of one pod.
#[derive(Debug, Default)]
pub(super) struct Client {
    connections: AtomicU32,
    requests: AtomicU32,
}

/// A request in flight, of a client that is counted.
#[derive(Debug)]
pub(super) struct ClientRequest(Arc<Client>);

/// An open connection: it counts until this is dropped.
#[derive(Debug)]
pub struct ConnectionGuard {
    admission: Arc<Admission>,
    client: Option<Arc<Client>>,
}

/// A request that waits for a connection: it counts until this is dropped.
#[derive(Debug)]
pub struct PendingGuard(Arc<Admission>);

/// A retry in flight: it counts until this is dropped.
#[derive(Debug)]
pub struct RetryGuard(Arc<Admission>);

impl ConnectionGuard {
    pub(super) fn is_of(&self, admission: &Arc<Admission>) -> bool {
        Arc::ptr_eq(&self.admission, admission)
    }
}

impl Admission {
    pub(super) fn connection(
        self: &Arc<Self>,
        limits: &Connections,
        client: &NamespacedName,
    ) -> Result<ConnectionGuard, Circuit> {
        take(&self.connections, limits.max, Circuit::Connections)?;
        let mut guard = ConnectionGuard {
            admission: Arc::clone(self),
            client: None,
        };
        if let Some(max) = limits.per_client {
            let client = self.client(client);
            take(&client.connections, max, Circuit::ClientConnections)?;
            guard.client = Some(client);
        }
        Ok(guard)
    }

    pub(super) fn pending(self: &Arc<Self>, max: u32) -> Result<PendingGuard, Circuit> {
        take(&self.pending, max, Circuit::Pending)?;
        Ok(PendingGuard(Arc::clone(self)))
    }

    pub(super) fn retry(self: &Arc<Self>, max: u32) -> Result<RetryGuard, Circuit> {
        take(&self.retries, max, Circuit::Retries)?;
        Ok(RetryGuard(Arc::clone(self)))
    }

    /// Counts a request; [`Self::requests`] is the caller's to give back.
    pub(super) fn request(
        &self,
        limits: &Requests,
        client: &NamespacedName,
    ) -> Result<Option<ClientRequest>, Circuit> {
        let of_client = match limits.per_client {
            None => None,
            Some(max) => {
                let client = self.client(client);
                take(&client.requests, max, Circuit::ClientRequests)?;
                Some(ClientRequest(client))
            }
        };
        take(&self.requests, limits.max, Circuit::Requests)?;
        Ok(of_client)
    }

    fn client(&self, name: &NamespacedName) -> Arc<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(name) {
            return Arc::clone(client);
        }
        if clients.len() >= CLIENTS {
            clients.retain(|_, client| Arc::strong_count(client) > 1);
        }
        let client = Arc::new(Client::default());
        clients.insert(name.clone(), Arc::clone(&client));
        client
    }
}

/// One more, unless that is too many.
fn take(counter: &AtomicU32, max: u32, circuit: Circuit) -> Result<(), Circuit> {
    if counter.fetch_add(1, Relaxed) < max {
        return Ok(());
    }
    counter.fetch_sub(1, Relaxed);
    Err(circuit)
}

impl Drop for ClientRequest {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, Relaxed);
        if let Some(client) = &self.client {
            client.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

impl Drop for RetryGuard {
    fn drop(&mut self) {
        self.0.retries.fetch_sub(1, Relaxed);
    }
}
