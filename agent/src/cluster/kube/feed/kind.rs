//! What is watched.

use crate::cluster::convert;
use crate::state::ObjectKind;

/// A kind of the API server's.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) object: ObjectKind,
    /// As in its URL.
    pub(super) plural: &'static str,
    /// It comes with a definition that may not be installed.
    pub(super) custom: bool,
    /// Kinds of a later stage are read for the first time after those of the earlier ones,
    /// so that what selects others finds them there and is looked at once.
    pub(super) stage: usize,
}

/// Every kind that the state has a use for. What is not here (nodes, service accounts,
/// routes, traffic policies) would be sent to every node of a cluster for nothing.
pub(super) const KINDS: [Kind; 6] = [
    kind(ObjectKind::Namespace, "namespaces", 0),
    kind(ObjectKind::Pod, "pods", 0),
    kind(ObjectKind::EndpointSlice, "endpointslices", 1),
    kind(ObjectKind::Service, "services", 2),
    custom(ObjectKind::AuthorizationPolicy, "authorizationpolicies"),
    custom(ObjectKind::MeshPolicy, "meshpolicies"),
];

/// How many stages there are.
pub(super) const STAGES: usize = 4;

const fn kind(object: ObjectKind, plural: &'static str, stage: usize) -> Kind {
    Kind {
        object,
        plural,
        custom: false,
        stage,
    }
}

const fn custom(object: ObjectKind, plural: &'static str) -> Kind {
    Kind {
        custom: true,
        ..kind(object, plural, STAGES - 1)
    }
}

impl Kind {
    /// `pods`, `endpointslices.discovery.k8s.io`: as in a rule of RBAC.
    pub(super) fn resource(&self) -> String {
        match self.group() {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// The path of its objects.
    pub(super) fn path(&self) -> String {
        format!("{}/{}", self.group_path(), self.plural)
    }

    /// The path of its group's version.
    pub(super) fn group_path(&self) -> String {
        let version = convert::api_version(self.object);
        match self.group() {
            "" => format!("/api/{version}"),
            _ => format!("/apis/{version}"),
        }
    }

    fn group(&self) -> &'static str {
        let version = convert::api_version(self.object);
        version.split_once('/').map_or("", |(group, _)| group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let paths: Vec<String> = KINDS.iter().map(Kind::path).collect();
        assert_eq!(
            paths,
            [
                "/api/v1/namespaces",
                "/api/v1/pods",
                "/apis/discovery.k8s.io/v1/endpointslices",
                "/api/v1/services",
                "/apis/fairlead.dev/v1alpha1/authorizationpolicies",
                "/apis/fairlead.dev/v1alpha1/meshpolicies",
            ]
        );
        assert_eq!(KINDS[1].resource(), "pods");
        assert_eq!(KINDS[2].resource(), "endpointslices.discovery.k8s.io");
    }

    #[test]
    fn what_is_selected_is_read_before_what_selects_it() {
        let stages: Vec<usize> = KINDS.iter().map(|kind| kind.stage).collect();
        assert!(stages.is_sorted() && stages.last() == Some(&(STAGES - 1)));
        let kinds: Vec<ObjectKind> = KINDS.iter().map(|kind| kind.object).collect();
        assert!(kinds.is_sorted());
    }
}
