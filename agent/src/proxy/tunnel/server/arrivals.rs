//! Tunnels that are being set up with one pod: how many at once, and how many of one
//! address, so that no peer that proves nothing keeps the others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::proxy::config::TunnelConfig;
use crate::proxy::lock::lock;

/// Tunnels that are being set up with one pod, or wait to be.
#[derive(Debug)]
pub(in crate::proxy) struct Arrivals {
    /// Of all, and of one source.
    limit: (usize, usize),
    /// Handshakes at one time, of all.
    places: Arc<Semaphore>,
    places_per_source: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_source: HashMap<IpAddr, Source>,
}

#[derive(Debug)]
struct Source {
    arriving: usize,
    /// Its handshakes at one time.
    places: Arc<Semaphore>,
}

/// One tunnel that may be set up.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    source: IpAddr,
    own: Arc<Semaphore>,
}

/// One of the handshakes at one time.
#[derive(Debug)]
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    /// The last to go: the source is forgotten with it.
    _arrival: Arrival,
}

impl Arrivals {
    pub(in crate::proxy) fn new(config: &TunnelConfig) -> Self {
        let all = config.handshakes_per_pod + config.handshakes_waiting;
        let own = config.handshakes_per_source + config.handshakes_waiting_per_source;
        Self {
            limit: (all, own),
            places: Arc::new(Semaphore::new(config.handshakes_per_pod)),
            places_per_source: config.handshakes_per_source,
            counts: Mutex::default(),
        }
    }

    /// Counts a tunnel from `source` in. `None`: it is one too many.
    pub(super) fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Arrival> {
        let mut counts = self.counts();
        if counts.all >= self.limit.0 {
            return None;
        }
        let of_source = counts.by_source.entry(source).or_insert_with(|| Source {
            arriving: 0,
            places: Arc::new(Semaphore::new(self.places_per_source)),
        });
        if of_source.arriving >= self.limit.1 {
            return None;
        }
        of_source.arriving += 1;
        let own = Arc::clone(&of_source.places);
        counts.all += 1;
        drop(counts);
        Some(Arrival {
            arrivals: Arc::clone(self),
            source,
            own,
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }
}

impl Arrival {
    /// Waits for its turn: first among those of its source, then among all. Cancel safe.
    pub(super) async fn place(self) -> Option<Place> {
        // Nobody closes them.
        let own = Arc::clone(&self.own).acquire_owned().await.ok()?;
        let all = Arc::clone(&self.arrivals.places).acquire_owned();
        let all = all.await.ok()?;
        Some(Place {
            _own: own,
            _all: all,
            _arrival: self,
        })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut counts = self.arrivals.counts();
        counts.all -= 1;
        if let Some(source) = counts.by_source.get_mut(&self.source) {
            source.arriving -= 1;
            if source.arriving == 0 {
                drop(counts.by_source.remove(&self.source));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures_util::poll;

    use super::*;
    use crate::model::NodeName;
    use crate::proxy::config::Config;

    #[tokio::test]
    async fn one_source_leaves_room_for_the_others() {
        let mut config = Config::recommended(NodeName("a".into())).tunnel;
        config.handshakes_per_pod = 3;
        config.handshakes_per_source = 2;
        config.handshakes_waiting = 3;
        config.handshakes_waiting_per_source = 1;
        let arrivals = Arc::new(Arrivals::new(&config));
        let [greedy, modest] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let admit = |source| arrivals.admit(source);
        let first = admit(greedy).unwrap().place().await.unwrap();
        let second = admit(greedy).unwrap().place().await.unwrap();
        let mut third = Box::pin(admit(greedy).unwrap().place());
        assert!(poll!(&mut third).is_pending(), "it waits for its own");
        assert!(admit(greedy).is_none(), "it may not even wait");
        let other = admit(modest).unwrap().place().await.unwrap();
        drop(first);
        assert!(matches!(poll!(&mut third), Poll::Ready(Some(_))));
        let rest = [admit(modest), admit(modest)];
        assert!(rest.iter().all(Option::is_some));
        drop((second, other, rest, third));
        let counts = arrivals.counts();
        assert_eq!((counts.all, counts.by_source.len()), (0, 0));
    }
}
