//! Policies whose targets don't exist.

use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::objects::PolicyScope;
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
}

impl Writer {
    /// Reports `targetRefs` to Services that don't exist.
    pub(super) fn check_targets(
        &mut self,
        kind: ObjectKind,
        name: NamespacedName,
        scope: Option<&PolicyScope>,
    ) {
        let key = ObjectKey { kind, name };
        let namespace = &key.name.namespace;
        let missing = scope.into_iter();
        let problems = missing
            .flat_map(|scope| self.snapshot.missing_targets(namespace, scope))
            .map(|(index, target)| {
                let message =
                    format!("there is no Service {namespace}/{target}: nothing is selected by it");
                self.problem(&key, &format!("spec.targetRefs[{index}].name"), message)
            })
            .collect();
        self.report(Owner::Targets(key), problems);
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
