//! Routes of the Gateway API.
//!
//! A rule of which something is not understood answers 500, a match that is not
//! understood is left out, and a parent that is not understood has no route: what is left
//! never holds for more than its author meant. Only parents that are Services are the
//! mesh's: of a route without any, nothing but its name is kept.

mod filters;
mod matches;
mod settings;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::reader::{self, Reader};
use super::{Converted, FieldPath, FieldProblem, problem};
use crate::model::NamespacedName;
use crate::state::{
    BackendRef, Invalid, Object, ParentRef, PathMatch, Reference, RequestMatch, Route, RouteFilter,
    RouteKind, RouteRule,
};

/// Reads a route.
pub(super) fn convert(converted: &mut Converted, value: &Value, kind: RouteKind) {
    let name = match super::name(value, true) {
        Ok(name) => name,
        Err(problem) => return converted.problems.push(problem),
    };
    converted.is(kind.object(), name.clone());
    let mut reader = Reader::default();
    match read(&mut reader, value, kind, name) {
        Ok(route) => converted.object = Some(Object::Route(route)),
        Err(problem) => reader.problems.push(problem),
    }
    converted.problems.append(&mut reader.problems);
}

fn read(
    reader: &mut Reader,
    value: &Value,
    kind: RouteKind,
    name: NamespacedName,
) -> Result<Route, FieldProblem> {
    let path = FieldPath::of(&["spec"]);
    let spec = value.get("spec").unwrap_or(&Value::Null);
    if !spec.is_object() {
        return Err(problem(
            &["spec"],
            "is missing: it says what the route is of",
        ));
    }
    let rules = spec.get("rules").unwrap_or(&Value::Null);
    if !rules.is_array() && !rules.is_null() {
        return Err(problem(&["spec", "rules"], "must be a list"));
    }
    let metadata = value.get("metadata");
    let metadata = |key| metadata.and_then(|metadata| metadata.get(key));
    let created = metadata("creationTimestamp").and_then(Value::as_str);
    let created = created.and_then(|text| text.parse::<Timestamp>().ok());
    let mut route = Route {
        kind,
        generation: metadata("generation").and_then(Value::as_i64).unwrap_or(0),
        created: created.map_or(0, Timestamp::as_second),
        parents: read_parents(reader, spec, &name.namespace),
        hostnames: Vec::new(),
        rules: Vec::new(),
        name,
    };
    if route.parents.is_empty() {
        return Ok(route);
    }
    let before = reader.problems.len();
    reader.fields(value, &FieldPath::default(), &TOP);
    let known = ["parentRefs", "hostnames", "rules", "useDefaultGateways"];
    let known = match kind {
        RouteKind::Tcp => &["parentRefs", "rules", "useDefaultGateways"][..],
        _ => &known[..],
    };
    reader.fields(spec, &path, known);
    let whole = invalid(reader, before, "the route answers 500");
    route.rules = read_rules(reader, rules, kind, &route.name.namespace);
    for rule in &mut route.rules {
        rule.invalid = whole.clone().or(rule.invalid.take());
    }
    read_hostnames(reader, spec, &mut route);
    Ok(route)
}

const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// What was reported since there were `before` problems, with what follows from it.
fn invalid(reader: &mut Reader, before: usize, consequence: &str) -> Option<Invalid> {
    let FieldProblem { field, message } = reader.problems.get(before)?;
    let first = format!("{field}: {message}");
    for problem in &mut reader.problems[before..] {
        problem.message = format!("{}; {consequence}", problem.message);
    }
    Some(Invalid {
        reason: "UnsupportedValue",
        message: first.into(),
    })
}

type Fields<'v> = Vec<(&'v str, &'v Value, FieldPath)>;

/// The fields of a map that are known and not null; what is not known is reported.
fn fields<'v>(
    reader: &mut Reader,
    value: &'v Value,
    path: &FieldPath,
    known: &[&str],
) -> Fields<'v> {
    let mut fields = reader.fields(value, path, known);
    fields.retain(|(_, value, _)| !value.is_null());
    fields
}

/// A field is not there, or null, which is the same.
fn is_missing(value: &Value, key: &str) -> bool {
    value.get(key).is_none_or(Value::is_null)
}

/// A list that may be empty or not there.
fn list<'v>(
    reader: &mut Reader,
    value: Option<&'v Value>,
    path: &FieldPath,
) -> Vec<(&'v Value, FieldPath)> {
    match value {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) if items.is_empty() => Vec::new(),
        Some(value) => reader.items(value, path),
    }
}

/// Those of the parents that are Services.
fn read_parents(reader: &mut Reader, spec: &Value, own_namespace: &Arc<str>) -> Vec<ParentRef> {
    let path = FieldPath::of(&["spec", "parentRefs"]);
    let mut parents = Vec::new();
    for (index, (value, path)) in list(reader, spec.get("parentRefs"), &path)
        .into_iter()
        .enumerate()
    {
        let text = |key| value.get(key).and_then(Value::as_str);
        if text("kind") != Some("Service") {
            continue;
        }
        if text("group") != Some("") {
            // It means a kind Service of another group, which is not the mesh's.
            if matches!(text("group"), None | Some("core")) {
                let message = "a Service has group \"\", and it must be written; without it \
                               this is no parent that is known";
                reader.report(&path.key("group"), message);
            }
            continue;
        }
        parents.push(read_parent(reader, value, (index, &path), own_namespace));
    }
    parents
}

fn read_parent(
    reader: &mut Reader,
    value: &Value,
    (index, path): (usize, &FieldPath),
    own_namespace: &Arc<str>,
) -> ParentRef {
    let before = reader.problems.len();
    let mut name = None;
    let mut parent = ParentRef {
        service: NamespacedName::new(Arc::clone(own_namespace), ""),
        with_namespace: false,
        port: None,
        section: None,
        index,
        invalid: None,
    };
    let known = ["group", "kind", "name", "namespace", "port", "sectionName"];
    for (key, value, path) in fields(reader, value, path, &known) {
        match key {
            "name" => name = reader.text(value, &path),
            "namespace" => {
                if let Some(namespace) = reader.text(value, &path) {
                    parent.service.namespace = namespace.into();
                    parent.with_namespace = true;
                }
            }
            "port" => parent.port = number(reader, value, &path, reader::port),
            "sectionName" => parent.section = reader.text(value, &path).map(Arc::from),
            _ => {}
        }
    }
    match name {
        Some(name) => parent.service.name = name.into(),
        None if is_missing(value, "name") => reader.report(&path.key("name"), "is missing"),
        None => {}
    }
    let invalid = invalid(reader, before, "the route is not of this parent");
    parent.invalid = invalid.map(|invalid| invalid.message);
    parent
}

/// A value that `parse` understands, else a problem.
fn number<T>(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    parse: impl Fn(&Value) -> Result<T, String>,
) -> Option<T> {
    match parse(value) {
        Ok(parsed) => Some(parsed),
        Err(message) => {
            reader.report(path, message);
            None
        }
    }
}

/// The names that a `TLSRoute` is for. Those of other routes mean nothing for parents that
/// are Services: the specification has them reserved.
fn read_hostnames(reader: &mut Reader, spec: &Value, route: &mut Route) {
    let path = FieldPath::of(&["spec", "hostnames"]);
    let names = list(reader, spec.get("hostnames"), &path);
    if route.kind != RouteKind::Tls {
        let parents = spec.get("parentRefs").and_then(Value::as_array);
        // A Gateway that is a parent too makes use of them.
        let only_services = parents.is_some_and(|all| all.len() == route.parents.len());
        if !names.is_empty() && only_services {
            let message = "mean nothing for a Service: to tell hosts apart, match the header host";
            reader.report(&path, message);
        }
        return;
    }
    let given = !names.is_empty();
    for (value, path) in names {
        let text = value.as_str().map(str::to_ascii_lowercase);
        let name = text
            .as_deref()
            .map(|name| name.strip_prefix("*.").unwrap_or(name));
        match (&text, name) {
            (Some(text), Some(name)) if super::is_dns_name(name) => {
                route.hostnames.push(text.as_str().into());
            }
            _ => reader.report(&path, format!("{value} is not a host name")),
        }
    }
    if given && route.hostnames.is_empty() {
        // Without names it would be for any.
        route.rules.clear();
    }
}

fn read_rules(
    reader: &mut Reader,
    value: &Value,
    kind: RouteKind,
    namespace: &Arc<str>,
) -> Vec<RouteRule> {
    let path = FieldPath::of(&["spec", "rules"]);
    let rules = list(reader, Some(value), &path);
    if rules.is_empty() && kind == RouteKind::Http {
        return vec![RouteRule {
            matches: vec![matches::any(kind)],
            ..RouteRule::default()
        }];
    }
    let rules = rules.into_iter();
    rules
        .map(|(value, path)| read_rule(reader, value, &path, (kind, namespace)))
        .collect()
}

fn read_rule(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    (kind, namespace): (RouteKind, &Arc<str>),
) -> RouteRule {
    let mut rule = RouteRule::default();
    let matches = path.key("matches");
    let given = list(reader, value.get("matches"), &matches);
    if given.is_empty() {
        rule.matches.push(matches::any(kind));
    }
    for (value, path) in given {
        let before = reader.problems.len();
        let read = matches::read(reader, value, &path, kind);
        match invalid(reader, before, "the match is left out") {
            Some(invalid) => drop(rule.left_out.get_or_insert(invalid)),
            None => rule.matches.push(read),
        }
    }
    let known: &[&str] = match kind {
        RouteKind::Http => &[
            "name",
            "matches",
            "filters",
            "backendRefs",
            "timeouts",
            "retry",
            "sessionPersistence",
        ],
        RouteKind::Grpc => &[
            "name",
            "matches",
            "filters",
            "backendRefs",
            "sessionPersistence",
        ],
        RouteKind::Tls | RouteKind::Tcp => &["name", "backendRefs"],
    };
    let mut backends = Vec::new();
    let before = reader.problems.len();
    for (key, value, path) in fields(reader, value, path, known) {
        match key {
            "name" => rule.name = reader.text(value, &path).map(Arc::from),
            "filters" => rule.filters = filters::read(reader, value, &path, (kind, namespace)),
            "timeouts" => rule.timeouts = settings::timeouts(reader, value, &path),
            "retry" => rule.retry = Some(settings::retry(reader, value, &path)),
            "sessionPersistence" => rule.session = settings::session(reader, value, &path),
            "backendRefs" => backends = list(reader, Some(value), &path),
            _ => {}
        }
    }
    check_prefixes(reader, &rule, path);
    if !backends.is_empty() && filters::has_redirect(&rule.filters) {
        let message = "can't be given together with a RequestRedirect, which answers itself";
        reader.report(&path.key("backendRefs"), message);
    }
    let incompatible = filters::are_incompatible(&rule.filters);
    rule.invalid = invalid(reader, before, "the rule answers 500").map(|invalid| Invalid {
        reason: if incompatible {
            "IncompatibleFilters"
        } else {
            invalid.reason
        },
        ..invalid
    });
    for (value, path) in backends {
        let backend = read_backend(reader, value, &path, (kind, namespace));
        rule.backends.push(backend);
    }
    rule
}

/// A prefix can be replaced only where the rule's matches have one.
fn check_prefixes(reader: &mut Reader, rule: &RouteRule, path: &FieldPath) {
    let has_prefix = |one: &RequestMatch| matches!(one.path, PathMatch::Prefix(_));
    if filters::replaces_prefix(&rule.filters) && !rule.matches.iter().all(has_prefix) {
        let message = "ReplacePrefixMatch takes matches that all have a path of type PathPrefix";
        reader.report(&path.key("filters"), message);
    }
}

fn read_backend(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    (kind, namespace): (RouteKind, &Arc<str>),
) -> BackendRef {
    let before = reader.problems.len();
    let mut weight = 1;
    let mut filters: Vec<RouteFilter> = Vec::new();
    let known: &[&str] = match kind {
        RouteKind::Http | RouteKind::Grpc => &["weight", "filters"],
        RouteKind::Tls | RouteKind::Tcp => &["weight"],
    };
    let (reference, others) = read_reference(reader, value, path, (namespace, known));
    for (key, value, path) in others {
        match key {
            "weight" => {
                let valid = value.as_u64().filter(|weight| *weight <= 1_000_000);
                match valid.and_then(|weight| u32::try_from(weight).ok()) {
                    Some(given) => weight = given,
                    None => reader.report(&path, format!("{value} is not 0 to 1000000")),
                }
            }
            _ => filters = filters::read(reader, value, &path, (kind, namespace)),
        }
    }
    if filters::has_redirect(&filters) {
        let message = "a RequestRedirect is of the rule, not of a back end";
        reader.report(&path.key("filters"), message);
    }
    BackendRef {
        reference,
        weight,
        filters,
        invalid: invalid(reader, before, "its share of the requests gets 500"),
    }
}

/// A reference to a Service, as which it counts where nothing else is said; and its other
/// fields.
fn read_reference<'v>(
    reader: &mut Reader,
    value: &'v Value,
    path: &FieldPath,
    (namespace, others): (&Arc<str>, &[&str]),
) -> (Reference, Fields<'v>) {
    let mut reference = Reference {
        group: "".into(),
        kind: "Service".into(),
        name: NamespacedName::new(Arc::clone(namespace), ""),
        port: None,
    };
    let mut known = vec!["group", "kind", "name", "namespace", "port"];
    known.extend(others);
    let mut left = Vec::new();
    for (key, value, path) in fields(reader, value, path, &known) {
        match key {
            "group" => match value.as_str() {
                Some(group) => reference.group = group.into(),
                None => reader.report(&path, "must be a string"),
            },
            "kind" => reference.kind = reader.text(value, &path).unwrap_or_default().into(),
            "name" => reference.name.name = reader.text(value, &path).unwrap_or_default().into(),
            "namespace" => {
                if let Some(namespace) = reader.text(value, &path) {
                    reference.name.namespace = namespace.into();
                }
            }
            "port" => reference.port = number(reader, value, &path, reader::port),
            _ => left.push((key, value, path)),
        }
    }
    if is_missing(value, "name") {
        reader.report(&path.key("name"), "is missing");
    }
    (reference, left)
}
