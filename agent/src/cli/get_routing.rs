//! Routes, endpoints and `TrafficPolicies`, of `fairlead get`.

use super::output::{Paint, span};
use super::table::Cell;
use crate::admin::{BackendRow, EndpointRow, RouteRow, RouteRuleRow, TrafficPolicyRow};

pub(super) const ENDPOINTS: &[&str] = &[
    "SERVICE",
    "ENDPOINT",
    "POD",
    "NODE",
    "READY",
    "HEALTH",
    "IN FLIGHT",
    "LATENCY",
    "REQUESTS",
    "FAILED",
    "EJECTIONS",
    "SEEN BY",
];
pub(super) const ROUTES: &[&str] = &["ROUTE", "OF", "RULE", "MATCHES", "BACK ENDS", "PROBLEMS"];
pub(super) const TRAFFIC_POLICIES: &[&str] = &["POLICY", "FOR", "SAYS", "INVALID"];

fn none() -> Cell {
    Cell::painted(Paint::Dim, "-")
}

pub(super) fn endpoint(row: &EndpointRow) -> Vec<Cell> {
    let text = |value: &Option<String>| value.as_deref().map_or_else(none, Cell::from);
    let ready = if row.ready {
        Cell::painted(Paint::Good, "yes")
    } else {
        Cell::painted(Paint::Warn, "no")
    };
    let mut cells = vec![
        format!("{}/{}:{}", row.namespace, row.service, row.port).into(),
        row.address.to_string().into(),
        text(&row.pod),
        text(&row.node),
        ready,
    ];
    let Some(load) = &row.load else {
        cells.extend(std::iter::repeat_with(none).take(7));
        return cells;
    };
    let health = match (&*load.health, load.ejected_for_ms) {
        ("healthy", _) => Cell::painted(Paint::Good, "healthy"),
        ("ejected", Some(left)) => {
            Cell::painted(Paint::Bad, &format!("ejected for {}", span(left)))
        }
        (other, _) => Cell::painted(Paint::Warn, other),
    };
    let failed = if load.failures == 0 {
        Cell::from("0")
    } else {
        Cell::painted(Paint::Warn, &load.failures.to_string())
    };
    cells.extend([
        health,
        load.in_flight.to_string().into(),
        latency(load.latency_us).into(),
        load.requests.to_string().into(),
        failed,
        load.ejections.to_string().into(),
        load.seen_by.as_str().into(),
    ]);
    cells
}

fn latency(microseconds: u64) -> String {
    match microseconds {
        0..10_000 => format!("{}.{}ms", microseconds / 1000, microseconds % 1000 / 100),
        _ => span(microseconds / 1000),
    }
}

/// A line for each rule.
pub(super) fn route(row: &RouteRow) -> Vec<Vec<Cell>> {
    let name = format!("{} {}/{}", row.route, row.namespace, row.name);
    let line = |rule: Option<&RouteRuleRow>| {
        let mut matches = rule.map_or_else(Vec::new, |rule| rule.matches.clone());
        matches.extend(row.hostnames.iter().cloned());
        let invalid = rule.and_then(|rule| rule.invalid.clone());
        let problems: Vec<String> = row.problems.iter().cloned().chain(invalid).collect();
        vec![
            name.as_str().into(),
            row.parents.join(", ").into(),
            rule.map_or_else(none, |rule| rule.rule.as_str().into()),
            dashed(&matches.join(" or ")),
            rule.map_or_else(none, backends),
            if problems.is_empty() {
                none()
            } else {
                Cell::painted(Paint::Bad, &problems.join("; "))
            },
        ]
    };
    if row.rules.is_empty() {
        return vec![line(None)];
    }
    row.rules.iter().map(|rule| line(Some(rule))).collect()
}

fn backends(rule: &RouteRuleRow) -> Cell {
    let all: u64 = rule.backends.iter().map(|it| u64::from(it.weight)).sum();
    let backend = |it: &BackendRow| {
        let share = match rule.backends.len() {
            1 => String::new(),
            _ => format!(" {}%", u64::from(it.weight) * 100 / all.max(1)),
        };
        let wrong = match &it.invalid {
            Some(why) => format!(" (500: {why})"),
            None => String::new(),
        };
        format!("{}{share}{wrong}", it.backend)
    };
    let mut parts: Vec<String> = rule.filters.clone();
    parts.extend(rule.backends.iter().map(backend));
    let text = parts.join(", ");
    if rule.backends.iter().any(|it| it.invalid.is_some()) {
        Cell::painted(Paint::Bad, &text)
    } else {
        dashed(&text)
    }
}

pub(super) fn traffic_policy(row: &TrafficPolicyRow) -> Vec<Cell> {
    vec![
        format!("{}/{}", row.namespace, row.name).into(),
        row.targets.join(", ").into(),
        dashed(&row.settings.join("; ")),
        match &row.invalid {
            Some(text) => Cell::painted(Paint::Bad, text),
            None => none(),
        },
    ]
}

fn dashed(text: &str) -> Cell {
    if text.is_empty() { none() } else { text.into() }
}
