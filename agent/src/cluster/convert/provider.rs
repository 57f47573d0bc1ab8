//! Whom a policy with CUSTOM asks.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::FieldPath;
use super::reader::{self, Reader};
use crate::model::NamespacedName;
use crate::state::{ExternalProvider, IncludedBody};

/// How long a provider may take to answer where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Every request would wait for it.
const LARGEST_TIMEOUT: Duration = Duration::from_mins(1);

/// Bodies are kept in memory until the provider has answered.
const LARGEST_BODY: u32 = 1 << 20;

/// Reads `spec.provider`.
pub(super) fn read(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Option<Arc<ExternalProvider>> {
    let known = [
        "service",
        "namespace",
        "port",
        "timeout",
        "failOpen",
        "includeRequestBody",
        "headers",
    ];
    let before = reader.problems.len();
    let (mut service, mut port) = (None, None);
    let mut namespace = namespace;
    let mut timeout = TIMEOUT;
    let mut fail_open = false;
    let mut body = None;
    let mut headers = Vec::new();
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "service" => service = reader.text(value, &path),
            "namespace" => namespace = reader.text(value, &path).unwrap_or(namespace),
            "port" => match reader::port(value) {
                Ok(number) => port = Some(number),
                Err(message) => reader.report(&path, message),
            },
            "timeout" => match reader::duration(value) {
                Ok(given) if !given.is_zero() && given <= LARGEST_TIMEOUT => timeout = given,
                Ok(_) => reader.report(&path, "must be more than nothing and at most 1m"),
                Err(message) => reader.report(&path, message),
            },
            "failOpen" => match value.as_bool() {
                Some(given) => fail_open = given,
                None => reader.report(&path, format!("{value} is neither true nor false")),
            },
            "includeRequestBody" => body = read_body(reader, value, &path),
            _ => headers = reader.list(value, &path, header),
        }
    }
    for missing in ["service", "port"] {
        if value.get(missing).is_none() && value.is_object() {
            reader.report(&path.key(missing), "is missing");
        }
    }
    let (service, port) = service.zip(port)?;
    (reader.problems.len() == before).then(|| {
        Arc::new(ExternalProvider {
            service: NamespacedName::new(namespace, service),
            port,
            timeout,
            fail_open,
            body,
            headers,
        })
    })
}

fn read_body(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<IncludedBody> {
    let mut max_bytes = None;
    let mut allow_partial = false;
    for (key, value, path) in reader.fields(value, path, &["maxBytes", "allowPartial"]) {
        match key {
            "maxBytes" => {
                let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
                max_bytes = number.filter(|number| (1..=LARGEST_BODY).contains(number));
                if max_bytes.is_none() {
                    reader.report(
                        &path,
                        format!("{value} is not between 1 and {LARGEST_BODY}"),
                    );
                }
            }
            _ => match value.as_bool() {
                Some(given) => allow_partial = given,
                None => reader.report(&path, format!("{value} is neither true nor false")),
            },
        }
    }
    if value.get("maxBytes").is_none() && value.is_object() {
        reader.report(&path.key("maxBytes"), "is missing");
    }
    Some(IncludedBody {
        max_bytes: max_bytes?,
        allow_partial,
    })
}

fn header(value: &Value) -> Result<Arc<str>, String> {
    let text = value.as_str().ok_or("must be a string")?;
    reader::header_name(text)
}
