//! Services that decide on requests (action CUSTOM).

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::NamespacedName;

/// A Service that speaks Envoy's `envoy.service.auth.v3.Authorization`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalProvider {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// Requests are permitted where it does not answer.
    pub fail_open: bool,
    /// The beginning of the body that it is shown.
    pub body: Option<IncludedBody>,
    /// The headers that it is shown, in lower case; none: all.
    pub headers: Vec<Arc<str>>,
}

/// How much of a body an [`ExternalProvider`] is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IncludedBody {
    /// The most that is shown, in bytes.
    pub max_bytes: u32,
    /// Of a larger one its beginning is shown; else the request is refused.
    pub allow_partial: bool,
}
