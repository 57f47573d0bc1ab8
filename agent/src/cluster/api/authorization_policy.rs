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
#[schemars(extend(
    "x-kubernetes-validations" = schema::rules(&[&schema::ONE_SELECTION, &schema::CUSTOM_ASKS])
))]
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
    /// refuses before any ALLOW is looked at, AUDIT only leaves a mark in the flow, CUSTOM
    /// asks the provider about requests that the others permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Action")]
    pub action: Option<Action>,
    /// Whom a CUSTOM asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// It is counted and reported in the flows, and never enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// It matches where any of these does. With none an ALLOW permits nothing and a DENY
    /// refuses nothing; a rule with nothing in it matches everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    // This and the length of `when` bound what the rules in CEL may cost.
    #[schemars(length(max = 1024))]
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
    /// Asks a Service.
    Custom,
}

/// A Service that speaks Envoy's external authorization by gRPC (`envoy.service.auth.v3`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Provider {
    /// The name of the Service.
    #[schemars(length(min = 1))]
    pub service: String,
    /// Its namespace; that of the policy where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub namespace: Option<String>,
    /// Its port.
    #[schemars(range(min = 1, max = 65_535))]
    pub port: u16,
    /// How long it may take to answer, such as 200ms; 1s where it is left out, at most 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub timeout: Option<String>,
    /// Requests are permitted where it does not answer; else they are refused with 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_open: Option<bool>,
    /// It is shown the body too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_request_body: Option<RequestBody>,
    /// The headers that it is shown; all where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::header_names")]
    pub headers: Option<Vec<String>>,
}

/// How much of a body is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestBody {
    /// The most that is shown, in bytes.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub max_bytes: u32,
    /// Of a larger body its beginning is shown; else such a request is refused with 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_partial: Option<bool>,
}

/// Matches where any of `from`, any of `to` and all of `when` do.
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
    /// Further conditions, all of which must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub when: Option<Vec<Condition>>,
}

/// A condition on one property of a request or connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::SOME_VALUES.rule()))]
pub struct Condition {
    /// The property: `request.headers[NAME]`, `request.auth.claims[NAME]` (of a claim
    /// within another one `[OUTER][INNER]`), request.auth.principal,
    /// request.auth.audiences, request.auth.presenter, source.ip, source.namespace,
    /// source.principal, source.serviceAccount or destination.port.
    #[schemars(schema_with = "schema::condition_key")]
    pub key: String,
    /// Any of these values. A * as the first or the last character stands for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub values: Option<Vec<String>>,
    /// None of these values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub not_values: Option<Vec<String>>,
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
    /// Service accounts of the client's identity: NAMESPACE/NAME, or NAME in the namespace of
    /// the policy. Without wildcards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::service_accounts")]
    pub service_accounts: Option<Vec<String>>,
    /// None of these service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::service_accounts")]
    pub not_service_accounts: Option<Vec<String>>,
    /// Addresses of the client: single ones, or blocks such as `10.0.0.0/8` or
    /// `fd00::/8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::blocks")]
    pub ip_blocks: Option<Vec<String>>,
    /// None of these addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::blocks")]
    pub not_ip_blocks: Option<Vec<String>>,
    /// End users, proved by a token of an issuer that a MeshPolicy names: ISSUER/SUBJECT.
    /// A * as the first or the last character stands for anything; alone it is anyone with
    /// a valid token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub request_principals: Option<Vec<String>>,
    /// None of these end users. A DENY matches requests without a token too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::names")]
    pub not_request_principals: Option<Vec<String>>,
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
    /// Methods of HTTP, such as GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub methods: Option<Vec<String>>,
    /// None of these methods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::methods")]
    pub not_methods: Option<Vec<String>>,
    /// Paths, of gRPC /package.Service/Method: /exact, /prefix*, *suffix, * for any, or with
    /// `{*}` for one segment and `{**}` for any number of them. They are compared in the
    /// normal form that docs/policies.md describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::paths")]
    pub paths: Option<Vec<String>>,
    /// None of these paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::paths")]
    pub not_paths: Option<Vec<String>>,
    /// Hosts that the request is for, in any case, with or without the port. A * as the
    /// first or the last character stands for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::hosts")]
    pub hosts: Option<Vec<String>>,
    /// None of these hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::hosts")]
    pub not_hosts: Option<Vec<String>>,
}
