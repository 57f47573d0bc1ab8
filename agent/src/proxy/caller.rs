//! Calls that the proxy makes itself in the name of a pod: to those who decide on its
//! requests. They take the way that the pod's own would take: from its namespace, with its
//! identity, through the mesh where the destination is in it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use http::{HeaderMap, Method};

use super::http::Io;
use super::network::PodKey;
use super::outcome::Outcome;
use super::permit::Subject;
use super::pod::LocalPod;
use super::reach::{Dialler, Reached, Way};
use super::record::ConnectionId;
use super::shared::Shared;
use crate::model::NamespacedName;
use crate::policy::{HttpRequest, Permission, Route};
use crate::state::{embedded, is_local};

/// A pod of this node in whose name calls are made. It does not keep the pod.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    shared: Weak<Shared>,
    pod: Weak<LocalPod>,
    key: PodKey,
}

/// An endpoint of a Service that is to be called.
#[derive(Debug)]
pub(super) struct Bound {
    dialler: Dialler,
    service: NamespacedName,
    address: SocketAddr,
    way: Way,
}

/// Why nobody was reached.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The pod, or all of the proxy, is gone.
    #[error("the pod is gone")]
    Gone,
    /// There is no way.
    #[error("{}", .0.close_reason())]
    Unreachable(Outcome),
}

impl Caller {
    pub(super) fn new(shared: &Arc<Shared>, pod: &Arc<LocalPod>) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            pod: Arc::downgrade(pod),
            key: pod.key(),
        }
    }

    /// Which life of which pod.
    pub(super) fn key(&self) -> PodKey {
        self.key.clone()
    }

    /// There is such a Service.
    pub(super) fn knows(&self, service: &NamespacedName) -> bool {
        let shared = self.shared.upgrade();
        shared.is_some_and(|shared| shared.table().snapshot().services.contains_key(service))
    }

    /// Why the node's own calls must not go to an address, whoever says so, unless whoever
    /// runs the agent does: only the node may, or nobody may without the mesh.
    pub(super) fn out_of_bounds(&self, ip: IpAddr) -> Option<&'static str> {
        let ip = ip.to_canonical();
        let Some(shared) = self.shared.upgrade() else {
            return Some("is asked by nobody any more");
        };
        if shared
            .config
            .jwks_networks
            .iter()
            .any(|it| it.contains(&ip))
        {
            return None;
        }
        if is_local(ip) {
            return Some("is the machine's, the link's or the cloud's own");
        }
        let table = shared.table();
        let snapshot = table.snapshot();
        let whose = |ip: IpAddr| {
            if snapshot.node_addresses.contains(&ip) {
                Some("is a node's")
            } else if snapshot.services_by_ip.contains_key(&ip) {
                Some("is a Service's, which goes by its name")
            } else if snapshot.pods_by_ip.contains_key(&ip) {
                Some("is a pod's, which goes by the name of its Service")
            } else {
                None
            }
        };
        whose(ip).or_else(|| whose(embedded(ip)?))
    }

    /// A server is reached as it was: its pod has neither been enrolled since nor let go.
    pub(super) fn reaches(&self, to: &Reached) -> bool {
        let Some(shared) = self.shared.upgrade() else {
            return false;
        };
        let table = shared.table();
        let pod = table.pod_by_ip(to.address.ip());
        let way = Way::to(&shared, pod, to.address);
        way.is_ok_and(|way| way.reached(to.address) == *to)
    }

    /// Dials a port of a Service, one of its endpoints, to ask it for what it is asked for.
    pub(super) async fn dial(
        &self,
        called: (&NamespacedName, u16),
        method: &Method,
        path: &str,
    ) -> Result<Io, CallError> {
        self.bind(called, method, path)?.dial().await
    }

    /// Chooses one of the endpoints of a Service's port, which may be asked so.
    pub(super) fn bind(
        &self,
        (service, port): (&NamespacedName, u16),
        method: &Method,
        path: &str,
    ) -> Result<Bound, CallError> {
        let shared = self.shared.upgrade().ok_or(CallError::Gone)?;
        let pod = self.pod.upgrade().ok_or(CallError::Gone)?;
        let ip = pod.pod.ips.first().copied();
        let ip = ip.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let route = shared.table().route_to(service, port, ip, rand::random());
        let (address, to) = match route {
            Route::Pod { pod, address, .. } => (address, Some(pod)),
            Route::Passthrough { address, .. } => (address, None),
            Route::Unavailable { reason, .. } => {
                return Err(CallError::Unreachable(Outcome::Unavailable(reason)));
            }
        };
        let dialler = Dialler {
            shared: Arc::clone(&shared),
            client: pod,
            peer: SocketAddr::new(ip, 0),
        };
        let way = Way::to(&shared, to.as_ref(), address).map_err(CallError::Unreachable)?;
        if let Way::Local(server) = &way {
            let http = HttpRequest {
                method,
                path: Some(path),
                host: &service.name,
                headers: &HeaderMap::new(),
                claims: None,
            };
            let subject = dialler.subject(address);
            permitted(server, &subject, &http).map_err(CallError::Unreachable)?;
        }
        Ok(Bound {
            dialler,
            service: service.clone(),
            address,
            way,
        })
    }
}

impl Bound {
    /// Which server, over what.
    pub(super) fn to(&self) -> Reached {
        self.way.reached(self.address)
    }

    /// Dials it.
    pub(super) async fn dial(&self) -> Result<Io, CallError> {
        let id = ConnectionId::random();
        let service = Some(&self.service);
        let stream = self.dialler.dial(&self.way, self.address, service, id);
        stream.await.map(Io::new).map_err(CallError::Unreachable)
    }
}

/// The policies of a pod of this node take the call. Those of other nodes are asked there.
fn permitted(server: &LocalPod, subject: &Subject, http: &HttpRequest<'_>) -> Result<(), Outcome> {
    let policy = Arc::clone(&server.state.borrow().policy);
    let decision = subject.ask_request(&policy, http);
    match decision.verdict {
        Permission::Permitted => Ok(()),
        Permission::Denied(reason) => {
            let policy = decision.policy;
            Err(Outcome::Denied { reason, policy })
        }
    }
}
