//! What kubelet, the container runtime and the controllers would do, done by hand.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::api::{Api, path_of};
use crate::place::Place;
use crate::pod::{Pod, PodSpec, SANDBOX, container_cgroup, pod_cgroup};
use crate::process::Process;
use crate::system;
use crate::world::World;

/// Registers the nodes of a world.
pub fn register_nodes(api: &Api, world: &World) -> Result<()> {
    for node in world.nodes() {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}});
        drop(api.apply(&object)?);
        let status = json!({"addresses": [
            {"type": "InternalIP", "address": node.ip4},
            {"type": "InternalIP", "address": node.ip6},
        ]});
        drop(api.set_status(&object, &status)?);
    }
    Ok(())
}

/// A namespace, labelled for the mesh or not.
pub fn apply_namespace(api: &Api, name: &str, meshed: bool) -> Result<()> {
    let labels = if meshed {
        json!({"fairlead.dev/mesh": "enabled"})
    } else {
        json!({})
    };
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels},
    });
    api.apply(&object).map(drop)
}

/// A Service with one TCP port, and as the endpoint controller would the slice of its
/// pods.
pub fn apply_service(
    api: &Api,
    name: (&str, &str),
    cluster_ip: &str,
    port: u16,
    pods: &[&ClusterPod],
) -> Result<()> {
    let (namespace, name) = name;
    drop(api.apply(&json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "clusterIP": cluster_ip,
            "ports": [{"name": "tcp", "port": port, "protocol": "TCP", "targetPort": port}],
        },
    }))?);
    let endpoints = pods.iter().map(|pod| {
        json!({
            "addresses": [pod.ip4],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": pod.node,
            "targetRef": {
                "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod.uid(),
            },
        })
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": format!("{name}-1"),
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "tcp", "port": port, "protocol": "TCP"}],
    });
    api.apply(&slice).map(drop)
}

/// Writes a key of a `ConfigMap` to a file, as a mounted volume has it. Says whether the
/// `ConfigMap` has that key.
pub fn project_config_map(api: &Api, name: (&str, &str), key: &str, file: &Path) -> Result<bool> {
    let path = format!("/api/v1/namespaces/{}/configmaps/{}", name.0, name.1);
    let (code, answer) = api.send("GET", &path, None)?;
    if code == 404 {
        return Ok(false);
    }
    let object: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
    let Some(text) = object["data"][key].as_str() else {
        return Ok(false);
    };
    if fs::read_to_string(file).is_ok_and(|old| old == text) {
        return Ok(true);
    }
    let directory = file.parent().context("a file has a directory")?;
    let temporary = tempfile::NamedTempFile::new_in(directory)?;
    fs::write(temporary.path(), text)?;
    drop(temporary.persist(file)?);
    Ok(true)
}

/// A pod that is an object of the API server and, once started, a namespace behind its
/// node with a sandbox that holds it.
#[derive(Debug)]
pub struct ClusterPod {
    api: Api,
    object: Value,
    sandbox: Option<Process>,
    slice: PathBuf,
    pod: Pod,
}

impl Deref for ClusterPod {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl ClusterPod {
    /// Creates the object, starts the pod and reports it as running and ready.
    pub fn run(api: &Api, world: &World, spec: &PodSpec) -> Result<Self> {
        let pod = Self::start(api, world, spec)?;
        pod.report(&pod.status())?;
        Ok(pod)
    }

    /// Creates the object and starts the pod; the object has no status yet.
    pub fn start(api: &Api, world: &World, spec: &PodSpec) -> Result<Self> {
        ensure_account(api, spec.namespace(), spec.account())?;
        Self::start_object(api, world, spec, &spec.object())
    }

    /// The same with an object other than the spec's own.
    pub fn start_object(api: &Api, world: &World, spec: &PodSpec, object: &Value) -> Result<Self> {
        let object = api.create(object)?;
        let uid = object["metadata"]["uid"]
            .as_str()
            .context("the API server gives a UID")?;
        let pod = world.pod(&spec.clone().unpublished().with_uid(uid))?;
        let slice = world.node(spec.node()).cgroup.join(pod_cgroup(uid));
        let sandbox = Place {
            cgroup: slice.join(container_cgroup(uid, SANDBOX)),
            ..pod.place.clone()
        };
        fs::create_dir_all(&sandbox.cgroup)?;
        let sandbox = sandbox.spawn("sandbox", &["sleep", "infinity"])?;
        Ok(Self {
            api: api.clone(),
            sandbox: Some(sandbox),
            slice,
            pod,
            object,
        })
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    /// The object as it was created.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// Sets the object's status.
    pub fn report(&self, status: &Value) -> Result<()> {
        self.api.set_status(&self.object, status).map(drop)
    }

    /// Sets a label of the object, or removes it.
    pub fn label(&self, key: &str, value: Option<&str>) -> Result<()> {
        let patch = json!({"metadata": {"labels": {key: value}}});
        self.api.merge(&self.object, "", &patch).map(drop)
    }

    /// Ends all that runs in it, as the container runtime does before the object goes.
    pub fn stop(&mut self) -> Result<()> {
        self.sandbox = None;
        system::kill_cgroup(&self.slice)?;
        system::remove_netns(&self.pod.place.netns)
    }

    /// Marks the object as being deleted; it stays for its grace period.
    pub fn delete_gracefully(&self, seconds: u32) -> Result<()> {
        self.api.delete_gracefully(&self.object, seconds)
    }

    /// Removes the object; what runs goes on.
    pub fn delete(&self) -> Result<()> {
        self.api.delete(&self.object)
    }

    /// Writes a token of the pod's service account for an audience, bound to the pod, to
    /// a file, as a projected volume has it.
    pub fn project_token(&self, audience: Option<&str>, file: &Path) -> Result<()> {
        let bound = json!({
            "kind": "Pod", "apiVersion": "v1", "name": self.name, "uid": self.uid(),
        });
        let account = self.object["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or("default");
        request_token(
            &self.api,
            (&self.namespace, account),
            audience,
            Some(&bound),
            file,
        )
    }
}

/// Creates a service account, if there is none.
pub fn ensure_account(api: &Api, namespace: &str, name: &str) -> Result<()> {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"namespace": namespace, "name": name},
    });
    let (code, _) = api.send("GET", &path_of(&account)?, None)?;
    if code == 200 {
        return Ok(());
    }
    api.create(&account).map(drop)
}

/// Writes a token of a service account to a file.
pub fn request_token(
    api: &Api,
    account: (&str, &str),
    audience: Option<&str>,
    bound: Option<&Value>,
    file: &Path,
) -> Result<()> {
    let (namespace, name) = account;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
    let mut spec = json!({"expirationSeconds": 3600});
    if let Some(audience) = audience {
        spec["audiences"] = json!([audience]);
    }
    if let Some(bound) = bound {
        spec["boundObjectRef"] = bound.clone();
    }
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
    });
    let answer = api.request("POST", &path, Some(&request))?;
    let token = answer["status"]["token"]
        .as_str()
        .context("a TokenRequest is answered with a token")?;
    fs::write(file, token)?;
    Ok(())
}

/// Leads a Service's address to one pod, on every node, as kube-proxy does.
pub fn route_service(world: &World, cluster_ip: &str, pod: &Pod) -> Result<()> {
    let own = format!("address replace {cluster_ip}/32 dev lo");
    system::ip_batch(&pod.place.netns, &[own])?;
    let address = pod.ip4.to_string();
    for node in world.nodes() {
        let netns = &node.host.netns;
        let found = system::tool("ip", &["-n", netns, "route", "get", &address])?;
        // Such as `10.244.2.10 via 172.18.1.2 dev link2 src 172.20.0.1 uid 0`.
        let way = found
            .strip_prefix(&address)
            .and_then(|rest| rest.split(" src ").next())
            .with_context(|| format!("no route to {address}: {found}"))?;
        let route = format!("route replace {cluster_ip}/32{way} src {}", node.ip4);
        system::ip_batch(netns, &[route])?;
    }
    Ok(())
}
