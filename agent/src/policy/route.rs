//! Where a connection goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::http::BackendTarget;
use super::table::Table;
use crate::model::{NamespacedName, OrigDst, below, canonical};
use crate::state::{Endpoint, Pod, Service, ServicePort};

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a pod of the state, enrolled or not.
    Pod {
        /// The pod.
        pod: Arc<Pod>,
        /// Its address and the application's port.
        address: SocketAddr,
        /// The Service that was dialled, if one was.
        service: Option<NamespacedName>,
    },
    /// To an address that is no pod's: out of the mesh, as it is.
    Passthrough {
        /// The address.
        address: SocketAddr,
        /// The Service that was dialled, if one was.
        service: Option<NamespacedName>,
    },
    /// Nowhere.
    Unavailable {
        /// Why.
        reason: UnavailableReason,
        /// The Service that was dialled, if one was.
        service: Option<NamespacedName>,
    },
}

/// What a connection comes to before one endpoint is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Towards {
    /// A port of a Service: one of its endpoints, which nobody has chosen yet.
    Service {
        /// The Service.
        service: NamespacedName,
        /// Its port.
        port: u16,
        /// What is left of the random number.
        random: u64,
    },
    /// Where else it goes, or why not.
    Decided(Route),
}

/// Why a connection goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnavailableReason {
    /// The Service has no endpoint that is ready, of the address's family.
    NoEndpoints,
    /// It has some, and all of them are left out for now.
    AllLeftOut,
    /// The Service has no such TCP port.
    UnknownPort,
    /// More than one object of the state claims the address.
    AddressContested,
    /// The Service has routes of connections, and none is for this one.
    NoRoute,
    /// The route's back end, or the route itself, is not understood or not there.
    BackendInvalid,
}

impl UnavailableReason {
    /// The word for flows and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoEndpoints | Self::AllLeftOut => "no_endpoints",
            Self::UnknownPort => "unknown_port",
            Self::AddressContested => "address_contested",
            Self::NoRoute => "no_route",
            Self::BackendInvalid => "backend_invalid",
        }
    }
}

impl Table {
    /// Where a connection of `client` to `dst` goes. `random` chooses among the back ends of
    /// a route by their weights, and among the endpoints that are ready, each with the same
    /// probability.
    pub fn route(&self, client: &Pod, dst: OrigDst, random: u64) -> Route {
        self.route_named(client, dst, None, random)
    }

    /// As [`Self::route`], of a client of TLS that asks for a name.
    pub fn route_named(
        &self,
        client: &Pod,
        dst: OrigDst,
        name: Option<&str>,
        random: u64,
    ) -> Route {
        match self.towards(client, dst, name, random) {
            Towards::Decided(route) => route,
            Towards::Service {
                service,
                port,
                random,
            } => self.route_to(&service, port, canonical(dst.0).ip(), random),
        }
    }

    /// As [`Self::route_named`], but that no endpoint is chosen.
    pub fn towards(&self, client: &Pod, dst: OrigDst, name: Option<&str>, random: u64) -> Towards {
        let address = canonical(dst.0);
        let snapshot = self.snapshot();
        if let Some(service) = snapshot.services_by_ip.get(&address.ip()) {
            return match service_port(service, address.port()) {
                Some(port) => self.dialled(client, (service, port), name, random),
                None => Towards::Decided(Route::Unavailable {
                    reason: UnavailableReason::UnknownPort,
                    service: Some(service.name.clone()),
                }),
            };
        }
        match self.exposed(address) {
            Ok(Some(dialled)) => self.dialled(client, dialled, name, random),
            Ok(None) => Towards::Decided(self.route_address(address, None)),
            Err(_contested) => Towards::Decided(Route::Unavailable {
                reason: UnavailableReason::AddressContested,
                service: None,
            }),
        }
    }

    /// Where a connection goes for which this endpoint of a Service was chosen.
    pub fn route_endpoint(&self, endpoint: SocketAddr, service: &NamespacedName) -> Route {
        self.route_address(endpoint, Some(service.clone()))
    }

    /// Where a connection to a port of a Service goes, for a client at `ip`. `random`
    /// chooses among the endpoints that are ready.
    pub fn route_to(&self, service: &NamespacedName, port: u16, ip: IpAddr, random: u64) -> Route {
        let unavailable = |reason| Route::Unavailable {
            reason,
            service: Some(service.clone()),
        };
        let Some(service) = self.snapshot().services.get(service) else {
            return unavailable(UnavailableReason::NoEndpoints);
        };
        match service_port(service, port) {
            Some(port) => self.route_service((service, port), ip, random),
            None => unavailable(UnavailableReason::UnknownPort),
        }
    }

    /// The Service that is dialled at an address, and its port.
    pub fn service_at(&self, dst: OrigDst) -> Option<(&NamespacedName, u16)> {
        let address = canonical(dst.0);
        let (service, port) = match self.snapshot().services_by_ip.get(&address.ip()) {
            Some(service) => (service, service_port(service, address.port())?),
            None => self.exposed(address).ok()??,
        };
        Some((&service.name, port.port))
    }

    /// The Service that is reached at an external address or a node port, and its port. The
    /// error: those that contest it.
    pub(super) fn exposed(
        &self,
        address: SocketAddr,
    ) -> Result<Option<(&Arc<Service>, &ServicePort)>, &[NamespacedName]> {
        let snapshot = self.snapshot();
        let ip = address.ip();
        // Whoever has the address as its own comes first: a Service may claim any.
        if self.pod_by_ip(ip).is_some() || snapshot.contested.contains_key(&ip) {
            return Ok(None);
        }
        match snapshot.exposed_at(address) {
            None | Some((_, [])) => Ok(None),
            Some((exposed, [name])) => {
                let service = snapshot.services.get(name);
                Ok(service.and_then(|service| Some((service, exposed.port(service)?))))
            }
            Some((_, several)) => Err(several),
        }
    }

    /// By the Service's routes of connections, where there are any, else to the Service.
    fn dialled(
        &self,
        client: &Pod,
        (service, port): (&Arc<Service>, &ServicePort),
        name: Option<&str>,
        random: u64,
    ) -> Towards {
        let namespace = &client.name.namespace;
        let routes = self.connection_routes(namespace, &service.name, port.port);
        let Some(routes) = routes else {
            return Towards::Service {
                service: service.name.clone(),
                port: port.port,
                random,
            };
        };
        let unavailable = |reason| {
            Towards::Decided(Route::Unavailable {
                reason,
                service: Some(service.name.clone()),
            })
        };
        let Some(rule) = routes.find(name) else {
            return unavailable(UnavailableReason::NoRoute);
        };
        let chosen = rule.choose(random).filter(|_| rule.invalid.is_none());
        match chosen.map(|backend| &backend.target) {
            // What is left of the choice is as random as the whole.
            Some(BackendTarget::Service { service, port }) => Towards::Service {
                service: service.clone(),
                port: *port,
                random: rule.left_of(random),
            },
            Some(BackendTarget::Invalid(_)) | None => {
                unavailable(UnavailableReason::BackendInvalid)
            }
        }
    }

    fn route_service(
        &self,
        (service, port): (&Service, &ServicePort),
        dialled: IpAddr,
        random: u64,
    ) -> Route {
        match choose(self.candidates(service, port, dialled), random) {
            Some(endpoint) => {
                let address = SocketAddr::new(endpoint.ip, endpoint.port);
                self.route_address(address, Some(service.name.clone()))
            }
            None => Route::Unavailable {
                reason: UnavailableReason::NoEndpoints,
                service: Some(service.name.clone()),
            },
        }
    }

    fn route_address(&self, address: SocketAddr, service: Option<NamespacedName>) -> Route {
        let ip = address.ip();
        if let Some(pod) = self.pod_by_ip(ip) {
            return Route::Pod {
                pod: Arc::clone(pod),
                address,
                service,
            };
        }
        if self.snapshot().contested.contains_key(&ip) {
            let reason = UnavailableReason::AddressContested;
            return Route::Unavailable { reason, service };
        }
        Route::Passthrough { address, service }
    }

    /// The ready endpoints of the family of `ip`.
    fn candidates(&self, service: &Service, port: &ServicePort, ip: IpAddr) -> &[Endpoint] {
        ready_of_family(self.endpoints(service, port), ip)
    }

    /// All endpoints of a port of a Service.
    pub(super) fn endpoints(&self, service: &Service, port: &ServicePort) -> &[Endpoint] {
        let key = (service.name.clone(), port.port);
        self.snapshot()
            .endpoints
            .get(&key)
            .map_or(&[], |endpoints| &**endpoints)
    }
}

/// The port of a Service that has this number.
pub(super) fn service_port(service: &Service, port: u16) -> Option<&ServicePort> {
    service
        .ports
        .iter()
        .find(|candidate| candidate.port == port)
}

/// The ready endpoints of one family. They come first, IPv4 before IPv6, so that no
/// connection has to look at all of them.
fn ready_of_family(endpoints: &[Endpoint], ip: IpAddr) -> &[Endpoint] {
    let ready = endpoints.partition_point(|endpoint| endpoint.ready);
    let ready = &endpoints[..ready];
    let (v4, v6) = ready.split_at(ready.partition_point(|endpoint| endpoint.ip.is_ipv4()));
    if ip.is_ipv4() { v4 } else { v6 }
}

/// One of the candidates; `random` is spread over all of them.
fn choose(candidates: &[Endpoint], random: u64) -> Option<&Endpoint> {
    let count = u64::try_from(candidates.len()).ok()?;
    candidates.get(usize::try_from(below(random, count)).ok()?)
}
