//! How pods come into the mesh: by the container runtime, or found while they run.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::{
    Agent, AgentOptions, Output, Place, Pod, PodSpec, Process, World, WorldOptions, binary,
    cleanup_with, patient, until,
};
use serde_json::{Value, json};

use crate::Test;
use crate::mesh::SOON;

pub(crate) const TESTS: &[Test] = &[
    Test::node("enrol::running_pods_are_found_by_their_processes", found).with(&["unshare"]),
    Test::node("enrol::a_runtime_starts_a_pod_once_it_is_meshed", started),
    Test::node("enrol::nothing_starts_in_plaintext_without_the_agent", away),
    Test::node(
        "enrol::an_address_that_is_used_again_has_a_new_identity",
        reused,
    ),
    Test::node("enrol::the_plugin_stays_until_it_is_taken_off", installed),
    Test::node("enrol::a_pod_without_an_address_is_refused", no_address).with(&["python3"]),
    Test::node("enrol::a_namespace_outlives_its_path", outlived).with(&["python3"]),
    Test::node(
        "enrol::a_pod_whose_containers_crashed_is_refused_until_it_is_back",
        crashed,
    )
    .with(&["python3"]),
    Test::node("enrol::a_deleted_pod_that_runs_is_refused", deleted).with(&["python3"]),
    Test::node("enrol::a_failed_pod_that_runs_is_refused", failed).with(&["python3"]),
    Test::node(
        "enrol::a_pod_that_the_next_agent_does_not_find_stays_refused",
        lost,
    )
    .with(&["python3"]),
    Test::node("enrol::processes_outside_the_cgroup_are_a_problem", unseen),
];

const UID: &str = "0b8bd41c-1f5e-4c3e-8e4d-6f1f0a3b9c2d";
const SCOPE: &str =
    "cri-containerd-00000000000000000000000000000000000000000000000000000000000000aa.scope";
/// Prints how a connection to an address that only an agent answers for begins.
const DIAL: &str = "import socket, sys
s = socket.socket(); s.settimeout(5)
try: s.connect(('192.0.2.1', 80)); print('connected')
except OSError as error: print(type(error).__name__, error.errno)";

/// A node with an agent, of a world with the namespaces `shop`, which is meshed, and
/// `guest`. The order of the fields is the order in which they end.
struct Node {
    agent: Option<Agent>,
    arguments: Vec<String>,
    world: World,
}

impl Node {
    fn up(arguments: &[&str]) -> Result<Self> {
        let world = World::create(&WorldOptions::nodes(&["a"]))?;
        world.manifests().namespace("shop", true)?;
        world.manifests().namespace("guest", false)?;
        let mut node = Self {
            agent: None,
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            world,
        };
        node.start()?;
        Ok(node)
    }

    fn start(&mut self) -> Result<()> {
        let options = AgentOptions {
            arguments: self.arguments.clone(),
            ..AgentOptions::default()
        };
        let node = self.world.node("a");
        self.agent = Some(Agent::start(&self.world, node, &options)?);
        Ok(())
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent runs")
    }

    /// A pod as the runtime makes it, of which nobody has heard.
    fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.world
            .pod(&PodSpec::new("a", namespace, name).unpublished())
    }

    /// Writes the pod's object as the API has it: with the UID, with no word on where its
    /// network namespace is.
    fn publish(&self, pod: &Pod, uid: &str, change: impl Fn(&mut Value)) -> Result<()> {
        let mut object = pod.manifest();
        object["metadata"]["uid"] = uid.into();
        object["metadata"]["annotations"] = json!({});
        change(&mut object);
        self.world.manifests().apply(&object)
    }

    fn problems(&self) -> Result<String> {
        Ok(self.agent()?.status()?["problems"].to_string())
    }

    fn reported(&self, text: &str) -> Result<()> {
        until(&format!("\"{text}\" among the problems"), SOON, || {
            self.problems().ok()?.contains(text).then_some(())
        })
        .with_context(|| self.problems().unwrap_or_default())
    }

    fn log(&self) -> Result<String> {
        Ok(self.agent()?.process.output())
    }

    fn run_dir(&self) -> PathBuf {
        self.world.directory().join("run").join("a")
    }

    fn call(&self, verb: &str, pod: &Pod, container: &str, patience: u64) -> Result<Output> {
        call(&self.world, (verb, container), (pod, UID), patience)
    }
}

/// Calls the plugin as a container runtime of the node `a` does: what for which sandbox, of
/// which pod and UID.
pub(crate) fn call(
    world: &World,
    (verb, container): (&str, &str),
    (pod, uid): (&Pod, &str),
    patience: u64,
) -> Result<Output> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "fairlead-cni",
        "runDir": world.directory().join("run").join("a"), "timeoutSeconds": patience,
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": pod.netns()}],
            "ips": [
                {"interface": 0, "address": format!("{}/32", pod.ip4)},
                {"interface": 0, "address": format!("{}/128", pod.ip6)},
            ],
        },
    });
    let file = world.directory().join(format!("{container}.json"));
    fs::write(&file, config.to_string())?;
    let mut command = world.node("a").host.command("sh");
    let _: &mut std::process::Command = command
        .args(["-c", r#"exec "$0" cni <"$1""#])
        .arg(binary()?)
        .arg(&file)
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", pod.netns())
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={uid}",
                pod.namespace, pod.name
            ),
        );
    fairlead_tests::run(&mut command, patient(Duration::from_mins(1)))
}

/// Nobody but the agent listens in a pod in which nothing runs.
pub(crate) fn is_served(pod: &Pod) -> bool {
    pod.listening().is_ok_and(|ports| !ports.is_empty())
}

/// Waits until a process is in the pod's network.
fn inside(process: &Process, pod: &Pod) -> Result<()> {
    let inode = |path: PathBuf| Some(fs::metadata(path).ok()?.ino());
    until("a process to be inside", SOON, || {
        let own = inode(format!("/proc/{}/ns/net", process.pid()).into())?;
        (Some(own) == inode(pod.netns())).then_some(())
    })
}

fn sleep(place: &Place, name: &str) -> Result<Process> {
    place.spawn(name, &["sleep", "600"])
}

/// The place of a container as the kubelet and containerd name it with systemd's driver.
fn container(pod: &Pod) -> Result<Place> {
    let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
    pod.child(&format!("kubepods.slice/{slice}/{SCOPE}"))
}

fn dial(place: &Place) -> Result<String> {
    let output = place.run(&["python3", "-c", DIAL])?.ok()?;
    Ok(output.stdout.trim().to_owned())
}

/// The agent took the connection, and then found that nobody is there: else there is no
/// route.
fn carried(seen: &str) -> Result<()> {
    ensure!(
        matches!(seen, "connected" | "ConnectionResetError 104"),
        "{seen}"
    );
    Ok(())
}

fn found() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    let place = container(&pod)?;
    node.publish(&pod, UID, |_| {})?;
    // Until a process of it runs nobody knows where it is.
    node.reported("no process of it runs")?;
    let _sandbox = sleep(&place, "sandbox")?;
    // A later one may go where it likes: the pod is where it began.
    let _stray = place.spawn("stray", &["unshare", "--net", "sleep", "600"])?;
    node.agent()?.wait_enrolled(&[&pod])?;
    ensure!(is_served(&pod), "the agent listens in another namespace");

    // One that runs in the node's own network is never taken for a pod.
    let host = node.world.node("a").host.clone();
    let other = node.pod("shop", "host")?;
    let uid = UID.replace('0', "1");
    let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
    let place = host.child(&format!("kubepods.slice/{slice}/{SCOPE}"))?;
    let _process = sleep(&place, "host")?;
    node.publish(&other, &uid, |_| {})?;
    node.reported("the node's own network namespace")?;
    ensure!(!is_served(&other));
    // Nor one whose namespace has another address than the pod.
    let third = node.pod("shop", "third")?;
    let uid = UID.replace('0', "2");
    let slice = format!("kubepods-pod{}.slice", uid.replace('-', "_"));
    let _process = sleep(&third.child(&format!("{slice}/{SCOPE}"))?, "third")?;
    node.publish(&third, &uid, |object| {
        object["status"]["podIP"] = "10.244.1.200".into();
        object["status"]["podIPs"] = json!([{"ip": "10.244.1.200"}]);
    })?;
    node.reported("no network namespace of its processes has its addresses")?;
    ensure!(!is_served(&third));
    ensure!(is_served(&pod), "another pod suffers");
    Ok(())
}

fn started() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    // Its object is in the API, and has no address yet.
    let starting = |object: &mut Value| object["status"] = json!({"phase": "Pending"});
    node.publish(&pod, UID, starting)?;
    ensure!(!is_served(&pod));
    let output = node.call("ADD", &pod, "c1", 20)?;
    ensure!(output.success(), "{}", output.stdout);
    let result: Value = serde_json::from_str(&output.stdout)?;
    ensure!(
        result["ips"][0]["address"] == format!("{}/32", pod.ip4),
        "{result}"
    );
    ensure!(is_served(&pod), "it was started too early");
    ensure!(node.call("CHECK", &pod, "c1", 20)?.success());
    // When its addresses are in the API nothing is done again.
    node.publish(&pod, UID, |_| {})?;
    until("the address", SOON, || {
        let rows = node.agent().ok()?.cli.json(&["get", "workloads"]).ok()?;
        let text = serde_json::to_string(&rows).ok()?;
        text.contains(&pod.ip4.to_string()).then_some(())
    })?;
    node.agent()?.wait_enrolled(&[&pod])?;
    let log = node.log()?;
    ensure!(log.matches("enrolled the pod").count() == 1, "{log}");
    // An older sandbox of it goes: that is none of this one's business.
    ensure!(node.call("DEL", &pod, "c0", 20)?.success());
    ensure!(
        is_served(&pod),
        "another sandbox's end was taken for its own"
    );
    ensure!(node.call("DEL", &pod, "c1", 20)?.success());
    // The runtime may give its addresses away as soon as that is answered.
    ensure!(node.log()?.contains("let the pod go"), "{}", node.log()?);
    let status = node.agent()?.status()?;
    ensure!(status["pods"] == json!([]), "{status}");

    // Who is not to be meshed is not held up, known or not.
    let guest = node.pod("guest", "visitor")?;
    let output = node.call("ADD", &guest, "c2", 20)?;
    ensure!(output.success(), "{}", output.stdout);
    ensure!(!is_served(&guest));
    // One that nobody has heard of is not started in a namespace that is meshed.
    let stranger = node.pod("shop", "stranger")?;
    let output = node.call("ADD", &stranger, "c3", 3)?;
    ensure!(
        !output.success() && output.stdout.contains("shop/stranger"),
        "{output:?}"
    );
    Ok(())
}

fn away() -> Result<()> {
    let mut node = Node::up(&[])?;
    let file = node.run_dir().join("decisions.json");
    until("the decisions", SOON, || {
        fs::read_to_string(&file)
            .ok()?
            .contains("shop")
            .then_some(())
    })?;
    node.agent.take().context("it runs")?.process.kill();
    let (pod, guest) = (node.pod("shop", "web")?, node.pod("guest", "visitor")?);
    node.publish(&pod, UID, |object| object["status"] = json!({}))?;
    let output = node.call("ADD", &pod, "c1", 1)?;
    ensure!(!output.success(), "it starts in plaintext");
    let answer: Value = serde_json::from_str(&output.stdout)?;
    let text = answer["msg"].as_str().unwrap_or_default();
    ensure!(
        answer["code"] == 11 && text.contains("cni.sock"),
        "{answer}"
    );
    let output = node.call("ADD", &guest, "c2", 60)?;
    ensure!(output.success() && output.elapsed < SOON, "{output:?}");
    // After a reboot the agent comes later than the runtime.
    let (output, agent) = std::thread::scope(|scope| -> Result<_> {
        let calling = scope.spawn(|| node.call("ADD", &pod, "c3", 50));
        let options = AgentOptions::default();
        let agent = Agent::start(&node.world, node.world.node("a"), &options)?;
        let output = calling
            .join()
            .map_err(|_panic| anyhow::anyhow!("it panicked"))??;
        Ok((output, agent))
    })?;
    ensure!(output.success(), "{}", output.stdout);
    ensure!(is_served(&pod), "it was started too early");
    agent.wait_enrolled(&[&pod])
}

/// A pod goes, and its address is another's at once: who has it is who the runtime says.
fn reused() -> Result<()> {
    let node = Node::up(&[])?;
    let first = node.pod("shop", "first")?;
    node.publish(&first, UID, |_| {})?;
    ensure!(node.call("ADD", &first, "c1", 20)?.success());
    ensure!(node.call("DEL", &first, "c1", 20)?.success());
    first.destroy()?;
    let spec = PodSpec::new("a", "shop", "second").unpublished();
    let second = node.world.pod(&spec.address_of(&first))?;
    ensure!(second.ip4 == first.ip4);
    // The object of the first is still there, with that address.
    node.publish(&second, UID, |object| object["status"] = json!({}))?;
    let output = node.call("ADD", &second, "c2", 20)?;
    ensure!(output.success(), "{}", output.stdout);
    let status = node.agent()?.status()?;
    let row = &status["pods"][0];
    ensure!(
        row["name"] == "second" && row["state"] == "enrolled",
        "{status}"
    );
    let identity = row["identity"].as_str().unwrap_or_default();
    ensure!(identity.ends_with("/sa/second"), "{status}");
    ensure!(
        status["pods"]
            .as_array()
            .is_some_and(|pods| pods.len() == 1),
        "{status}"
    );
    Ok(())
}

fn installed() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let directory = |name: &str| -> Result<String> {
        let path = scratch.path().join(name);
        fs::create_dir(&path)?;
        Ok(path.display().to_string())
    };
    let (bin, conf) = (directory("bin")?, directory("net.d")?);
    let list = PathBuf::from(&conf).join("10-net.conflist");
    let text = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;
    fs::write(&list, text)?;
    let directories = ["--cni-bin-dir", &bin, "--cni-conf-dir", &conf];
    let mut node = Node::up(&directories)?;
    let in_place = || fs::read_to_string(&list).is_ok_and(|text| text.contains("fairlead-cni"));
    let appears = |what: &str| until(what, SOON, || in_place().then_some(()));
    appears("the plugin")?;
    fs::write(&list, text)?;
    appears("the plugin, after another installer wrote its own")?;
    fs::remove_file(&list)?;
    node.reported("no network configuration")?;
    let status = node.agent()?.status()?;
    let not_ready = status["not_ready"].to_string();
    ensure!(not_ready.contains("the CNI plugin"), "{not_ready}");
    fs::write(&list, text)?;
    appears("the plugin, after the list was made anew")?;
    let decisions = PathBuf::from(&conf).join("fairlead.d/decisions.json");
    until("the decisions", SOON, || decisions.exists().then_some(()))?;
    // Under its own name it needs no subcommand.
    let program = PathBuf::from(&bin).join("fairlead-cni");
    let script = r#"echo '{"cniVersion": "1.1.0"}' | CNI_COMMAND=VERSION exec "$0""#;
    let host = &node.world.node("a").host;
    let run = ["sh", "-c", script, &program.display().to_string()];
    let output = host.run(&run)?.ok()?;
    ensure!(
        output.stdout.contains(r#""cniVersion":"1.1.0""#),
        "{output:?}"
    );
    // An upgrade leaves no gap in which pods would start in plaintext.
    let agent = node.agent.take().context("it runs")?;
    ensure!(agent.process.terminate(SOON)?.success());
    ensure!(in_place() && program.exists());
    let output = cleanup_with(&node.world, node.world.node("a"), &directories)?;
    ensure!(output.success(), "{output:?}");
    let left: Vec<_> = fs::read_dir(&conf)?.flatten().collect();
    ensure!(
        left.len() == 1 && !in_place() && !program.exists(),
        "{left:?}"
    );
    Ok(())
}

fn no_address() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    let mut object = pod.manifest();
    object["status"] = json!({"phase": "Pending"});
    node.world.manifests().apply(&object)?;
    node.reported("it has no address")?;
    ensure!(dial(&pod)? == "PermissionError 1", "nothing leaves it");
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    carried(&dial(&pod)?)?;
    Ok(())
}

fn outlived() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    let held = pod.spawn("held", &["sleep", "600"])?;
    inside(&held, &pod)?;
    let net = format!("--net=/proc/{}/ns/net", held.pid());
    // The name goes, the namespace does not: a process is in it.
    drop(
        node.world
            .node("a")
            .host
            .run(&["umount", "-l", &pod.netns().display().to_string()])?,
    );
    fs::remove_file(pod.netns())?;
    // The agent has looked since.
    let other = node.pod("shop", "other")?;
    other.publish()?;
    node.agent()?.wait_enrolled(&[&other])?;
    let command = ["nsenter", &net, "python3", "-c", DIAL];
    let place = pod.child("second")?;
    let host = &node.world.node("a").host;
    let join = format!(
        "echo $$ >{}/cgroup.procs && exec \"$@\"",
        place.cgroup().display()
    );
    let output = host
        .run(&[&["sh", "-c", &join, "join"], &command[..]].concat())?
        .ok()?;
    carried(output.stdout.trim())?;
    let status = node.agent()?.status()?;
    let row = &status["pods"][1];
    ensure!(
        row["name"] == "web" && row["state"] == "enrolled",
        "{status}"
    );
    held.kill();
    node.reported("its network namespace has gone")
}

/// As with CRI-O, which keeps the namespace, and no process in it, while all containers of a
/// pod have crashed.
fn crashed() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    let host = &node.world.node("a").host;
    let (path, kept) = (pod.netns(), node.world.directory().join("kept"));
    let script = format!(
        "touch {1} && mount --bind {0} {1} && umount -l {0}",
        path.display(),
        kept.display()
    );
    drop(host.shell(SOON, &script)?.ok()?);
    node.reported("its network namespace has gone")?;
    let join = format!(
        "echo $$ >{}/cgroup.procs && exec nsenter --net={} python3 -c \"$0\"",
        pod.child("again")?.cgroup().display(),
        kept.display()
    );
    let dial = || -> Result<String> {
        let output = host.run(&["sh", "-c", &join, DIAL])?.ok()?;
        Ok(output.stdout.trim().to_owned())
    };
    ensure!(
        dial()? == "PermissionError 1",
        "its containers are back, in plaintext"
    );
    let back = format!("mount --bind {} {}", kept.display(), path.display());
    drop(host.shell(SOON, &back)?.ok()?);
    node.agent()?.wait_enrolled(&[&pod])?;
    carried(&dial()?)?;
    drop(
        host.shell(SOON, &format!("umount {}", kept.display()))?
            .ok()?,
    );
    carried(&self::dial(&pod)?)
}

fn deleted() -> Result<()> {
    refused_while_it_runs(|_, pod| pod.unpublish())
}

/// As where kubelet died: its containers go on, and the control plane says that they failed.
fn failed() -> Result<()> {
    refused_while_it_runs(|node, pod| {
        let mut object = pod.manifest();
        object["status"]["phase"] = "Failed".into();
        node.world.manifests().apply(&object)
    })
}

fn refused_while_it_runs(end: impl FnOnce(&Node, &Pod) -> Result<()>) -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    let running = pod.spawn("running", &["sleep", "600"])?;
    inside(&running, &pod)?;
    carried(&dial(&pod)?)?;
    end(&node, &pod)?;
    until("its end in the mesh", SOON, || {
        let status = node.agent().ok()?.status().ok()?;
        (status["pods"] == json!([])).then_some(())
    })?;
    // Nothing says that it may talk plaintext now.
    ensure!(dial(&pod)? == "PermissionError 1");
    running.kill();
    until("that it is let go", SOON, || {
        node.log().ok()?.contains("let the pod go").then_some(())
    })
}

/// What the next agent can't find was guarded by the one before.
fn lost() -> Result<()> {
    let mut node = Node::up(&[])?;
    let (pod, other) = (node.pod("shop", "web")?, node.pod("shop", "other")?);
    pod.publish()?;
    other.publish()?;
    node.agent()?.wait_enrolled(&[&pod, &other])?;
    node.agent.take().context("it runs")?.process.kill();
    let mut object = pod.manifest();
    object["metadata"]["annotations"]["fairlead.dev/netns"] = "/run/netns/nowhere".into();
    node.world.manifests().apply(&object)?;
    node.start()?;
    node.agent()?.wait_enrolled(&[&other])?;
    carried(&dial(&other)?)?;
    node.reported("shop/web")?;
    ensure!(dial(&pod)? == "PermissionError 1", "it is open");
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    carried(&dial(&pod)?)?;
    // Likewise one that is not to be meshed any more.
    node.agent.take().context("it runs")?.process.kill();
    node.world.manifests().apply(&object)?;
    node.start()?;
    node.agent()?.wait_enrolled(&[&other])?;
    ensure!(dial(&pod)? == "PermissionError 1", "it is open");
    object["metadata"]["labels"]["fairlead.dev/mesh"] = "disabled".into();
    node.world.manifests().apply(&object)?;
    until("it is let go", SOON, || {
        dial(&pod).ok()?.starts_with("OSError 1").then_some(())
    })
    .with_context(|| dial(&pod).unwrap_or_default())
}

fn unseen() -> Result<()> {
    let node = Node::up(&[])?;
    let pod = node.pod("shop", "web")?;
    // It joins the pod's network, but stays where the hooks are not.
    let net = format!("--net={}", pod.netns().display());
    let log = node.world.directory().join("logs/outside.log");
    let mut command = std::process::Command::new("nsenter");
    let outside = Process::start("outside", command.args([&net, "--", "sleep", "600"]), &log)?;
    inside(&outside, &pod)?;
    pod.publish()?;
    node.agent()?.wait_enrolled(&[&pod])?;
    node.reported("bypasses the mesh")
}
