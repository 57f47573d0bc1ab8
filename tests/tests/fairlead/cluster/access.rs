//! What the service accounts of `deploy/` may do, as the API server judges it.

use anyhow::{Result, ensure};
use fairlead_tests::cluster::Lease;
use fairlead_tests::{World, WorldOptions};
use serde_json::{Value, json};

use super::manifests::{SYSTEM, install};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[Test::cluster(
    "access::accounts_may_do_what_they_need_and_no_more",
    accounts,
)];

/// A verb, a group with a resource and perhaps a subresource, a namespace, and a name;
/// empty: any.
type Action = (&'static str, &'static str, &'static str, &'static str);

const AGENT_MAY: &[Action] = &[
    ("watch", "pods", "", ""),
    ("list", "namespaces", "", ""),
    ("list", "services", "", ""),
    ("watch", "discovery.k8s.io/endpointslices", "", ""),
    ("watch", "fairlead.dev/authorizationpolicies", "", ""),
    ("patch", "fairlead.dev/meshpolicies/status", "shop", "x"),
    ("watch", "gateway.networking.k8s.io/httproutes", "", ""),
    ("list", "gateway.networking.k8s.io/referencegrants", "", ""),
    (
        "patch",
        "gateway.networking.k8s.io/tlsroutes/status",
        "shop",
        "x",
    ),
    ("watch", "fairlead.dev/trafficpolicies", "", ""),
    ("patch", "fairlead.dev/trafficpolicies/status", "shop", "x"),
    ("create", "events.k8s.io/events", "shop", ""),
    (
        "update",
        "coordination.k8s.io/leases",
        SYSTEM,
        "fairlead-status",
    ),
];

const AGENT_MAY_NOT: &[Action] = &[
    ("get", "secrets", SYSTEM, "fairlead-ca"),
    ("list", "secrets", "", ""),
    ("create", "pods", "shop", ""),
    ("update", "pods", "shop", "x"),
    ("patch", "pods", "shop", "x"),
    ("delete", "pods", "shop", "x"),
    ("patch", "pods/status", "shop", "x"),
    ("create", "pods/exec", "shop", "x"),
    ("update", "namespaces", "", "shop"),
    ("update", "fairlead.dev/authorizationpolicies", "shop", "x"),
    ("create", "fairlead.dev/meshpolicies", "shop", ""),
    (
        "update",
        "gateway.networking.k8s.io/httproutes",
        "shop",
        "x",
    ),
    (
        "patch",
        "gateway.networking.k8s.io/referencegrants/status",
        "shop",
        "x",
    ),
    ("update", "fairlead.dev/trafficpolicies", "shop", "x"),
    ("update", "configmaps", SYSTEM, "fairlead-ca-root-cert"),
    (
        "update",
        "coordination.k8s.io/leases",
        SYSTEM,
        "fairlead-ca",
    ),
    ("update", "coordination.k8s.io/leases", "kube-system", "x"),
    ("create", "serviceaccounts/token", "shop", "x"),
    ("create", "authentication.k8s.io/tokenreviews", "", ""),
    (
        "create",
        "rbac.authorization.k8s.io/clusterrolebindings",
        "",
        "",
    ),
];

const AUTHORITY_MAY: &[Action] = &[
    ("watch", "pods", "", ""),
    ("create", "authentication.k8s.io/tokenreviews", "", ""),
    ("get", "secrets", SYSTEM, "fairlead-ca"),
    ("update", "configmaps", SYSTEM, "fairlead-ca-root-cert"),
    (
        "update",
        "coordination.k8s.io/leases",
        SYSTEM,
        "fairlead-ca",
    ),
];

const AUTHORITY_MAY_NOT: &[Action] = &[
    ("list", "secrets", SYSTEM, ""),
    ("get", "secrets", SYSTEM, "another"),
    ("get", "secrets", "shop", "x"),
    ("create", "secrets", "shop", ""),
    ("create", "pods", SYSTEM, ""),
    ("create", "serviceaccounts/token", "shop", "x"),
    ("update", "configmaps", "kube-system", "x"),
    (
        "update",
        "coordination.k8s.io/leases",
        SYSTEM,
        "fairlead-status",
    ),
];

fn attributes(&(verb, path, namespace, name): &Action) -> Value {
    let mut parts: Vec<&str> = path.split('/').collect();
    // A group's name has a dot; no resource's has.
    let group = if parts[0].contains('.') {
        parts.remove(0)
    } else {
        ""
    };
    json!({
        "verb": verb, "group": group, "resource": parts[0],
        "subresource": parts.get(1).copied().unwrap_or_default(),
        "namespace": namespace, "name": name,
    })
}

fn accounts() -> Result<()> {
    let world = World::create(&WorldOptions::nodes(&["a"]))?;
    let plane = Lease::take(&world, install)?;
    let judged = [
        ("fairlead-agent", AGENT_MAY, true),
        ("fairlead-agent", AGENT_MAY_NOT, false),
        ("fairlead-ca", AUTHORITY_MAY, true),
        ("fairlead-ca", AUTHORITY_MAY_NOT, false),
    ];
    let mut wrong = Vec::new();
    for (account, actions, expected) in judged {
        let user = format!("system:serviceaccount:{SYSTEM}:{account}");
        for action in actions {
            if plane.admin().may(&user, &attributes(action))? != expected {
                wrong.push(format!("{account} {action:?} is not {expected}"));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
