//! `TrafficPolicy`.
//!
//! One that is not understood in full is invalid. What it said when it was last understood
//! stays in force then ([`crate::state::Writer`] sees to that); of one that never was only
//! those limits hold that are understood, and whatever would make requests go elsewhere,
//! again, or wrong on purpose does not. So a typo never makes a limit looser.

mod limits;
mod sections;
pub(super) mod values;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::policy::{generation, invalid};
use super::reader::Reader;
use super::{Converted, FieldPath};
use crate::state::traffic::{TargetedPort, TrafficPolicy, TrafficSpec, TrafficTarget};
use crate::state::{Object, ObjectKind};

/// So many targets of one policy.
const TARGETS: usize = 64;

/// Reads a `TrafficPolicy`.
pub(super) fn convert(converted: &mut Converted, value: &Value) {
    let name = match super::name(value, true) {
        Ok(name) => name,
        Err(problem) => return converted.problems.push(problem),
    };
    let mut reader = Reader::default();
    let top = ["apiVersion", "kind", "metadata", "spec", "status"];
    reader.fields(value, &FieldPath::default(), &top);
    let path = FieldPath::of(&["spec"]);
    let (mut targets, mut spec) = (Vec::new(), TrafficSpec::default());
    match value.get("spec") {
        None => reader.report(&path, "is missing: it says which Services, and what"),
        Some(given) => (targets, spec) = read(&mut reader, given, &path, &name.namespace),
    }
    reader.hold_bounds(ObjectKind::TrafficPolicy, value);
    let invalid = invalid(&reader);
    if invalid.is_some() {
        spec = TrafficSpec {
            connections: spec.connections,
            requests: spec.requests,
            timeouts: spec.timeouts,
            rate_limits: spec.rate_limits,
            adaptive_concurrency: spec.adaptive_concurrency,
            ..TrafficSpec::default()
        };
    }
    let policy = TrafficPolicy {
        name: name.clone(),
        targets,
        spec,
        created: created(value),
        generation: generation(value),
        invalid,
        held: false,
    };
    converted.problems.append(&mut reader.problems);
    converted.is(ObjectKind::TrafficPolicy, name);
    converted.object = Some(Object::TrafficPolicy(policy));
}

fn read(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> (Vec<TrafficTarget>, TrafficSpec) {
    let mut targets = Vec::new();
    let mut spec = TrafficSpec::default();
    let known = [
        "targetRefs",
        "loadBalancing",
        "connections",
        "requests",
        "outlierDetection",
        "retries",
        "timeouts",
        "rateLimits",
        "faults",
        "adaptiveConcurrency",
    ];
    let fields = reader.fields(value, path, &known);
    for (key, value, path) in fields {
        match key {
            "targetRefs" => {
                for (target, path) in values::items(reader, value, &path, TARGETS) {
                    targets.extend(read_target(reader, target, &path, namespace));
                }
            }
            "loadBalancing" => {
                spec.load_balancing = Some(sections::load_balancing(reader, value, &path));
            }
            "connections" => spec.connections = Some(sections::connections(reader, value, &path)),
            "requests" => spec.requests = Some(sections::requests(reader, value, &path)),
            "outlierDetection" => {
                spec.outlier_detection = Some(sections::outliers(reader, value, &path));
            }
            "retries" => spec.retries = Some(sections::retries(reader, value, &path)),
            "timeouts" => spec.timeouts = Some(sections::timeouts(reader, value, &path)),
            "rateLimits" => spec.rate_limits = limits::rate_limits(reader, value, &path, namespace),
            "faults" => spec.faults = limits::faults(reader, value, &path),
            _ => spec.adaptive_concurrency = Some(sections::adaptive(reader, value, &path)),
        }
    }
    if value.is_object() && value.get("targetRefs").is_none() {
        reader.report(
            &path.key("targetRefs"),
            "is missing: it says which Services",
        );
    }
    (targets, spec)
}

fn read_target(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    own_namespace: &str,
) -> Option<TrafficTarget> {
    let known = ["group", "kind", "name", "namespace", "port", "sectionName"];
    let mut name = None;
    let mut port = None;
    let before = reader.problems.len();
    for (key, value, path) in reader.fields(value, path, &known) {
        match (key, value.as_str()) {
            ("group", Some("" | "core")) | ("kind", Some("Service")) => {}
            ("namespace", Some(namespace)) if namespace == own_namespace => {}
            ("name", _) => name = reader.text(value, &path),
            ("port", _) => {
                let number = values::port(reader, value, &path);
                port = number.map(TargetedPort::Number);
            }
            ("sectionName", _) => {
                let text = reader.text(value, &path);
                port = text.map(|name| TargetedPort::Name(name.into()));
            }
            ("namespace", _) => {
                reader.report(&path, format!("must be the policy's own, {own_namespace}"));
            }
            _ => reader.report(
                &path,
                format!("{value} can't be a target: only Services can"),
            ),
        }
    }
    for (field, is) in [("kind", "is missing: Service"), ("name", "is missing")] {
        if value.is_object() && value.get(field).is_none() {
            reader.report(&path.key(field), is);
        }
    }
    if value.get("port").is_some() && value.get("sectionName").is_some() {
        let message = "can't be given together with a port: both name one";
        reader.report(&path.key("sectionName"), message);
    }
    let understood = reader.problems.len() == before;
    understood.then(|| {
        name.map(|name| TrafficTarget {
            service: Arc::from(name),
            port,
        })
    })?
}

/// `metadata.creationTimestamp`.
fn created(value: &Value) -> i64 {
    let created = value
        .get("metadata")
        .and_then(|metadata| metadata.get("creationTimestamp"));
    let created = created.and_then(Value::as_str);
    let created = created.and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or(0, Timestamp::as_second)
}
