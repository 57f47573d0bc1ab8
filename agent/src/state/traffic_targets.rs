//! Traffic policies in the snapshot, and those whose targets don't exist.

use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::problems::Owner;
use super::traffic::{TargetedPort, TrafficPolicy};
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

/// A target that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTarget {
    index: usize,
    key: &'static str,
    /// What does not exist.
    pub message: String,
}

impl MissingTarget {
    /// The field that names it.
    pub fn field(&self) -> String {
        format!("spec.targetRefs[{}].{}", self.index, self.key)
    }
}

impl Snapshot {
    /// The targets of a policy that don't exist.
    pub fn missing_traffic_targets<'a>(
        &'a self,
        policy: &'a TrafficPolicy,
    ) -> impl Iterator<Item = MissingTarget> + 'a {
        let namespace = &policy.name.namespace;
        let targets = policy.targets.iter().enumerate();
        targets.filter_map(move |(index, target)| {
            let name = NamespacedName::new(Arc::clone(namespace), Arc::clone(&target.service));
            let Some(service) = self.services.get(&name) else {
                return Some(MissingTarget {
                    index,
                    key: "name",
                    message: format!("there is no Service {name}"),
                });
            };
            let mut ports = service.ports.iter();
            let (found, key, port) = match target.port.as_ref()? {
                TargetedPort::Number(port) => {
                    let found = ports.any(|it| it.port == *port);
                    (found, "port", port.to_string())
                }
                TargetedPort::Name(port) => {
                    let found = ports.any(|it| it.name == *port);
                    (found, "sectionName", format!("{port:?}"))
                }
            };
            (!found).then(|| MissingTarget {
                index,
                key,
                message: format!("the Service {name} has no TCP port {port}"),
            })
        })
    }
}

impl Writer {
    /// A policy that is not understood says what it said before.
    pub(super) fn put_traffic_policy(&mut self, mut policy: TrafficPolicy) {
        let name = policy.name.clone();
        let old = self.snapshot.traffic_policies.get(&name);
        policy.held = false;
        if let Some(old) = old.filter(|old| old.invalid.is_none() || old.held)
            && policy.invalid.is_some()
        {
            policy.targets.clone_from(&old.targets);
            policy.spec.clone_from(&old.spec);
            policy.held = true;
        }
        if old.is_some_and(|old| **old == policy) {
            return;
        }
        let policy = Arc::new(policy);
        let policies = &mut self.snapshot.traffic_policies;
        policies.insert(name, Arc::clone(&policy));
        self.changed = true;
        self.check_traffic_targets(&policy);
    }

    pub(super) fn remove_traffic_policy(&mut self, name: &NamespacedName) {
        self.changed |= self.snapshot.traffic_policies.remove(name).is_some();
        let key = traffic_key(name);
        self.report(Owner::Targets(key), Vec::new());
    }

    fn check_traffic_targets(&mut self, policy: &TrafficPolicy) {
        let key = traffic_key(&policy.name);
        let missing = self.snapshot.missing_traffic_targets(policy);
        let problems = missing.map(|it| {
            let message = format!("{}: nothing is selected by it", it.message);
            self.problem(&key, &it.field(), message)
        });
        let problems = problems.collect();
        self.report(Owner::Targets(key), problems);
    }

    /// A Service came, went or has other ports.
    pub(super) fn check_traffic_targets_of(&mut self, service: &NamespacedName) {
        let policies = &self.snapshot.traffic_policies;
        let policies = Snapshot::in_namespace(policies, &service.namespace);
        let policies: Vec<Arc<TrafficPolicy>> = policies
            .map(|(_, policy)| policy)
            .filter(|policy| policy.targets.iter().any(|it| it.service == service.name))
            .map(Arc::clone)
            .collect();
        for policy in policies {
            self.check_traffic_targets(&policy);
        }
    }
}

fn traffic_key(name: &NamespacedName) -> ObjectKey {
    ObjectKey {
        kind: ObjectKind::TrafficPolicy,
        name: name.clone(),
    }
}
