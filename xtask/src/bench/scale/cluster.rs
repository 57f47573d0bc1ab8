//! A cluster of any size, as the objects that its API server would have.
//!
//! Ten pods to a Service, a hundred to a node, a thousand to a namespace. The pods are as
//! long as those that a Deployment, a scheduler and a kubelet leave behind: a few KB, most
//! of it `managedFields`, environment and conditions that a mesh has no use for.

use anyhow::Result;
use fairlead_tests::apiserver::ApiServer;
use serde_json::{Value, json};

pub(super) const PODS_OF_SERVICE: usize = 10;
const PODS_OF_NODE: usize = 100;
const PODS_OF_NAMESPACE: usize = 1000;
/// The node of the agent that is measured.
pub(super) const NODE: &str = "node-0";
/// The Service whose only endpoint comes and goes to be watched for.
pub(super) const PROBE: (&str, &str) = ("probe", "probe");
/// Who asks for it.
pub(super) const CLIENT: &str = "client";

/// The texts of which all objects are made.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) pods: usize,
    pod: String,
    service: String,
    slice: String,
}

impl Cluster {
    /// Of so many pods.
    pub(super) fn new(pods: usize) -> Self {
        Self {
            pods,
            pod: pod().to_string(),
            service: service().to_string(),
            slice: slice().to_string(),
        }
    }

    pub(super) fn services(&self) -> usize {
        self.pods.div_ceil(PODS_OF_SERVICE)
    }

    pub(super) fn nodes(&self) -> usize {
        self.pods.div_ceil(PODS_OF_NODE)
    }

    /// Puts everything in place.
    pub(super) fn load(&self, server: &ApiServer) -> Result<()> {
        for (plural, kind) in [
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("meshpolicies", "MeshPolicy"),
            ("trafficpolicies", "TrafficPolicy"),
        ] {
            drop(server.put(definition(plural, kind))?);
        }
        for number in 0..self.pods.div_ceil(PODS_OF_NAMESPACE) {
            drop(server.put(namespace(&format!("ns-{number}")))?);
        }
        drop(server.put(namespace(PROBE.0))?);
        for number in 0..self.nodes() {
            drop(server.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": node_of(number * PODS_OF_NODE)},
            }))?);
        }
        for number in 0..self.pods {
            self.put_pod(server, number, true)?;
        }
        for number in 0..self.services() {
            self.put_service(server, number)?;
            self.put_slice(server, number, None)?;
        }
        drop(server.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": PROBE.0, "name": CLIENT, "labels": {"fairlead.dev/mesh": "disabled"}},
            "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "app"}]},
            "status": {"phase": "Running", "podIP": "10.255.0.1", "podIPs": [{"ip": "10.255.0.1"}]},
        }))?);
        drop(server.put(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": PROBE.0, "name": PROBE.1},
            "spec": {"clusterIP": "172.31.255.1", "clusterIPs": ["172.31.255.1"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        }))?);
        Self::put_probe(server, false)
    }

    /// Sets whether the probed Service has a ready endpoint.
    pub(super) fn put_probe(server: &ApiServer, ready: bool) -> Result<()> {
        drop(server.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": PROBE.0, "name": "probe-1",
                "labels": {"kubernetes.io/service-name": PROBE.1},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.255.0.2"], "conditions": {"ready": ready}}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }))?);
        Ok(())
    }

    /// One endpoint change: a pod becomes ready or unready, and so does its endpoint.
    pub(super) fn change(&self, server: &ApiServer, number: usize, ready: bool) -> Result<()> {
        self.put_pod(server, number, ready)?;
        let unready = (!ready).then_some(number);
        self.put_slice(server, number / PODS_OF_SERVICE, unready)
    }

    fn put_pod(&self, server: &ApiServer, number: usize, ready: bool) -> Result<()> {
        let (namespace, name, node) = (namespace_of(number), pod_name(number), node_of(number));
        // The node of the agent has no such namespaces: nothing there is to be enrolled.
        let mesh = if node == NODE { "disabled" } else { "enabled" };
        let text = fill(
            &self.pod,
            &[
                ("@namespace@", &namespace),
                ("@name@", &name),
                ("@node@", &node),
                ("@app@", &format!("app-{}", number / PODS_OF_SERVICE)),
                ("@ip@", &ip(number)),
                ("@uid@", &format!("5c1e7f0a-93d4-4b52-9d7e-{number:012x}")),
                ("@mesh@", mesh),
                ("@ready@", if ready { "True" } else { "False" }),
            ],
        );
        let fields = [
            ("spec.nodeName", node.as_str()),
            ("status.phase", "Running"),
        ];
        server.put_text("pods", (&namespace, &name), &fields, &text)?;
        Ok(())
    }

    fn put_service(&self, server: &ApiServer, number: usize) -> Result<()> {
        let namespace = namespace_of(number * PODS_OF_SERVICE);
        let name = format!("app-{number}");
        let [_, _, high, low] = u32::try_from(number)?.to_be_bytes();
        let text = fill(
            &self.service,
            &[
                ("@namespace@", &namespace),
                ("@app@", &name),
                (
                    "@ip@",
                    &format!("172.{}.{high}.{low}", 20 + number / 65_536),
                ),
                ("@uid@", &format!("7a9b3c11-52c0-4a3b-8f6e-{number:012x}")),
            ],
        );
        server.put_text("services", (&namespace, &name), &[], &text)?;
        Ok(())
    }

    fn put_slice(&self, server: &ApiServer, number: usize, unready: Option<usize>) -> Result<()> {
        let first = number * PODS_OF_SERVICE;
        let namespace = namespace_of(first);
        let name = format!("app-{number}-x7k2p");
        let pods = first..(first + PODS_OF_SERVICE).min(self.pods);
        let endpoints = pods.map(|pod| {
            let (ip, node, target) = (ip(pod), node_of(pod), pod_name(pod));
            let ready = unready != Some(pod);
            format!(
                "{{\"addresses\":[\"{ip}\"],\"conditions\":{{\"ready\":{ready},\"serving\":{ready},\
                 \"terminating\":false}},\"nodeName\":\"{node}\",\"targetRef\":{{\"kind\":\"Pod\",\
                 \"name\":\"{target}\",\"namespace\":\"{namespace}\",\
                 \"uid\":\"5c1e7f0a-93d4-4b52-9d7e-{pod:012x}\"}},\"zone\":\"zone-a\"}}"
            )
        });
        let endpoints: Vec<String> = endpoints.collect();
        let text = fill(
            &self.slice,
            &[
                ("@namespace@", &namespace),
                ("@name@", &name),
                ("@app@", &format!("app-{number}")),
                ("@uid@", &format!("c4d5e6f7-1b2a-4c3d-9e8f-{number:012x}")),
                ("\"@endpoints@\"", &endpoints.join(",")),
            ],
        );
        server.put_text("endpointslices", (&namespace, &name), &[], &text)?;
        Ok(())
    }
}

fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values
        .iter()
        .fold(template.to_owned(), |text, (key, value)| {
            text.replace(key, value)
        })
}

fn namespace_of(pod: usize) -> String {
    format!("ns-{}", pod / PODS_OF_NAMESPACE)
}

fn node_of(pod: usize) -> String {
    format!("node-{}", pod / PODS_OF_NODE)
}

fn pod_name(pod: usize) -> String {
    format!("app-{}-7d4b9c6f5d-{pod:05x}", pod / PODS_OF_SERVICE)
}

fn ip(pod: usize) -> String {
    let [_, high, middle, low] = u32::try_from(pod).unwrap_or(u32::MAX).to_be_bytes();
    format!("10.{}.{middle}.{low}", 64 + high)
}

fn definition(plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.fairlead.dev")},
        "spec": {
            "group": "fairlead.dev", "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
            }],
        },
    })
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"fairlead.dev/mesh": "enabled"}},
    })
}

fn metadata(name: &str, managers: &Value) -> Value {
    json!({
        "name": name, "namespace": "@namespace@", "uid": "@uid@",
        "resourceVersion": "@version@", "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": managers,
    })
}

fn manager(name: &str, subresource: &str, fields: &Value) -> Value {
    json!({
        "manager": name, "operation": "Update", "apiVersion": "v1", "subresource": subresource,
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields,
    })
}

fn pod() -> Value {
    let mut metadata = metadata(
        "@name@",
        &json!([
            manager("kube-controller-manager", "", &pod_fields()),
            manager("kubelet", "status", &pod_status_fields()),
        ]),
    );
    metadata["generateName"] = "@app@-7d4b9c6f5d-".into();
    metadata["labels"] = json!({
        "app": "@app@", "app.kubernetes.io/name": "@app@", "app.kubernetes.io/part-of": "shop",
        "fairlead.dev/mesh": "@mesh@", "pod-template-hash": "7d4b9c6f5d",
    });
    metadata["annotations"] = json!({
        "checksum/config": "3a7bd3e2360a3d29eea436fcfb7e44c735d117c42d1c1835420b6b9942dd4f1b",
        "prometheus.io/scrape": "true", "prometheus.io/port": "9090",
    });
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "@app@-7d4b9c6f5d",
        "uid": "0f8fad5b-d9cb-469f-a165-70867728950e", "controller": true,
        "blockOwnerDeletion": true,
    }]);
    json!({"metadata": metadata, "spec": pod_spec(), "status": pod_status()})
}

fn pod_spec() -> Value {
    let environment: Vec<Value> = (0..12)
        .map(|number| {
            json!({"name": format!("SETTING_NUMBER_{number}"), "value": "some-value-of-a-setting"})
        })
        .collect();
    let probe = |path: &str| {
        json!({
            "httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "periodSeconds": 10,
            "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        })
    };
    json!({
        "nodeName": "@node@", "serviceAccountName": "@app@", "serviceAccount": "@app@",
        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "enableServiceLinks": true,
        "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler",
        "priority": 0, "preemptionPolicy": "PreemptLowerPriority", "securityContext": {},
        "containers": [{
            "name": "main",
            "image": "registry.example.com/shop/@app@:v1.42.0",
            "imagePullPolicy": "IfNotPresent", "env": environment,
            "ports": [
                {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
            ],
            "resources": {
                "requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"},
            },
            "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
            "volumeMounts": [{
                "name": "kube-api-access-abcde", "readOnly": true,
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            }],
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        }],
        "tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists",
                "effect": "NoExecute", "tolerationSeconds": 300},
        ],
        "volumes": [{"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ]}}],
    })
}

fn pod_status() -> Value {
    let condition = |of: &str, status: &str| {
        json!({
            "type": of, "status": status, "lastProbeTime": null,
            "lastTransitionTime": "2026-01-01T00:00:10Z",
        })
    };
    json!({
        "phase": "Running", "hostIP": "192.168.0.1", "hostIPs": [{"ip": "192.168.0.1"}],
        "podIP": "@ip@", "podIPs": [{"ip": "@ip@"}], "qosClass": "Burstable",
        "startTime": "2026-01-01T00:00:00Z",
        "conditions": [
            condition("PodReadyToStartContainers", "True"), condition("Initialized", "True"),
            condition("Ready", "@ready@"), condition("ContainersReady", "@ready@"),
            condition("PodScheduled", "True"),
        ],
        "containerStatuses": [{
            "name": "main", "ready": true, "restartCount": 0, "started": true, "lastState": {},
            "image": "registry.example.com/shop/@app@:v1.42.0",
            "imageID": "registry.example.com/shop/@app@@sha256:\
                9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "containerID": "containerd://\
                2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
            "state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}},
        }],
    })
}

fn pod_fields() -> Value {
    json!({
        "f:metadata": {
            "f:annotations": {".": {}, "f:checksum/config": {}, "f:prometheus.io/port": {},
                "f:prometheus.io/scrape": {}},
            "f:generateName": {},
            "f:labels": {".": {}, "f:app": {}, "f:app.kubernetes.io/name": {},
                "f:app.kubernetes.io/part-of": {}, "f:pod-template-hash": {}},
            "f:ownerReferences": {".": {}, "k:{\"uid\":\"0f8fad5b-d9cb-469f-a165-70867728950e\"}": {}},
        },
        "f:spec": {
            "f:containers": {"k:{\"name\":\"main\"}": {
                ".": {}, "f:env": {}, "f:image": {}, "f:imagePullPolicy": {},
                "f:livenessProbe": {".": {}, "f:failureThreshold": {}, "f:httpGet": {}},
                "f:name": {}, "f:ports": {}, "f:readinessProbe": {}, "f:resources": {},
                "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
            }},
            "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {},
            "f:schedulerName": {}, "f:securityContext": {}, "f:serviceAccount": {},
            "f:serviceAccountName": {}, "f:terminationGracePeriodSeconds": {},
        },
    })
}

fn pod_status_fields() -> Value {
    let condition = || json!({".": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {}});
    json!({"f:status": {
        "f:conditions": {
            "k:{\"type\":\"ContainersReady\"}": condition(),
            "k:{\"type\":\"Initialized\"}": condition(), "k:{\"type\":\"Ready\"}": condition(),
        },
        "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:phase": {}, "f:podIP": {},
        "f:podIPs": {".": {}, "k:{\"ip\":\"@ip@\"}": {".": {}, "f:ip": {}}}, "f:startTime": {},
    }})
}

fn service() -> Value {
    let fields = json!({"f:spec": {
        "f:internalTrafficPolicy": {}, "f:ports": {}, "f:selector": {}, "f:sessionAffinity": {},
        "f:type": {},
    }});
    let mut metadata = metadata("@app@", &json!([manager("helm", "", &fields)]));
    metadata["labels"] = json!({"app": "@app@", "app.kubernetes.io/part-of": "shop"});
    json!({
        "metadata": metadata,
        "spec": {
            "clusterIP": "@ip@", "clusterIPs": ["@ip@"], "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "selector": {"app": "@app@"}, "type": "ClusterIP",
            "ports": [
                {"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
                {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": "metrics"},
            ],
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice() -> Value {
    let fields = json!({
        "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
        "f:metadata": {"f:generateName": {}, "f:labels": {}, "f:ownerReferences": {}},
    });
    let manager = manager("kube-controller-manager", "", &fields);
    let mut metadata = metadata("@name@", &json!([manager]));
    metadata["generateName"] = "@app@-".into();
    metadata["labels"] = json!({
        "app": "@app@", "kubernetes.io/service-name": "@app@",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    });
    metadata["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Service", "name": "@app@", "controller": true,
        "blockOwnerDeletion": true, "uid": "7a9b3c11-52c0-4a3b-8f6e-1c9d2e4f5a6b",
    }]);
    json!({
        "metadata": metadata, "addressType": "IPv4", "endpoints": ["@endpoints@"],
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "metrics", "port": 9090, "protocol": "TCP"},
        ],
    })
}
