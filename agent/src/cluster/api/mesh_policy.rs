//! `MeshPolicy`: how workloads take part in the mesh.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::selection::{Selector, TargetRef};
use super::status::PolicyStatus;

/// How the workloads that it selects take part in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    namespaced,
    shortname = "fmp",
    category = "fairlead",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "How the workloads that it selects take part in the mesh. Of several that select a \
           workload the narrowest counts: by pods or Services, by namespace, for the mesh. A \
           policy that is not understood in full makes STRICT what it selects, and its condition \
           Accepted says why."
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_SELECTION.rule()))]
pub struct MeshPolicySpec {
    /// The pods of this namespace that it holds for, by their labels. Without it and
    /// without targetRefs all of them; in the namespace fairlead-system those of the
    /// whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The Services of this namespace whose pods it holds for, in place of a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// Whether plaintext is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<Mtls>,
}

/// Whether plaintext is taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Mtls {
    /// STRICT takes mTLS only, PERMISSIVE plaintext too. Where it is left out, the next
    /// wider policy decides; where none does, it is PERMISSIVE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "MtlsMode")]
    pub mode: Option<MtlsMode>,
    /// The same for single ports that the application listens on, before `mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "x-kubernetes-validations" = schema::PORT_KEYS.rule(),
        // There are no more ports: this bounds what the rule may cost.
        "maxProperties" = 65_535
    ))]
    pub ports: Option<BTreeMap<String, PortMtls>>,
}

/// Whether plaintext is taken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortMtls {
    /// STRICT takes mTLS only, PERMISSIVE plaintext too.
    pub mode: MtlsMode,
}

/// Whether plaintext is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Plaintext and mTLS.
    Permissive,
    /// mTLS only.
    Strict,
}
