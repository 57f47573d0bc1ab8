//! What is watched.

use std::time::Duration;

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
    /// Whether it has been installed is looked at so often, on average.
    pub(super) looked_for: Duration,
    /// A server that is ready is asked for so long before it is believed that there is no
    /// such kind, where nothing of it is in force.
    pub(super) doubted: Duration,
    /// Kinds of a later stage are read for the first time after those of the earlier ones,
    /// so that what selects others finds them there and is looked at once.
    pub(super) stage: usize,
}

/// Every kind that the state has a use for. What is not here (nodes, service accounts)
/// would be sent to every node of a cluster for nothing.
pub(super) const KINDS: [Kind; 12] = [
    kind(ObjectKind::Namespace, "namespaces", 0),
    kind(ObjectKind::Pod, "pods", 0),
    kind(ObjectKind::EndpointSlice, "endpointslices", 1),
    kind(ObjectKind::Service, "services", 2),
    gateway(ObjectKind::ReferenceGrant, "referencegrants"),
    gateway(ObjectKind::GrpcRoute, "grpcroutes"),
    gateway(ObjectKind::HttpRoute, "httproutes"),
    gateway(ObjectKind::TlsRoute, "tlsroutes"),
    gateway(ObjectKind::TcpRoute, "tcproutes"),
    custom(ObjectKind::AuthorizationPolicy, "authorizationpolicies"),
    custom(ObjectKind::MeshPolicy, "meshpolicies"),
    custom(ObjectKind::TrafficPolicy, "trafficpolicies"),
];

/// How often kinds that are not installed are looked for: ours, without which a mesh has no
/// policies, and those of others.
const OURS: Duration = Duration::from_secs(15);
const OTHERS: Duration = Duration::from_mins(1);
/// A server whose definitions are just being replaced lacks ours for a moment, and for a
/// moment without policies everything would be permitted. Without routes requests go where
/// the Services say; for that no start has to wait.
const DOUBTED: Duration = Duration::from_secs(2);

/// How many stages there are.
pub(super) const STAGES: usize = 4;

const fn kind(object: ObjectKind, plural: &'static str, stage: usize) -> Kind {
    Kind {
        object,
        plural,
        custom: false,
        looked_for: OURS,
        doubted: DOUBTED,
        stage,
    }
}

const fn custom(object: ObjectKind, plural: &'static str) -> Kind {
    Kind {
        custom: true,
        ..kind(object, plural, STAGES - 1)
    }
}

/// A kind of the Gateway API, which many clusters do without.
const fn gateway(object: ObjectKind, plural: &'static str) -> Kind {
    Kind {
        looked_for: OTHERS,
        doubted: Duration::ZERO,
        ..custom(object, plural)
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

    /// The versions in which it is read, the preferred one first.
    pub(super) fn versions(&self) -> &'static [&'static str] {
        convert::api_versions(self.object)
    }

    /// The path of its objects in a version.
    pub(super) fn path(&self, version: &str) -> String {
        format!("{}/{}", self.group_path(version), self.plural)
    }

    /// The path of a version of its group.
    pub(super) fn group_path(&self, version: &str) -> String {
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
        let paths = KINDS.iter().map(|kind| kind.path(kind.versions()[0]));
        let paths: Vec<String> = paths.collect();
        assert_eq!(
            paths,
            [
                "/api/v1/namespaces",
                "/api/v1/pods",
                "/apis/discovery.k8s.io/v1/endpointslices",
                "/api/v1/services",
                "/apis/gateway.networking.k8s.io/v1/referencegrants",
                "/apis/gateway.networking.k8s.io/v1/grpcroutes",
                "/apis/gateway.networking.k8s.io/v1/httproutes",
                "/apis/gateway.networking.k8s.io/v1/tlsroutes",
                "/apis/gateway.networking.k8s.io/v1/tcproutes",
                "/apis/fairlead.dev/v1alpha1/authorizationpolicies",
                "/apis/fairlead.dev/v1alpha1/meshpolicies",
                "/apis/fairlead.dev/v1alpha1/trafficpolicies",
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
