//! What is to be said of each policy. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::cluster::api::{Condition, ConditionStatus, PolicyStatus};
use crate::model::NamespacedName;
use crate::state::traffic::{TargetedPort, TrafficPolicy, TrafficTarget};
use crate::state::{
    Action, AuthorizationPolicy, MeshPolicy, ObjectKey, ObjectKind, PolicyScope, Problem, Snapshot,
};

/// It is understood and in force as written.
const ACCEPTED: &str = "Accepted";
/// Every Service that it names exists.
const RESOLVED_REFS: &str = "ResolvedRefs";

/// More problems than these of one policy are counted, not told.
const TOLD: usize = 5;

/// What the mesh makes of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The version of the spec that it is of.
    pub(super) generation: i64,
    pub(super) effect: String,
    pub(super) target: String,
    pub(super) statements: Vec<Statement>,
}

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// Problems of policies by kind and name.
type Problems<'s> = BTreeMap<(&'s str, &'s str), Vec<&'s Problem>>;

/// Of every policy that has an object in the API server.
pub(super) fn verdicts(snapshot: &Snapshot) -> BTreeMap<ObjectKey, Verdict> {
    let mut problems = Problems::new();
    for problem in &snapshot.problems {
        let (kind, object) = (problem.kind.as_str(), problem.object.as_str());
        problems.entry((kind, object)).or_default().push(problem);
    }
    let of_authorization = snapshot
        .authorization_policies
        .iter()
        .map(|(name, policy)| {
            let key = key(ObjectKind::AuthorizationPolicy, name);
            let verdict = Verdict {
                generation: policy.generation,
                effect: effect_of_authorization(policy),
                target: policy.scope.to_string(),
                statements: statements(
                    &key,
                    policy.invalid.as_deref(),
                    meaning_of_authorization(policy),
                    missing_of_authorization(snapshot, name, policy).as_deref(),
                    &problems,
                ),
            };
            (key, verdict)
        });
    let of_mesh = snapshot.mesh_policies.iter().map(|(name, policy)| {
        let key = key(ObjectKind::MeshPolicy, name);
        let verdict = Verdict {
            generation: policy.generation,
            effect: effect_of_mesh(policy),
            target: policy.scope.to_string(),
            statements: statements(
                &key,
                policy.invalid.as_deref(),
                "in force",
                missing(snapshot, name, &policy.scope).as_deref(),
                &problems,
            ),
        };
        (key, verdict)
    });
    let of_traffic = snapshot.traffic_policies.iter().map(|(name, policy)| {
        let key = key(ObjectKind::TrafficPolicy, name);
        let missing = snapshot.missing_traffic_targets(policy);
        let missing = missing.map(|it| format!("{}: {}", it.field(), it.message));
        let missing: Vec<String> = missing.collect();
        let verdict = Verdict {
            generation: policy.generation,
            effect: effect_of_traffic(policy),
            target: target_of_traffic(policy),
            statements: statements(
                &key,
                policy.invalid.as_deref(),
                "in force",
                Some(&missing),
                &problems,
            ),
        };
        (key, verdict)
    });
    // What the API server gave no version of is not there to have a status.
    let versioned = |(_, verdict): &(ObjectKey, Verdict)| verdict.generation > 0;
    let policies = of_authorization.chain(of_mesh).chain(of_traffic);
    policies.filter(versioned).collect()
}

fn key(kind: ObjectKind, name: &NamespacedName) -> ObjectKey {
    let name = name.clone();
    ObjectKey { kind, name }
}

fn effect_of_authorization(policy: &AuthorizationPolicy) -> String {
    match (&policy.invalid, policy.dry_run) {
        (Some(_), _) => "DENY ALL".to_owned(),
        (None, true) => format!("{} (dry run)", policy.action),
        (None, false) => policy.action.to_string(),
    }
}

fn meaning_of_authorization(policy: &AuthorizationPolicy) -> &'static str {
    match (policy.action, policy.rules.is_empty(), policy.dry_run) {
        (_, _, true) => "only counted and reported: dryRun is true",
        (Action::Allow, true, false) => "in force; it has no rules and so permits nothing",
        (Action::Deny, true, false) => "in force; it has no rules and so refuses nothing",
        (Action::Audit, true, false) => "in force; it has no rules and so marks nothing",
        (Action::Custom, true, false) => "in force; it has no rules and so asks nobody",
        (_, false, false) => "in force",
    }
}

fn effect_of_mesh(policy: &MeshPolicy) -> String {
    if policy.jwt_invalid {
        return "DENY ALL".to_owned();
    }
    if policy.invalid.is_some() {
        return "STRICT".to_owned();
    }
    let mut effect = match policy.mtls {
        Some(mode) => mode.to_string(),
        None => "inherited".to_owned(),
    };
    for (port, mode) in &policy.port_mtls {
        effect = format!("{effect}, {mode} on {port}");
    }
    if !policy.jwt.is_empty() {
        effect.push_str(", JWT");
    }
    if let Some(log) = policy.access_log {
        effect = format!("{effect}, log {log}");
    }
    effect
}

/// What a traffic policy speaks of.
fn effect_of_traffic(policy: &TrafficPolicy) -> String {
    let spec = &policy.spec;
    let sections = [
        (spec.load_balancing.is_some(), "load balancing"),
        (spec.connections.is_some(), "connections"),
        (spec.requests.is_some(), "requests"),
        (spec.outlier_detection.is_some(), "outlier detection"),
        (spec.retries.is_some(), "retries"),
        (spec.timeouts.is_some(), "timeouts"),
        (!spec.rate_limits.is_empty(), "rate limits"),
        (!spec.faults.is_empty(), "faults"),
        (spec.adaptive_concurrency.is_some(), "adaptive concurrency"),
    ];
    let said: Vec<&str> = sections
        .into_iter()
        .filter_map(|(is_there, word)| is_there.then_some(word))
        .collect();
    match (said.is_empty(), policy.held) {
        (true, _) => "nothing".to_owned(),
        (false, true) => format!("{} (as before)", said.join(", ")),
        (false, false) => said.join(", "),
    }
}

fn target_of_traffic(policy: &TrafficPolicy) -> String {
    let target = |target: &TrafficTarget| match &target.port {
        None => target.service.to_string(),
        Some(TargetedPort::Number(port)) => format!("{}:{port}", target.service),
        Some(TargetedPort::Name(port)) => format!("{}:{port}", target.service),
    };
    let targets: Vec<String> = policy.targets.iter().map(target).collect();
    format!("services {}", targets.join(","))
}

/// The Services of a scope that don't exist; `None` where it names none.
fn missing(
    snapshot: &Snapshot,
    policy: &NamespacedName,
    scope: &PolicyScope,
) -> Option<Vec<String>> {
    let namespace = &policy.namespace;
    let missing = snapshot.missing_targets(namespace, scope);
    let missing = missing.map(|(index, name)| {
        format!("spec.targetRefs[{index}].name: there is no Service {namespace}/{name}")
    });
    matches!(scope, PolicyScope::Services(_)).then(|| missing.collect())
}

/// The same, and whom it asks.
fn missing_of_authorization(
    snapshot: &Snapshot,
    name: &NamespacedName,
    policy: &AuthorizationPolicy,
) -> Option<Vec<String>> {
    let targets = missing(snapshot, name, &policy.scope);
    if policy.provider.is_none() {
        return targets;
    }
    let provider = snapshot.missing_provider(policy);
    let provider = provider.map(|(field, what)| format!("{field}: {what}"));
    Some(targets.into_iter().flatten().chain(provider).collect())
}

fn statements(
    key: &ObjectKey,
    invalid: Option<&str>,
    meaning: &str,
    missing: Option<&[String]>,
    problems: &Problems<'_>,
) -> Vec<Statement> {
    let of_targets = missing.unwrap_or_default();
    let accepted = match invalid {
        Some(first) => {
            let object = key.object();
            let of_it = problems.get(&(key.kind.as_str(), object.as_str()));
            let of_it = of_it.into_iter().flatten();
            let told = of_it.map(|problem| match problem.field.as_str() {
                "" => problem.message.clone(),
                field => format!("{field}: {}", problem.message),
            });
            // Those of targets stand in a condition of their own.
            let told =
                told.filter(|text| !of_targets.iter().any(|it| text.starts_with(it.as_str())));
            let told: Vec<String> = told.collect();
            let message = if told.is_empty() {
                first.to_owned()
            } else {
                list(&told)
            };
            Statement {
                kind: ACCEPTED,
                holds: false,
                reason: "Invalid",
                message,
            }
        }
        None => Statement {
            kind: ACCEPTED,
            holds: true,
            reason: "Accepted",
            message: meaning.to_owned(),
        },
    };
    let resolved = missing.map(|missing| {
        if missing.is_empty() {
            return Statement {
                kind: RESOLVED_REFS,
                holds: true,
                reason: "ResolvedRefs",
                message: "every Service that it names exists".to_owned(),
            };
        }
        Statement {
            kind: RESOLVED_REFS,
            holds: false,
            reason: if missing.iter().any(|it| it.starts_with("spec.targetRefs")) {
                "TargetNotFound"
            } else {
                "ProviderNotFound"
            },
            message: list(missing),
        }
    });
    std::iter::once(accepted).chain(resolved).collect()
}

pub(super) fn list(texts: &[String]) -> String {
    let told = texts.len().min(TOLD);
    let text = texts[..told].join("\n");
    match texts.len() - told {
        0 => text,
        more => format!("{text}\nand {more} more"),
    }
}

impl Verdict {
    /// The status that says this, where it was `current` so far.
    pub(super) fn status(&self, current: &PolicyStatus, now: Timestamp) -> PolicyStatus {
        let condition = |statement: &Statement| {
            let status = if statement.holds {
                ConditionStatus::True
            } else {
                ConditionStatus::False
            };
            let mut current = current.conditions.iter();
            let same = current.find(|it| it.kind == statement.kind && it.status == status);
            Condition {
                kind: statement.kind.to_owned(),
                status,
                reason: statement.reason.to_owned(),
                message: statement.message.clone(),
                observed_generation: self.generation,
                last_transition_time: same.map_or(now, |same| same.last_transition_time),
            }
        };
        PolicyStatus {
            effect: self.effect.clone(),
            target: self.target.clone(),
            conditions: self.statements.iter().map(condition).collect(),
        }
    }

    /// The status says this already.
    pub(super) fn is_said_by(&self, current: &PolicyStatus) -> bool {
        let wanted = self.status(current, Timestamp::UNIX_EPOCH);
        let ours = |kind: &str| matches!(kind, ACCEPTED | RESOLVED_REFS);
        let current_conditions = current.conditions.iter().filter(|it| ours(&it.kind));
        let mut current_conditions: Vec<&Condition> = current_conditions.collect();
        current_conditions.sort_by(|one, other| one.kind.cmp(&other.kind));
        wanted.effect == current.effect
            && wanted.target == current.target
            && current_conditions.into_iter().eq(&wanted.conditions)
    }
}
