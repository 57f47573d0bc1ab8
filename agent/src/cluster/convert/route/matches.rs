//! What requests a rule is for.

use std::sync::Arc;

use http::{HeaderName, Method};
use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::Reader;
use super::{fields, is_missing, list};
use crate::state::{
    HeaderMatch, PathMatch, Pattern, QueryMatch, RequestMatch, RouteKind, ValueMatch,
};

/// The longest path or regular expression of one, and value of a header.
const LONGEST_PATH: usize = 1024;
const LONGEST_VALUE: usize = 4096;
/// Regular expressions of one route: each takes memory of every agent.
const MOST_PATTERNS: usize = 64;

/// What a rule without matches is for.
pub(super) fn any(kind: RouteKind) -> RequestMatch {
    RequestMatch {
        path: any_path(kind),
        method: None,
        headers: Vec::new(),
        query: Vec::new(),
    }
}

fn any_path(kind: RouteKind) -> PathMatch {
    match kind {
        RouteKind::Grpc => PathMatch::Grpc {
            service: None,
            method: None,
        },
        RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => PathMatch::Prefix("".into()),
    }
}

/// Reads a match. Of one with problems nothing may be used.
pub(super) fn read(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    kind: RouteKind,
) -> RequestMatch {
    let mut one = any(kind);
    let known: &[&str] = match kind {
        RouteKind::Http => &["path", "headers", "queryParams", "method"],
        RouteKind::Grpc => &["method", "headers"],
        RouteKind::Tls | RouteKind::Tcp => &[],
    };
    for (key, value, path) in fields(reader, value, path, known) {
        match (key, kind) {
            ("path", _) => one.path = read_path(reader, value, &path),
            ("method", RouteKind::Grpc) => one.path = read_call(reader, value, &path),
            ("method", _) => one.method = read_method(reader, value, &path),
            ("headers", _) => one.headers = read_headers(reader, value, &path),
            _ => one.query = read_query(reader, value, &path),
        }
    }
    one
}

fn read_path(reader: &mut Reader, value: &Value, path: &FieldPath) -> PathMatch {
    let (mut kind, mut text) = ("PathPrefix", "/");
    for (key, value, path) in fields(reader, value, path, &["type", "value"]) {
        let given = reader.text(value, &path).unwrap_or_default();
        match key {
            "type" => kind = given,
            _ => text = given,
        }
    }
    let field = path.key("value");
    if text.len() > LONGEST_PATH {
        reader.report(&field, format!("is longer than {LONGEST_PATH} bytes"));
        return any_path(RouteKind::Http);
    }
    match kind {
        "Exact" | "PathPrefix" => {
            if let Some(message) = flaw_of_path(text) {
                reader.report(&field, message);
            }
        }
        "RegularExpression" => {
            if let Some(pattern) = read_pattern(reader, text, &field) {
                return PathMatch::Regex(pattern);
            }
        }
        _ => {
            let message = format!("\"{kind}\" is not Exact, PathPrefix or RegularExpression");
            reader.report(&path.key("type"), message);
        }
    }
    match kind {
        "Exact" => PathMatch::Exact(text.into()),
        _ => PathMatch::Prefix(text.strip_suffix('/').unwrap_or(text).into()),
    }
}

/// Why no request has such a path, or why it isn't clear which.
fn flaw_of_path(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        return Some("must begin with '/'");
    }
    if path.contains("//") {
        return Some("must not have an empty segment");
    }
    let mut segments = path.split('/');
    if segments.any(|segment| matches!(segment, "." | "..")) {
        return Some("must not have a segment '.' or '..'");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&byte);
    if !path.bytes().all(allowed) {
        return Some("has characters that a path can't have as they are: use %XX");
    }
    let mut escapes = path.split('%').skip(1).map(|after| after.get(..2));
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if escapes.any(|digits| !digits.is_some_and(hex)) {
        return Some("has a '%' without two hexadecimal digits");
    }
    if path.to_ascii_lowercase().contains("%2f") {
        return Some("must not have an encoded '/'");
    }
    None
}

fn read_method(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Method> {
    const METHODS: [Method; 9] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    let mut methods = METHODS.into_iter();
    let found = methods.find(|method| value.as_str() == Some(method.as_str()));
    if found.is_none() {
        reader.report(path, format!("{value} is not a method, such as GET"));
    }
    found
}

/// Service and method of gRPC.
fn read_call(reader: &mut Reader, value: &Value, path: &FieldPath) -> PathMatch {
    let mut exact = true;
    let (mut service, mut method) = (None, None);
    for (key, value, path) in fields(reader, value, path, &["type", "service", "method"]) {
        if value.as_str() == Some("") {
            continue;
        }
        let Some(text) = reader.text(value, &path) else {
            continue;
        };
        match (key, text) {
            ("service", text) => service = Some(text),
            ("method", text) => method = Some(text),
            (_, "Exact") => exact = true,
            (_, "RegularExpression") => exact = false,
            (_, text) => {
                let message = format!("\"{text}\" is not Exact or RegularExpression");
                reader.report(&path, message);
            }
        }
    }
    if service.is_none() && method.is_none() {
        reader.report(path, "one of service and method must be given");
    }
    let mut read = |key: &str, text: Option<&str>, dots: bool| {
        let path = path.key(key);
        let text = text?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (dots && b == b'.');
        if exact && !text.bytes().all(allowed) {
            reader.report(&path, format!("\"{text}\" can't be the {key} of a call"));
        }
        read_value(reader, text, &path, exact)
    };
    PathMatch::Grpc {
        service: read("service", service, true),
        method: read("method", method, false),
    }
}

fn read_headers(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<HeaderMatch> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    for (value, path) in list(reader, Some(value), path) {
        let Some((name, value)) = read_pair(reader, value, &path) else {
            continue;
        };
        match HeaderName::from_bytes(name.as_bytes()) {
            // Only the first of a name counts, says the specification.
            Ok(name) if headers.iter().any(|other| other.name == name) => {}
            Ok(name) => headers.push(HeaderMatch { name, value }),
            Err(_invalid) => reader.report(&path.key("name"), not_a_header(name)),
        }
    }
    headers
}

/// For a name that no header can have.
pub(super) fn not_a_header(name: &str) -> String {
    format!("\"{name}\" can't be the name of a header")
}

fn read_query(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<QueryMatch> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for (value, path) in list(reader, Some(value), path) {
        let Some((name, value)) = read_pair(reader, value, &path) else {
            continue;
        };
        if !query.iter().any(|other| *other.name == *name) {
            let name = Arc::from(name);
            query.push(QueryMatch { name, value });
        }
    }
    query
}

/// The name of a header or parameter, and what its value must be.
fn read_pair<'v>(
    reader: &mut Reader,
    value: &'v Value,
    path: &FieldPath,
) -> Option<(&'v str, ValueMatch)> {
    let mut exact = true;
    let (mut name, mut wanted) = (None, None);
    for (key, value, path) in fields(reader, value, path, &["type", "name", "value"]) {
        let text = reader.text(value, &path);
        match (key, text) {
            ("name", text) => name = text,
            ("value", text) => wanted = text,
            (_, Some("Exact")) => exact = true,
            (_, Some("RegularExpression")) => exact = false,
            _ => reader.report(&path, format!("{value} is not Exact or RegularExpression")),
        }
    }
    for (key, given) in [("name", name), ("value", wanted)] {
        if given.is_none() && is_missing(value, key) {
            reader.report(&path.key(key), "is missing");
        }
    }
    let wanted = read_value(reader, wanted?, &path.key("value"), exact)?;
    Some((name?, wanted))
}

fn read_value(
    reader: &mut Reader,
    text: &str,
    path: &FieldPath,
    exact: bool,
) -> Option<ValueMatch> {
    if text.len() > LONGEST_VALUE {
        reader.report(path, format!("is longer than {LONGEST_VALUE} bytes"));
        return None;
    }
    if exact {
        return Some(ValueMatch::Exact(text.into()));
    }
    read_pattern(reader, text, path).map(ValueMatch::Regex)
}

fn read_pattern(reader: &mut Reader, text: &str, path: &FieldPath) -> Option<Pattern> {
    if reader.patterns == MOST_PATTERNS {
        let message = format!("is one regular expression too many: a route has {MOST_PATTERNS}");
        reader.report(path, message);
        return None;
    }
    reader.patterns += 1;
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(message) => {
            reader.report(path, message);
            None
        }
    }
}
