//! What the mesh says of policies, at the policies.

use anyhow::{Context, Result, ensure};
use fairlead_tests::until_ok;
use serde_json::{Value, json};

use super::mesh::ClusterMesh;
use crate::Test;
use crate::mesh::LONG;

pub(crate) const TESTS: &[Test] = &[Test::cluster(
    "status::conditions_are_written_once",
    conditions,
)];

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
