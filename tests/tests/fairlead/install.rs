//! `fairlead install`, `upgrade`, `uninstall` and `check` against an API server inside
//! this process. There are no controllers: a thread says that all pods run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::apiserver::{ADMIN_TOKEN, ApiServer, Options, Rule};
use fairlead_tests::{Output, run};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::LONG;

pub(crate) const TESTS: &[Test] = &[
    Test::pure("install::then_again_then_upgrade_then_uninstall", whole),
    Test::pure("install::changes_nothing_without_the_rights", rights),
    Test::pure("install::policies_stay_unless_told_otherwise", policies),
    Test::pure("install::pods_that_do_not_start_are_told", unready),
    Test::pure("install::a_dead_api_server_is_told", dead),
];

/// Nodes of the cluster.
const NODES: u64 = 2;

struct Cluster {
    server: ApiServer,
    directory: tempfile::TempDir,
}

impl Cluster {
    fn up() -> Result<Self> {
        let cluster = Self {
            server: ApiServer::start(Options::default())?,
            directory: tempfile::tempdir()?,
        };
        for node in 0..NODES {
            drop(cluster.server.put(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}")},
                "status": {"nodeInfo": {
                    "kernelVersion": "6.1.0-18-amd64", "architecture": "amd64",
                    "operatingSystem": "linux", "containerRuntimeVersion": "containerd://1.7",
                }},
            }))?);
        }
        Ok(cluster)
    }

    fn kubeconfig(&self, token: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(format!("{token}.yaml"));
        self.server.write_kubeconfig(&path, token)?;
        Ok(path)
    }

    fn cli(&self, arguments: &[&str]) -> Result<Output> {
        fairlead(&self.kubeconfig(ADMIN_TOKEN)?, arguments)
    }

    /// What a command prints as JSON, and that it ended with this code.
    #[track_caller]
    fn json(&self, code: i32, arguments: &[&str]) -> Result<Value> {
        let output = self.cli(&[arguments, &["-o", "json"]].concat())?;
        ensure!(output.code() == code, "{output:?}");
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
    }

    /// Runs `work` while all pods of DaemonSets and Deployments are said to run.
    fn with_controllers<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let playing = scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    self.play();
                    thread::sleep(Duration::from_millis(100));
                }
            });
            let done = work();
            over.store(true, Ordering::Relaxed);
            drop(playing.join());
            done
        })
    }

    fn play(&self) {
        for resource in ["daemonsets.apps", "deployments.apps"] {
            for object in self.server.list(resource) {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let place = ("fairlead-system", name);
                // One that is deleted meanwhile has no status.
                drop(self.server.change(resource, place, |object| {
                    object["status"] = json!({
                        "observedGeneration": object["metadata"]["generation"],
                        "desiredNumberScheduled": NODES, "updatedNumberScheduled": NODES,
                        "numberAvailable": NODES, "updatedReplicas": 2, "availableReplicas": 2,
                    });
                }));
            }
        }
    }

    /// Everything that is the mesh's, by kind and name.
    fn ours(&self) -> BTreeSet<(String, String)> {
        let resources = [
            "namespaces",
            "serviceaccounts",
            "services",
            "customresourcedefinitions.apiextensions.k8s.io",
            "daemonsets.apps",
            "deployments.apps",
            "leases.coordination.k8s.io",
            "poddisruptionbudgets.policy",
            "clusterrolebindings.rbac.authorization.k8s.io",
            "clusterroles.rbac.authorization.k8s.io",
            "rolebindings.rbac.authorization.k8s.io",
            "roles.rbac.authorization.k8s.io",
            "priorityclasses.scheduling.k8s.io",
        ];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        resources
            .iter()
            .flat_map(|resource| self.server.list(resource))
            .map(|object| (text(&object["kind"]), text(&object["metadata"]["name"])))
            .filter(|(_, name)| name.contains("fairlead"))
            .collect()
    }

    fn agents(&self) -> Option<Value> {
        self.server
            .get("daemonsets.apps", "fairlead-system", "fairlead-agent")
    }
}

fn fairlead(kubeconfig: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(fairlead_tests::binary()?);
    run(
        command.args(arguments).arg("--kubeconfig").arg(kubeconfig),
        LONG,
    )
}

fn changes(report: &Value) -> BTreeSet<&str> {
    let objects = report["objects"].as_array().into_iter().flatten();
    objects.filter_map(|it| it["change"].as_str()).collect()
}

fn errors(findings: &Value) -> Vec<&Value> {
    let findings = findings.as_array().into_iter().flatten();
    findings.filter(|it| it["outcome"] == "error").collect()
}

fn whole() -> Result<()> {
    let cluster = Cluster::up()?;
    let before = cluster.json(0, &["check", "--pre"])?;
    ensure!(errors(&before).is_empty(), "{before}");
    let after = cluster.json(1, &["check", "-A"])?;
    for finding in errors(&after) {
        let doc = finding["doc"].as_str().unwrap_or_default();
        ensure!(doc.starts_with("docs/troubleshooting.md#"), "{finding}");
    }
    cluster.with_controllers(|| {
        let report = cluster.json(0, &["install", "--trust-domain", "example.org"])?;
        ensure!(changes(&report) == ["created"].into(), "{report}");
        let there = cluster.ours();
        ensure!(there.len() == 21, "{there:?}");
        // Again, and nothing of the settings is given.
        let report = cluster.json(0, &["install"])?;
        ensure!(changes(&report) == ["unchanged"].into(), "{report}");
        let report = cluster.json(0, &["upgrade", "--image", "registry.example/f:2"])?;
        ensure!(
            report["image_before"] == "ghcr.io/fairlead/fairlead:0.1.0"
                && report["image"] == "registry.example/f:2",
            "{report}"
        );
        let agents = cluster.agents().context("no agents")?.to_string();
        ensure!(
            agents.contains("--trust-domain=example.org")
                && agents.contains("registry.example/f:2"),
            "{agents}"
        );
        let removal = cluster.json(0, &["uninstall"])?;
        ensure!(removal["nodes"]["ready"] == NODES, "{removal}");
        let left = cluster.ours();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(removal["kept"] == json!([]), "{removal}");
        // Nothing is there, and that is no error.
        drop(cluster.json(0, &["uninstall"])?);
        let nothing = cluster.cli(&["upgrade"])?;
        ensure!(
            nothing.code() == 1 && nothing.stderr.contains("not installed"),
            "{nothing:?}"
        );
        Ok(())
    })
}

fn rights() -> Result<()> {
    let cluster = Cluster::up()?;
    cluster.server.accept("reader", "reader");
    let rule = Rule::new(&["get", "list"], "*", &["*"]);
    cluster.server.grant("reader", rule);
    // Everybody may ask this on a real one.
    let rule = Rule::new(
        &["create"],
        "authorization.k8s.io",
        &["selfsubjectaccessreviews"],
    );
    cluster.server.grant("reader", rule);
    let reader = cluster.kubeconfig("reader")?;
    let output = fairlead(&reader, &["install"])?;
    ensure!(output.code() == 1, "{output:?}");
    for expected in ["nothing was changed", "may not patch", "daemonsets"] {
        ensure!(output.stderr.contains(expected), "{output:?}");
    }
    let there = cluster.ours();
    ensure!(there.is_empty(), "{there:?}");
    let output = fairlead(&reader, &["check", "--pre"])?;
    ensure!(
        output.code() == 1 && output.stdout.contains("docs/troubleshooting.md#rights"),
        "{output:?}"
    );
    Ok(())
}

fn policies() -> Result<()> {
    let cluster = Cluster::up()?;
    cluster.with_controllers(|| {
        drop(cluster.json(0, &["install"])?);
        drop(cluster.server.put(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "MeshPolicy",
            "metadata": {"namespace": "default", "name": "strict"},
            "spec": {"mtls": {"mode": "STRICT"}},
        }))?);
        let removal = cluster.json(0, &["uninstall"])?;
        let kept = removal["kept"].as_array().context("kept")?;
        ensure!(kept.len() == 1, "{removal}");
        let left = cluster.ours();
        let kinds = [(
            "CustomResourceDefinition".to_owned(),
            "meshpolicies.fairlead.dev".to_owned(),
        )];
        ensure!(left == kinds.into(), "{left:?}");
        let policy =
            |server: &ApiServer| server.get("meshpolicies.fairlead.dev", "default", "strict");
        ensure!(policy(&cluster.server).is_some(), "the policy went");
        drop(cluster.json(0, &["uninstall", "--delete-policies"])?);
        ensure!(cluster.ours().is_empty(), "{:?}", cluster.ours());
        Ok(())
    })
}

fn unready() -> Result<()> {
    let cluster = Cluster::up()?;
    drop(cluster.cli(&["install", "--wait", "0s"])?);
    drop(cluster.server.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "fairlead-system", "name": "fairlead-agent-x",
            "labels": {"app.kubernetes.io/component": "agent"},
        },
        "spec": {"nodeName": "n0"},
        "status": {"containerStatuses": [{"state": {"waiting": {
            "reason": "ImagePullBackOff", "message": "no such tag",
        }}}]},
    }))?);
    let report = cluster.json(1, &["install", "--wait", "1s"])?;
    let reasons = report["not_ready"].to_string();
    ensure!(
        reasons.contains("fairlead-agent-x on n0: ImagePullBackOff no such tag"),
        "{report}"
    );
    Ok(())
}

fn dead() -> Result<()> {
    let mut cluster = Cluster::up()?;
    cluster.server.stop();
    let output = cluster.cli(&["check", "--pre"])?;
    ensure!(
        output.code() == 1 && output.stdout.contains("docs/troubleshooting.md#api-server"),
        "{output:?}"
    );
    let output = cluster.cli(&["install"])?;
    ensure!(
        output.code() == 1 && output.stderr.contains("nothing was changed"),
        "{output:?}"
    );
    Ok(())
}
