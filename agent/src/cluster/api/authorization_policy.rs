//! `AuthorizationPolicy`: who may reach whom.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::selection::{Selector, TargetRef};
use super::status::PolicyStatus;

/// Who may reach the workloads that it selects. DENY goes before ALLOW; an ALLOW that
/// selects a workload makes it refuse whatever no ALLOW permits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    shortname = "fap",
    category = "fairlead",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Who may reach the workloads that it selects. DENY goes before ALLOW; an ALLOW that \
           selects a workload makes it refuse whatever no ALLOW permits. A policy that is not \
           understood in full denies everything that it selects, and its condition Accepted \
           says why."
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_SELECTION.rule()))]
pub struct AuthorizationPolicySpec {
    /// The pods of this namespace that it holds for, by their labels. Without it and
    /// without targetRefs all of them; in the namespace fairlead-system those of the
    /// whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// The Services of this namespace whose pods it holds for, in place of a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// What it does where a rule matches: ALLOW (where nothing is given) permits, DENY
    /// refuses before any ALLOW is looked at, AUDIT only leaves a mark in the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Action")]
    pub action: Option<Action>,
    /// It is counted and reported in the flows, and never enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// It matches where any of these does. With none an ALLOW permits nothing and a DENY
    /// refuses nothing; a rule with nothing in it matches everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<Vec<Rule>>,
}

/// What a policy does where it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Permits.
    Allow,
    /// Refuses.
    Deny,
    /// Leaves a mark in the flow.
    Audit,
}

/// Matches where any of `from` and any of `to` does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Who connects; anyone where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub from: Option<Vec<Origin>>,
    /// What they connect to; anything where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub to: Option<Vec<Destination>>,
}

/// One description of who connects.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Origin {
    /// Every field of it must match.
    pub source: Source,
}

/// Who connects. Each field that is given must match; within a field any of its values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct Source {
    /// Identities, proved by mTLS: TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, with or
    /// without spiffe:// before it. A * as the first or the last character stands for
    /// anything; alone it is any identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::principals")]
    pub principals: Option<Vec<String>>,
    /// None of these identities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::principals")]
    pub not_principals: Option<Vec<String>>,
    /// Namespaces of the client's identity. A * as the first or the last character stands
    /// for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub namespaces: Option<Vec<String>>,
    /// None of these namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub not_namespaces: Option<Vec<String>>,
    /// Addresses of the client: single ones, or blocks such as `10.0.0.0/8` or
    /// `fd00::/8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::blocks")]
    pub ip_blocks: Option<Vec<String>>,
    /// None of these addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::blocks")]
    pub not_ip_blocks: Option<Vec<String>>,
}

/// One description of what is connected to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Destination {
    /// Every field of it must match.
    pub operation: Operation,
}

/// What is connected to. Each field that is given must match; within a field any of its
/// values.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("minProperties" = 1))]
pub struct Operation {
    /// Ports that the application listens on, 1 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub ports: Option<Vec<serde_json::Value>>,
    /// None of these ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ports")]
    pub not_ports: Option<Vec<serde_json::Value>>,
}
