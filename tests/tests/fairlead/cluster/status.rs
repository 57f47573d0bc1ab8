//! What the mesh says of policies, at the policies.

use anyhow::{Context, Result, ensure};
use fairlead_tests::until_ok;
use serde_json::{Value, json};

use super::mesh::ClusterMesh;
use crate::Test;
use crate::mesh::LONG;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster("status::conditions_are_written_once", conditions),
    Test::cluster("status::routes_keep_what_others_say", routes),
];

const PATH: &str = "/apis/fairlead.dev/v1alpha1/namespaces/shop/authorizationpolicies";

fn policy(name: &str, source: &Value) -> Value {
    json!({
        "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "selector": {"matchLabels": {"app": "server"}},
            "action": "ALLOW", "rules": [{"from": [{"source": source}]}],
        },
    })
}

/// The object, once its condition `Accepted` is of its generation and of this status.
fn accepted(mesh: &ClusterMesh, name: &str, status: &str) -> Result<Value> {
    until_ok(&format!("Accepted={status} of {name}"), LONG, || {
        let object = mesh.api().get(&format!("{PATH}/{name}"))?;
        let text = object["status"].to_string();
        let condition = find(&object["status"]).with_context(|| text.clone())?;
        ensure!(condition["status"] == status, "{text}");
        let generation = &object["metadata"]["generation"];
        ensure!(condition["observedGeneration"] == *generation, "{text}");
        Ok(object)
    })
}

/// The condition `Accepted`, wherever in the status it is.
fn find(value: &Value) -> Option<&Value> {
    if value["type"] == "Accepted" {
        return Some(value);
    }
    match value {
        Value::Array(items) => items.iter().find_map(find),
        Value::Object(fields) => fields.values().find_map(find),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn conditions() -> Result<()> {
    let mut mesh = ClusterMesh::down(&[], true)?;
    mesh.start_mesh(&[])?;
    let good = json!({"principals": ["cluster.local/ns/shop/sa/client"]});
    drop(mesh.api().create(&policy("good", &good))?);
    drop(
        mesh.api()
            .create(&policy("bad", &json!({"principle": ["x"]})))?,
    );
    let first = accepted(&mesh, "good", "True")?;
    let bad = accepted(&mesh, "bad", "False")?;
    let message = find(&bad["status"]).map(|condition| condition["message"].to_string());
    ensure!(
        message.is_some_and(|text| text.contains("principle")),
        "{bad}"
    );

    // The bad one is mended; by the time that this is said, the good one would have been
    // written again, if it were.
    let spec = policy("bad", &good)["spec"].clone();
    drop(mesh.api().merge(&bad, "", &json!({ "spec": spec }))?);
    drop(accepted(&mesh, "bad", "True")?);
    let now = mesh.api().get(&format!("{PATH}/good"))?;
    let revision = |object: &Value| object["metadata"]["resourceVersion"].clone();
    ensure!(
        revision(&now) == revision(&first),
        "it was written again: {now}"
    );

    let columns = mesh
        .api()
        .kubectl(&["get", "authorizationpolicies", "-n", "shop"])?
        .ok()?;
    ensure!(columns.stdout.contains("ACCEPTED"), "{}", columns.stdout);
    Ok(())
}

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";

/// The kind `HTTPRoute`, as far as its schema matters for its status.
fn definition() -> Value {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let parents = json!({"type": "array", "items": anything, "x-kubernetes-list-type": "atomic"});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "httproutes.gateway.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
        },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": {
                "kind": "HTTPRoute", "listKind": "HTTPRouteList",
                "plural": "httproutes", "singular": "httproute",
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {
                        "spec": anything,
                        "status": {"type": "object", "properties": {"parents": parents}},
                    },
                }},
            }],
        },
    })
}

fn web(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"ports": [{"name": "http", "port": 80}]},
    })
}

/// The status of the route, once a condition of ours is so.
fn said(mesh: &ClusterMesh, kind: &str, reason: &str) -> Result<Value> {
    until_ok(&format!("{kind}, {reason}"), LONG, || {
        let path = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";
        let status = mesh.api().get(path)?["status"].clone();
        let parents = status["parents"].as_array().context("no parents")?;
        let mut ours = parents
            .iter()
            .filter(|it| it["controllerName"] == "fairlead.dev/mesh")
            .filter_map(|it| it["conditions"].as_array())
            .flatten();
        let found = ours.any(|it| it["type"] == kind && it["reason"] == reason);
        ensure!(found, "{status}");
        Ok(status)
    })
}

fn routes() -> Result<()> {
    let mut mesh = ClusterMesh::down(&[], true)?;
    drop(mesh.api().create(&definition())?);
    until_ok("the kind", LONG, || mesh.api().get(ROUTES).map(drop))?;
    drop(mesh.api().create(&web("web"))?);
    let route = mesh.api().create(&json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": "r"},
        "spec": {
            "parentRefs": [{"name": "gateway"}, {"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "late", "port": 80}]}],
        },
    }))?;
    let theirs = json!({
        "parentRef": {"name": "gateway"}, "controllerName": "example.com/gateway",
        "conditions": [],
    });
    drop(
        mesh.api()
            .set_status(&route, &json!({"parents": [theirs]}))?,
    );
    mesh.start_mesh(&[])?;
    let status = said(&mesh, "ResolvedRefs", "BackendNotFound")?;
    ensure!(status["parents"][0] == theirs, "{status}");
    said(&mesh, "Accepted", "Accepted")?;

    drop(mesh.api().create(&web("late"))?);
    let status = said(&mesh, "ResolvedRefs", "ResolvedRefs")?;
    ensure!(status["parents"][0] == theirs, "{status}");
    let parents = status["parents"].as_array().map(Vec::len);
    ensure!(parents == Some(2), "{status}");
    Ok(())
}
