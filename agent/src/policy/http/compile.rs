//! The routes of all Services, kept up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use super::backend::{Backend, BackendTarget, CompiledRule, Filter, Mirror};
use super::connections::ConnectionRoutes;
use super::routes::Routes;
use crate::model::NamespacedName;
use crate::state::{
    InForce, ObjectKey, Reference, Route, RouteFilter, RouteKind, RouteRule, Snapshot,
};

/// The compiled routes of a snapshot. A clone is O(1), a change costs what the routes of its
/// namespace cost for the Services that it is about.
#[derive(Clone, Debug, Default)]
pub(in crate::policy) struct RouteTable {
    rules: OrdMap<ObjectKey, Arc<[Arc<CompiledRule>]>>,
    /// By Service.
    attached: OrdMap<NamespacedName, Arc<OfService>>,
}

/// The routes of a Service: by their namespace, and then by the Service's port.
type OfService = BTreeMap<Arc<str>, BTreeMap<u16, OfPort>>;

/// The routes of one port.
#[derive(Clone, Debug)]
pub(in crate::policy) enum OfPort {
    /// Decide per request.
    Requests(Arc<Routes>),
    /// Decide per connection.
    Connections(Arc<ConnectionRoutes>),
}

impl RouteTable {
    /// The routes that are in force for a client: those of its own namespace, else those of
    /// the Service's.
    pub(in crate::policy) fn of_port(
        &self,
        client_namespace: &str,
        service: &NamespacedName,
        port: u16,
    ) -> Option<&OfPort> {
        let of_service = self.attached.get(service)?;
        let of = |namespace: &str| of_service.get(namespace)?.get(&port);
        of(client_namespace).or_else(|| of(&service.namespace))
    }

    /// Follows from one snapshot to the next.
    pub(in crate::policy) fn update(&mut self, old: &Snapshot, new: &Snapshot) {
        let changed = changed_routes(old, new);
        if changed.is_empty() {
            return;
        }
        let mut services: BTreeMap<&NamespacedName, BTreeSet<&Arc<str>>> = BTreeMap::new();
        for key in &changed {
            for route in [old.routes.get(key), new.routes.get(key)]
                .into_iter()
                .flatten()
            {
                for parent in &route.parents {
                    let namespaces = services.entry(&parent.service).or_default();
                    namespaces.insert(&route.name.namespace);
                }
            }
            match new.routes.get(key) {
                Some(route) => {
                    let rules = compile(new, route);
                    self.rules.insert(key.clone(), rules);
                }
                None => {
                    self.rules.remove(key);
                }
            }
        }
        for (service, namespaces) in services {
            let in_force = new.routes_in_force(service);
            let before = self.attached.get(service);
            let mut of_service = before.map_or_else(OfService::new, |it| OfService::clone(it));
            for namespace in namespaces {
                match in_force.get(namespace) {
                    Some(ports) => of_service.insert(Arc::clone(namespace), self.of_ports(ports)),
                    None => of_service.remove(namespace),
                };
            }
            if of_service.is_empty() {
                self.attached.remove(service);
            } else {
                self.attached.insert(service.clone(), Arc::new(of_service));
            }
        }
    }

    fn of_ports(&self, ports: &BTreeMap<u16, InForce<'_>>) -> BTreeMap<u16, OfPort> {
        let ports = ports.iter().map(|(port, in_force)| {
            let compiled = in_force.routes.iter().filter_map(|route| {
                let rules = self.rules.get(&route.key())?;
                Some((&***route, &**rules))
            });
            let of_port = match in_force.kind {
                RouteKind::Grpc | RouteKind::Http => {
                    OfPort::Requests(Arc::new(Routes::new(compiled)))
                }
                RouteKind::Tls | RouteKind::Tcp => {
                    OfPort::Connections(Arc::new(ConnectionRoutes::new(compiled)))
                }
            };
            (*port, of_port)
        });
        ports.collect()
    }
}

/// The routes that differ, or that name something that does.
fn changed_routes(old: &Snapshot, new: &Snapshot) -> BTreeSet<ObjectKey> {
    let mut changed = BTreeSet::new();
    for change in old.routes.diff(&new.routes) {
        let (DiffItem::Add(key, _)
        | DiffItem::Update { new: (key, _), .. }
        | DiffItem::Remove(key, _)) = change;
        changed.insert(key.clone());
    }
    for change in old.services.diff(&new.services) {
        let (DiffItem::Add(name, _)
        | DiffItem::Update { new: (name, _), .. }
        | DiffItem::Remove(name, _)) = change;
        changed.extend(new.routes_naming(name).map(|route| route.key()));
    }
    for change in old.grants.diff(&new.grants) {
        let (DiffItem::Add(grant, _)
        | DiffItem::Update {
            new: (grant, _), ..
        }
        | DiffItem::Remove(grant, _)) = change;
        changed.extend(new.routes_into(&grant.namespace).cloned());
    }
    changed
}

fn compile(snapshot: &Snapshot, route: &Route) -> Arc<[Arc<CompiledRule>]> {
    let rules = route.rules.iter().enumerate();
    rules
        .map(|(index, rule)| Arc::new(compile_rule(snapshot, route, index, rule)))
        .collect()
}

fn compile_rule(
    snapshot: &Snapshot,
    route: &Route,
    index: usize,
    rule: &RouteRule,
) -> CompiledRule {
    let (kind, name) = (route.kind.object().as_str(), &route.name);
    let label = match &rule.name {
        Some(rule) => format!("{kind} {name}#{rule}"),
        None => format!("{kind} {name}#{index}"),
    };
    let filters = |filters: &[RouteFilter]| {
        let filters = filters.iter();
        filters
            .map(|filter| compile_filter(snapshot, route, filter))
            .collect()
    };
    let backends = rule.backends.iter().map(|backend| Backend {
        weight: backend.weight,
        target: match &backend.invalid {
            Some(invalid) => BackendTarget::Invalid(Arc::clone(&invalid.message)),
            None => target(snapshot, route, &backend.reference),
        },
        filters: filters(&backend.filters),
    });
    CompiledRule {
        label: label.into(),
        backends: backends.collect(),
        filters: filters(&rule.filters),
        timeouts: rule.timeouts,
        retry: rule.retry.clone(),
        session: rule.session.clone(),
        invalid: rule.invalid.as_ref().map(|it| Arc::clone(&it.message)),
    }
}

fn compile_filter(snapshot: &Snapshot, route: &Route, filter: &RouteFilter) -> Filter {
    match filter {
        RouteFilter::RequestHeaders(change) => Filter::RequestHeaders(Arc::clone(change)),
        RouteFilter::ResponseHeaders(change) => Filter::ResponseHeaders(Arc::clone(change)),
        RouteFilter::Redirect(redirect) => Filter::Redirect(Arc::clone(redirect)),
        RouteFilter::Rewrite(rewrite) => Filter::Rewrite(Arc::clone(rewrite)),
        RouteFilter::Cors(cors) => Filter::Cors(Arc::clone(cors)),
        RouteFilter::Mirror(mirror) => Filter::Mirror(Mirror {
            target: target(snapshot, route, &mirror.reference),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
    }
}

fn target(snapshot: &Snapshot, route: &Route, reference: &Reference) -> BackendTarget {
    match snapshot.resolve(route, reference) {
        Ok((service, port)) => BackendTarget::Service { service, port },
        Err(why) => BackendTarget::Invalid(why.to_string().into()),
    }
}
