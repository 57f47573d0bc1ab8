//! What is to be said of each route, for each of its parents that is a Service. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::verdict::{Statement, list};
use crate::cluster::api::{Condition, ConditionStatus};
use crate::model::NamespacedName;
use crate::state::{Invalid, ObjectKey, ParentRef, Route, RouteKind, Snapshot};

/// The route is in force for the parent.
const ACCEPTED: &str = "Accepted";
/// Everything that it leads to is there, and permits it.
const RESOLVED_REFS: &str = "ResolvedRefs";
/// Some of its rules are not as written.
const PARTIALLY_INVALID: &str = "PartiallyInvalid";

/// What the mesh makes of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteVerdict {
    /// The version of the spec that it is of.
    pub(super) generation: i64,
    /// By parent, as the route writes it.
    parents: Vec<(Value, Vec<Statement>)>,
}

/// The kinds that are in force for a Service's ports, by the namespace of the routes.
type InForce = BTreeMap<(String, u16), RouteKind>;

/// Of every route that has an object in the API server.
pub(super) fn verdicts_of_routes(snapshot: &Snapshot) -> BTreeMap<ObjectKey, RouteVerdict> {
    let mut in_force: HashMap<&NamespacedName, InForce> = HashMap::new();
    for parent in snapshot.routes.values().flat_map(|route| &route.parents) {
        in_force
            .entry(&parent.service)
            .or_insert_with(|| kinds_in_force(snapshot, &parent.service));
    }
    let versioned = snapshot.routes.iter().filter(|(_, it)| it.generation > 0);
    versioned
        .map(|(key, route)| {
            let of_route = of_route(snapshot, route);
            let parents = route.parents.iter().map(|parent| {
                let accepted = accepted(snapshot, route, parent, &in_force[&parent.service]);
                let accepted = accepted.or_else(|| of_route.refused.clone());
                let mut statements = vec![accepted.unwrap_or_else(in_force_as_written)];
                statements.extend(of_route.partial.clone());
                statements.push(of_route.resolved.clone());
                (reference(parent), statements)
            });
            let verdict = RouteVerdict {
                generation: route.generation,
                parents: parents.collect(),
            };
            (key.clone(), verdict)
        })
        .collect()
}

fn kinds_in_force(snapshot: &Snapshot, service: &NamespacedName) -> InForce {
    let in_force = snapshot.routes_in_force(service).into_iter();
    let ports = in_force.flat_map(|(namespace, ports)| {
        let ports = ports.into_iter();
        ports.map(move |(port, of_port)| ((namespace.to_string(), port), of_port.kind))
    });
    ports.collect()
}

fn in_force_as_written() -> Statement {
    Statement {
        kind: ACCEPTED,
        holds: true,
        reason: "Accepted",
        message: "in force".to_owned(),
    }
}

fn not_accepted(reason: &'static str, message: String) -> Statement {
    Statement {
        kind: ACCEPTED,
        holds: false,
        reason,
        message,
    }
}

/// Why the route is not in force for a parent, beside what its rules are like.
fn accepted(
    snapshot: &Snapshot,
    route: &Route,
    parent: &ParentRef,
    in_force: &InForce,
) -> Option<Statement> {
    let ports = match snapshot.ports_of_parent(parent) {
        Ok(ports) => ports,
        Err(why) => {
            let (reason, why) = match &parent.invalid {
                Some(invalid) => ("UnsupportedValue", invalid.to_string()),
                None => ("NoMatchingParent", format!("{}: {why}", parent.service)),
            };
            return Some(not_accepted(reason, why));
        }
    };
    let namespace = route.name.namespace.to_string();
    let kind = |port| in_force.get(&(namespace.clone(), port)).copied();
    if ports.iter().any(|port| kind(*port) == Some(route.kind)) {
        return None;
    }
    let others: BTreeSet<&str> = ports
        .iter()
        .filter_map(|port| Some(kind(*port)?.object().as_str()))
        .collect();
    let others: Vec<&str> = others.into_iter().collect();
    let message = format!(
        "there are {}s of {} for the same ports, which are more specific",
        others.join("s and "),
        parent.service
    );
    Some(not_accepted("Conflicted", message))
}

/// What is the same for all parents.
struct OfRoute {
    refused: Option<Statement>,
    partial: Option<Statement>,
    resolved: Statement,
}

fn of_route(snapshot: &Snapshot, route: &Route) -> OfRoute {
    let mut dropped = Vec::new();
    let mut parts = Vec::new();
    let mut first: Option<&Invalid> = None;
    for (index, rule) in route.rules.iter().enumerate() {
        let without_match = rule.left_out.as_ref().filter(|_| rule.matches.is_empty());
        if let Some(invalid) = rule.invalid.as_ref().or(without_match) {
            first.get_or_insert(invalid);
            dropped.push(format!("{index} ({})", invalid.message));
        }
        let backends = rule.backends.iter().filter_map(|it| it.invalid.as_ref());
        let matches = rule.left_out.as_ref().filter(|_| !rule.matches.is_empty());
        parts.extend(
            matches
                .into_iter()
                .chain(backends)
                .map(|it| it.message.to_string()),
        );
    }
    let all = !route.rules.is_empty() && dropped.len() == route.rules.len();
    let refused = first.filter(|_| all).map(|invalid| {
        let message = format!("no rule is understood: {}", list(&dropped));
        not_accepted(invalid.reason, message)
    });
    let partially = refused.is_none() && !(dropped.is_empty() && parts.is_empty());
    let partial = partially.then(|| {
        // The specification wants it to begin so.
        let mut message = vec![if dropped.is_empty() {
            "Dropped Rule parts".to_owned()
        } else {
            format!("Dropped Rule {}", dropped.join(", "))
        }];
        message.extend(parts);
        Statement {
            kind: PARTIALLY_INVALID,
            holds: true,
            reason: "UnsupportedValue",
            message: list(&message),
        }
    });
    OfRoute {
        refused,
        partial,
        resolved: resolved(snapshot, route),
    }
}

fn resolved(snapshot: &Snapshot, route: &Route) -> Statement {
    let unresolved = route.references().filter_map(|(field, reference)| {
        let why = snapshot.resolve(route, reference).err()?;
        Some((why.reason(), format!("{field}: {why}")))
    });
    let unresolved: Vec<(&'static str, String)> = unresolved.collect();
    let (reason, message) = match unresolved.first() {
        None => ("ResolvedRefs", "every reference is resolved".to_owned()),
        Some((reason, _)) => {
            let told: Vec<String> = unresolved.iter().map(|(_, why)| why.clone()).collect();
            (*reason, list(&told))
        }
    };
    Statement {
        kind: RESOLVED_REFS,
        holds: unresolved.is_empty(),
        reason,
        message,
    }
}

/// A parent as the route writes it.
fn reference(parent: &ParentRef) -> Value {
    let mut reference = json!({"group": "", "kind": "Service", "name": *parent.service.name});
    if parent.with_namespace {
        reference["namespace"] = (*parent.service.namespace).into();
    }
    if let Some(section) = &parent.section {
        reference["sectionName"] = (**section).into();
    }
    if let Some(port) = parent.port {
        reference["port"] = port.into();
    }
    reference
}

impl RouteVerdict {
    /// All entries of `status.parents`, where they were `current` so far: the others' as
    /// they are, and ours.
    pub(super) fn entries(&self, current: &[Value], now: Timestamp) -> Vec<Value> {
        let others = current.iter().filter(|entry| !is_ours(entry)).cloned();
        let ours = self.parents.iter().map(|(parent, statements)| {
            let before = current
                .iter()
                .find(|it| is_ours(it) && it["parentRef"] == *parent);
            let conditions = statements.iter().map(|statement| {
                let condition = self.condition(statement, now);
                json!(Condition {
                    last_transition_time: last_turned(before, &condition).unwrap_or(now),
                    ..condition
                })
            });
            json!({
                "parentRef": parent,
                "controllerName": FIELD_MANAGER,
                "conditions": conditions.collect::<Vec<Value>>(),
            })
        });
        others.chain(ours).collect()
    }

    fn condition(&self, statement: &Statement, now: Timestamp) -> Condition {
        Condition {
            kind: statement.kind.to_owned(),
            status: if statement.holds {
                ConditionStatus::True
            } else {
                ConditionStatus::False
            },
            reason: statement.reason.to_owned(),
            message: statement.message.clone(),
            observed_generation: self.generation,
            last_transition_time: now,
        }
    }

    /// The entries say this already.
    pub(super) fn is_said_by(&self, current: &[Value]) -> bool {
        let ours = current.iter().filter(|entry| is_ours(entry));
        let wanted = self.entries(current, Timestamp::UNIX_EPOCH);
        let wanted = wanted.iter().filter(|entry| is_ours(entry));
        ours.eq(wanted)
    }
}

fn is_ours(entry: &Value) -> bool {
    entry["controllerName"] == FIELD_MANAGER
}

/// When a condition took its status, where it has it already.
fn last_turned(entry: Option<&Value>, condition: &Condition) -> Option<Timestamp> {
    let mut conditions = entry?["conditions"].as_array()?.iter();
    let same = conditions
        .find(|it| it["type"] == condition.kind && it["status"] == json!(condition.status));
    same?["lastTransitionTime"].as_str()?.parse().ok()
}
