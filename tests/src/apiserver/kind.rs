//! Which kinds there are: a table of those that are built in, and what definitions add.

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;

/// A kind of objects, as it is served.
#[expect(
    clippy::struct_field_names,
    reason = "the API calls the name of a kind its kind"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Empty for the core group.
    pub(super) group: Arc<str>,
    pub(super) version: Arc<str>,
    /// As in paths.
    pub(super) plural: Arc<str>,
    pub(super) kind: Arc<str>,
    pub(super) namespaced: bool,
    /// It has a `status` that is written apart from the rest.
    pub(super) status: bool,
    /// Comes from a `CustomResourceDefinition`.
    pub(super) custom: bool,
}

/// What identifies a kind in paths and rules: group and plural.
pub(super) type Resource = (Arc<str>, Arc<str>);

const NAMESPACED: bool = true;
const CLUSTER: bool = false;
const STATUS: bool = true;
const PLAIN: bool = false;

/// Group, version, plural, kind, whether it is namespaced, whether it has a status.
const BUILT_IN: &[(&str, &str, &str, &str, bool, bool)] = &[
    ("", "v1", "configmaps", "ConfigMap", NAMESPACED, PLAIN),
    ("", "v1", "endpoints", "Endpoints", NAMESPACED, PLAIN),
    ("", "v1", "events", "Event", NAMESPACED, PLAIN),
    ("", "v1", "namespaces", "Namespace", CLUSTER, STATUS),
    ("", "v1", "nodes", "Node", CLUSTER, STATUS),
    ("", "v1", "pods", "Pod", NAMESPACED, STATUS),
    ("", "v1", "secrets", "Secret", NAMESPACED, PLAIN),
    (
        "",
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        NAMESPACED,
        PLAIN,
    ),
    ("", "v1", "services", "Service", NAMESPACED, STATUS),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        CLUSTER,
        PLAIN,
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        CLUSTER,
        STATUS,
    ),
    ("apps", "v1", "daemonsets", "DaemonSet", NAMESPACED, STATUS),
    (
        "apps",
        "v1",
        "deployments",
        "Deployment",
        NAMESPACED,
        STATUS,
    ),
    (
        "coordination.k8s.io",
        "v1",
        "leases",
        "Lease",
        NAMESPACED,
        PLAIN,
    ),
    (
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        NAMESPACED,
        PLAIN,
    ),
    ("events.k8s.io", "v1", "events", "Event", NAMESPACED, PLAIN),
    (
        "networking.k8s.io",
        "v1",
        "networkpolicies",
        "NetworkPolicy",
        NAMESPACED,
        PLAIN,
    ),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        NAMESPACED,
        STATUS,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        CLUSTER,
        PLAIN,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterroles",
        "ClusterRole",
        CLUSTER,
        PLAIN,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        "RoleBinding",
        NAMESPACED,
        PLAIN,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "roles",
        "Role",
        NAMESPACED,
        PLAIN,
    ),
    (
        "scheduling.k8s.io",
        "v1",
        "priorityclasses",
        "PriorityClass",
        CLUSTER,
        PLAIN,
    ),
];

impl Kind {
    /// All that need no definition.
    pub(super) fn built_in() -> impl Iterator<Item = Self> {
        BUILT_IN
            .iter()
            .map(|&(group, version, plural, kind, namespaced, status)| Self {
                group: group.into(),
                version: version.into(),
                plural: plural.into(),
                kind: kind.into(),
                namespaced,
                status,
                custom: false,
            })
    }

    /// The kind that a `CustomResourceDefinition` defines, in its stored version.
    pub(super) fn defined_by(definition: &Value) -> Result<Self, Failure> {
        let spec = &definition["spec"];
        let versions = spec["versions"].as_array().map_or(&[][..], Vec::as_slice);
        let stored = versions.iter().find(|version| version["storage"] == true);
        let stored = stored.ok_or_else(|| {
            Failure::invalid("spec.versions: must have exactly one version marked as storage")
        })?;
        let text = |value: &Value, field: &str| match value.as_str() {
            Some(text) if !text.is_empty() => Ok(Arc::from(text)),
            _ => Err(Failure::invalid(&format!("{field}: Required value"))),
        };
        Ok(Self {
            group: text(&spec["group"], "spec.group")?,
            version: text(&stored["name"], "spec.versions[0].name")?,
            plural: text(&spec["names"]["plural"], "spec.names.plural")?,
            kind: text(&spec["names"]["kind"], "spec.names.kind")?,
            namespaced: spec["scope"] == "Namespaced",
            status: stored["subresources"]["status"].is_object(),
            custom: true,
        })
    }

    pub(super) fn resource(&self) -> Resource {
        (Arc::clone(&self.group), Arc::clone(&self.plural))
    }

    /// `group/version`, or the version alone for the core group.
    pub(super) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `plural.group`, as messages of the API server name it.
    pub(super) fn qualified(&self) -> String {
        qualified(&self.group, &self.plural)
    }

    /// As discovery lists it.
    pub(super) fn discovered(&self) -> Vec<Value> {
        let verbs = [
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ];
        let entry = |name: String, verbs: &[&str]| {
            json!({
                "name": name, "singularName": self.kind.to_lowercase(),
                "namespaced": self.namespaced, "kind": *self.kind, "verbs": verbs,
            })
        };
        let mut entries = vec![entry(self.plural.to_string(), &verbs)];
        if self.status {
            let name = format!("{}/status", self.plural);
            entries.push(entry(name, &["get", "patch", "update"]));
        }
        entries
    }
}

/// `plural.group`.
pub(super) fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}
