use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::conflist::{ConfigurationError, listed, with_plugin, without_plugin};
use super::decisions::{Decision, Decisions};
use super::install::{Displaced, InstallError, Installer, RACES, edit, uninstall};
use super::protocol::{Command, PodRef, Reply};
use super::server::{Call, Server};
use super::spec::{Invocation, Verb, code};
use super::{PLUGIN, run};

const RESULT: &str = r#"{
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "veth1", "mac": "00:11:22:33:44:56"},
        {"name": "eth0", "mac": "00:11:22:33:44:57", "sandbox": "/run/netns/a"}
    ],
    "ips": [
        {"interface": 0, "address": "10.1.0.1/24"},
        {"interface": 2, "address": "10.1.0.5/24", "gateway": "10.1.0.1"},
        {"interface": 2, "address": "fd00::5/64"}
    ],
    "vendor": {"anything": [1, 2]}
}"#;

/// One call: the environment, and the configuration.
#[derive(Clone)]
struct Runtime {
    environment: BTreeMap<&'static str, String>,
    config: Value,
}

impl Runtime {
    fn new(verb: &str) -> Self {
        let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1";
        let environment = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/proc/self/ns/net"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", arguments),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let result: Value = serde_json::from_str(RESULT).unwrap();
        Self {
            environment: environment.map(|(k, v)| (k, v.to_owned())).into(),
            config: json!({
                "cniVersion": "1.0.0", "name": "net", "type": PLUGIN,
                "runDir": "/nonexistent", "timeoutSeconds": 1, "prevResult": result,
            }),
        }
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.environment.insert(name, value.to_owned());
        self
    }

    fn config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    fn without(mut self, field: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(field);
        self
    }

    fn input(&self) -> String {
        self.config.to_string()
    }

    fn read(&self) -> Result<Invocation, u32> {
        let variable = |name: &str| self.environment.get(name).cloned();
        Invocation::read(variable, &self.input()).map_err(|failure| failure.code)
    }

    fn run(&self) -> (Value, bool) {
        let variable = |name: &str| self.environment.get(name).cloned();
        let (answer, done) = run(variable, self.input().as_bytes());
        (serde_json::from_str(&answer).unwrap_or_default(), done)
    }
}

#[track_caller]
fn fails(runtime: &Runtime, code: u32) {
    assert_eq!(runtime.read().unwrap_err(), code);
    let (answer, done) = runtime.run();
    assert!(!done);
    assert_eq!(answer["code"], code);
    assert!(answer["msg"].as_str().is_some_and(|text| !text.is_empty()));
    assert!(answer["cniVersion"].is_string());
}

#[test]
fn calls_that_make_no_sense_are_answered_by_code() {
    fails(&Runtime::new("EAT"), code::ENVIRONMENT);
    fails(
        &Runtime::new("ADD").set("CNI_CONTAINERID", ""),
        code::ENVIRONMENT,
    );
    fails(&Runtime::new("ADD").set("CNI_NETNS", ""), code::ENVIRONMENT);
    fails(
        &Runtime::new("CHECK").set("CNI_IFNAME", ""),
        code::ENVIRONMENT,
    );
    fails(
        &Runtime::new("ADD").without("prevResult"),
        code::CONFIGURATION,
    );
    fails(&Runtime::new("ADD").without("name"), code::CONFIGURATION);
    for version in ["0.2.0", "2.0.0", ""] {
        let old = Runtime::new("ADD").config("cniVersion", version.into());
        fails(&old, code::INCOMPATIBLE_VERSION);
    }
    fails(
        &Runtime::new("ADD").without("cniVersion"),
        code::INCOMPATIBLE_VERSION,
    );
    let garbled = run(|_| Some("ADD".to_owned()), &b"{"[..]);
    assert!(
        !garbled.1 && garbled.0.contains("\"code\":6"),
        "{garbled:?}"
    );
}

#[test]
fn the_version_is_told_whatever_else_is_there() {
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut runtime = Runtime::new("VERSION");
        runtime.config = json!({"cniVersion": version});
        let (answer, done) = runtime.run();
        assert!(done);
        assert_eq!(answer["cniVersion"], version);
        let supported = answer["supportedVersions"].as_array().unwrap();
        assert!(supported.contains(&"1.0.0".into()) && supported.contains(&"1.1.0".into()));
    }
}

#[test]
fn a_pod_is_known_by_its_arguments() {
    let call = Runtime::new("ADD").read().unwrap();
    let pod = call.pod.unwrap();
    assert_eq!((&*pod.namespace, &*pod.name), ("shop", "web"));
    assert_eq!(pod.uid.as_deref(), Some("u1"));
    assert_eq!(call.verb, Verb::Add);
    let old = Runtime::new("ADD").set("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web");
    assert_eq!(old.read().unwrap().pod.unwrap().uid, None);
    let other = Runtime::new("ADD").set("CNI_ARGS", "");
    assert_eq!(other.read().unwrap().pod, None);
}

#[test]
fn addresses_are_those_inside_the_sandbox() {
    let ips = |runtime: &Runtime| -> Vec<String> {
        let call = runtime.read().unwrap();
        let ips = call.config.ips(&call.interface);
        ips.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ips(&Runtime::new("ADD")), ["10.1.0.5", "fd00::5"]);
    let bare = json!({"ips": [{"address": "10.1.0.7/32"}]});
    assert_eq!(
        ips(&Runtime::new("ADD").config("prevResult", bare)),
        ["10.1.0.7"]
    );
    let renamed = Runtime::new("ADD").set("CNI_IFNAME", "net1");
    assert_eq!(ips(&renamed), ["10.1.0.5", "fd00::5"]);
    assert_eq!(
        ips(&Runtime::new("ADD").config("prevResult", json!({}))),
        [""; 0]
    );
}

#[test]
fn the_result_before_is_passed_on_as_it_is() {
    let other = Runtime::new("ADD").set("CNI_ARGS", "");
    let (answer, done) = other.run();
    let expected: Value = serde_json::from_str(RESULT).unwrap();
    assert!(done);
    assert_eq!(answer, expected);
    let (answer, _) = other.config("cniVersion", "1.1.0".into()).run();
    assert_eq!(answer["cniVersion"], "1.1.0");
    assert_eq!(answer["ips"], expected["ips"]);
}

#[test]
fn without_the_agent_a_sandbox_goes_and_the_node_stays_in_service() {
    for verb in ["DEL", "GC", "STATUS"] {
        let runtime = Runtime::new(verb)
            .without("prevResult")
            .set("CNI_NETNS", "");
        assert_eq!(runtime.run(), (Value::Null, true), "{verb}");
    }
}

#[test]
fn collection_knows_both_names_of_the_list() {
    let list =
        json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "eth0"}]);
    for field in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let call = Runtime::new("GC")
            .config(field, list.clone())
            .read()
            .unwrap();
        assert_eq!(call.config.valid().unwrap(), ["c1", "c2"]);
    }
    assert_eq!(Runtime::new("GC").read().unwrap().config.valid(), None);
}

/// What the plugin does of a pod of `namespace` while nobody answers.
fn away(directory: &TempDir, namespace: &str, uid: &str) -> (Value, bool) {
    let arguments = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;K8S_POD_UID={uid}");
    Runtime::new("ADD")
        .config("runDir", directory.path().to_str().into())
        .config("timeoutSeconds", 0.into())
        .set("CNI_ARGS", &arguments)
        .run()
}

#[test]
fn without_the_agent_no_pod_starts_that_may_be_meshed() {
    let directory = TempDir::new().unwrap();
    // After the first boot nothing is known.
    let (answer, done) = away(&directory, "shop", "u1");
    assert!(!done);
    assert_eq!(answer["code"], code::TRY_AGAIN);
    let text = answer["msg"].as_str().unwrap();
    assert!(
        text.contains("shop/web") && text.contains("cni.sock"),
        "{text}"
    );
    assert!(away(&directory, "kube-system", "u1").1);
    assert!(away(&directory, "fairlead-system", "u1").1);
    let decisions = Decisions {
        namespaces: [
            ("shop".to_owned(), Decision::Meshed),
            ("mixed".to_owned(), Decision::Mixed),
            ("guest".to_owned(), Decision::Free),
            ("kube-system".to_owned(), Decision::Meshed),
            ("fairlead-system".to_owned(), Decision::Meshed),
        ]
        .into(),
        pods: [("in".to_owned(), true), ("out".to_owned(), false)].into(),
    };
    decisions
        .write(&directory.path().join("decisions.json"))
        .unwrap();
    for (namespace, uid, starts) in [
        ("shop", "new", false),
        ("shop", "out", true),
        ("mixed", "new", false),
        ("mixed", "out", true),
        ("guest", "new", true),
        ("guest", "in", false),
        ("unknown", "new", false),
        ("kube-system", "new", false),
        ("fairlead-system", "new", true),
    ] {
        let (answer, done) = away(&directory, namespace, uid);
        assert_eq!(done, starts, "{namespace} {uid}: {answer}");
    }
}

/// Answers every call as `agent` does, while `work` runs on another thread.
fn with_agent<T: Send + 'static>(
    directory: &Path,
    agent: impl Fn(&Call) -> Vec<Reply> + Send + 'static,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (server, mut calls) = Server::bind(directory).unwrap();
        let answer = async {
            while let Some(call) = calls.recv().await {
                let answers = agent(&call).into_iter();
                answers.for_each(|reply| call.reply.try_send(reply).unwrap());
            }
        };
        let serve = async { tokio::join!(server.run(|| true), answer) };
        tokio::select! {
            _ = serve => unreachable!("it serves until it is dropped"),
            done = tokio::task::spawn_blocking(work) => done.unwrap(),
        }
    })
}

fn in_directory(verb: &str, directory: &TempDir) -> Runtime {
    Runtime::new(verb).config("runDir", directory.path().to_str().into())
}

#[test]
fn the_agent_gets_the_namespace_and_its_answer_is_the_runtimes() {
    let directory = TempDir::new().unwrap();
    let runtime = in_directory("ADD", &directory);
    let own = fs::metadata("/proc/self/ns/net").unwrap();
    let agent = move |call: &Call| {
        assert_eq!(call.request.command, Command::Add);
        assert_eq!(call.request.ips.len(), 2);
        let netns = call.netns.as_ref().unwrap().try_clone().unwrap();
        assert_eq!(fs::File::from(netns).metadata().unwrap().ino(), own.ino());
        let pod = call.request.pod.as_ref().unwrap();
        let name = PodRef {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: Some("u1".to_owned()),
        };
        assert_eq!(*pod, name);
        vec![Reply::wait(), Reply::enrolled()]
    };
    let (answer, done) = with_agent(directory.path(), agent, move || runtime.run());
    assert!(done, "{answer}");
    assert_eq!(answer["ips"][1]["address"], "10.1.0.5/24");
    let mode = fs::metadata(directory.path().join("cni.sock"));
    assert!(mode.is_err(), "the socket goes with its server");
}

#[test]
fn a_refusal_names_the_pod_and_the_reason() {
    let directory = TempDir::new().unwrap();
    let runtime = in_directory("ADD", &directory);
    let agent = |_: &Call| vec![Reply::refused("its address is another's")];
    let (answer, done) = with_agent(directory.path(), agent, move || runtime.run());
    assert!(!done);
    let text = answer["msg"].as_str().unwrap();
    assert!(
        text.contains("shop/web") && text.contains("its address is another's"),
        "{text}"
    );
    let runtime = in_directory("CHECK", &directory);
    let agent = |_: &Call| vec![Reply::refused("it is not enrolled")];
    let (answer, done) = with_agent(directory.path(), agent, move || runtime.run());
    assert_eq!((done, &answer["code"]), (false, &code::NOT_ENROLLED.into()));
}

#[test]
fn an_agent_that_does_not_answer_holds_only_pods_that_may_be_meshed() {
    let directory = TempDir::new().unwrap();
    let runtime = in_directory("ADD", &directory);
    let agent = |_: &Call| Vec::new();
    let (answer, done) = with_agent(directory.path(), agent, move || runtime.run());
    assert!(!done);
    assert!(
        answer["msg"].as_str().unwrap().contains("does not answer"),
        "{answer}"
    );
}

#[test]
fn the_socket_is_roots_and_a_successors_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cni.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let first = Server::bind(directory.path()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Server::bind(directory.path()).unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn an_agent_whose_successor_ended_answers_again_until_one_has_taken_over() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("cni.sock");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let in_force = Arc::new(AtomicBool::new(true));
        let (first, _calls) = Server::bind(directory.path()).unwrap();
        let asked = Arc::clone(&in_force);
        let _serving = tokio::spawn(first.run(move || asked.load(Ordering::Relaxed)));
        let looks = || tokio::time::sleep(Duration::from_secs(3));
        let inode = || fs::metadata(&path).ok().map(|data| data.ino());
        let (own, second) = (inode(), Server::bind(directory.path()).unwrap());
        let others = inode();
        looks().await;
        assert!(others != own && inode() == others, "the other one listens");
        drop(second);
        looks().await;
        assert!(UnixStream::connect(&path).is_ok());
        // One that was killed leaves its file.
        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        looks().await;
        assert!(UnixStream::connect(&path).is_ok());
        in_force.store(false, Ordering::Relaxed);
        looks().await;
        assert_eq!(inode(), None);
    });
}

fn entry() -> Value {
    json!({"type": PLUGIN, "runDir": "/run/fairlead"})
}

fn list() -> Value {
    json!({
        "cniVersion": "0.3.1", "name": "k8s", "disableCheck": true, "vendor": {"a": [1]},
        "plugins": [{"type": "bridge", "unknown": 1}, {"type": "portmap"}],
    })
}

fn value(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn a_list_gets_the_plugin_at_its_end_and_keeps_the_rest() {
    let text = list().to_string().into_bytes();
    let with = with_plugin(&text, &entry()).unwrap().unwrap();
    let mut expected = list();
    expected["plugins"].as_array_mut().unwrap().push(entry());
    assert_eq!(value(&with), expected);
    assert_eq!(with_plugin(&with, &entry()).unwrap(), None);
    let without = without_plugin(&with).unwrap().unwrap();
    assert_eq!(value(&without), list());
    assert_eq!(without_plugin(&without).unwrap(), None);
}

#[test]
fn an_entry_that_differs_is_replaced_where_it_is() {
    let mut twice = list();
    let old = json!({"type": PLUGIN, "runDir": "/old"});
    let plugins = twice["plugins"].as_array_mut().unwrap();
    plugins.insert(1, old.clone());
    plugins.push(old);
    let text = with_plugin(twice.to_string().as_bytes(), &entry())
        .unwrap()
        .unwrap();
    let types: Vec<_> = value(&text)["plugins"].as_array().unwrap().clone();
    assert_eq!(types.len(), 3);
    assert_eq!(types[1], entry());
}

#[test]
fn what_is_no_configuration_is_not_touched() {
    let malformed = [
        "",
        "{",
        "[]",
        "{\"name\": \"a\"}",
        "{\"name\": \"a\", \"plugins\": []}",
        "{\"plugins\": [{}]}",
    ];
    for text in malformed {
        let result = with_plugin(text.as_bytes(), &entry());
        assert!(
            matches!(result, Err(ConfigurationError::Malformed(_))),
            "{text}: {result:?}"
        );
    }
    for version in ["0.1.0", "0.2.0"] {
        let old = json!({"cniVersion": version, "name": "a", "plugins": [{"type": "b"}]});
        let result = with_plugin(old.to_string().as_bytes(), &entry());
        assert_eq!(result, Err(ConfigurationError::TooOld(version.to_owned())));
    }
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let single = json!({"cniVersion": "0.4.0", "name": "net", "type": "flannel", "delegate": {}});
    let text = listed(single.to_string().as_bytes(), &entry()).unwrap();
    let list = value(&text);
    assert_eq!(list["name"], "net");
    assert_eq!(list["cniVersion"], "0.4.0");
    assert_eq!(list["plugins"], json!([single, entry()]));
}

struct NodeFiles {
    directory: TempDir,
    installer: Installer,
}

impl NodeFiles {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let installer = Installer {
            bin_dir: Some(path("bin")),
            conf_dir: Some(path("net.d")),
            run_dir: "/run/fairlead".into(),
        };
        Self {
            directory,
            installer,
        }
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.directory.path().join("net.d").join(name)
    }

    fn write(&self, name: &str, value: &Value) {
        fs::write(self.conf(name), value.to_string()).unwrap();
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list = value(&fs::read(self.conf(name)).unwrap());
        let plugins = list["plugins"].as_array().unwrap();
        let types = plugins
            .iter()
            .map(|it| it["type"].as_str().unwrap().to_owned());
        types.collect()
    }

    fn install(&self) -> Option<PathBuf> {
        self.installer.install_configuration().unwrap()
    }

    fn uninstall(&self) -> Vec<PathBuf> {
        let it = &self.installer;
        uninstall(it.bin_dir.as_deref(), it.conf_dir.as_deref()).unwrap()
    }
}

#[test]
fn the_first_list_is_the_one_that_counts() {
    let node = NodeFiles::new();
    let empty = node.installer.install_configuration();
    assert!(
        matches!(empty, Err(InstallError::NoNetwork { .. })),
        "{empty:?}"
    );
    fs::write(node.conf("00-broken.conflist"), "{").unwrap();
    fs::write(node.conf("README"), "text").unwrap();
    node.write("10-net.conflist", &list());
    node.write("20-other.conflist", &list());
    fs::set_permissions(
        node.conf("10-net.conflist"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    assert_eq!(node.install(), Some(node.conf("10-net.conflist")));
    assert_eq!(node.types("10-net.conflist"), ["bridge", "portmap", PLUGIN]);
    assert_eq!(node.types("20-other.conflist"), ["bridge", "portmap"]);
    let mode = fs::metadata(node.conf("10-net.conflist"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600, "the owner's wish");
    assert_eq!(node.install(), None);
    // Another installer comes first by name: ours follows.
    node.write("05-multus.conflist", &list());
    assert_eq!(node.install(), Some(node.conf("05-multus.conflist")));
    assert_eq!(
        node.types("05-multus.conflist"),
        ["bridge", "portmap", PLUGIN]
    );
    assert_eq!(node.types("10-net.conflist"), ["bridge", "portmap"]);
    // One rewrites its own.
    node.write("05-multus.conflist", &list());
    assert!(node.install().is_some());
    let removed = node.uninstall();
    assert_eq!(removed, [node.conf("05-multus.conflist")]);
    assert_eq!(
        value(&fs::read(node.conf("05-multus.conflist")).unwrap()),
        list()
    );
    let left: Vec<_> = fs::read_dir(node.conf("")).unwrap().flatten().collect();
    assert_eq!(left.len(), 5, "no temporary file: {left:?}");
}

#[test]
fn a_list_made_of_a_single_plugin_follows_it_and_goes() {
    let node = NodeFiles::new();
    let single =
        |mtu: u64| json!({"cniVersion": "0.3.1", "name": "n", "type": "flannel", "mtu": mtu});
    node.write("10-flannel.conf", &single(1400));
    let made = node.conf("10-flannel-fairlead.conflist");
    assert_eq!(node.install(), Some(made.clone()));
    assert!(
        "10-flannel-fairlead.conflist" < "10-flannel.conf",
        "it comes first"
    );
    assert_eq!(
        node.types("10-flannel-fairlead.conflist"),
        ["flannel", PLUGIN]
    );
    assert_eq!(node.install(), None);
    node.write("10-flannel.conf", &single(1300));
    assert_eq!(node.install(), Some(made.clone()));
    assert_eq!(value(&fs::read(&made).unwrap())["plugins"][0]["mtu"], 1300);
    // Its owner writes lists by now.
    fs::remove_file(node.conf("10-flannel.conf")).unwrap();
    node.write("10-flannel.conflist", &list());
    assert!(node.install().is_some());
    assert!(!made.exists());
    node.write("05-x.conf", &single(1));
    assert!(node.install().is_some());
    let _removed = node.uninstall();
    assert!(node.conf("05-x.conf").exists() && !node.conf("05-x-fairlead.conflist").exists());
    assert_eq!(node.types("10-flannel.conflist"), ["bridge", "portmap"]);
}

#[test]
fn the_program_is_replaced_whole_and_only_when_it_differs() {
    let node = NodeFiles::new();
    let program = node.directory.path().join("program");
    fs::write(&program, "one").unwrap();
    assert!(node.installer.install_binary(&program).unwrap());
    assert!(!node.installer.install_binary(&program).unwrap());
    fs::write(&program, "two").unwrap();
    assert!(node.installer.install_binary(&program).unwrap());
    let path = node.directory.path().join("bin").join(PLUGIN);
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(node.uninstall(), [path]);
}

#[test]
fn decisions_outlive_the_agent_and_go_with_the_plugin() {
    let node = NodeFiles::new();
    node.write("10-net.conflist", &list());
    assert!(node.install().is_some());
    let path = node.installer.decisions();
    Decisions::default().write(&path).unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(node.install().is_none(), "a directory is no configuration");
    assert_eq!(node.uninstall().len(), 2);
    assert!(!path.exists());
}

/// A list that is told from others by its number.
fn numbered(number: u32) -> String {
    let mut list = list();
    list["number"] = number.into();
    list.to_string()
}

/// As other installers do it.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("tmp");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}

#[test]
fn what_others_write_between_two_steps_is_in_force() {
    let node = NodeFiles::new();
    let path = node.conf("10-net.conflist");
    let entry = json!({"type": PLUGIN});
    for times in [0, 1, 2, RACES - 1, RACES] {
        fs::write(&path, numbered(0)).unwrap();
        let written = Cell::new(0);
        let edited = edit(&path, |text| {
            if written.get() < times {
                written.set(written.get() + 1);
                replace(&path, &numbered(written.get()));
            }
            with_plugin(text, &entry)
        });
        assert_eq!(value(&fs::read(&path).unwrap())["number"], times);
        let in_time = times < RACES;
        assert_eq!(edited.is_ok(), in_time, "{edited:?}");
        let types = node.types("10-net.conflist");
        assert_eq!(types.contains(&PLUGIN.to_owned()), in_time, "{types:?}");
        assert!(matches!(edited, Ok(true) | Err(InstallError::Busy { .. })));
    }
    let left = fs::read_dir(node.conf("")).unwrap().count();
    assert_eq!(left, 1, "no temporary file");
}

#[test]
fn what_others_write_before_a_file_is_put_back_is_in_force() {
    let node = NodeFiles::new();
    let path = node.conf("10-net.conflist");
    let displaced = || {
        fs::write(&path, "first").unwrap();
        Displaced::by(b"ours".to_vec(), &path).unwrap()
    };
    let untouched = displaced();
    untouched.put_back(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    let replaced = displaced();
    replace(&path, "second");
    replaced.put_back(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    let removed = displaced();
    fs::remove_file(&path).unwrap();
    removed.put_back(&path).unwrap();
    assert!(!path.exists());
}

/// Another installer writes its list again and again, ours puts the plugin into it: the
/// last that the other wrote is what remains, with the plugin.
#[test]
fn nothing_that_others_write_at_the_same_time_is_lost() {
    let node = NodeFiles::new();
    let path = node.conf("10-net.conflist");
    fs::write(&path, numbered(0)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 1..=300 {
                replace(&path, &numbered(number));
                std::thread::yield_now();
            }
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            match node.installer.install_configuration() {
                Ok(_) | Err(InstallError::Busy { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let now = value(&fs::read(&path).unwrap());
            assert!(now["number"].is_number(), "never half a file");
        }
        writer.join().unwrap();
    });
    let _changed = node.install();
    assert_eq!(value(&fs::read(&path).unwrap())["number"], 300);
    assert_eq!(node.types("10-net.conflist"), ["bridge", "portmap", PLUGIN]);
}
