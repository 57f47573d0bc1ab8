//! Services by the addresses that they have beside the cluster's own.

use anyhow::{Result, ensure};
use fairlead_tests::{until, until_ok};
use serde_json::json;

use crate::Test;
use crate::mesh::{Mesh, SOON, client_and_server, curl, serve_python};

pub(crate) const TESTS: &[Test] =
    &[
        Test::node("services::external_addresses_and_node_ports", from_outside)
            .with(&["python3", "curl"]),
    ];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");

/// There is no route to the address, and nobody listens on the node's port: only the mesh
/// can make something of them, and STRICT takes nothing that came another way.
fn from_outside() -> Result<()> {
    let arguments = ["--external-ips", "203.0.113.0/24,2001:db8::/32"];
    let (mesh, _authority) = Mesh::up_with_authority(&client_and_server(), &arguments)?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _web = serve_python(server, WEB, 8080, &[])?;
    let manifests = mesh.world.manifests();
    manifests.mtls("shop", None, "STRICT")?;
    let node = mesh.world.node("b").ip4;
    manifests.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "kube-system", "name": "agent"},
        "spec": {"nodeName": "b", "hostNetwork": true},
        "status": {"podIPs": [{"ip": node}]},
    }))?;
    manifests.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.20",
            "externalIPs": ["203.0.113.7"],
            "selector": {"app": "server"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}]}},
    }))?;
    for address in [
        "203.0.113.7:80".to_owned(),
        "203.0.113.8:80".to_owned(),
        format!("{node}:30080"),
    ] {
        let url = format!("http://{address}/");
        until(&format!("an answer at {address}"), SOON, || {
            curl(client, &url).ok()?.success().then_some(())
        })?;
        let (ip, port) = address.split_once(':').unwrap_or_default();
        let flow = until_ok("its record", SOON, || {
            let arguments = ["flows", "--verdict", "forwarded", "--last", "1"];
            let flow = mesh.agent("a").cli.json(&arguments)?.pop();
            let flow = flow.ok_or_else(|| anyhow::anyhow!("no record"))?;
            let asked = &flow["destination"];
            let port: u16 = port.parse()?;
            ensure!(asked["ip"] == ip && asked["port"] == port, "{flow}");
            Ok(flow)
        })?;
        ensure!(flow["destination"]["service"] == "web", "{flow}");
        ensure!(flow["tls"] == "mtls", "{flow}");
        let arguments = ["explain", "shop/client", &address];
        let explained = mesh.agent("a").cli.run(&arguments)?;
        ensure!(
            explained
                .stdout
                .contains("Service shop/web is reached from outside"),
            "{explained:?}"
        );
    }
    // A port of the node that is no Service's is the node's.
    ensure!(!curl(client, &format!("http://{node}:30081/"))?.success());
    Ok(())
}
