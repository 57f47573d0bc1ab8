//! Kinds of Kubernetes.

use std::net::IpAddr;

use super::*;
use crate::model::NamespacedName;
use crate::state::{Pod, PodPhase, Service, TargetPort};

fn the_pod(text: &str) -> Arc<Pod> {
    let snapshot = World::of(text);
    check_problems(&snapshot, &[]);
    Arc::clone(snapshot.pods.values().next().unwrap())
}

fn the_service(text: &str) -> Arc<Service> {
    let snapshot = World::of(text);
    check_problems(&snapshot, &[]);
    Arc::clone(snapshot.services.values().next().unwrap())
}

const LAB: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web}
  annotations:
    fairlead.dev/netns: /run/netns/web-1
    fairlead.dev/exclude-outbound-ports: '5432, 6379'
    fairlead.dev/exclude-outbound-cidrs: 10.0.0.0/8,fd00::1
    fairlead.dev/exclude-inbound-ports: '9090'
    fairlead.dev/close-existing: 'true'
spec:
  nodeName: one
  serviceAccountName: web
  containers:
  - name: web
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 53, protocol: UDP}
status:
  podIPs:
  - ip: 10.1.0.5
  - ip: '::ffff:10.1.0.6'
  - ip: fd00::5
";

#[test]
fn a_pod_of_a_lab() {
    let pod = the_pod(LAB);
    assert_eq!(pod.name, NamespacedName::new("shop", "web-1"));
    assert_eq!(
        pod.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    assert_eq!(&*pod.node.as_ref().unwrap().0, "one");
    let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["10.1.0.5", "10.1.0.6", "fd00::5"]);
    assert!(pod.ready && pod.phase == PodPhase::Running && !pod.host_network);
    assert_eq!(pod.container_ports.len(), 1);
    assert_eq!(pod.container_ports["http"], 8080);
    assert_eq!(
        pod.netns.as_ref().unwrap().to_str(),
        Some("/run/netns/web-1")
    );
    assert_eq!(*pod.exclude_outbound_ports, [5432, 6379]);
    assert_eq!(pod.exclude_outbound_cidrs.len(), 2);
    assert_eq!(*pod.exclude_inbound_ports, [9090]);
    assert!(pod.close_existing);
    assert_eq!(&*pod.workload, "web-1");
}

fn pod_with(metadata: &str, spec: &str, status: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p, {metadata}}}, \
         spec: {{containers: [], {spec}}}, status: {{podIP: 10.0.0.1, {status}}}}}"
    )
}

#[test]
fn defaults_of_a_pod() {
    let pod = the_pod(&pod_with("", "", ""));
    assert_eq!(&*pod.name.namespace, "default");
    assert_eq!(
        pod.identity.to_string(),
        "spiffe://cluster.local/ns/default/sa/default"
    );
    assert_eq!(pod.node, None);
    assert_eq!(pod.ips.len(), 1);
}

#[test]
fn workloads_are_named_by_their_owner() {
    let owned = |kind: &str, name: &str| {
        let owner =
            format!("{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}");
        pod_with(
            &format!("labels: {{pod-template-hash: abc}}, ownerReferences: [{owner}]"),
            "",
            "",
        )
    };
    assert_eq!(&*the_pod(&owned("ReplicaSet", "web-abc")).workload, "web");
    assert_eq!(
        &*the_pod(&owned("ReplicaSet", "web-other")).workload,
        "web-other"
    );
    assert_eq!(
        &*the_pod(&owned("StatefulSet", "db-abc")).workload,
        "db-abc"
    );
}

#[track_caller]
fn check_ready(metadata: &str, status: &str, expected: bool) {
    assert_eq!(
        the_pod(&pod_with(metadata, "", status)).ready,
        expected,
        "{metadata} {status}"
    );
}

#[test]
fn readiness() {
    let condition = |kind: &str, status: &str| {
        format!("phase: Running, conditions: [{{type: {kind}, status: '{status}'}}]")
    };
    check_ready("", "", true);
    check_ready("", "phase: Running", true);
    check_ready("", "phase: Pending", false);
    check_ready("", "phase: Unknown", false);
    check_ready("", &condition("Ready", "True"), true);
    check_ready("", &condition("Ready", "False"), false);
    check_ready("", &condition("Ready", "Unknown"), false);
    check_ready("", &condition("Initialized", "True"), false);
    let deleted = "deletionTimestamp: '2026-01-01T00:00:00Z'";
    check_ready(deleted, &condition("Ready", "True"), false);
    check_ready(deleted, "", false);
}

#[test]
fn finished_pods() {
    for phase in ["Succeeded", "Failed"] {
        let pod = the_pod(&pod_with("", "", &format!("phase: {phase}")));
        assert_eq!(pod.phase, PodPhase::Finished);
    }
}

#[test]
fn sidecars_have_ports_too() {
    let container = |name: &str, port: u16| {
        format!(
            "{{name: c, restartPolicy: Always, ports: [{{name: {name}, containerPort: {port}}}]}}"
        )
    };
    let spec = format!(
        "hostNetwork: true, initContainers: [{}]",
        container("metrics", 9090)
    );
    let pod = the_pod(&pod_with("", &spec, ""));
    assert_eq!(pod.container_ports["metrics"], 9090);
    assert!(pod.host_network);
}

#[test]
fn a_pod_without_an_address_is_reported_where_it_should_have_one() {
    let pod = |status: &str| {
        World::of(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p}}, status: {{{status}}}}}"
        ))
    };
    let message = "a.yaml:1 Pod default/p status.podIPs: a running and ready pod must have an \
                   address: it is left out of the mesh";
    check_problems(&pod(""), &[message]);
    let ready = "phase: Running, conditions: [{type: Ready, status: 'True'}]";
    check_problems(&pod(ready), &[message]);
    check_problems(&pod("phase: Pending"), &[]);
    check_problems(
        &pod("phase: Running, conditions: [{type: Ready, status: 'False'}]"),
        &[],
    );
    check_problems(&pod("phase: Succeeded"), &[]);
}

#[test]
fn addresses_that_can_be_no_pods() {
    for address in ["127.0.0.1", "0.0.0.0", "::", "224.0.0.1", "10.0.0", "web"] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\nstatus:\n  phase: Running\n  \
             podIPs:\n  - ip: 10.0.0.1\n  - ip: '{address}'\n"
        );
        let snapshot = World::of(&text);
        assert_eq!(snapshot.problems.len(), 1, "{address}");
        assert!(problems(&snapshot)[0].starts_with("a.yaml:9 Pod default/p status.podIPs[1].ip: "));
        assert_eq!(snapshot.pods.values().next().unwrap().ips.len(), 1);
    }
}

#[test]
fn what_enrolment_needs_to_know_of_a_pod() {
    let text = pod_with(
        "annotations: {kubernetes.io/config.hash: abc, kubernetes.io/config.mirror: abc}",
        "runtimeClassName: kata",
        "",
    );
    let pod = the_pod(&text);
    assert_eq!(pod.static_uid.as_deref(), Some("abc"));
    assert_eq!(pod.runtime_class.as_deref(), Some("kata"));
    // Nobody but the kubelet may put it there: such an object is one it mirrors.
    let pod = the_pod(&pod_with(
        "annotations: {kubernetes.io/config.hash: abc}",
        "",
        "",
    ));
    assert_eq!(pod.static_uid, None);
}

#[test]
fn annotations_that_make_no_sense_exclude_nothing() {
    let text = LAB
        .replace("'5432, 6379'", "'5432, no, 0'")
        .replace("/run/netns", "netns")
        .replace("'true'", "'yes'");
    let snapshot = World::of(&text);
    let pod = snapshot.pods.values().next().unwrap();
    assert_eq!(*pod.exclude_outbound_ports, [5432]);
    assert_eq!((&pod.netns, pod.close_existing), (&None, false));
    let path = "Pod shop/web-1 metadata.annotations";
    check_problems(
        &snapshot,
        &[
            &format!("a.yaml:9 {path}[\"fairlead.dev/netns\"]: must be an absolute path"),
            &format!(
                "a.yaml:10 {path}[\"fairlead.dev/exclude-outbound-ports\"]: \"0\" makes no sense \
                 and is left out"
            ),
            &format!(
                "a.yaml:10 {path}[\"fairlead.dev/exclude-outbound-ports\"]: \"no\" makes no sense \
                 and is left out"
            ),
            &format!(
                "a.yaml:13 {path}[\"fairlead.dev/close-existing\"]: \"yes\" is neither \"true\" \
                 nor \"false\""
            ),
        ],
    );
}

#[test]
fn names_can_not_forge_identities() {
    for (field, value) in [
        ("name", "a/b"),
        ("namespace", "a/sa/b"),
        ("name", "A"),
        ("name", ""),
        ("name", "-a"),
        ("name", "a..b"),
        ("name", "a.-b"),
        ("namespace", "a.b"),
        ("namespace", &"a".repeat(64)),
    ] {
        let other = if field == "name" { "namespace" } else { "name" };
        let metadata = format!("{other}: x, {field}: '{value}'");
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{{metadata}}}}}");
        let snapshot = World::of(&text);
        assert!(snapshot.pods.is_empty());
        assert!(
            problems(&snapshot)[0].contains(&format!("metadata.{field}: must be")),
            "{text}"
        );
    }
    let snapshot = World::of(&pod_with("", "serviceAccountName: a/b", ""));
    assert!(snapshot.pods.is_empty());
    assert!(problems(&snapshot)[0].contains("spec.serviceAccountName"));
}

#[test]
fn services() {
    let service = the_service(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  \
         clusterIPs: [10.96.0.1, 'fd00:96::1']\n  clusterIP: 10.96.0.1\n  selector: {app: web}\n  \
         publishNotReadyAddresses: true\n  ports:\n  - {name: http, port: 80, targetPort: http, \
         appProtocol: http}\n  - {name: plain, port: 81}\n  - {name: number, port: 82, targetPort: \
         8082}\n  - {name: dns, port: 53, protocol: UDP}\n",
    );
    assert_eq!(service.cluster_ips.len(), 2);
    assert!(service.publish_not_ready);
    let targets: Vec<&TargetPort> = service.ports.iter().map(|port| &port.target).collect();
    let http = TargetPort::Name("http".into());
    assert_eq!(
        targets,
        [&http, &TargetPort::Number(81), &TargetPort::Number(8082)]
    );
    assert_eq!(service.ports[0].app_protocol.as_deref(), Some("http"));
}

#[test]
fn services_are_exposed() {
    let service = the_service(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  \
         type: LoadBalancer\n  clusterIP: 10.96.0.1\n  externalIPs: [203.0.113.7]\n  ports:\n  \
         - {port: 80, nodePort: 30080}\n  - {port: 81, name: plain, nodePort: 0}\nstatus:\n  \
         loadBalancer:\n    ingress:\n    - {ip: 203.0.113.8, ipMode: VIP}\n    - {ip: \
         203.0.113.7}\n    - {hostname: lb.example}\n    - {ip: 203.0.113.9, ipMode: Proxy}\n",
    );
    let texts = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.external_ips), ["203.0.113.7"]);
    assert_eq!(texts(&service.balancer_ips), ["203.0.113.8", "203.0.113.7"]);
    let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [Some(30_080), None]);
}

#[test]
fn services_without_addresses() {
    let service = |spec: &str| {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: s}}, spec: {{{spec}}}}}")
    };
    assert!(
        the_service(&service("clusterIP: None"))
            .cluster_ips
            .is_empty()
    );
    assert!(
        the_service(&service("type: ExternalName, externalName: a.b"))
            .cluster_ips
            .is_empty()
    );
    assert!(the_service(&service("")).cluster_ips.is_empty());
    let snapshot = World::of(&service("clusterIP: nope, ports: [{port: 0}, {port: 80}]"));
    assert_eq!(snapshot.services.values().next().unwrap().ports.len(), 1);
    check_problems(
        &snapshot,
        &[
            "a.yaml:1 Service default/s spec.clusterIP: \"nope\" is not an IP address",
            "a.yaml:1 Service default/s spec.ports[0].port: 0 is not a port: 1 to 65535",
        ],
    );
}

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1, 10.0.0.9], conditions: {ready: true}}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3]}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{name: http, port: 80}]}}
";

#[test]
fn slices() {
    let snapshot = World::of(SLICE);
    check_problems(&snapshot, &[]);
    let endpoints = snapshot.endpoints.values().next().unwrap();
    let text: Vec<String> = endpoints
        .iter()
        .map(|e| format!("{}:{} {}", e.ip, e.port, e.ready))
        .collect();
    assert_eq!(
        text,
        [
            "10.0.0.1:8080 true",
            "10.0.0.3:8080 true",
            "10.0.0.2:8080 false"
        ]
    );
}

#[test]
fn slices_that_make_no_sense() {
    let snapshot = World::of(&SLICE.replace("addressType: IPv4", "addressType: FQDN"));
    assert!(problems(&snapshot)[0].contains("addressType: names are not resolved"));
    let snapshot = World::of(&SLICE.replace("kubernetes.io/service-name: web", ""));
    assert!(problems(&snapshot)[0].contains("[\"kubernetes.io/service-name\"]: is missing"));
    let snapshot = World::of(&SLICE.replace("10.0.0.2", "x"));
    assert!(
        problems(&snapshot)[0].starts_with("a.yaml:11 EndpointSlice default/web-1 endpoints[1]")
    );
}

#[track_caller]
fn check_kind(version: &str, kind: &str, expected: Option<&str>) {
    let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n");
    let snapshot = World::of(&text);
    let problems = problems(&snapshot);
    match expected {
        None => assert!(problems.is_empty(), "{problems:?}"),
        Some(expected) => assert!(problems[0].contains(expected), "{problems:?}"),
    }
}

#[test]
fn kinds_that_are_not_read() {
    for kind in ["Node", "ServiceAccount", "ConfigMap", "Secret"] {
        check_kind("v1", kind, None);
    }
    check_kind("apps/v1", "Deployment", None);
    check_kind("networking.k8s.io/v1", "NetworkPolicy", None);
    check_kind("v1", "Pods", Some("there is no kind Pods in v1"));
    check_kind("v2", "Pod", Some("there is no kind Pod in v2"));
    check_kind("apps/v1", "Pod", Some("is not an API version of Pod"));
    check_kind(
        "fairlead.dev/v1",
        "TrafficPolicy",
        Some("fairlead.dev/v1alpha1 is: it has no effect"),
    );
    check_kind("gateway.networking.k8s.io/v1", "Gateway", None);
    check_kind(
        "gateway.networking.k8s.io/v1",
        "UDPRoute",
        Some("has no effect in the mesh"),
    );
    check_kind("", "Pod", Some("apiVersion: is missing"));
    check_kind("v1", "", Some("kind: is missing"));
    let snapshot = World::of("- just\n- a list\n");
    assert!(problems(&snapshot)[0].contains("kind: is missing"));
}

#[test]
fn a_label_that_means_nothing_is_reported() {
    let snapshot = World::of(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels:\n    \
         fairlead.dev/mesh: 'on'\n",
    );
    check_problems(
        &snapshot,
        &[
            "a.yaml:6 Namespace shop metadata.labels[\"fairlead.dev/mesh\"]: \"on\" means nothing \
           here: say \"enabled\" or \"disabled\"",
        ],
    );
}
