//! What a rule does to requests and responses.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::{self, Reader};
use super::matches::not_a_header;
use super::{fields, is_missing, list, number, read_reference};
use crate::state::{
    Cors, HeaderChange, MirrorRef, PathChange, Redirect, Rewrite, RouteFilter, RouteKind, Scheme,
    is_framing,
};

/// Types of filters and the fields that they are in.
const HTTP: [(&str, &str); 6] = [
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("CORS", "cors"),
];
/// So many of them are of gRPC too.
const GRPC: usize = 3;

/// How long browsers may keep what they were told, where nothing is said.
const CORS_MAX_AGE: Duration = Duration::from_secs(5);

/// Reads the filters of a rule or a back end. Where there are problems, none may be used.
pub(super) fn read(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    (kind, namespace): (RouteKind, &Arc<str>),
) -> Vec<RouteFilter> {
    let known = match kind {
        RouteKind::Grpc => &HTTP[..GRPC],
        RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => &HTTP[..],
    };
    let mut filters: Vec<RouteFilter> = Vec::new();
    for (value, path) in list(reader, Some(value), path) {
        let Some(filter) = read_one(reader, value, &path, (known, namespace)) else {
            continue;
        };
        let same =
            |other: &RouteFilter| std::mem::discriminant(other) == std::mem::discriminant(&filter);
        if !matches!(filter, RouteFilter::Mirror(_)) && filters.iter().any(same) {
            reader.report(&path, "there is another filter of this type in the rule");
        }
        filters.push(filter);
    }
    if are_incompatible(&filters) {
        let message = "RequestRedirect and URLRewrite can't be used together";
        reader.report(path, message);
    }
    filters
}

/// Some of the filters exclude each other.
pub(super) fn are_incompatible(filters: &[RouteFilter]) -> bool {
    let rewrites = |filter: &RouteFilter| matches!(filter, RouteFilter::Rewrite(_));
    has_redirect(filters) && filters.iter().any(rewrites)
}

pub(super) fn has_redirect(filters: &[RouteFilter]) -> bool {
    let redirects = |filter: &RouteFilter| matches!(filter, RouteFilter::Redirect(_));
    filters.iter().any(redirects)
}

pub(super) fn replaces_prefix(filters: &[RouteFilter]) -> bool {
    let mut paths = filters.iter().filter_map(|filter| match filter {
        RouteFilter::Redirect(redirect) => redirect.path.as_ref(),
        RouteFilter::Rewrite(rewrite) => rewrite.path.as_ref(),
        RouteFilter::RequestHeaders(_)
        | RouteFilter::ResponseHeaders(_)
        | RouteFilter::Cors(_)
        | RouteFilter::Mirror(_) => None,
    });
    paths.any(|path| matches!(path, PathChange::Prefix(_)))
}

fn read_one(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    (known, namespace): (&[(&str, &str)], &Arc<str>),
) -> Option<RouteFilter> {
    let given = value.get("type").and_then(Value::as_str);
    let Some(&(_, field)) = known.iter().find(|(name, _)| given == Some(name)) else {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let message = match given {
            Some(given) => format!("{given} is not supported; there are {}", names.join(", ")),
            None => format!("is missing: one of {}", names.join(", ")),
        };
        reader.report(&path.key("type"), message);
        return None;
    };
    let given = fields(reader, value, path, &["type", field]);
    let found = given.into_iter().find(|(key, ..)| *key == field);
    let Some((_, value, path)) = found else {
        reader.report(&path.key(field), "is missing");
        return None;
    };
    let filter = match field {
        "requestHeaderModifier" => RouteFilter::RequestHeaders(headers(reader, value, &path)),
        "responseHeaderModifier" => RouteFilter::ResponseHeaders(headers(reader, value, &path)),
        "requestRedirect" => RouteFilter::Redirect(redirect(reader, value, &path)),
        "urlRewrite" => RouteFilter::Rewrite(rewrite(reader, value, &path)),
        "cors" => RouteFilter::Cors(cors(reader, value, &path)),
        _ => RouteFilter::Mirror(mirror(reader, value, &path, namespace)),
    };
    Some(filter)
}

fn headers(reader: &mut Reader, value: &Value, path: &FieldPath) -> Arc<HeaderChange> {
    let mut change = HeaderChange::default();
    for (key, value, path) in fields(reader, value, path, &["set", "add", "remove"]) {
        for (value, path) in list(reader, Some(value), &path) {
            match key {
                "set" => change.set.extend(header(reader, value, &path)),
                "add" => change.add.extend(header(reader, value, &path)),
                _ => change.remove.extend(header_name(reader, value, &path)),
            }
        }
    }
    Arc::new(change)
}

fn header(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> Option<(HeaderName, HeaderValue)> {
    let (mut name, mut text) = (None, None);
    for (key, value, path) in fields(reader, value, path, &["name", "value"]) {
        if key == "name" {
            name = header_name(reader, value, &path);
            continue;
        }
        let valid = value.as_str().map(HeaderValue::from_str);
        text = valid.and_then(Result::ok);
        if text.is_none() {
            reader.report(&path, format!("{value} can't be the value of a header"));
        }
    }
    for key in ["name", "value"] {
        if is_missing(value, key) {
            reader.report(&path.key(key), "is missing");
        }
    }
    Some((name?, text?))
}

fn header_name(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<HeaderName> {
    let text = value.as_str().unwrap_or_default();
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) if is_framing(&name) => {
            reader.report(path, format!("{name} is not a rule's to change"));
            None
        }
        Ok(name) => Some(name),
        Err(_invalid) => {
            reader.report(path, not_a_header(text));
            None
        }
    }
}

fn redirect(reader: &mut Reader, value: &Value, path: &FieldPath) -> Arc<Redirect> {
    let mut redirect = Redirect {
        scheme: None,
        hostname: None,
        port: None,
        path: None,
        status: 302,
    };
    let known = ["scheme", "hostname", "port", "path", "statusCode"];
    for (key, value, path) in fields(reader, value, path, &known) {
        match key {
            "scheme" => match value.as_str() {
                Some("http") => redirect.scheme = Some(Scheme::Http),
                Some("https") => redirect.scheme = Some(Scheme::Https),
                _ => reader.report(&path, format!("{value} is neither http nor https")),
            },
            "hostname" => redirect.hostname = hostname(reader, value, &path),
            "port" => redirect.port = number(reader, value, &path, reader::port),
            "path" => redirect.path = path_change(reader, value, &path),
            _ => match value.as_u64() {
                Some(301) => redirect.status = 301,
                Some(302) => redirect.status = 302,
                Some(303) => redirect.status = 303,
                Some(307) => redirect.status = 307,
                Some(308) => redirect.status = 308,
                _ => reader.report(&path, format!("{value} is not 301, 302, 303, 307 or 308")),
            },
        }
    }
    Arc::new(redirect)
}

fn rewrite(reader: &mut Reader, value: &Value, path: &FieldPath) -> Arc<Rewrite> {
    let mut rewrite = Rewrite::default();
    for (key, value, path) in fields(reader, value, path, &["hostname", "path"]) {
        match key {
            "hostname" => rewrite.hostname = hostname(reader, value, &path),
            _ => rewrite.path = path_change(reader, value, &path),
        }
    }
    Arc::new(rewrite)
}

fn hostname(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Arc<str>> {
    let name = value
        .as_str()
        .filter(|name| super::super::is_dns_name(name));
    if name.is_none() {
        reader.report(path, format!("{value} is not a host name"));
    }
    name.map(Arc::from)
}

fn path_change(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<PathChange> {
    let kind = value.get("type").and_then(Value::as_str);
    let field = match kind {
        Some("ReplaceFullPath") => "replaceFullPath",
        Some("ReplacePrefixMatch") => "replacePrefixMatch",
        _ => {
            let message = "is neither ReplaceFullPath nor ReplacePrefixMatch";
            reader.report(&path.key("type"), message);
            return None;
        }
    };
    let given = fields(reader, value, path, &["type", field]);
    let text = given.into_iter().find(|(key, ..)| *key == field);
    let text = text.and_then(|(_, value, _)| value.as_str());
    let printable = |text: &&str| {
        let mut bytes = text.bytes();
        bytes.all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'?')
    };
    let Some(text) = text.filter(printable) else {
        let message = "must be a path, without a query or fragment";
        reader.report(&path.key(field), message);
        return None;
    };
    Some(match field {
        "replaceFullPath" => PathChange::Full(text.into()),
        _ => PathChange::Prefix(text.into()),
    })
}

fn cors(reader: &mut Reader, value: &Value, path: &FieldPath) -> Arc<Cors> {
    let mut cors = Cors {
        allow_origins: Vec::new(),
        allow_methods: Vec::new(),
        allow_headers: Vec::new(),
        expose_headers: Vec::new(),
        allow_credentials: false,
        max_age: CORS_MAX_AGE,
    };
    let known = [
        "allowOrigins",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "allowCredentials",
        "maxAge",
    ];
    for (key, value, path) in fields(reader, value, path, &known) {
        match key {
            "allowOrigins" => cors.allow_origins = texts(reader, value, &path),
            "allowMethods" => cors.allow_methods = texts(reader, value, &path),
            "allowHeaders" => cors.allow_headers = texts(reader, value, &path),
            "exposeHeaders" => cors.expose_headers = texts(reader, value, &path),
            "allowCredentials" => match value.as_bool() {
                Some(given) => cors.allow_credentials = given,
                None => reader.report(&path, format!("{value} is neither true nor false")),
            },
            _ => match value.as_u64().filter(|seconds| *seconds > 0) {
                Some(seconds) => cors.max_age = Duration::from_secs(seconds),
                None => reader.report(&path, format!("{value} is not a number of seconds")),
            },
        }
    }
    Arc::new(cors)
}

/// Texts that become part of a header.
fn texts(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<Arc<str>> {
    let mut texts = Vec::new();
    for (value, path) in list(reader, Some(value), path) {
        let graphic = |text: &&str| {
            text.bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        match value
            .as_str()
            .filter(|text| !text.is_empty())
            .filter(graphic)
        {
            Some(text) => texts.push(text.into()),
            None => reader.report(&path, format!("{value} can't be part of a header")),
        }
    }
    texts
}

fn mirror(reader: &mut Reader, value: &Value, path: &FieldPath, namespace: &Arc<str>) -> MirrorRef {
    let mut reference = None;
    let mut share = None;
    for (key, value, path) in fields(reader, value, path, &["backendRef", "percent", "fraction"]) {
        match key {
            "backendRef" => {
                reference = Some(read_reference(reader, value, &path, (namespace, &[])).0);
            }
            _ if share.is_some() => {
                let message = "can't be given together with percent";
                reader.report(&path, message);
            }
            "percent" => {
                let percent = value
                    .as_u64()
                    .and_then(|percent| u32::try_from(percent).ok());
                share = percent
                    .filter(|percent| *percent <= 100)
                    .map(|it| (it, 100));
                if share.is_none() {
                    reader.report(&path, format!("{value} is not 0 to 100"));
                }
            }
            _ => share = fraction(reader, value, &path),
        }
    }
    if is_missing(value, "backendRef") {
        reader.report(&path.key("backendRef"), "is missing");
    }
    let (numerator, denominator) = share.unwrap_or((1, 1));
    let reference = reference.unwrap_or_else(|| {
        // Never used: it was reported above.
        read_reference(&mut Reader::default(), &Value::Null, path, (namespace, &[])).0
    });
    MirrorRef {
        reference,
        numerator,
        denominator,
    }
}

fn fraction(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<(u32, u32)> {
    let (mut numerator, mut denominator) = (None, Some(100));
    for (key, value, path) in fields(reader, value, path, &["numerator", "denominator"]) {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        if number.is_none() {
            reader.report(&path, format!("{value} is not a number"));
        }
        match key {
            "numerator" => numerator = number,
            _ => denominator = number,
        }
    }
    let fraction = numerator.zip(denominator);
    let fraction =
        fraction.filter(|(numerator, denominator)| *denominator > 0 && numerator <= denominator);
    if fraction.is_none() {
        let message = "must have a numerator, and a denominator that is not smaller nor 0";
        reader.report(path, message);
    }
    fraction
}
