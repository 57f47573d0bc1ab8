//! Our own kinds. What of them is not understood makes them invalid: they deny what
//! they select, and what they select is their whole namespace where even that can't
//! be understood.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::access_log;
use super::jwt;
use super::provider;
use super::reader::{self, Reader};
use super::rules::read_rules;
use super::{Converted, FieldPath, FieldProblem, problem};
use crate::cluster::field::Segment;
use crate::model::NamespacedName;
use crate::state::{
    Action, AuthorizationPolicy, MeshPolicy, MtlsMode, Object, ObjectKind, PolicyScope,
    ROOT_NAMESPACE, Selector,
};

/// Reads an `AuthorizationPolicy`; `alien` where it is of a kind or version that is
/// not known, which makes it invalid from the start.
pub(super) fn authorization(converted: &mut Converted, value: &Value, alien: Option<FieldProblem>) {
    let mut reader = Reader::default();
    let name = name(value, &converted.kind, alien.as_ref(), &mut reader);
    // Several without a name would be taken for one, so that one must do for all.
    let unnamed = !reader.problems.is_empty();
    let mut action = Action::Allow;
    let mut dry_run = false;
    let mut rules = Vec::new();
    let mut provider = None;
    let mut scope = Scope {
        failed: unnamed,
        ..Scope::default()
    };
    let known = [
        "selector",
        "targetRefs",
        "action",
        "provider",
        "dryRun",
        "rules",
    ];
    let of_alien = alien.is_some();
    for (key, value, path) in spec(&mut reader, value, alien, &known) {
        match key {
            "selector" => scope.selector(&mut reader, value, &path),
            "targetRefs" => scope.targets(&mut reader, value, &path, &name.namespace),
            "action" => match value.as_str() {
                Some("ALLOW") => action = Action::Allow,
                Some("DENY") => action = Action::Deny,
                Some("AUDIT") => action = Action::Audit,
                Some("CUSTOM") => action = Action::Custom,
                _ => {
                    let message = format!("{value} is not ALLOW, DENY, AUDIT or CUSTOM");
                    reader.report(&path, message);
                }
            },
            "provider" => {
                provider = provider::read(&mut reader, value, &path, &name.namespace);
            }
            "dryRun" => match value.as_bool() {
                Some(given) => dry_run = given,
                None => reader.report(&path, format!("{value} is neither true nor false")),
            },
            _ => rules = read_rules(&mut reader, value, &path, &name.namespace),
        }
    }
    check_custom(&mut reader, action, dry_run, provider.is_some());
    if !of_alien {
        reader.hold_bounds(ObjectKind::AuthorizationPolicy, value);
    }
    let policy = AuthorizationPolicy {
        scope: scope.finish(&mut reader, &name.namespace),
        name: name.clone(),
        action,
        dry_run,
        rules,
        provider,
        generation: generation(value),
        invalid: invalid(&reader),
    };
    converted.problems.append(&mut reader.problems);
    converted.is(ObjectKind::AuthorizationPolicy, name);
    converted.object = Some(Object::AuthorizationPolicy(policy));
}

/// Reads a `MeshPolicy`; `alien` as of [`authorization`].
pub(super) fn mesh(converted: &mut Converted, value: &Value, alien: Option<FieldProblem>) {
    let mut reader = Reader::default();
    let name = name(value, &converted.kind, alien.as_ref(), &mut reader);
    // Several without a name would be taken for one, so that one must do for all.
    let unnamed = !reader.problems.is_empty();
    let mut mtls = None;
    let mut port_mtls = BTreeMap::new();
    let mut jwt = Vec::new();
    let mut access_log = None;
    // One of Istio's kind says nothing of tokens, in whichever version.
    let speaks_of_tokens = converted.kind != "PeerAuthentication";
    let mut scope = Scope {
        failed: unnamed,
        ..Scope::default()
    };
    let of_alien = alien.is_some();
    for (key, value, path) in spec(
        &mut reader,
        value,
        alien,
        &["selector", "targetRefs", "mtls", "jwt", "accessLog"],
    ) {
        match key {
            "selector" => scope.selector(&mut reader, value, &path),
            "targetRefs" => scope.targets(&mut reader, value, &path, &name.namespace),
            "jwt" => jwt = jwt::read(&mut reader, value, &path),
            "accessLog" => access_log = access_log::read(&mut reader, value, &path),
            _ => {
                for (key, value, path) in reader.fields(value, &path, &["mode", "ports"]) {
                    match key {
                        "mode" => mtls = read_mode(&mut reader, value, &path),
                        _ => port_mtls = read_port_modes(&mut reader, value, &path),
                    }
                }
            }
        }
    }
    if !of_alien {
        reader.hold_bounds(ObjectKind::MeshPolicy, value);
    }
    let scope = scope.finish(&mut reader, &name.namespace);
    let mut problems = reader.problems.iter();
    let policy = MeshPolicy {
        scope,
        name: name.clone(),
        mtls,
        port_mtls,
        jwt,
        access_log,
        jwt_invalid: speaks_of_tokens && problems.any(|problem| may_hide_tokens(&problem.field)),
        generation: generation(value),
        invalid: invalid(&reader),
    };
    converted.problems.append(&mut reader.problems);
    converted.is(ObjectKind::MeshPolicy, name);
    converted.object = Some(Object::MeshPolicy(policy));
}

/// What is wrong there may be meant to say whose tokens are taken, such as a `jwts` in
/// place of `jwt`: everywhere but in fields of which it is known what they are about.
fn may_hide_tokens(field: &FieldPath) -> bool {
    let [Segment::Key(spec), Segment::Key(part), ..] = &field.0[..] else {
        return true;
    };
    spec != "spec" || !["mtls", "selector", "targetRefs", "accessLog"].contains(&part.as_str())
}

/// Its name. A policy without a proper one gets one, so that it can deny. One of a
/// kind that is not known gets one that can't be that of a proper policy.
fn name(
    value: &Value,
    kind: &str,
    alien: Option<&FieldProblem>,
    reader: &mut Reader,
) -> NamespacedName {
    let name = super::name(value, true).unwrap_or_else(|problem| {
        let given = value.get("metadata").and_then(|m| m.get("namespace"));
        let given = given
            .and_then(Value::as_str)
            .filter(|n| super::is_dns_name(n));
        reader.problems.push(problem);
        NamespacedName::new(given.unwrap_or("default"), "(unnamed)")
    });
    match alien {
        Some(_) => NamespacedName::new(name.namespace, format!("{kind}:{}", name.name)),
        None => name,
    }
}

/// The known fields of `spec`.
fn spec<'v>(
    reader: &mut Reader,
    value: &'v Value,
    alien: Option<FieldProblem>,
    known: &[&str],
) -> Vec<(&'v str, &'v Value, FieldPath)> {
    if let Some(alien) = alien {
        // Its other fields may be right in its own kind: one problem says it all.
        let mut of_spec = Reader::default();
        let path = FieldPath::of(&["spec"]);
        let spec = value.get("spec").filter(|spec| spec.is_object());
        let fields = spec.map(|spec| of_spec.fields(spec, &path, &["selector", "targetRefs"]));
        reader.problems.push(alien);
        return fields.unwrap_or_default();
    }
    let top = ["apiVersion", "kind", "metadata", "spec", "status"];
    reader.fields(value, &FieldPath::default(), &top);
    match value.get("spec") {
        None => Vec::new(),
        Some(spec) => reader.fields(spec, &FieldPath::of(&["spec"]), known),
    }
}

/// A CUSTOM asks somebody, and nobody else does.
fn check_custom(reader: &mut Reader, action: Action, dry_run: bool, provided: bool) {
    let spec = FieldPath::of(&["spec"]);
    let custom = action == Action::Custom;
    // A provider that was not understood has said so.
    if custom && !provided && reader.problems.is_empty() {
        reader.report(&spec.key("provider"), "is missing: whom a CUSTOM asks");
    } else if !custom && provided {
        reader.report(&spec.key("provider"), "has a meaning with CUSTOM only");
    }
    if custom && dry_run {
        let message = "has no meaning with CUSTOM: its Service would have to be asked";
        reader.report(&spec.key("dryRun"), message);
    }
}

/// The first problem, for the policy itself; all of them go where problems go.
pub(super) fn invalid(reader: &Reader) -> Option<String> {
    let FieldProblem { field, message } = reader.problems.first()?;
    Some(format!("{field}: {message}"))
}

pub(super) fn generation(value: &Value) -> i64 {
    let generation = value.get("metadata").and_then(|m| m.get("generation"));
    generation.and_then(Value::as_i64).unwrap_or(0)
}

/// What a policy selects, as far as it was read.
#[derive(Default)]
struct Scope {
    selector: Option<Selector>,
    services: Option<Vec<Arc<str>>>,
    given: usize,
    /// It can't be understood: the whole namespace is selected.
    failed: bool,
}

impl Scope {
    fn selector(&mut self, reader: &mut Reader, value: &Value, path: &FieldPath) {
        let mut labels = BTreeMap::new();
        for (_, value, path) in reader.fields(value, path, &["matchLabels"]) {
            let Value::Object(map) = value else {
                reader.report(&path, "must be a map of labels");
                continue;
            };
            for (key, value) in map {
                match value.as_str() {
                    Some(value) => drop(labels.insert(key.clone(), value.to_owned())),
                    None => reader.report(&path.key(key), "must be a string"),
                }
            }
        }
        self.given += usize::from(!labels.is_empty());
        self.selector = Some(Selector(labels));
    }

    fn targets(&mut self, reader: &mut Reader, value: &Value, path: &FieldPath, namespace: &str) {
        let mut services = Vec::new();
        for (target, path) in reader.items(value, path) {
            services.extend(target_service(reader, target, &path, namespace));
        }
        self.given += 1;
        self.services = Some(services);
    }

    fn finish(self, reader: &mut Reader, namespace: &str) -> PolicyScope {
        if self.given > 1 {
            let field = FieldPath::of(&["spec", "targetRefs"]);
            reader.report(&field, "can't be given together with a selector");
        }
        let mut problems = reader.problems.iter();
        if self.failed || problems.any(|problem| is_of_scope(&problem.field)) {
            return PolicyScope::Pods(Selector::default());
        }
        match (self.services, self.selector.unwrap_or_default()) {
            (Some(services), _) => PolicyScope::Services(services),
            (None, selector) if selector.0.is_empty() && namespace == ROOT_NAMESPACE => {
                PolicyScope::Mesh
            }
            (None, selector) => PolicyScope::Pods(selector),
        }
    }
}

/// What a policy selects can't be told where this field is wrong.
fn is_of_scope(field: &FieldPath) -> bool {
    let [Segment::Key(spec), Segment::Key(part), ..] = &field.0[..] else {
        return false;
    };
    spec == "spec" && ["selector", "targetRefs"].contains(&part.as_str())
}

/// The Service that a `targetRef` names.
fn target_service(
    reader: &mut Reader,
    target: &Value,
    path: &FieldPath,
    own_namespace: &str,
) -> Option<Arc<str>> {
    let mut kind = false;
    let mut name = None;
    for (key, value, path) in reader.fields(target, path, &["group", "kind", "name", "namespace"]) {
        match (key, value.as_str()) {
            ("group", Some("" | "core")) => {}
            ("kind", Some("Service")) => kind = true,
            ("namespace", Some(namespace)) if namespace == own_namespace => {}
            ("name", _) => name = reader.text(value, &path),
            ("namespace", _) => {
                reader.report(&path, format!("must be the policy's own, {own_namespace}"));
            }
            _ => reader.report(
                &path,
                format!("{value} can't be a target: only Services can"),
            ),
        }
    }
    if !kind && target.get("kind").is_none() {
        reader.report(&path.key("kind"), "is missing: Service");
    }
    if target.get("name").is_none() {
        reader.report(&path.key("name"), "is missing");
    }
    name.map(Arc::from)
}

/// The one field that a map must have, with something in it.
pub(super) fn only_field<'v>(
    reader: &mut Reader,
    value: &'v Value,
    path: &FieldPath,
    name: &str,
) -> Option<(&'v Value, FieldPath)> {
    let before = reader.problems.len();
    let field = reader.fields(value, path, &[name]).into_iter().next();
    let field = field.filter(|(_, value, _)| value.as_object().is_none_or(|map| !map.is_empty()));
    if field.is_none() && reader.problems.len() == before {
        reader.report(&path.key(name), "is empty: leave it out to match anything");
    }
    field.map(|(_, value, path)| (value, path))
}

fn read_mode(reader: &mut Reader, value: &Value, path: &FieldPath) -> Option<MtlsMode> {
    match value.as_str() {
        Some("STRICT") => Some(MtlsMode::Strict),
        Some("PERMISSIVE") => Some(MtlsMode::Permissive),
        _ => {
            reader.report(path, format!("{value} is neither STRICT nor PERMISSIVE"));
            None
        }
    }
}

fn read_port_modes(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
) -> BTreeMap<u16, MtlsMode> {
    let mut modes = BTreeMap::new();
    let Value::Object(map) = value else {
        reader.report(path, "must be a map of ports");
        return modes;
    };
    for (key, value) in map {
        let path = path.key(key);
        let port = reader::port(&Value::String(key.clone()));
        let mode = only_field(reader, value, &path, "mode");
        let mode = mode.and_then(|(value, path)| read_mode(reader, value, &path));
        match (port, mode) {
            (Ok(port), Some(mode)) => drop(modes.insert(port, mode)),
            (Ok(_), None) => {}
            (Err(message), _) => reader.report(&path, message),
        }
    }
    modes
}

/// A policy in place of text that can't be read but seems to hold one: denies the
/// namespace.
pub(in crate::cluster) fn in_place_of_text(namespace: &str, place: &str) -> Object {
    let why = problem(
        &[],
        format!("{place} can't be read and seems to hold a policy"),
    );
    let whole = match namespace {
        ROOT_NAMESPACE => PolicyScope::Mesh,
        _ => PolicyScope::Pods(Selector::default()),
    };
    Object::AuthorizationPolicy(AuthorizationPolicy {
        name: NamespacedName::new(namespace, format!("(unreadable {place})")),
        scope: whole,
        action: Action::Deny,
        dry_run: false,
        rules: Vec::new(),
        provider: None,
        generation: 0,
        invalid: Some(why.message),
    })
}
