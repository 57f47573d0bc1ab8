//! Tests of the module: real handshakes, a clock that is set by hand, CAs that fail.

mod authority;
pub(crate) mod handshake;
mod istio;
mod rotation;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Authority, CaAddress, Clock, Config, Identities, start};
use crate::model::{NodeName, SpiffeId, TrustDomain};

/// A clock that goes with tokio's, paused or not, and steps when told to.
#[derive(Clone, Debug)]
pub(crate) struct TestClock {
    started: Instant,
    at_start: Arc<Mutex<SystemTime>>,
}

impl TestClock {
    pub(crate) fn new() -> Self {
        let at_start = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        Self {
            started: Instant::now(),
            at_start: Arc::new(Mutex::new(at_start)),
        }
    }

    pub(crate) fn shared(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }

    /// One that says the same, and can be set by itself.
    pub(crate) fn apart(&self) -> Self {
        let at_start = *self.at_start.lock().unwrap();
        Self {
            started: self.started,
            at_start: Arc::new(Mutex::new(at_start)),
        }
    }

    pub(crate) fn forward(&self, by: Duration) {
        *self.at_start.lock().unwrap() += by;
    }

    pub(crate) fn backward(&self, by: Duration) {
        *self.at_start.lock().unwrap() -= by;
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        *self.at_start.lock().unwrap() + self.started.elapsed()
    }
}

pub(crate) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain("cluster.local".into()), "shop", account)
}

pub(crate) fn config(ca: CaAddress, clock: Arc<dyn Clock>) -> Config {
    Config {
        trust_domain: TrustDomain("cluster.local".into()),
        ca,
        node: NodeName("node-a".into()),
        token_file: None,
        ca_root: None,
        cluster_id: "Kubernetes".to_owned(),
        ttl: Duration::from_hours(24),
        clock,
    }
}

/// An agent that signs with the authority in `dir`; its manager runs in a task that ends
/// with the test.
fn agent(dir: &Path, clock: &TestClock) -> Identities {
    let config = config(CaAddress::Dir(dir.to_owned()), clock.shared());
    let (identities, manager) = start(config).unwrap();
    tokio::spawn(manager);
    identities
}

fn authority(dir: &Path, clock: &TestClock) -> Authority {
    Authority::open_at(dir, clock.shared()).unwrap()
}
