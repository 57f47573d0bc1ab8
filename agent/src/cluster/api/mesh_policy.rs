//! `MeshPolicy`: how workloads take part in the mesh.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::selection::{Selector, TargetRef};
use super::status::PolicyStatus;
use super::traffic_schema;

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
           policy that is not understood in full makes STRICT what it selects, or denies \
           everything where it is about tokens, and its condition Accepted says why."
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
    /// Tokens of end users. The providers of all policies that select a workload count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<Jwt>,
    /// What the agents write of requests and connections of these workloads, in either
    /// direction, as lines of JSON. Of several policies the narrowest that has this field
    /// counts, and of those of one width each. Where none has it, nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<AccessLog>,
}

/// What is written to the access log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "x-kubernetes-validations" = schema::rules(&[&schema::STATUS_OF_ERRORS, &schema::PART_OF_SOME])
))]
pub struct AccessLog {
    /// ALL, where it is left out; ERRORS: answers from minStatus on, statuses of gRPC that are
    /// not OK, requests that got no answer, whatever was refused or broke off; or NONE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "AccessLogMode")]
    pub mode: Option<AccessLogMode>,
    /// From which status on an answer is an error, with ERRORS. 400 to 599, 400 where it is
    /// left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 400, max = 599))]
    pub min_status: Option<u16>,
    /// How many of them, in percent, such as 0.1. All where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "traffic_schema::percent")]
    pub percent: Option<f64>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum AccessLogMode {
    /// Each request and connection.
    All,
    /// Those that went wrong.
    Errors,
    /// Nothing.
    None,
}

/// Tokens of end users. A request with a bad token is refused; one without a token goes
/// on, unless an AuthorizationPolicy asks for one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Jwt {
    /// Who issues tokens.
    #[schemars(length(min = 1, max = 64))]
    pub providers: Vec<JwtProvider>,
}

/// Who issues tokens, and where requests carry them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::ONE_KEY_SET.rule()))]
pub struct JwtProvider {
    /// What its tokens have as `iss`.
    #[schemars(length(min = 1))]
    pub issuer: String,
    /// Any of these must be in `aud`; any audience will do where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::texts")]
    pub audiences: Option<Vec<String>>,
    /// Its keys as a JSON Web Key Set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub jwks: Option<String>,
    /// Where its JSON Web Key Set is, over http or https. Each agent fetches it, keeps it
    /// through outages, and fetches it again every 5 minutes and when a token names a key
    /// that it does not know. No token is valid before it was fetched once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^https?://[^@#]+$"))]
    pub jwks_uri: Option<String>,
    /// Headers that carry tokens. Where none of the three is given: `Authorization: Bearer`
    /// and the query parameter `access_token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub from_headers: Option<Vec<TokenHeader>>,
    /// Query parameters that carry tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::texts")]
    pub from_params: Option<Vec<String>>,
    /// Cookies that carry tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::header_names")]
    pub from_cookies: Option<Vec<String>>,
    /// The application gets the token too; else it is taken out of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_original_token: Option<bool>,
    /// Claims that the application gets as headers. Clients can't set these headers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub output_claim_to_headers: Option<Vec<ClaimHeader>>,
    /// How far the issuer's clock may be off; 1m where it is left out, at most 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub clock_skew: Option<String>,
}

/// A header that carries a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenHeader {
    /// Its name.
    #[schemars(schema_with = "schema::header_name")]
    pub name: String,
    /// What stands before the token, such as "Bearer ".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub prefix: Option<String>,
}

/// A claim that becomes a header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClaimHeader {
    /// The name of the header.
    #[schemars(schema_with = "schema::header_name")]
    pub header: String,
    /// The claim; with dots for one within another.
    #[schemars(length(min = 1))]
    pub claim: String,
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
