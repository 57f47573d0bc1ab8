//! `fairlead check --pre`: can the mesh be installed here, and will it work?

use serde::Serialize;
use serde_json::Value;

use super::install::live;
use crate::cluster::kube::{self as api, Access, Client, Place, RequestError};

/// The oldest Kubernetes that has all that the manifests use: `appArmorProfile`.
const KUBERNETES: (u32, u32) = (1, 30);
/// The oldest kernel that has the hooks.
const LINUX: (u32, u32) = (5, 15);
const DOCUMENT: &str = "docs/troubleshooting.md";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// The mesh works, but not as one may expect.
    Warning,
    /// The mesh can't work.
    Error,
}

/// A heading of the document that says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    ApiServer,
    KubernetesVersion,
    Rights,
    Kernel,
    Architecture,
    ContainerRuntime,
    OtherSystems,
    Cilium,
    OtherMeshes,
    Kinds,
    Authority,
    Agents,
    Roots,
    NoAnswer,
    NotReady,
    Problems,
    Versions,
}

impl Topic {
    #[cfg(test)]
    const ALL: [Self; 17] = [
        Self::ApiServer,
        Self::KubernetesVersion,
        Self::Rights,
        Self::Kernel,
        Self::Architecture,
        Self::ContainerRuntime,
        Self::OtherSystems,
        Self::Cilium,
        Self::OtherMeshes,
        Self::Kinds,
        Self::Authority,
        Self::Agents,
        Self::Roots,
        Self::NoAnswer,
        Self::NotReady,
        Self::Problems,
        Self::Versions,
    ];

    const fn anchor(self) -> &'static str {
        match self {
            Self::ApiServer => "api-server",
            Self::KubernetesVersion => "kubernetes-version",
            Self::Rights => "rights",
            Self::Kernel => "kernel",
            Self::Architecture => "architecture",
            Self::ContainerRuntime => "container-runtime",
            Self::OtherSystems => "other-systems",
            Self::Cilium => "cilium",
            Self::OtherMeshes => "other-meshes",
            Self::Kinds => "kinds",
            Self::Authority => "authority",
            Self::Agents => "agents",
            Self::Roots => "roots",
            Self::NoAnswer => "no-answer",
            Self::NotReady => "not-ready",
            Self::Problems => "problems",
            Self::Versions => "versions",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// Where to read what to do; `None` where all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc: Option<String>,
}

impl Finding {
    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            outcome: Outcome::Ok,
            detail: detail.into(),
            doc: None,
        }
    }

    pub(super) fn warning(name: &'static str, topic: Topic, detail: impl Into<String>) -> Self {
        Self {
            name,
            outcome: Outcome::Warning,
            detail: detail.into(),
            doc: Some(format!("{DOCUMENT}#{}", topic.anchor())),
        }
    }

    pub(super) fn error(name: &'static str, topic: Topic, detail: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Error,
            ..Self::warning(name, topic, detail)
        }
    }

    /// Where the API server did not say.
    pub(super) fn unknown(name: &'static str, error: &RequestError) -> Self {
        Self::warning(name, Topic::Rights, chain(error))
    }
}

/// An error with what caused it.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Looks at everything that an installation needs; changes nothing.
pub async fn preflight(access: &Access) -> Vec<Finding> {
    match api::client(access).await {
        Ok(client) => preflight_with(&client).await,
        Err(error) => vec![Finding::error(
            "API server",
            Topic::ApiServer,
            chain(&error),
        )],
    }
}

pub(super) async fn preflight_with(client: &Client) -> Vec<Finding> {
    let server = server(client).await;
    let reachable = server.outcome != Outcome::Error || server.name == "Kubernetes version";
    let mut findings = vec![server];
    if !reachable {
        // Nothing else would be told.
        return findings;
    }
    findings.push(rights(client).await);
    findings.extend(nodes(client).await);
    findings.push(network(client).await);
    findings.push(other_meshes(client).await);
    findings.push(gateway(client).await);
    findings.push(installation(client).await);
    findings
}

pub(super) async fn server(client: &Client) -> Finding {
    match api::version(client).await {
        Err(error) => Finding::error("API server", Topic::ApiServer, chain(&error)),
        Ok((name, number)) if number < KUBERNETES => Finding::error(
            "Kubernetes version",
            Topic::KubernetesVersion,
            format!(
                "{name}; {}.{} is the oldest that is supported",
                KUBERNETES.0, KUBERNETES.1
            ),
        ),
        Ok((name, _)) => Finding::ok("API server", name),
    }
}

/// What `install` writes, as group, resource and verb.
const RIGHTS: [(&str, &str, &str); 11] = [
    ("", "namespaces", "patch"),
    ("", "serviceaccounts", "patch"),
    ("", "services", "patch"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "patch"),
    ("apps", "daemonsets", "patch"),
    ("apps", "deployments", "patch"),
    ("coordination.k8s.io", "leases", "patch"),
    ("policy", "poddisruptionbudgets", "patch"),
    ("rbac.authorization.k8s.io", "clusterroles", "patch"),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "patch"),
    ("scheduling.k8s.io", "priorityclasses", "patch"),
];

async fn rights(client: &Client) -> Finding {
    const NAME: &str = "Rights of this user";
    let mut missing = Vec::new();
    for (group, resource, verb) in RIGHTS {
        match api::may(client, group, resource, verb).await {
            Ok(true) => {}
            Ok(false) => missing.push(format!("{verb} {resource}")),
            Err(error) => return Finding::unknown(NAME, &error),
        }
    }
    if missing.is_empty() {
        return Finding::ok(NAME, "may install");
    }
    let detail = format!("may not {}", missing.join(", "));
    Finding::error(NAME, Topic::Rights, detail)
}

async fn nodes(client: &Client) -> Vec<Finding> {
    match api::list(client, &Place::new("v1", "Node", None, "")).await {
        Err(error) => vec![Finding::unknown("Nodes", &error)],
        Ok(nodes) => of_nodes(&nodes),
    }
}

/// What the nodes say of themselves.
fn of_nodes(nodes: &[Value]) -> Vec<Finding> {
    let info = |node: &Value, field: &str| {
        let text = node["status"]["nodeInfo"][field].as_str();
        text.unwrap_or_default().to_owned()
    };
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or("?").to_owned();
    let (linux, others): (Vec<&Value>, Vec<&Value>) = nodes
        .iter()
        .partition(|node| info(node, "operatingSystem") != "windows");
    let mut findings = Vec::new();
    let select = |bad: &dyn Fn(&Value) -> Option<String>| {
        let found = linux.iter().filter_map(|node| {
            let what = bad(node)?;
            Some(format!("{} ({what})", name(node)))
        });
        found.collect::<Vec<_>>().join(", ")
    };
    let old = select(&|node| {
        let release = info(node, "kernelVersion");
        numbers(&release)
            .is_some_and(|it| it < LINUX)
            .then_some(release)
    });
    findings.push(if old.is_empty() {
        Finding::ok("Kernels", format!("{} nodes of Linux", linux.len()))
    } else {
        let detail = format!("older than {}.{}: {old}", LINUX.0, LINUX.1);
        Finding::error("Kernels", Topic::Kernel, detail)
    });
    let foreign = select(&|node| {
        let machine = info(node, "architecture");
        let known = matches!(&*machine, "amd64" | "arm64" | "");
        (!known).then_some(machine)
    });
    findings.push(if foreign.is_empty() {
        Finding::ok("Architectures", "amd64 and arm64 only")
    } else {
        Finding::error(
            "Architectures",
            Topic::Architecture,
            format!("no image for {foreign}"),
        )
    });
    let runtimes = select(&|node| {
        let runtime = info(node, "containerRuntimeVersion");
        let known = ["containerd:", "cri-o:", "docker:"];
        let is_known = known.iter().any(|prefix| runtime.starts_with(prefix));
        (!is_known && !runtime.is_empty()).then_some(runtime)
    });
    findings.push(if runtimes.is_empty() {
        Finding::ok("Container runtimes", "known")
    } else {
        let detail = format!("running pods may not be found on {runtimes}");
        Finding::warning("Container runtimes", Topic::ContainerRuntime, detail)
    });
    if !others.is_empty() {
        let names: Vec<String> = others.iter().map(|node| name(node)).collect();
        let detail = format!("get no agent: {}", names.join(", "));
        findings.push(Finding::warning(
            "Other systems",
            Topic::OtherSystems,
            detail,
        ));
    }
    findings
}

/// The first two numbers of `6.1.0-18-amd64`.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Network plugins by their DaemonSet, and what to know of each.
const NETWORKS: [(&str, &str); 9] = [
    ("aws-node", "AWS VPC CNI"),
    ("azure-cns", "Azure CNI"),
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("cilium", "Cilium"),
    ("kindnet", "kindnet"),
    ("kube-flannel-ds", "Flannel"),
    ("kube-router", "kube-router"),
    ("weave-net", "Weave Net"),
];

async fn network(client: &Client) -> Finding {
    const NAME: &str = "Network plugin";
    let all = Place::new("apps/v1", "DaemonSet", None, "");
    let sets = match api::list(client, &all).await {
        Ok(sets) => sets,
        Err(error) => return Finding::unknown(NAME, &error),
    };
    let of = |name: &str| sets.iter().any(|set| set["metadata"]["name"] == name);
    let found: Vec<&str> = NETWORKS
        .iter()
        .filter(|(set, _)| of(set))
        .map(|&(_, name)| name)
        .collect();
    if of("cilium") {
        let detail = "Cilium removes plugins of others from the CNI configuration unless it is \
                      installed with cni.exclusive=false";
        return Finding::warning(NAME, Topic::Cilium, detail);
    }
    if found.is_empty() {
        let detail = "none that is known by its DaemonSet; if the nodes keep CNI's files elsewhere \
                      than in /etc/cni/net.d and /opt/cni/bin, pass --cni-conf-dir and --cni-bin-dir";
        return Finding::ok(NAME, detail);
    }
    Finding::ok(NAME, found.join(", "))
}

/// Meshes by the namespace that they are installed in.
const MESHES: [(&str, &str); 4] = [
    ("istio-system", "Istio"),
    ("linkerd", "Linkerd"),
    ("consul", "Consul"),
    ("kuma-system", "Kuma"),
];

async fn other_meshes(client: &Client) -> Finding {
    const NAME: &str = "Other meshes";
    let all = Place::new("v1", "Namespace", None, "");
    match api::list(client, &all).await {
        Err(error) => Finding::unknown(NAME, &error),
        Ok(namespaces) => of_namespaces(NAME, &namespaces),
    }
}

fn of_namespaces(name: &'static str, namespaces: &[Value]) -> Finding {
    let has = |wanted: &str| namespaces.iter().any(|it| it["metadata"]["name"] == wanted);
    let found: Vec<&str> = MESHES
        .iter()
        .filter(|(namespace, _)| has(namespace))
        .map(|&(_, mesh)| mesh)
        .collect();
    let twice = namespaces.iter().filter(|namespace| {
        let labels = &namespace["metadata"]["labels"];
        labels["fairlead.dev/mesh"] == "enabled"
            && (labels["istio-injection"] == "enabled"
                || labels["istio.io/dataplane-mode"] == "ambient")
    });
    let twice: Vec<&str> = twice
        .filter_map(|it| it["metadata"]["name"].as_str())
        .collect();
    if !twice.is_empty() {
        let detail = format!("in two meshes at once: {}", twice.join(", "));
        return Finding::error(name, Topic::OtherMeshes, detail);
    }
    if found.is_empty() {
        return Finding::ok(name, "none");
    }
    let detail = format!("{}; a namespace may be in one mesh only", found.join(", "));
    Finding::warning(name, Topic::OtherMeshes, detail)
}

async fn gateway(client: &Client) -> Finding {
    const NAME: &str = "Gateway API";
    let place = Place::new(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        None,
        "httproutes.gateway.networking.k8s.io",
    );
    match api::find(client, &place).await {
        Err(error) => Finding::unknown(NAME, &error),
        Ok(Some(_)) => Finding::ok(NAME, "its kinds are there"),
        Ok(None) => Finding::ok(NAME, "its kinds are not there; they may come later"),
    }
}

async fn installation(client: &Client) -> Finding {
    const NAME: &str = "Fairlead";
    match live(client).await {
        Err(error) => Finding::warning(NAME, Topic::Rights, format!("{error:#}")),
        Ok(None) => Finding::ok(NAME, "not installed yet"),
        Ok(Some(it)) => {
            let image = it.image.unwrap_or_default();
            Finding::ok(NAME, format!("installed: {image}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Outcome, Topic, numbers, of_namespaces, of_nodes};

    fn node(name: &str, kernel: &str, architecture: &str, runtime: &str) -> Value {
        json!({
            "metadata": { "name": name },
            "status": { "nodeInfo": {
                "kernelVersion": kernel, "architecture": architecture,
                "containerRuntimeVersion": runtime, "operatingSystem": "linux",
            } },
        })
    }

    #[track_caller]
    fn check(nodes: &[Value], name: &str, outcome: Outcome, text: &str) {
        let findings = of_nodes(nodes);
        let found = findings.iter().find(|it| it.name == name).unwrap();
        assert_eq!(found.outcome, outcome, "{found:?}");
        assert!(found.detail.contains(text), "{found:?}");
        assert_eq!(found.doc.is_some(), outcome != Outcome::Ok, "{found:?}");
    }

    #[test]
    fn a_node_with_an_old_kernel_is_named() {
        let nodes = [
            node("new", "6.1.0-18-amd64", "amd64", "containerd://1.7"),
            node("old", "5.4.0-26-generic", "amd64", "containerd://1.7"),
        ];
        check(&nodes, "Kernels", Outcome::Error, "old (5.4.0-26-generic)");
        check(&nodes[..1], "Kernels", Outcome::Ok, "1 node");
    }

    #[test]
    fn machines_without_an_image_and_unknown_runtimes_are_named() {
        let nodes = [node("n", "6.1.0", "riscv64", "novel://1")];
        check(&nodes, "Architectures", Outcome::Error, "n (riscv64)");
        check(
            &nodes,
            "Container runtimes",
            Outcome::Warning,
            "n (novel://1)",
        );
        let nodes = [node("n", "6.1.0", "arm64", "cri-o://1.30")];
        check(&nodes, "Architectures", Outcome::Ok, "");
        check(&nodes, "Container runtimes", Outcome::Ok, "");
    }

    #[test]
    fn nodes_of_windows_get_no_agent() {
        let mut windows = node("w", "10.0.20348", "amd64", "containerd://1.7");
        windows["status"]["nodeInfo"]["operatingSystem"] = "windows".into();
        check(&[windows], "Other systems", Outcome::Warning, "w");
    }

    #[test]
    fn every_link_leads_to_a_heading() {
        let page = include_str!("../../../../docs/troubleshooting.md");
        let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
        let headings: Vec<String> = headings
            .map(|text| text.to_lowercase().replace(' ', "-"))
            .collect();
        for topic in Topic::ALL {
            assert!(headings.iter().any(|it| it == topic.anchor()), "{topic:?}");
        }
        for anchor in ["cleanup", "agents"] {
            assert!(headings.iter().any(|it| it == anchor), "{anchor}");
        }
    }

    #[test]
    fn releases_begin_with_two_numbers() {
        assert_eq!(numbers("6.18.0-rc1"), Some((6, 18)));
        assert_eq!(numbers("5.15.0-1052-aws"), Some((5, 15)));
        assert_eq!(numbers("custom"), None);
    }

    #[test]
    fn a_namespace_in_two_meshes_is_an_error() {
        let istio = json!({ "metadata": { "name": "istio-system" } });
        let both = json!({ "metadata": { "name": "shop", "labels": {
            "fairlead.dev/mesh": "enabled", "istio.io/dataplane-mode": "ambient",
        } } });
        let outcome = |namespaces: &[Value]| of_namespaces("x", namespaces).outcome;
        assert_eq!(outcome(&[]), Outcome::Ok);
        assert_eq!(outcome(std::slice::from_ref(&istio)), Outcome::Warning);
        assert_eq!(outcome(&[istio, both]), Outcome::Error);
    }
}
