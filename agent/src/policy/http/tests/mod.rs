//! Requests and the rules that they are for, from manifests.

mod conformance;
mod incremental;
mod matching;
mod precedence;
mod references;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::Deserialize as _;

use super::{BackendTarget, RequestHead};
use crate::cluster::convert::{Converter, NetnsFrom};
use crate::model::TrustDomain;
use crate::policy::{Routes, Table};
use crate::state::fixtures::{World, name};
use crate::state::{Object, ObjectKey, ObjectKind, Snapshot};

/// Services `shop/web`, `shop/v1`, `shop/v2` and `other/far`, each with port 80.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: admin, port: 90}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: other}
spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}
";

/// Objects of manifests, and what is wrong with them.
pub(in crate::policy) fn objects(text: &str) -> (Vec<Object>, Vec<String>) {
    let trust_domain = TrustDomain("cluster.local".into());
    let mut converter = Converter::new(trust_domain, NetnsFrom::Annotation);
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document).unwrap();
        let read = converter.value(&value);
        objects.extend(read.object);
        let said = read.problems.into_iter();
        problems.extend(said.map(|it| format!("{}: {}", it.field, it.message)));
    }
    (objects, problems)
}

fn world(text: &str) -> World {
    let mut world = World::new(objects(SERVICES).0);
    put(&mut world, text);
    world
}

fn put(world: &mut World, text: &str) {
    for object in objects(text).0 {
        world.put(object);
    }
}

/// An `HTTPRoute` of `shop/web` with these rules.
fn http(name: &str, rules: &str) -> String {
    route(
        "HTTPRoute",
        name,
        "{name: web, group: '', kind: Service}",
        rules,
    )
}

fn route(kind: &str, name: &str, parent: &str, rules: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, \
         namespace: {namespace}}}\nspec:\n  parentRefs: [{parent}]\n  rules: {rules}\n"
    )
}

fn table(text: &str) -> Table {
    Table::compile(None, world(text).now())
}

/// The routes of `shop/web:80` for a client of `shop`.
fn routes(table: &Table) -> Arc<Routes> {
    let found = table.routes("shop", &name("shop/web"), 80);
    found.expect("there are routes")
}

/// The rule of `GET /path?query`, with headers as `name: value` lines behind it.
fn rule(routes: &Routes, request: &str) -> String {
    let mut lines = request.lines();
    let (method, target) = lines.next().unwrap().split_once(' ').unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    let head = RequestHead {
        method: &method.parse::<Method>().unwrap(),
        path,
        query,
        host: "web",
        headers: &headers,
    };
    match routes.find(&head) {
        Some(matched) => {
            let (_, rule) = matched.rule.label.split_once('/').unwrap();
            format!("{rule} {}", matched.prefix)
        }
        None => "none".to_owned(),
    }
}

#[track_caller]
fn check(routes: &Routes, request: &str, expected: &str) {
    let found = rule(routes, request);
    let (found, _) = found.split_once(' ').unwrap_or((&found, ""));
    assert_eq!(found, expected, "{request}");
}

/// The back ends of the first rule of the one route of `shop/web`.
fn targets(table: &Table) -> Vec<String> {
    targets_of(&routes(table))
}

/// The back ends of the rule of `GET /`.
fn targets_of(routes: &Routes) -> Vec<String> {
    let first = routes.find(&RequestHead {
        method: &Method::GET,
        path: "/",
        query: None,
        host: "",
        headers: &HeaderMap::new(),
    });
    let rule = first.expect("there is a rule").rule;
    let text = |target: &BackendTarget| match target {
        BackendTarget::Service { service, port } => format!("{service}:{port}"),
        BackendTarget::Invalid(why) => format!("invalid: {why}"),
    };
    rule.backends.iter().map(|it| text(&it.target)).collect()
}
