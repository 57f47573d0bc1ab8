//! etcd and kube-apiserver, in a network namespace of their own.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::api::{Api, Credentials};
use super::etcd::{self, Contents};
use super::pki::Pki;
use crate::place::Place;
use crate::process::{self, Process};
use crate::system;
use crate::wait;
use crate::world::{Node, World, create_netns};

/// Names the directory with kube-apiserver, etcd and kubectl.
const VARIABLE: &str = "FAIRLEAD_KUBERNETES";

/// How long etcd or the API server may take to start.
const START: Duration = Duration::from_mins(2);

/// The API server's address, on the loopback of its namespace.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 21, 255, 1);
const PORT: u16 = 6443;

/// Numbers the control planes of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The directory with the programs of Kubernetes; else what is to be done about it.
pub fn kubernetes() -> Result<PathBuf> {
    let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
        bail!("{VARIABLE} names no directory; cargo xtask test sets it");
    };
    for program in ["kube-apiserver", "etcd", "kubectl"] {
        ensure!(
            path.join(program).exists(),
            "{VARIABLE} names {}, which has no {program}",
            path.display()
        );
    }
    Ok(path)
}

/// A control plane without controllers, scheduler and kubelets: what they would do, a
/// test does itself. Removed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    id: String,
    directory: PathBuf,
    programs: PathBuf,
    place: Place,
    admin: Api,
    pki: Pki,
    arguments: Vec<OsString>,
    server: Option<Process>,
    /// Ends with this.
    _etcd: Process,
    links: Vec<String>,
}

impl ControlPlane {
    /// Starts one with an empty database, and waits until it is ready.
    pub fn start() -> Result<Self> {
        let programs = kubernetes()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-kubernetes-{number}", std::process::id());
        system::remove_world(&id)?;
        let directory = system::directory_of(&id);
        let place = Place {
            netns: system::netns_name(&id, "control-plane"),
            cgroup: system::cgroup_of(&id)?,
            logs: directory.join("logs"),
        };
        for path in [&place.cgroup, &place.logs] {
            fs::create_dir_all(path)?;
        }
        create_netns(&place)?;
        system::ip_batch(&place.netns, &[format!("address add {ADDRESS}/32 dev lo")])?;
        let etcd = start_etcd(&programs, &place, &directory)?;
        let pki = Pki::create(&directory.join("pki"))?;
        let admin = Api {
            place: place.clone(),
            url: format!("https://{ADDRESS}:{PORT}"),
            root: pki.root(),
            credentials: Credentials::Certificate(pki.user("admin", Some("system:masters"))?),
            kubectl: programs.join("kubectl"),
            directory: directory.clone(),
        };
        let arguments = server_arguments(&pki, &programs, &directory)?;
        let mut started = Self {
            id,
            directory,
            programs,
            place,
            admin,
            pki,
            arguments,
            server: None,
            _etcd: etcd,
            links: Vec::new(),
        };
        started.start_server()?;
        started.serve_endpoint_slices()?;
        Ok(started)
    }

    /// The API server, as a user who may do everything.
    pub fn admin(&self) -> &Api {
        &self.admin
    }

    /// The API server, as a user with a certificate.
    pub fn user(&self, name: &str) -> Result<Api> {
        Ok(Api {
            credentials: Credentials::Certificate(self.pki.user(name, None)?),
            ..self.admin.clone()
        })
    }

    /// A directory for files of the tests; it ends with the control plane.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_server(&mut self) -> Result<()> {
        let mut command = self.place.command(self.programs.join("kube-apiserver"));
        let mut process = self
            .place
            .start("kube-apiserver", command.args(&self.arguments))?;
        let ready = wait::until("a ready API server", START, || {
            match (self.admin.send("GET", "/readyz", None), process.ended()) {
                (Ok((200, _)), _) => Some(Ok(())),
                (_, Ok(Some(status))) => Some(Err(anyhow::anyhow!("it ended early: {status}"))),
                _ => None,
            }
        });
        ready
            .and_then(|inner| inner)
            .with_context(|| format!("kube-apiserver: {}", process.output()))?;
        self.server = Some(process);
        Ok(())
    }

    /// Kills the API server; its database goes on.
    pub fn stop_server(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// What the API server has written since it was last started.
    pub fn server_log(&self) -> String {
        self.server
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// Forgets all history of the database: who asks for what came after an older
    /// revision is told that it is gone.
    pub fn compact(&self) -> Result<()> {
        etcd::compact(&self.place)
    }

    /// Connects the nodes of a world to the API server.
    pub(super) fn connect(&mut self, world: &World) -> Result<()> {
        for node in world.nodes() {
            self.links.push(connect(&self.place, node)?);
        }
        Ok(())
    }

    /// Undoes [`ControlPlane::connect`].
    pub(super) fn disconnect(&mut self) {
        for device in self.links.drain(..) {
            // The node's namespace may be gone, and the device with it.
            drop(system::ip_batch(
                &self.place.netns,
                &[format!("link del {device}")],
            ));
        }
    }

    /// All that the database holds.
    pub(super) fn contents(&self) -> Result<Contents> {
        etcd::contents(&self.place)
    }

    /// Brings the database back to what it held.
    pub(super) fn restore(&mut self, contents: &Contents) -> Result<()> {
        etcd::restore(&self.place, contents)?;
        let running = match &mut self.server {
            Some(server) => server.ended()?.is_none(),
            None => false,
        };
        if !running {
            self.start_server()?;
        }
        Ok(())
    }

    /// Version 1.20 knows `EndpointSlices` as a beta only, which is switched off; the
    /// stable version that agents ask for is served as a custom resource.
    fn serve_endpoint_slices(&self) -> Result<()> {
        let (code, _) = self.admin.send("GET", "/apis/discovery.k8s.io/v1", None)?;
        if code == 200 {
            return Ok(());
        }
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        drop(self.admin.create(&json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {
                "name": "endpointslices.discovery.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved"},
            },
            "spec": {
                "group": "discovery.k8s.io", "scope": "Namespaced",
                "names": {
                    "kind": "EndpointSlice", "plural": "endpointslices",
                    "singular": "endpointslice", "listKind": "EndpointSliceList",
                },
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": schema},
                }],
            },
        }))?);
        wait::until("EndpointSlices", START, || {
            let path = "/apis/discovery.k8s.io/v1/endpointslices";
            let (code, _) = self.admin.send("GET", path, None).ok()?;
            (code == 200).then_some(())
        })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // A leftover is swept by the next run; a panic here would hide the first one.
        drop(system::remove_world(&self.id));
    }
}

fn start_etcd(programs: &Path, place: &Place, directory: &Path) -> Result<Process> {
    let data = directory.join("etcd");
    fs::create_dir_all(&data)?;
    // In memory: what is durable here ends with the test.
    let arguments = ["-t", "tmpfs", "-o", "size=512m", "tmpfs"].map(std::ffi::OsStr::new);
    drop(system::tool(
        "mount",
        &[&arguments[..], &[data.as_os_str()]].concat(),
    )?);
    let mut command = place.command(programs.join("etcd"));
    let _: &mut Command = command
        .arg("--data-dir")
        .arg(data.join("data"))
        .args(["--listen-client-urls", etcd::URL])
        .args(["--advertise-client-urls", etcd::URL])
        .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
        .args(["--logger", "zap", "--log-level", "warn"]);
    let process = place.start("etcd", &mut command)?;
    wait::until_ok("etcd", START, || etcd::answers(place))
        .with_context(|| format!("etcd: {}", process.output()))?;
    Ok(process)
}

fn server_arguments(pki: &Pki, programs: &Path, directory: &Path) -> Result<Vec<OsString>> {
    let server = pki.server(IpAddr::V4(ADDRESS))?;
    let (private, public) = pki.token_key()?;
    let mut arguments: Vec<OsString> = [
        format!("--etcd-servers={}", etcd::URL),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={ADDRESS}"),
        format!("--secure-port={PORT}"),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        // Service accounts get no secret with a token where no controller makes one.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        "--etcd-compaction-interval=0".to_owned(),
    ]
    .map(OsString::from)
    .into();
    let files = [
        ("tls-cert-file", &server.certificate),
        ("tls-private-key-file", &server.key),
        ("client-ca-file", &pki.root()),
        ("service-account-key-file", &public),
        ("service-account-signing-key-file", &private),
        ("cert-dir", &directory.join("pki")),
    ];
    for (flag, path) in files {
        let mut argument = OsString::from(format!("--{flag}="));
        argument.push(path);
        arguments.push(argument);
    }
    if is_before_endpoint_slices(programs)? {
        arguments.push("--runtime-config=discovery.k8s.io/v1beta1=false".into());
    }
    Ok(arguments)
}

/// Whether this is a release before 1.21, which made `EndpointSlices` stable.
fn is_before_endpoint_slices(programs: &Path) -> Result<bool> {
    let mut command = Command::new(programs.join("kube-apiserver"));
    let output = process::run(command.arg("--version"), Duration::from_secs(20))?.ok()?;
    let minor = output
        .stdout
        .split('.')
        .nth(1)
        .and_then(|text| text.parse::<u32>().ok());
    minor.map_or_else(
        || bail!("kube-apiserver --version printed {}", output.stdout),
        |minor| Ok(minor < 21),
    )
}

/// A link between a node and the control plane, with the routes to the node's addresses
/// and those of its pods. Returns the device on the control plane's side.
fn connect(place: &Place, node: &Node) -> Result<String> {
    let index = node.index;
    let device = format!("node{index}");
    system::ip_batch(
        &place.netns,
        &[
            format!(
                "link add {device} type veth peer name kubernetes netns {}",
                node.host.netns
            ),
            format!("address add 172.21.{index}.1/30 dev {device}"),
            format!("link set {device} up"),
            format!("route add {}/32 via 172.21.{index}.2", node.ip4),
            format!("route add 10.244.{index}.0/24 via 172.21.{index}.2"),
        ],
    )?;
    system::ip_batch(
        &node.host.netns,
        &[
            format!("address add 172.21.{index}.2/30 dev kubernetes"),
            "link set kubernetes up".to_owned(),
            format!(
                "route add {ADDRESS}/32 via 172.21.{index}.1 src {}",
                node.ip4
            ),
        ],
    )?;
    Ok(device)
}
