//! Strict reading of JSON: whatever is not understood is reported, all of it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use super::{FieldPath, FieldProblem};
use crate::cluster::api::bounds;
use crate::state::{ObjectKind, StringMatch};

/// Fields of Istio's that can't be held here.
const FORWARDING: [&str; 2] = ["remoteIpBlocks", "notRemoteIpBlocks"];

/// Why not: there is no gateway before a pod that could be trusted to write the header.
pub(super) const FORWARDED: &str = "is not supported: X-Forwarded-For says what a client wants \
                                    it to say; source.ip and ipBlocks are the address that \
                                    connects";

/// Collects the problems of one object.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<FieldProblem>,
    /// How many regular expressions it has, so far.
    pub(super) patterns: usize,
}

impl Reader {
    pub(super) fn report(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.problems.push(FieldProblem {
            field: field.clone(),
            message: message.into(),
        });
    }

    /// Reports what the schema of the kind says against the spec of an object, where nothing
    /// is said of the same field yet.
    pub(super) fn hold_bounds(&mut self, kind: ObjectKind, object: &Value) {
        let Some(spec) = object.get("spec") else {
            return;
        };
        let mut found = bounds::violations(kind.as_str(), spec);
        // A list of a megabyte may have as many problems as items.
        let said: HashSet<_> = self.problems.iter().map(|it| &it.field).collect();
        found.retain(|problem| !said.contains(&problem.field));
        self.problems.extend(found);
    }

    /// The fields of a map that are known; any other is reported.
    pub(super) fn fields<'v>(
        &mut self,
        value: &'v Value,
        path: &FieldPath,
        known: &[&str],
    ) -> Vec<(&'v str, &'v Value, FieldPath)> {
        let Value::Object(map) = value else {
            self.report(path, format!("must be a map of {}", known.join(", ")));
            return Vec::new();
        };
        let mut fields = Vec::new();
        for (key, value) in map {
            let path = path.key(key);
            if known.contains(&key.as_str()) {
                fields.push((key.as_str(), value, path));
            } else if FORWARDING.contains(&key.as_str()) {
                self.report(&path, FORWARDED);
            } else {
                let known = known.join(", ");
                self.report(&path, format!("is not known here; known are: {known}"));
            }
        }
        fields
    }

    /// The items of a list with something in it. An empty one is ambiguous: nothing,
    /// or anything?
    pub(super) fn items<'v>(
        &mut self,
        value: &'v Value,
        path: &FieldPath,
    ) -> Vec<(&'v Value, FieldPath)> {
        match value {
            Value::Array(items) if !items.is_empty() => {
                let items = items.iter().enumerate();
                items
                    .map(|(index, item)| (item, path.index(index)))
                    .collect()
            }
            Value::Array(_) | Value::Null => {
                self.report(path, "is empty: leave it out, or say what it is to match");
                Vec::new()
            }
            _ => {
                self.report(path, "must be a list");
                Vec::new()
            }
        }
    }

    /// A list whose items `parse` understands.
    pub(super) fn list<T>(
        &mut self,
        value: &Value,
        path: &FieldPath,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Vec<T> {
        let mut list = Vec::new();
        for (item, path) in self.items(value, path) {
            match parse(item) {
                Ok(item) => list.push(item),
                Err(message) => self.report(&path, message),
            }
        }
        list
    }

    pub(super) fn text<'v>(&mut self, value: &'v Value, path: &FieldPath) -> Option<&'v str> {
        let text = value.as_str().filter(|text| !text.is_empty());
        if text.is_none() {
            self.report(path, "must be a string that is not empty");
        }
        text
    }
}

/// `abc`, `abc*`, `*abc` or `*`.
pub(super) fn string_match(value: &Value) -> Result<StringMatch, String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    let text = text.ok_or("must be a string that is not empty")?;
    pattern(text)
}

/// A principal, with or without `spiffe://`.
pub(super) fn principal(value: &Value) -> Result<StringMatch, String> {
    let text = value.as_str().ok_or("must be a string")?;
    let bare = text.strip_prefix("spiffe://").unwrap_or(text);
    if bare.is_empty() {
        return Err("must be a string that is not empty".to_owned());
    }
    let pattern = pattern(bare)?;
    if let StringMatch::Exact(exact) = &pattern {
        let id = format!("spiffe://{exact}").parse::<crate::model::SpiffeId>();
        id.map_err(|error| format!("can never match: {error}"))?;
    }
    Ok(pattern)
}

/// A service account, of this namespace where it names none: the end of its identity.
pub(super) fn service_account(value: &Value, namespace: &str) -> Result<StringMatch, String> {
    let text = value.as_str().unwrap_or_default();
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    let is_name = |name: &str| {
        let proper = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        !name.is_empty() && name.len() <= 253 && name.bytes().all(proper)
    };
    if is_name(namespace) && is_name(name) {
        Ok(StringMatch::Suffix(format!("/ns/{namespace}/sa/{name}")))
    } else {
        Err(format!(
            "{value} is no service account: NAMESPACE/NAME or NAME, without wildcards"
        ))
    }
}

fn pattern(text: &str) -> Result<StringMatch, String> {
    let literal = |text: &str| {
        if text.contains('*') {
            let message = "a '*' is understood only as the first or the last character, not both";
            return Err(message.to_owned());
        }
        Ok(text.to_owned())
    };
    if text == "*" {
        Ok(StringMatch::Present)
    } else if let Some(prefix) = text.strip_suffix('*') {
        literal(prefix).map(StringMatch::Prefix)
    } else if let Some(suffix) = text.strip_prefix('*') {
        literal(suffix).map(StringMatch::Suffix)
    } else {
        literal(text).map(StringMatch::Exact)
    }
}

/// A port as a number or, as Istio writes it, a string.
pub(super) fn port(value: &Value) -> Result<u16, String> {
    let number = match value {
        // One spelling each: neither "+80" nor "080".
        Value::String(text) if text.starts_with(['+', '0']) => None,
        Value::String(text) => text.parse().ok(),
        _ => value.as_u64().and_then(|number| u16::try_from(number).ok()),
    };
    let port = number.filter(|port: &u16| *port > 0);
    port.ok_or_else(|| format!("{value} is not a port: 1 to 65535"))
}

/// The name of a header, in lower case.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, String> {
    match http::HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => Err(format!("{text:?} is no name of a header")),
    }
}

/// A span of time as Kubernetes and the Gateway API write it, such as `1m30s` or `500ms`.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    let text = value.as_str().unwrap_or_default();
    let proper = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b"hms".contains(&b));
    let duration = humantime::parse_duration(text).ok().filter(|_| proper);
    duration.ok_or_else(|| format!("{value} is no span of time such as 1m30s or 500ms"))
}

/// A CIDR block or a single address.
pub(super) fn block(value: &Value) -> Result<IpNet, String> {
    let block = value.as_str().and_then(ip_block);
    block.ok_or_else(|| format!("{value} is neither an IP address nor a CIDR block"))
}

/// A block of IPv4 addresses in their IPv6 form becomes one of IPv4, as the
/// addresses do that it is compared with.
pub(super) fn ip_block(text: &str) -> Option<IpNet> {
    let block: IpNet = match text.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => text.parse().ok()?,
    };
    let mapped = match block {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped(),
        IpNet::V4(_) | IpNet::V6(_) => None,
    };
    match mapped {
        Some(v4) => Ipv4Net::new(v4, block.prefix_len() - 96)
            .ok()
            .map(IpNet::V4),
        None => Some(block),
    }
    .map(|block| block.trunc())
}
