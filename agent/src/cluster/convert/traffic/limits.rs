//! The lists of a traffic policy: limits of rates, and faults.

use std::sync::Arc;

use serde_json::Value;

use super::super::FieldPath;
use super::super::reader::{self, Reader};
use super::super::rules::text_path;
use super::values::{self, items, number, share, time, word};
use crate::model::NamespacedName;
use crate::state::traffic::{
    Abort, AbortWith, Delay, DescriptorEntry, DescriptorValue, Fault, GlobalLimit, HeaderMatch,
    LimitKey, LimitKind, LocalLimit, RateLimit, Share, TrafficMatch,
};

/// Limits or faults of one policy.
const LISTED: usize = 64;
/// Values, headers, descriptors or entries in one of these.
const INNER: usize = 16;

pub(super) fn rate_limits(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Vec<RateLimit> {
    let items = items(reader, value, path, LISTED);
    let limits = items.into_iter().map(|(value, path)| {
        let (mut name, mut matches) = (Arc::from(""), TrafficMatch::default());
        let (mut local, mut global) = (None, None);
        for (key, value, path) in reader.fields(value, &path, &["name", "match", "local", "global"])
        {
            match key {
                "name" => {
                    let text = reader.text(value, &path);
                    name = Arc::from(text.unwrap_or_default());
                }
                "match" => matches = read_match(reader, value, &path),
                "local" => local = read_local(reader, value, &path),
                _ => global = read_global(reader, value, &path, namespace),
            }
        }
        if value.get("local").is_some() == value.get("global").is_some() {
            reader.report(&path, "must have one of local and global");
        }
        let limit = local
            .map(LimitKind::Local)
            .or(global.map(LimitKind::Global))?;
        Some(RateLimit {
            name,
            matches,
            limit,
        })
    });
    limits.flatten().collect()
}

/// Which requests. What of it is not understood leaves a limit to hold for more.
fn read_match(reader: &mut Reader, value: &Value, path: &FieldPath) -> TrafficMatch {
    let mut matches = TrafficMatch::default();
    if value.as_object().is_some_and(serde_json::Map::is_empty) {
        reader.report(path, "is empty: leave it out to match anything");
    }
    for (key, value, path) in reader.fields(value, path, &["methods", "paths", "headers"]) {
        match key {
            "methods" => {
                matches.methods = values::list(reader, value, &path, INNER, values::method);
            }
            "paths" => matches.paths = values::list(reader, value, &path, INNER, text_path),
            _ => {
                for (value, path) in items(reader, value, &path, INNER) {
                    matches.headers.extend(read_header(reader, value, &path));
                }
            }
        }
    }
    matches
}

fn read_header(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<HeaderMatch> {
    let (mut name, mut text) = (None, None);
    for (key, value, path) in reader.fields(value, path, &["name", "value"]) {
        match key {
            "name" => name = values::take(reader, &path, values::header(value)),
            _ => text = values::take(reader, &path, reader::string_match(value)),
        }
    }
    missing(reader, value, path, &["name", "value"]);
    Some(HeaderMatch {
        name: name?,
        value: text?,
    })
}

/// Reports those of the fields that are not there.
fn missing(reader: &mut Reader, value: &Value, path: &FieldPath, fields: &[&str]) {
    for field in fields {
        if value.is_object() && value.get(field).is_none() {
            reader.report(&path.key(field), "is missing");
        }
    }
}

fn read_local(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<LocalLimit> {
    #[derive(Clone, Copy, PartialEq)]
    enum By {
        Service,
        Client,
        Route,
        Header,
    }
    let (mut requests, mut per, mut burst) = (None, None, None);
    let (mut by, mut header) = (By::Service, None);
    let known = ["requests", "per", "burst", "by", "header"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "requests" => requests = number(reader, value, &path, 1..=u32::MAX),
            "per" => per = time(reader, value, &path),
            "burst" => burst = number(reader, value, &path, 1..=u32::MAX),
            "by" => {
                let words = [
                    ("SERVICE", By::Service),
                    ("CLIENT", By::Client),
                    ("ROUTE", By::Route),
                    ("HEADER", By::Header),
                ];
                by = word(reader, value, &path, &words).unwrap_or(By::Service);
            }
            _ => header = values::take(reader, &path, values::header(value)),
        }
    }
    missing(reader, value, path, &["requests", "per"]);
    if (by == By::Header) != value.get("header").is_some() {
        let message = "goes together with by: HEADER";
        reader.report(&path.key("header"), message);
    }
    let by = match (by, header) {
        (By::Client, _) => LimitKey::Client,
        (By::Route, _) => LimitKey::Route,
        (By::Header, Some(header)) => LimitKey::Header(header),
        (By::Header, None) | (By::Service, _) => LimitKey::Service,
    };
    Some(LocalLimit {
        requests: requests?,
        per: per?,
        burst,
        by,
    })
}

fn read_global(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Option<GlobalLimit> {
    let (mut service, mut domain, mut descriptors) = (None, None, Vec::new());
    let (mut timeout, mut deny_on_failure) = (None, None);
    let known = ["service", "domain", "descriptors", "timeout", "onFailure"];
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "service" => service = read_service(reader, value, &path, namespace),
            "domain" => domain = reader.text(value, &path).map(Arc::from),
            "descriptors" => {
                for (value, path) in items(reader, value, &path, INNER) {
                    descriptors.push(read_descriptor(reader, value, &path));
                }
            }
            "timeout" => timeout = time(reader, value, &path),
            _ => {
                let words = [("ALLOW", false), ("DENY", true)];
                deny_on_failure = word(reader, value, &path, &words);
            }
        }
    }
    missing(reader, value, path, &["service", "domain", "descriptors"]);
    let (service, port) = service?;
    Some(GlobalLimit {
        service,
        port,
        domain: domain?,
        descriptors,
        timeout,
        deny_on_failure,
    })
}

fn read_service(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Option<(NamespacedName, u16)> {
    let (mut name, mut of, mut port) = (None, Some(namespace), None);
    for (key, value, path) in reader.fields(value, path, &["name", "namespace", "port"]) {
        match key {
            "name" => name = reader.text(value, &path),
            "namespace" => of = reader.text(value, &path),
            _ => port = values::port(reader, value, &path),
        }
    }
    missing(reader, value, path, &["name", "port"]);
    Some((NamespacedName::new(of?, name?), port?))
}

fn read_descriptor(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<DescriptorEntry> {
    let mut entries = Vec::new();
    for (_, value, path) in reader.fields(value, path, &["entries"]) {
        for (value, path) in items(reader, value, &path, INNER) {
            entries.extend(read_entry(reader, value, &path));
        }
    }
    missing(reader, value, path, &["entries"]);
    entries
}

fn read_entry(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<DescriptorEntry> {
    let (mut name, mut of) = (None, Vec::new());
    let mut given = 0;
    for (key, value, path) in reader.fields(value, path, &["key", "value", "header", "from"]) {
        given += usize::from(key != "key");
        match key {
            "key" => name = reader.text(value, &path),
            "value" => {
                let text = reader.text(value, &path);
                of.extend(text.map(|it| DescriptorValue::Literal(it.into())));
            }
            "header" => {
                let header = values::take(reader, &path, values::header(value));
                of.extend(header.map(DescriptorValue::Header));
            }
            _ => of.extend(read_origin(reader, value, &path)),
        }
    }
    missing(reader, value, path, &["key"]);
    if given != 1 {
        reader.report(path, "must have one of value, header and from");
    }
    Some(DescriptorEntry {
        key: name?.into(),
        value: of.pop()?,
    })
}

fn read_origin(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<DescriptorValue> {
    let origins = [
        ("CLIENT", DescriptorValue::Client),
        ("SOURCE", DescriptorValue::Source),
        ("METHOD", DescriptorValue::Method),
        ("PATH", DescriptorValue::Path),
        ("HOST", DescriptorValue::Host),
        ("ROUTE", DescriptorValue::Route),
    ];
    let words: Vec<(&str, usize)> = origins.iter().map(|(word, _)| *word).zip(0..).collect();
    let place = word(reader, value, path, &words)?;
    origins.into_iter().nth(place).map(|(_, origin)| origin)
}

pub(super) fn faults(reader: &mut Reader, value: &Value, path: &FieldPath) -> Vec<Fault> {
    let items = items(reader, value, path, LISTED);
    let faults = items.into_iter().map(|(value, path)| {
        let mut fault = Fault {
            matches: TrafficMatch::default(),
            delay: None,
            abort: None,
        };
        for (key, value, path) in reader.fields(value, &path, &["match", "delay", "abort"]) {
            match key {
                "match" => fault.matches = read_match(reader, value, &path),
                "delay" => fault.delay = read_delay(reader, value, &path),
                _ => fault.abort = read_abort(reader, value, &path),
            }
        }
        if value.get("delay").is_none() && value.get("abort").is_none() {
            reader.report(&path, "must have a delay, an abort, or both");
        }
        fault
    });
    faults.collect()
}

fn read_delay(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Delay> {
    let (mut percent, mut duration) = (Some(Share::ALL), None);
    for (key, value, path) in reader.fields(value, path, &["percent", "duration"]) {
        match key {
            "percent" => percent = share(reader, value, &path),
            _ => duration = time(reader, value, &path),
        }
    }
    missing(reader, value, path, &["duration"]);
    Some(Delay {
        share: percent?,
        duration: duration?,
    })
}

fn read_abort(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<Abort> {
    let (mut percent, mut with) = (Some(Share::ALL), None);
    let mut given = 0;
    for (key, value, path) in reader.fields(value, path, &["percent", "status", "grpcStatus"]) {
        given += usize::from(key != "percent");
        match key {
            "percent" => percent = share(reader, value, &path),
            "status" => {
                let status = values::take(reader, &path, values::code(value));
                with = status.map(AbortWith::Status);
            }
            _ => {
                let status = number(reader, value, &path, 1..=16);
                let status = status.and_then(|it| u8::try_from(it).ok());
                with = status.map(AbortWith::Grpc);
            }
        }
    }
    if given != 1 {
        reader.report(path, "must have one of status and grpcStatus");
    }
    Some(Abort {
        share: percent?,
        with: with?,
    })
}
