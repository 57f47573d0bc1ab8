//! What is said of a policy in its status.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the mesh makes of a policy. Written by one agent for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// What it does, in a word or two: such as DENY, or STRICT.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub effect: String,
    /// What it selects, in a word or two.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// `Accepted`: it is understood and in force as written. `ResolvedRefs`: every Service of
    /// `targetRefs` exists; not there for a policy without any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"]
    ))]
    pub conditions: Vec<Condition>,
}

/// One statement about a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is stated: `Accepted` or `ResolvedRefs`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, for programs: one word.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, for people: names the field and says what to do.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// The metadata.generation of the policy that this is said of.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::generation")]
    pub observed_generation: i64,
    /// When `status` last changed.
    #[schemars(schema_with = "super::schema::time")]
    pub last_transition_time: Timestamp,
}

/// Whether a statement holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}
