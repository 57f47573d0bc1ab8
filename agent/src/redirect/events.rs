//! What the programs tell.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use fairlead_common::abi::{Endpoint, Event, EventKind, from_bytes};
use tokio::io::unix::AsyncFd;

use super::{RedirectError, sys};
use crate::state::Pod;

/// Which pod a namespace belongs to.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<RwLock<HashMap<u64, Arc<Pod>>>>);

impl Names {
    pub(super) fn insert(&self, cookie: u64, pod: &Arc<Pod>) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        drop(names.insert(cookie, Arc::clone(pod)));
    }

    pub(super) fn remove(&self, cookie: u64) {
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        drop(names.remove(&cookie));
    }

    fn get(&self, cookie: u64) -> Option<Arc<Pod>> {
        let names = self.0.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&cookie).map(Arc::clone)
    }
}

/// Something that happened to a pod's connections past the agent.
#[derive(Clone, Debug)]
pub struct PodEvent {
    /// What.
    pub kind: EventKind,
    /// The pod; `None` where it has been let go meanwhile.
    pub pod: Option<Arc<Pod>>,
    /// The pod's end, where it is known.
    pub local: Option<SocketAddr>,
    /// The other end, where there is one.
    pub remote: Option<SocketAddr>,
}

/// The stream of events. What found no room in the kernel's buffer is counted in
/// the counter `events_lost`.
#[derive(Debug)]
pub struct Events {
    ring: AsyncFd<Ring>,
    names: Names,
}

/// The ring buffer, with a name in debug output.
struct Ring(RingBuf<MapData>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>, names: &Names) -> Result<Self, RedirectError> {
        let ring = sys::async_fd(Ring(ring)).map_err(|source| RedirectError::File {
            step: "wait for",
            path: "EVENTS".into(),
            source,
        })?;
        Ok(Self {
            ring,
            names: names.clone(),
        })
    }

    /// The next event. Cancel-safe: an event is taken or stays.
    pub async fn next(&mut self) -> io::Result<PodEvent> {
        loop {
            let mut guard = self.ring.readable_mut().await?;
            let taken = guard.get_inner_mut().0.next().map(|item| from_bytes(&item));
            match taken {
                Some(Some(event)) => {
                    if let Some(event) = describe(&event, &self.names) {
                        return Ok(event);
                    }
                }
                // Of another size than this agent's: no program of its own wrote it.
                Some(None) => {}
                None => guard.clear_ready(),
            }
        }
    }
}

fn describe(event: &Event, names: &Names) -> Option<PodEvent> {
    let end = |endpoint: Endpoint| (endpoint != Endpoint::NONE).then(|| endpoint.address());
    Some(PodEvent {
        kind: EventKind::from_number(event.kind)?,
        pod: names.get(event.cookie),
        local: end(event.local),
        remote: end(event.remote),
    })
}

/// Passes log lines on; `None` where the programs have none.
pub(super) fn pump_logs(ebpf: &mut Ebpf) -> Option<impl Future<Output = ()> + Send + use<>> {
    let logger = EbpfLogger::init(ebpf).ok()?;
    let mut logger = sys::async_fd(logger).ok()?;
    Some(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    })
}
