//! Policies whose targets don't exist.

use std::sync::Arc;

use super::change::{ObjectKey, ObjectKind};
use super::objects::PolicyScope;
use super::problems::Owner;
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

impl Writer {
    /// Reports `targetRefs` to Services that don't exist.
    pub(super) fn check_targets(
        &mut self,
        kind: ObjectKind,
        name: NamespacedName,
        scope: Option<&PolicyScope>,
    ) {
        let key = ObjectKey { kind, name };
        let targets: &[Arc<str>] = match scope {
            Some(PolicyScope::Services(services)) => services,
            Some(PolicyScope::Mesh | PolicyScope::Pods(_)) | None => &[],
        };
        let namespace = &key.name.namespace;
        let missing = targets.iter().enumerate().filter(|(_, target)| {
            let service = NamespacedName::new(Arc::clone(namespace), Arc::clone(target));
            !self.snapshot.services.contains_key(&service)
        });
        let problems = missing
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
