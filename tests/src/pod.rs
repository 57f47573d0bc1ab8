//! A pod: a namespace behind a node, with a cgroup of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use anyhow::Result;
use serde_json::{Value, json};

use crate::manifest::Manifests;
use crate::place::Place;
use crate::system;
use crate::world::{World, create_netns};

/// What a pod is to be.
#[derive(Clone, Debug)]
pub struct PodSpec {
    node: String,
    namespace: String,
    name: String,
    service_account: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    published: bool,
    address: Option<u32>,
    uid: Option<String>,
}

impl PodSpec {
    /// A pod of the namespace's mesh setting, labelled `app: <name>`, with a service
    /// account of its own name.
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            published: true,
            address: None,
            uid: None,
        }
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// Takes it out of its namespace's mesh.
    #[must_use]
    pub fn unmeshed(self) -> Self {
        self.label("fairlead.dev/mesh", "disabled")
    }

    /// Gives it the addresses of another pod of its node, which has ended.
    #[must_use]
    pub fn address_of(mut self, other: &Pod) -> Self {
        self.address = Some(other.number);
        self
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The node that it is to be on.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Makes the pod, but no manifest: the mesh has never heard of it.
    #[must_use]
    pub fn unpublished(mut self) -> Self {
        self.published = false;
        self
    }

    /// The object as a user writes it, but bound to its node.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": self.namespace, "name": self.name,
                "labels": self.labels, "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.service_account,
                "containers": [{"name": "app", "image": "app"}],
            },
        })
    }

    /// Gives it the UID that the API server chose, and the cgroup that kubelet and
    /// containerd give a pod of that UID.
    #[must_use]
    pub(crate) fn with_uid(mut self, uid: &str) -> Self {
        self.uid = Some(uid.to_owned());
        self
    }

    /// Where its processes run, below its node's cgroup.
    fn cgroup(&self) -> PathBuf {
        match &self.uid {
            None => format!("{}.{}", self.namespace, self.name).into(),
            Some(uid) => pod_cgroup(uid).join(container_cgroup(uid, APPLICATION)),
        }
    }

    /// `spec.serviceAccountName`.
    pub fn account(&self) -> &str {
        &self.service_account
    }
}

/// The cgroup of a pod as kubelet names it with systemd's driver, below its node's.
pub(crate) fn pod_cgroup(uid: &str) -> PathBuf {
    let uid = uid.replace('-', "_");
    PathBuf::from(format!("kubepods.slice/kubepods-pod{uid}.slice"))
}

/// The cgroup of a pod's container as containerd names it, with an identifier of 64 digits.
pub(crate) fn container_cgroup(uid: &str, container: u8) -> String {
    let digits = uid.replace('-', "");
    format!("cri-containerd-{digits:0<62.62}{container:02x}.scope")
}

/// The container that holds a pod's namespace.
pub(crate) const SANDBOX: u8 = 0;
/// The one with the application.
const APPLICATION: u8 = 1;

/// A pod that is up. Programs run in it through its [`Place`].
#[derive(Debug)]
pub struct Pod {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// The node it is on.
    pub node: String,
    /// Its address.
    pub ip4: Ipv4Addr,
    /// Its address.
    pub ip6: Ipv6Addr,
    pub(crate) place: Place,
    manifests: Manifests,
    spec: PodSpec,
    device: String,
    number: u32,
    node_netns: String,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    pub(crate) fn create(world: &World, spec: &PodSpec) -> Result<Self> {
        let node = world.node(&spec.node);
        let next = 10 + node.pods.fetch_add(1, Ordering::Relaxed);
        let number = spec.address.unwrap_or(next);
        let cgroup = node.cgroup.join(spec.cgroup());
        std::fs::create_dir_all(&cgroup)?;
        let mut member = format!("{}.{}.{}", spec.node, spec.namespace, spec.name);
        if let Some(uid) = &spec.uid {
            // One of the same name may have been here before.
            member = format!("{member}.{uid}");
        }
        let pod = Self {
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            node: spec.node.clone(),
            ip4: node.pod_ip4(number),
            ip6: node.pod_ip6(number),
            place: Place {
                netns: system::netns_name(world.id(), &member),
                cgroup,
                logs: node.host.logs.clone(),
            },
            manifests: world.manifests().clone(),
            spec: spec.clone(),
            device: format!("pod{next}"),
            number,
            node_netns: node.host.netns.clone(),
        };
        pod.connect(node.ip4, node.ip6)?;
        if spec.published {
            pod.publish()?;
        }
        Ok(pod)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its manifest.
    pub fn manifest(&self) -> Value {
        let mut object = self.spec.object();
        object["metadata"]["uid"] = self.place.netns.as_str().into();
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations
                .entry("fairlead.dev/netns")
                .or_insert_with(|| self.place.netns().display().to_string().into());
        }
        object["status"] = self.status();
        object
    }

    /// The status that kubelet gives it while it runs.
    pub fn status(&self) -> Value {
        let ips = [IpAddr::from(self.ip4), IpAddr::from(self.ip6)];
        json!({
            "phase": "Running",
            "podIP": self.ip4,
            "podIPs": ips.map(|ip| json!({"ip": ip})),
            "conditions": [{"type": "Ready", "status": "True"}],
        })
    }

    /// Writes its manifest.
    pub fn publish(&self) -> Result<()> {
        self.manifests.apply(&self.manifest())
    }

    /// Writes its manifest with a label set, or taken away.
    pub fn publish_with_label(&mut self, key: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => self.spec.labels.insert(key.to_owned(), value.to_owned()),
            None => self.spec.labels.remove(key),
        };
        self.publish()
    }

    /// Removes its manifest; the pod itself stays.
    pub fn unpublish(&self) -> Result<()> {
        self.manifests.delete("Pod", &self.namespace, &self.name)
    }

    /// Kills all that runs in it and removes its namespace; the manifest stays.
    pub fn destroy(&self) -> Result<()> {
        system::kill_cgroup(&self.place.cgroup)?;
        system::remove_netns(&self.place.netns)
    }

    /// A veth to the node; the routes go through addresses that every node has, as
    /// common network plugins do it.
    fn connect(&self, node_ip4: Ipv4Addr, node_ip6: Ipv6Addr) -> Result<()> {
        let (ip4, ip6, device) = (self.ip4, self.ip6, &self.device);
        create_netns(&self.place)?;
        system::ip_batch(
            &self.node_netns,
            &[
                format!(
                    "link add {device} type veth peer name eth0 netns {}",
                    self.place.netns
                ),
                format!("address add 169.254.1.1/32 dev {device}"),
                format!("address add fe80::1/64 dev {device} nodad"),
                format!("link set {device} up"),
                // The address may have been another pod's, whose device is still going away.
                format!("route replace {ip4}/32 dev {device} src {node_ip4}"),
                format!("route replace {ip6}/128 dev {device} src {node_ip6}"),
            ],
        )?;
        system::ip_batch(
            &self.place.netns,
            &[
                format!("address add {ip4}/32 dev eth0"),
                format!("address add {ip6}/128 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
                "route add 169.254.1.1/32 dev eth0".to_owned(),
                "route add default via 169.254.1.1 dev eth0".to_owned(),
                "route add ::/0 via fe80::1 dev eth0".to_owned(),
            ],
        )
    }
}
