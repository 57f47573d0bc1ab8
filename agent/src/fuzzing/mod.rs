//! What the fuzzer runs: one function for each parser of bytes from the network.
//!
//! In: any bytes. Out: nothing, or a panic that says which promise was broken. Built for
//! tests, which replay `fuzz/seeds`, and with `--cfg fuzzing` for `cargo xtask fuzz`; no
//! agent has it.

#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::cluster::api::{AuthorizationPolicySpec, Selector};
use crate::model::{NamespacedName, SpiffeId, TrustDomain};
use crate::policy::{HttpRequest, Permission, Request, Table};
use crate::{ca, cluster, identity, model, policy, proxy};

/// One parser, or some that read the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of the folder with its seeds.
    pub name: &'static str,
    /// Reads the bytes. Panics where what comes of them breaks a promise.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 20] = [
    target("authority", ca::fuzzing::authority),
    target("certificate", identity::fuzzing::certificate),
    target("connect", proxy::fuzzing::connect),
    target("deadline", proxy::fuzzing::deadline),
    target("external", proxy::fuzzing::external),
    target("first_bytes", proxy::fuzzing::first_bytes),
    target("framing", proxy::fuzzing::framing),
    target("grpc_web", proxy::fuzzing::grpc_web),
    target("headers", proxy::fuzzing::headers),
    target("http2_bytes", proxy::fuzzing::http2_bytes),
    target("http2_frames", proxy::fuzzing::http2_frames),
    target("jwt", policy::fuzzing::jwt),
    target("key_set", policy::fuzzing::key_set),
    target("manifests", manifests),
    target("path", model::fuzzing::path),
    target("policies", policies),
    target("server", proxy::fuzzing::server),
    target("session", proxy::fuzzing::session),
    target("spiffe_id", model::fuzzing::spiffe_id),
    target("tokens", proxy::fuzzing::tokens),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The pod that policies are about.
const POD: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {fairlead.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u, labels: {app: web}}
spec: {nodeName: one, serviceAccountName: web, containers: []}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
";

/// Whatever a file says, problems name its lines, and what it comes to can be compiled.
fn manifests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for file in ["a.yaml", "a.json"] {
        let snapshot = cluster::fuzzing::snapshot([(file, text)]);
        let lines = text.lines().count() + 1;
        for problem in &snapshot.problems {
            assert!(problem.line <= lines, "{problem:?}");
        }
        let _table = Table::compile(None, snapshot);
    }
}

/// A policy that is not understood in full denies what it selects. The bytes are the
/// `spec` of an AuthorizationPolicy.
fn policies(data: &[u8]) {
    let Ok(spec) = serde_yaml_ng::from_slice::<Value>(data) else {
        return;
    };
    let spec = without_nulls(spec);
    if spec["dryRun"] == true || is_of_others(&spec) {
        return;
    }
    let typed: Result<AuthorizationPolicySpec, _> = serde_json::from_value(spec.clone());
    let written = typed.ok().map(serde_json::to_value);
    if written.is_some_and(|written| written.is_ok_and(|written| written == spec)) {
        return;
    }
    let policy = json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    });
    let policy = policy.to_string();
    let snapshot = cluster::fuzzing::snapshot([("pod.yaml", POD), ("policy.json", &policy)]);
    let table = Table::compile(None, snapshot);
    let inbound = table.inbound(&NamespacedName::new("shop", "web"));
    assert!(inbound.is_known(), "the pod is served");
    let peer = SpiffeId::new(TrustDomain("cluster.local".into()), "shop", "web");
    let request = Request {
        peer: Some(&peer),
        client_ip: [10, 0, 0, 2].into(),
        port: 80,
        encrypted: true,
    };
    let http = HttpRequest {
        method: &http::Method::GET,
        path: Some("/"),
        host: "web",
        headers: &http::HeaderMap::new(),
        claims: None,
    };
    for decision in [
        inbound.authorize(&request),
        inbound.authorize_request(&request, &http),
    ] {
        assert_ne!(decision.verdict, Permission::Permitted, "{policy}");
    }
}

/// It is understood well enough to know that it does not select the pod.
fn is_of_others(spec: &Value) -> bool {
    if spec.get("targetRefs").is_some() {
        return true;
    }
    let Some(given) = spec.get("selector") else {
        return false;
    };
    let Ok(selector) = serde_json::from_value::<Selector>(given.clone()) else {
        return false;
    };
    let whole = serde_json::to_value(&selector).is_ok_and(|written| written == *given);
    let labels = selector.match_labels.unwrap_or_default();
    whole
        && labels
            .iter()
            .any(|(key, value)| (&**key, &**value) != ("app", "web"))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            kept.map(|(key, value)| (key, without_nulls(value)))
                .collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
