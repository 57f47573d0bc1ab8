//! Objects that the API server takes and the mesh can't, and a kind that goes.

use std::time::Duration;

use anyhow::{Result, ensure};
use fairlead_tests::{until, until_ok};
use serde_json::{Value, json};

use super::faults::{authorization, strict};
use super::mesh::{
    ClusterMesh, problems, reported, soon_refused, soon_works, url, usual_pods, web, works,
};
use crate::Test;
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[
    Test::cluster("objects::a_kind_is_removed_while_in_use", kind_removed)
        .with(&["python3", "curl"]),
    Test::cluster("objects::malformed_ones_are_reported", malformed).with(&["python3", "curl"]),
];

fn kind_removed() -> Result<()> {
    let mesh = ClusterMesh::up(&usual_pods())?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    drop(mesh.api().create(&strict())?);
    drop(
        mesh.api()
            .create(&authorization("clients", "ALLOW", "client"))?,
    );
    soon_refused(mesh.pod("visitor"), &url)?;
    soon_works(mesh.pod("client"), &url)?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/meshpolicies.fairlead.dev";
    let definition = mesh.api().get(path)?;
    mesh.api().delete(&definition)?;
    // Its objects are deleted with the kind; those of other kinds are not.
    let status = until("the end of the kind", Duration::from_secs(90), || {
        let status = mesh.agent("b").status().ok()?;
        (status["source"]["policies"] == 1).then_some(status)
    })?;
    ensure!(
        !works(mesh.pod("visitor"), &url),
        "the other policy is forgotten: {status}"
    );
    ensure!(
        works(mesh.pod("client"), &url),
        "the mesh stands still: {status}"
    );

    let mut again = json!({
        "apiVersion": definition["apiVersion"], "kind": definition["kind"],
        "metadata": {"name": definition["metadata"]["name"]},
        "spec": definition["spec"],
    });
    again["metadata"]["annotations"] = definition["metadata"]["annotations"].clone();
    until_ok("the kind again", SOON, || {
        mesh.api().create(&again).map(drop)
    })?;
    until_ok("an object of it", SOON, || {
        mesh.api().create(&strict()).map(drop)
    })?;
    until("that it is in force", Duration::from_secs(90), || {
        (mesh.agent("b").status().ok()?["source"]["policies"] == 2).then_some(())
    })
}

/// Some of each kind that the API server takes and the mesh can't.
fn odd_objects() -> [Value; 6] {
    let meta = |name: &str| json!({"namespace": "shop", "name": name});
    [
        json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "odd-namespace", "labels": {"fairlead.dev/mesh": "perhaps"}},
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "shop", "name": "odd-pod",
                "annotations": {"fairlead.dev/exclude-outbound-ports": "many"},
            },
            "spec": {"nodeName": "a", "containers": [{"name": "app", "image": "app"}]},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop", "name": "odd-slice",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4", "endpoints": [{"addresses": ["nowhere"]}],
            "ports": [{"name": "tcp", "port": 80}],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": meta("odd-list"),
            "addressType": "IPv4", "endpoints": "none",
        }),
        json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": meta("odd-rule"),
            "spec": {
                "selector": {"matchLabels": {"app": "odd"}},
                "action": "ALLOW",
                "rules": [{"from": [{"source": {"principle": ["x"]}}]}],
            },
        }),
        json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": meta("odd-mode"),
            "spec": {
                "selector": {"matchLabels": {"app": "odd"}},
                "mtls": {"mode": "STRICT", "strictness": "high"},
            },
        }),
    ]
}

fn malformed() -> Result<()> {
    let mesh = ClusterMesh::up(&usual_pods())?;
    let _web = web(mesh.pod("server"))?;
    let url = url(mesh.pod("server"));
    soon_works(mesh.pod("client"), &url)?;
    let objects = odd_objects();
    for object in &objects {
        let taken = mesh.api().create(object)?;
        if taken["kind"] == "Pod" {
            let status = json!({
                "phase": "Running", "podIP": "10.244.1.200",
                "podIPs": [{"ip": "10.244.1.200"}],
            });
            drop(mesh.api().set_status(&taken, &status)?);
        }
    }
    reported(
        mesh.agent("a"),
        &[
            "odd-namespace",
            "odd-pod",
            "exclude-outbound-ports",
            "odd-slice",
            "nowhere",
            "odd-list",
            "odd-rule",
            "principle",
            "odd-mode",
            "strictness",
        ],
    )?;
    ensure!(works(mesh.pod("client"), &url), "another pod suffers");
    for object in &objects {
        if object["kind"] == "Namespace" {
            // It would not end without a controller.
            let unlabelled = json!({"metadata": {"labels": {"fairlead.dev/mesh": null}}});
            drop(mesh.api().merge(object, "", &unlabelled)?);
        } else {
            mesh.api().delete(object)?;
        }
    }
    until("an end of the problems", SOON, || {
        let problems = problems(mesh.agent("a")).ok()?;
        (!problems.contains("odd-")).then_some(())
    })
}
