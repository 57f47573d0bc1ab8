//! `deploy/`, as the API server gets it and as a test runs what it describes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use fairlead_tests::cluster::ControlPlane;
use fairlead_tests::{run, until_ok};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::mesh::SOON;

/// The namespace of the mesh itself.
pub(crate) const SYSTEM: &str = "fairlead-system";

/// Kinds of the base that 1.20 does not know, and no test needs.
const TOO_NEW: [(&str, &str); 1] = [("policy/v1", "PodDisruptionBudget")];

/// What every test begins with: all of `deploy/`, as `kubectl apply -k` sends it.
pub(crate) fn install(plane: &ControlPlane) -> Result<()> {
    let mut objects = objects()?;
    // Whatever the order of the files, a namespace is there before what is in it.
    objects.sort_by_key(|object| object["kind"] != "Namespace");
    for object in &mut objects {
        let (version, kind) = (&object["apiVersion"], &object["kind"]);
        if TOO_NEW.iter().any(|new| version == new.0 && kind == new.1) {
            continue;
        }
        if kind == "DaemonSet" {
            // `maxSurge` came with 1.22.
            object["spec"]["updateStrategy"] = json!({"type": "RollingUpdate"});
        }
        drop(plane.admin().create(object)?);
    }
    until_ok("the kinds of fairlead.dev", SOON, || {
        for kind in ["authorizationpolicies", "meshpolicies", "trafficpolicies"] {
            let path = format!("/apis/fairlead.dev/v1alpha1/{kind}");
            drop(plane.admin().get(&path)?);
        }
        Ok(())
    })
}

/// The objects of `deploy/`, as kustomize renders them.
fn objects() -> Result<Vec<Value>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let kubectl = fairlead_tests::cluster::kubernetes()?.join("kubectl");
    let mut command = std::process::Command::new(kubectl);
    let rendered = run(command.arg("kustomize").arg(directory), SOON)?.ok()?;
    let documents = serde_yaml_ng::Deserializer::from_str(&rendered.stdout);
    let objects = documents
        .map(Value::deserialize)
        .collect::<Result<Vec<_>, _>>()?;
    ensure!(!objects.is_empty(), "deploy/ has no objects");
    Ok(objects)
}

/// A pod as its controller would make it from a template, bound to a node.
pub(crate) fn pod_of(controller: &Value, name: &str, node: &str) -> Value {
    let template = &controller["spec"]["template"];
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": template["metadata"], "spec": template["spec"],
    });
    object["metadata"]["namespace"] = SYSTEM.into();
    object["metadata"]["name"] = name.into();
    object["spec"]["nodeName"] = node.into();
    object
}

/// The arguments of a template's only container but for `replaced`, each flag and value
/// an argument of its own.
pub(crate) fn arguments_of(controller: &Value, replaced: &[&str]) -> Result<Vec<String>> {
    let arguments = controller
        .pointer("/spec/template/spec/containers/0/args")
        .and_then(Value::as_array)
        .context("the container has arguments")?;
    let texts = arguments.iter().skip(1).filter_map(Value::as_str);
    Ok(texts
        .filter(|text| {
            let flag = text.split('=').next().unwrap_or(text);
            !replaced.contains(&flag)
        })
        .flat_map(|text| text.splitn(2, '=').map(str::to_owned))
        .collect())
}
