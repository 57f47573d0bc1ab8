//! What `deploy/` says, held against what is so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{Agent, AgentOptions, run, until};
use serde::Deserialize as _;
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::{LONG, Mesh, SOON, client_and_server, curl, serve_python};
use crate::upgrade::ON;

pub(crate) const TESTS: &[Test] = &[
    Test::pure(
        "deploy::the_chart_renders_what_the_kustomization_does",
        chart,
    )
    .with(&["helm", "kubectl"]),
    Test::pure(
        "deploy::the_components_say_what_the_chart_s_values_do",
        components,
    )
    .with(&["helm", "kubectl"]),
    Test::pure("deploy::values_that_make_no_sense_are_refused", schema).with(&["helm"]),
    Test::pure("deploy::every_value_of_the_chart_has_its_effect", values).with(&["helm"]),
    Test::pure("deploy::install_prints_the_same_manifests", dry_run).with(&["kubectl"]),
    Test::node(
        "deploy::an_agent_needs_no_more_than_its_capabilities",
        least,
    )
    .with(&["curl", "python3", "setpriv"]),
];

/// Answers every request with `ok`.
const WEB: &str = include_str!("../../scripts/web.py");

type Objects = BTreeMap<(String, String), Value>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The objects of a YAML stream, by kind and name.
fn objects(text: &str) -> Result<Objects> {
    let mut found = Objects::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let object = Value::deserialize(document)?;
        if object.is_null() {
            continue;
        }
        let word = |pointer: &str| {
            let word = object.pointer(pointer).and_then(Value::as_str);
            word.map(str::to_owned).context("no kind or name")
        };
        let key = (word("/kind")?, word("/metadata/name")?);
        let object = plain(object);
        ensure!(found.insert(key.clone(), object).is_none(), "{key:?} twice");
    }
    Ok(found)
}

/// Numbers as text: programs that write YAML differ in 1 and 1.0.
fn plain(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN).to_string().into(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            fields.map(|(name, value)| (name, plain(value))).collect()
        }
        other => other,
    }
}

fn kustomize(directory: &Path) -> Result<Objects> {
    let mut command = Command::new("kubectl");
    let output = run(command.arg("kustomize").arg(directory), LONG)?;
    objects(&output.ok()?.stdout)
}

/// A kustomization of one's own, of the base with components.
fn with_components(names: &[&str]) -> Result<Objects> {
    let directory = tempfile::tempdir()?;
    // It takes relative paths only.
    let up = "../".repeat(directory.path().canonicalize()?.components().count() - 1);
    let deploy = root().join("deploy").canonicalize()?;
    let deploy = format!("{up}{}", deploy.strip_prefix("/")?.display());
    let components: Vec<String> = names
        .iter()
        .map(|name| format!("{deploy}/components/{name}"))
        .collect();
    let text = json!({"resources": [deploy], "components": components});
    std::fs::write(
        directory.path().join("kustomization.yaml"),
        text.to_string(),
    )?;
    kustomize(directory.path())
}

fn helm(settings: &[&str]) -> Result<Objects> {
    let output = template(settings)?;
    objects(&output.ok()?.stdout)
}

fn template(settings: &[&str]) -> Result<fairlead_tests::Output> {
    let mut command = Command::new("helm");
    let command = command
        .args(["template", "fairlead"])
        .arg(root().join("deploy/helm/fairlead"))
        .args(["--namespace", "fairlead-system", "--include-crds"])
        .args(settings.iter().flat_map(|it| ["--set", it]));
    run(command, LONG)
}

#[track_caller]
fn same(left: &Objects, right: &Objects) -> Result<()> {
    let names = |all: &Objects| all.keys().cloned().collect::<Vec<_>>();
    ensure!(
        names(left) == names(right),
        "{:?} and {:?}",
        names(left),
        names(right)
    );
    for (name, object) in left {
        let difference = difference(object, &right[name], "");
        ensure!(difference.is_none(), "{name:?}: {difference:?}");
    }
    Ok(())
}

/// Where two values differ first.
fn difference(left: &Value, right: &Value, at: &str) -> Option<String> {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let mut names = left.keys().chain(right.keys());
            names.find_map(|name| {
                let (left, right) = (left.get(name), right.get(name));
                let null = &Value::Null;
                let at = format!("{at}.{name}");
                difference(left.unwrap_or(null), right.unwrap_or(null), &at)
            })
        }
        _ if left == right => None,
        _ => Some(format!("{at}: {left} and {right}")),
    }
}

fn chart() -> Result<()> {
    let base = kustomize(&root().join("deploy"))?;
    ensure!(base.len() > 15, "{:?}", base.keys());
    same(&base, &helm(&["namespace.create=true"])?)
}

fn components() -> Result<()> {
    let base = with_components(&[])?;
    for (components, settings) in [
        (&["podmonitor"][..], &["podMonitor.enabled=true"][..]),
        (&["taint"], &["agent.removeTaint=true"]),
        (
            &["podmonitor", "taint"],
            &["podMonitor.enabled=true", "agent.removeTaint=true"],
        ),
    ] {
        let whole = with_components(components)?;
        ensure!(whole != base, "{components:?} add nothing");
        let settings = [&["namespace.create=true"], settings].concat();
        same(&whole, &helm(&settings)?).with_context(|| format!("{components:?}"))?;
    }
    let cleanup = kustomize(&root().join("deploy/cleanup"))?;
    let sets = cleanup.keys().filter(|(kind, _)| kind == "DaemonSet");
    ensure!(sets.count() == 1, "{:?}", cleanup.keys());
    Ok(())
}

fn schema() -> Result<()> {
    for wrong in [
        "trustDomain=a b",
        "agent.drainSeconds=-1",
        "cni.binDir=opt",
        "ca.enabled=false",
        "imagee.tag=1",
        "image.pullPolicy=Sometimes",
    ] {
        let output = template(&[wrong])?;
        ensure!(!output.success(), "{wrong} was taken");
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(said.contains("schema"), "{wrong}: {said}");
    }
    Ok(())
}

fn values() -> Result<()> {
    let agents = |settings: &[&str]| -> Result<String> {
        let all = helm(settings)?;
        Ok(all[&("DaemonSet".to_owned(), "fairlead-agent".to_owned())].to_string())
    };
    for (setting, expected) in [
        ("image.tag=v9", "ghcr.io/fairlead/fairlead:v9"),
        ("image.pullPolicy=Always", "\"imagePullPolicy\":\"Always\""),
        (
            "imagePullSecrets={mine}",
            "\"imagePullSecrets\":[{\"name\":\"mine\"}]",
        ),
        ("trustDomain=example.org", "--trust-domain=example.org"),
        (
            "agent.drainSeconds=60",
            "\"terminationGracePeriodSeconds\":\"75\"",
        ),
        ("agent.removeTaint=true", "--remove-taint"),
        ("agent.extraArgs={--workers=2}", "--workers=2"),
        ("agent.updateStrategy.maxSurge=3", "\"maxSurge\":\"3\""),
        ("cni.confDir=/var/lib/net.d", "\"path\":\"/var/lib/net.d\""),
        ("priorityClass.name=mine", "\"priorityClassName\":\"mine\""),
        ("ca.audience=istio-ca", "\"audience\":\"istio-ca\""),
    ] {
        let text = agents(&[setting])?;
        ensure!(text.contains(expected), "{setting}: {text}");
    }
    let without = agents(&["cni.enabled=false"])?;
    ensure!(!without.contains("cni"), "{without}");
    let foreign = [
        "ca.enabled=false",
        "ca.address=https://istiod.istio-system.svc:15012",
    ];
    let text = agents(&foreign)?;
    ensure!(
        text.contains("--ca=https://istiod.istio-system.svc:15012"),
        "{text}"
    );
    ensure!(
        !helm(&foreign)?
            .keys()
            .any(|(_, name)| name == "fairlead-ca"),
        "an authority beside istiod"
    );
    ensure!(
        helm(&["podMonitor.enabled=true"])?
            .keys()
            .any(|(kind, _)| kind == "PodMonitor"),
        "no PodMonitor"
    );
    Ok(())
}

fn dry_run() -> Result<()> {
    let mut command = Command::new(fairlead_tests::binary()?);
    let output = run(command.args(["install", "--dry-run"]), LONG)?;
    same(
        &kustomize(&root().join("deploy"))?,
        &objects(&output.ok()?.stdout)?,
    )
}

/// The capabilities that the DaemonSet grants.
fn granted() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root().join("deploy/base/agent.yaml"))?;
    let agents = objects(&text)?;
    let (_, agents) = agents.iter().next().context("no DaemonSet")?;
    let added = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let added = agents.pointer(added).and_then(Value::as_array);
    let names = added.context("no capabilities")?.iter();
    Ok(names
        .filter_map(Value::as_str)
        .map(str::to_lowercase)
        .collect())
}

fn least() -> Result<()> {
    let [client, server] = client_and_server();
    let closing = client.annotation("fairlead.dev/close-existing", "true");
    let mut mesh = Mesh::down(&[closing, server])?;
    let server = mesh.pod("server");
    let _web = serve_python(server, WEB, 8080, &[])?;
    let address = server.ip4.to_string();
    let mut before = mesh
        .pod("client")
        .spawn("before", &["python3", "-uc", ON, &address])?;
    before.wait_for("used 2\n", SOON)?;
    let granted = granted()?;
    let bounding = granted
        .iter()
        .fold("-all".to_owned(), |all, name| format!("{all},+{name}"));
    let options = AgentOptions {
        wrapper: ["setpriv", "--bounding-set", &bounding]
            .map(str::to_owned)
            .to_vec(),
        ..AgentOptions::default()
    };
    for node in ["a", "b"] {
        let agent = Agent::start(&mesh.world, mesh.world.node(node), &options)?;
        mesh.agents.push(agent);
    }
    mesh.wait_enrolled()?;
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    until("the end of the connection from before", SOON, || {
        before.ended().ok().flatten()
    })?;
    let url = format!("http://{}:8080/", server.ip4);
    until("traffic", SOON, || {
        curl(client, &url)
            .is_ok_and(|it| it.success())
            .then_some(())
    })
    .with_context(|| mesh.agent("a").process.output())?;
    for node in ["a", "b"] {
        let status = mesh.agent(node).status()?;
        ensure!(status["problems"] == Value::Array(Vec::new()), "{status}");
        let features = status["kernel"]["features"].as_array();
        let features = features.context("no features")?;
        let missing = features.iter().find(|it| it["available"] != true);
        ensure!(missing.is_none(), "{missing:?}");
        let pid = mesh.agent(node).process.pid();
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
        let effective = u64::from_str_radix(effective.context("CapEff")?.trim(), 16)?;
        ensure!(
            effective.count_ones() as usize == granted.len(),
            "{effective:x} for {granted:?}"
        );
    }
    Ok(())
}
