//! What routes refer to: the Services that they are of, and those that they lead to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::change::ObjectKey;
use super::objects::Service;
use super::problems::Owner;
use super::route::{ParentRef, Reference, ReferenceGrant, Route, RouteFilter, RouteKind};
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

/// The group of routes.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The routes that are in force for a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce<'s> {
    /// The most specific kind that there is.
    pub kind: RouteKind,
    /// All of this kind.
    pub routes: Vec<&'s Arc<Route>>,
}

/// Why a route is of no port of a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unattached {
    /// The reference was not understood.
    Invalid,
    /// There is no such Service.
    NoService,
    /// The Service has no such port, or none at all.
    NoPort,
    /// The Service has no address of its own, so that nobody can dial it.
    Headless,
}

impl fmt::Display for Unattached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "is not understood",
            Self::NoService => "there is no such Service",
            Self::NoPort => "the Service has no such TCP port",
            Self::Headless => "the Service is headless: clients dial its pods, not the Service",
        })
    }
}

/// Why a route can't lead to where a reference says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// It is no Service.
    InvalidKind {
        /// What it is, as `group/Kind`.
        kind: Arc<str>,
    },
    /// No `ReferenceGrant` of its namespace permits it.
    NotPermitted {
        /// The Service.
        service: NamespacedName,
        /// The kind of the route.
        kind: RouteKind,
    },
    /// There is no such Service.
    NoService {
        /// The Service.
        service: NamespacedName,
    },
    /// The Service has no such port.
    NoPort {
        /// The Service.
        service: NamespacedName,
        /// The port; `None` where none was given.
        port: Option<u16>,
    },
}

impl Unresolved {
    /// The reason as conditions spell it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidKind { .. } => "InvalidKind",
            Self::NotPermitted { .. } => "RefNotPermitted",
            Self::NoService { .. } | Self::NoPort { .. } => "BackendNotFound",
        }
    }
}

impl fmt::Display for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKind { kind } => {
                write!(f, "{kind} can't be a back end: only Services can")
            }
            Self::NotPermitted { service, kind } => {
                let kind = kind.object().as_str();
                let namespace = &service.namespace;
                write!(
                    f,
                    "no ReferenceGrant in {namespace} permits {kind}s of this namespace to name \
                     Service {service}"
                )
            }
            Self::NoService { service } => write!(f, "there is no Service {service}"),
            Self::NoPort {
                service,
                port: Some(port),
            } => write!(f, "Service {service} has no TCP port {port}"),
            Self::NoPort {
                service,
                port: None,
            } => write!(f, "the port of Service {service} is missing"),
        }
    }
}

impl Route {
    /// All references to where it leads, with their fields.
    pub fn references(&self) -> impl Iterator<Item = (String, &Reference)> {
        let rules = self.rules.iter().enumerate();
        rules.flat_map(move |(at, rule)| {
            let path = format!("spec.rules[{at}]");
            let mut all = mirrors(&path, &rule.filters);
            for (index, backend) in rule.backends.iter().enumerate() {
                let field = format!("{path}.backendRefs[{index}]");
                let of_backend = mirrors(&field, &backend.filters);
                all.push((field, &backend.reference));
                all.extend(of_backend);
            }
            all
        })
    }

    /// The Services that it names.
    fn services(&self) -> BTreeSet<&NamespacedName> {
        let parents = self.parents.iter().map(|parent| &parent.service);
        let backends = self.references().map(|(_, reference)| &reference.name);
        parents.chain(backends).collect()
    }

    /// It is of a Service of another namespace, for clients of its own only.
    pub fn is_consumer(&self, service: &NamespacedName) -> bool {
        self.name.namespace != service.namespace
    }
}

/// The back ends of copies, with their fields.
fn mirrors<'r>(path: &str, filters: &'r [RouteFilter]) -> Vec<(String, &'r Reference)> {
    let filters = filters.iter().enumerate();
    let mirrors = filters.filter_map(|(index, filter)| match filter {
        RouteFilter::Mirror(mirror) => {
            let field = format!("{path}.filters[{index}].requestMirror.backendRef");
            Some((field, &mirror.reference))
        }
        RouteFilter::RequestHeaders(_)
        | RouteFilter::ResponseHeaders(_)
        | RouteFilter::Redirect(_)
        | RouteFilter::Rewrite(_)
        | RouteFilter::Cors(_) => None,
    });
    mirrors.collect()
}

impl ReferenceGrant {
    fn permits(&self, from: (RouteKind, &str), service: &NamespacedName) -> bool {
        let (kind, namespace) = from;
        let sources = &mut self.from.iter();
        let targets = &mut self.to.iter();
        self.name.namespace == service.namespace
            && sources.any(|from| {
                let same_kind = &*from.kind == kind.object().as_str();
                &*from.group == GATEWAY_GROUP && same_kind && &*from.namespace == namespace
            })
            && targets.any(|to| {
                let same_name = to.name.as_ref().is_none_or(|name| *name == service.name);
                to.group.is_empty() && &*to.kind == "Service" && same_name
            })
    }
}

impl Snapshot {
    /// The ports of a parent that it names, whatever other routes there are.
    pub fn ports_of_parent(&self, parent: &ParentRef) -> Result<Vec<u16>, Unattached> {
        if parent.invalid.is_some() {
            return Err(Unattached::Invalid);
        }
        let service = self.services.get(&parent.service);
        let service: &Service = service.ok_or(Unattached::NoService)?;
        let wanted = service.ports.iter().filter(|port| {
            let section = parent.section.as_ref();
            parent.port.is_none_or(|number| port.port == number)
                && section.is_none_or(|name| port.name == *name)
        });
        let ports: Vec<u16> = wanted.map(|port| port.port).collect();
        if ports.is_empty() {
            return Err(Unattached::NoPort);
        }
        let own = [
            &service.cluster_ips,
            &service.external_ips,
            &service.balancer_ips,
        ];
        if own.iter().all(|ips| ips.is_empty()) {
            return Err(Unattached::Headless);
        }
        Ok(ports)
    }

    /// The routes of a Service that are in force: by their namespace, and then by the
    /// Service's port, all of one kind.
    pub fn routes_in_force(
        &self,
        service: &NamespacedName,
    ) -> BTreeMap<Arc<str>, BTreeMap<u16, InForce<'_>>> {
        let mut all: BTreeMap<_, BTreeMap<u16, InForce<'_>>> = BTreeMap::new();
        for route in self.routes_naming(service) {
            let parents = route.parents.iter().filter(|it| it.service == *service);
            let ports = parents.flat_map(|parent| self.ports_of_parent(parent).unwrap_or_default());
            let ports: BTreeSet<u16> = ports.collect();
            for port in ports {
                let of_namespace = all.entry(Arc::clone(&route.name.namespace)).or_default();
                let of_port = of_namespace.entry(port).or_insert_with(|| InForce {
                    kind: route.kind,
                    routes: Vec::new(),
                });
                if route.kind < of_port.kind {
                    of_port.kind = route.kind;
                    of_port.routes.clear();
                }
                if route.kind == of_port.kind {
                    of_port.routes.push(route);
                }
            }
        }
        all
    }

    /// The routes of other namespaces that name Services of this one.
    pub fn routes_into<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
        let named = Self::in_namespace(&self.routes_by_service, namespace);
        let keys = named.flat_map(|(_, keys)| keys.iter());
        keys.filter(move |key| &*key.name.namespace != namespace)
    }

    /// The routes that name a Service, as a parent or as a back end.
    pub fn routes_naming(&self, service: &NamespacedName) -> impl Iterator<Item = &Arc<Route>> {
        let keys = self.routes_by_service.get(service).into_iter().flatten();
        keys.filter_map(|key| self.routes.get(key))
    }

    /// Where a reference of a route leads. A Service that is the only parent of the route
    /// takes no grant: whoever the route holds for asked for it anyway. With another parent,
    /// those who asked for that one would get there too.
    pub fn resolve(
        &self,
        route: &Route,
        reference: &Reference,
    ) -> Result<(NamespacedName, u16), Unresolved> {
        let Reference {
            group, kind, name, ..
        } = reference;
        if !group.is_empty() || &**kind != "Service" {
            let kind = match &**group {
                "" => Arc::clone(kind),
                group => format!("{group}/{kind}").into(),
            };
            return Err(Unresolved::InvalidKind { kind });
        }
        let service = || name.clone();
        let is_asked_for = !route.parents.is_empty()
            && route
                .parents
                .iter()
                .all(|it| it.invalid.is_none() && it.service == *name);
        if name.namespace != route.name.namespace && !is_asked_for {
            let from = (route.kind, &*route.name.namespace);
            let mut grants = Self::in_namespace(&self.grants, &name.namespace);
            if !grants.any(|(_, grant)| grant.permits(from, name)) {
                return Err(Unresolved::NotPermitted {
                    service: service(),
                    kind: route.kind,
                });
            }
        }
        let found = self.services.get(name);
        let found = found.ok_or_else(|| Unresolved::NoService { service: service() })?;
        let port = reference.port;
        let has = |port: &u16| found.ports.iter().any(|it| it.port == *port);
        match port.filter(has) {
            Some(port) => Ok((service(), port)),
            None => Err(Unresolved::NoPort {
                service: service(),
                port,
            }),
        }
    }
}

impl Writer {
    pub(super) fn put_route(&mut self, key: &ObjectKey, new: Option<Route>) {
        let new = new.map(Arc::new);
        let old = self.snapshot.routes.get(key).cloned();
        if old != new {
            self.changed = true;
            let none = BTreeSet::new;
            let before = old.as_ref().map_or_else(none, |route| route.services());
            let after = new.as_ref().map_or_else(none, |route| route.services());
            for service in before.difference(&after) {
                self.name_in_route(service, key, false);
            }
            for service in after.difference(&before) {
                self.name_in_route(service, key, true);
            }
            match &new {
                Some(route) => self.snapshot.routes.insert(key.clone(), Arc::clone(route)),
                None => self.snapshot.routes.remove(key),
            };
        }
        self.check_route(key, new.as_deref());
    }

    fn name_in_route(&mut self, service: &NamespacedName, key: &ObjectKey, named: bool) {
        let index = &mut self.snapshot.routes_by_service;
        let mut keys = index.get(service).cloned().unwrap_or_default();
        if named {
            keys.insert(key.clone());
        } else {
            keys.remove(key);
        }
        if keys.is_empty() {
            index.remove(service);
        } else {
            index.insert(service.clone(), keys);
        }
    }

    pub(super) fn put_grant(&mut self, name: &NamespacedName, new: Option<ReferenceGrant>) {
        let new = new.map(Arc::new);
        if self.snapshot.grants.get(name) == new.as_ref() {
            return;
        }
        self.changed = true;
        match new {
            Some(grant) => self.snapshot.grants.insert(name.clone(), grant),
            None => self.snapshot.grants.remove(name),
        };
        let routes = self
            .snapshot
            .routes_into(&name.namespace)
            .cloned()
            .collect();
        self.check_routes(routes);
    }

    /// A Service came, went or has other ports.
    pub(super) fn check_routes_of_service(&mut self, service: &NamespacedName) {
        let routes = self.snapshot.routes_by_service.get(service);
        let routes = routes.map_or_else(BTreeSet::new, |keys| keys.iter().cloned().collect());
        self.check_routes(routes);
    }

    fn check_routes(&mut self, keys: BTreeSet<ObjectKey>) {
        for key in keys {
            let route = self.snapshot.routes.get(&key).cloned();
            self.check_route(&key, route.as_deref());
        }
    }

    /// Reports what a route names and what can't be found.
    fn check_route(&mut self, key: &ObjectKey, route: Option<&Route>) {
        let mut problems = Vec::new();
        if let Some(route) = route {
            let parents = route.parents.iter().filter(|it| it.invalid.is_none());
            for parent in parents {
                if let Err(why) = self.snapshot.ports_of_parent(parent) {
                    let field = format!("spec.parentRefs[{}]", parent.index);
                    let message =
                        format!("{}: {why}; the route has no effect there", parent.service);
                    problems.push(self.problem(key, &field, message));
                }
            }
            for (field, reference) in route.references() {
                if let Err(why) = self.snapshot.resolve(route, reference) {
                    let message = format!("{why}: requests for it are refused");
                    problems.push(self.problem(key, &field, message));
                }
            }
        }
        self.report(Owner::Targets(key.clone()), problems);
    }
}
