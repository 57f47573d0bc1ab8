//! The control plane itself: what the other tests rely on.

use anyhow::{Result, ensure};
use fairlead_tests::cluster::{ClusterPod, ControlPlane, Lease, kubelet};
use fairlead_tests::{PodSpec, World, WorldOptions};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster("plane::a_pod_is_an_object_and_a_namespace", pod),
    Test::cluster("plane::the_next_test_finds_it_as_it_began", beginnings),
    Test::cluster("plane::a_restart_keeps_the_objects", restart),
];

fn world() -> Result<World> {
    World::create(&WorldOptions::nodes(&["a", "b"]))
}

/// Who the API server takes the bearer of a token for.
fn review(plane: &ControlPlane, token: &str, audience: &str) -> Result<Value> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = plane.admin().request("POST", path, Some(&review))?;
    Ok(answer["status"].clone())
}

fn pod() -> Result<()> {
    let world = world()?;
    let plane = Lease::take(&world, super::manifests::install)?;
    let api = plane.admin();
    kubelet::apply_namespace(api, "shop", true)?;
    let pod = ClusterPod::run(api, &world, &PodSpec::new("a", "shop", "client"))?;
    let path = "/api/v1/namespaces/shop/pods/client";
    let object = api.get(path)?;
    ensure!(object["status"]["podIP"] == json!(pod.ip4), "{object}");
    ensure!(object["spec"]["nodeName"] == "a", "{object}");
    let reached = pod.run(&["curl", "-sk", &format!("{}/healthz", api_url(&plane)?)])?;
    ensure!(reached.stdout == "ok", "{reached:?}");

    let file = plane.directory().join("token");
    pod.project_token(Some("fairlead-ca"), &file)?;
    let token = std::fs::read_to_string(&file)?;
    let status = review(&plane, &token, "fairlead-ca")?;
    ensure!(
        status["user"]["username"] == "system:serviceaccount:shop:client",
        "{status}"
    );
    let status = review(&plane, &token, "another")?;
    ensure!(status["authenticated"] != true, "{status}");

    let user = plane.user("nobody")?;
    let (code, answer) = user.send("GET", path, None)?;
    ensure!(code == 403, "{answer}");
    let pods = json!({"verb": "get", "resource": "pods"});
    ensure!(!api.may("nobody", &pods)?, "RBAC is not enforced");
    let output = api.kubectl(&["get", "pods", "-A", "-o", "name"])?.ok()?;
    ensure!(output.stdout == "pod/client\n", "{output:?}");
    Ok(())
}

/// The API server's address, from the kubeconfig that agents get.
fn api_url(plane: &ControlPlane) -> Result<String> {
    let text = std::fs::read_to_string(plane.admin().kubeconfig("url")?)?;
    let value: Value = serde_json::from_str(&text)?;
    let server = &value["clusters"][0]["cluster"]["server"];
    Ok(server.as_str().unwrap_or_default().to_owned())
}

fn beginnings() -> Result<()> {
    let world = world()?;
    let object = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "default", "name": name},
        })
    };
    let plane = Lease::take(&world, super::manifests::install)?;
    drop(plane.admin().create(&object("left-over"))?);
    let default = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
    let label = |value: Value| json!({"metadata": {"labels": {"fairlead.dev/mesh": value}}});
    drop(
        plane
            .admin()
            .merge(&default, "", &label("enabled".into()))?,
    );
    drop(plane);
    let plane = Lease::take(&world, super::manifests::install)?;
    let path = "/api/v1/namespaces/default/configmaps/left-over";
    let (code, answer) = plane.admin().send("GET", path, None)?;
    ensure!(code == 404, "{answer}");
    let default = plane.admin().get("/api/v1/namespaces/default")?;
    ensure!(
        default["metadata"]["labels"]["fairlead.dev/mesh"].is_null(),
        "{default}"
    );
    Ok(())
}

fn restart() -> Result<()> {
    let world = world()?;
    let mut plane = Lease::take(&world, super::manifests::install)?;
    kubelet::apply_namespace(plane.admin(), "shop", true)?;
    let before = plane.admin().get("/api/v1/namespaces/shop")?;
    let revision = before["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    plane.stop_server();
    ensure!(
        plane.admin().get("/api/v1/namespaces/shop").is_err(),
        "it still answers"
    );
    plane.start_server()?;
    let after = plane.admin().get("/api/v1/namespaces/shop")?;
    ensure!(
        after["metadata"]["uid"] == before["metadata"]["uid"],
        "{after}"
    );
    // What came after a revision from before a compaction is gone, and said to be.
    kubelet::apply_namespace(plane.admin(), "later", false)?;
    plane.compact()?;
    plane.stop_server();
    plane.start_server()?;
    let path = format!("/api/v1/namespaces?watch=1&timeoutSeconds=1&resourceVersion={revision}");
    let (_, answer) = plane.admin().send("GET", &path, None)?;
    ensure!(answer.contains("\"code\":410"), "{answer}");
    Ok(())
}
