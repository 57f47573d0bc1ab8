//! Policies that name Services which don't exist.

use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::external::ExternalProvider;
use super::objects::{AuthorizationPolicy, PolicyScope};
use super::problems::Owner;
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

impl Snapshot {
    /// The Services that a scope names and that don't exist, with their places in
    /// `targetRefs`.
    pub fn missing_targets<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        scope: &'a PolicyScope,
    ) -> impl Iterator<Item = (usize, &'a Arc<str>)> {
        let targets: &[Arc<str>] = match scope {
            PolicyScope::Services(services) => services,
            PolicyScope::Mesh | PolicyScope::Pods(_) => &[],
        };
        targets.iter().enumerate().filter(|(_, target)| {
            let service = NamespacedName::new(Arc::clone(namespace), Arc::clone(target));
            !self.services.contains_key(&service)
        })
    }

    /// There is the Service that decides on requests, with its port.
    pub fn has_provider(&self, provider: &ExternalProvider) -> bool {
        self.missing_of(provider).is_none()
    }

    /// What is missing of whom a CUSTOM asks, after the field that names it.
    pub fn missing_provider(&self, policy: &AuthorizationPolicy) -> Option<(&'static str, String)> {
        let provider = policy.provider.as_ref()?;
        let ExternalProvider { service, port, .. } = &**provider;
        Some(match self.missing_of(provider)? {
            Missing::Service => (
                "spec.provider.service",
                format!("there is no Service {service}"),
            ),
            Missing::Port => (
                "spec.provider.port",
                format!("the Service {service} has no TCP port {port}"),
            ),
        })
    }

    fn missing_of(&self, provider: &ExternalProvider) -> Option<Missing> {
        let Some(service) = self.services.get(&provider.service) else {
            return Some(Missing::Service);
        };
        let mut ports = service.ports.iter();
        let has_port = ports.any(|it| it.port == provider.port);
        (!has_port).then_some(Missing::Port)
    }
}

/// What is missing of a provider.
enum Missing {
    Service,
    Port,
}

impl Writer {
    /// Reports what a policy names and does not exist: `targetRefs`, and whom a CUSTOM asks.
    pub(super) fn check_targets(
        &mut self,
        kind: ObjectKind,
        name: NamespacedName,
        scope: Option<&PolicyScope>,
    ) {
        let key = ObjectKey { kind, name };
        let namespace = &key.name.namespace;
        let missing = scope.into_iter();
        let mut problems: Vec<_> = missing
            .flat_map(|scope| self.snapshot.missing_targets(namespace, scope))
            .map(|(index, target)| {
                let message =
                    format!("there is no Service {namespace}/{target}: nothing is selected by it");
                self.problem(&key, &format!("spec.targetRefs[{index}].name"), message)
            })
            .collect();
        let asking = match kind {
            ObjectKind::AuthorizationPolicy => self.snapshot.authorization_policies.get(&key.name),
            _ => None,
        };
        let provider = asking.and_then(|policy| self.snapshot.missing_provider(policy));
        problems.extend(provider.map(|(field, what)| {
            let message = format!("{what}: what it would be asked about is refused");
            self.problem(&key, field, message)
        }));
        self.report(Owner::Targets(key), problems);
    }

    /// Notes whom a policy asks, in place of whom it asked.
    pub(super) fn note_provider(&mut self, policy: &NamespacedName, asked: Option<NamespacedName>) {
        let old = self.snapshot.authorization_policies.get(policy);
        let old = old.and_then(|old| old.provider.as_ref());
        if let Some(old) = old.map(|old| old.service.clone())
            && let Entry::Occupied(mut asking) = self.asking.entry(old)
        {
            asking.get_mut().remove(policy);
            if asking.get().is_empty() {
                drop(asking.remove());
            }
        }
        if let Some(asked) = asked {
            self.asking.entry(asked).or_default().insert(policy.clone());
        }
    }

    /// A Service came, went or has other ports.
    pub(super) fn check_asking(&mut self, service: &NamespacedName) {
        for name in self.asking.get(service).cloned().unwrap_or_default() {
            let policy = self.snapshot.authorization_policies.get(&name);
            let scope = policy.map(|policy| policy.scope.clone());
            self.check_targets(ObjectKind::AuthorizationPolicy, name, scope.as_ref());
        }
    }

    pub(super) fn check_targets_of_namespace(&mut self, namespace: &str) {
        let policies = Snapshot::in_namespace(&self.snapshot.authorization_policies, namespace)
            .map(|(name, policy)| (ObjectKind::AuthorizationPolicy, name, &policy.scope));
        let mesh = Snapshot::in_namespace(&self.snapshot.mesh_policies, namespace)
            .map(|(name, policy)| (ObjectKind::MeshPolicy, name, &policy.scope));
        let targeted: Vec<(ObjectKind, NamespacedName, PolicyScope)> = policies
            .chain(mesh)
            .filter(|(_, _, scope)| matches!(scope, PolicyScope::Services(_)))
            .map(|(kind, name, scope)| (kind, name.clone(), scope.clone()))
            .collect();
        for (kind, name, scope) in targeted {
            self.check_targets(kind, name, Some(&scope));
        }
    }
}
