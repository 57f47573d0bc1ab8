//! A small cluster: nodes that route, links between them, pods behind them.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::json;

use crate::manifest::Manifests;
use crate::place::Place;
use crate::pod::{Pod, PodSpec};
use crate::system;

/// Numbers the worlds of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The shape of a world.
#[derive(Clone, Debug)]
pub struct WorldOptions {
    /// A fixed identifier, for a world that outlives its creator; else it is made
    /// of the process id and removed when dropped or swept.
    pub id: Option<String>,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Use the congestion control `cubic` on every route. Pacing ones such as BBR
    /// stall short hops by milliseconds, which drowns what a benchmark measures.
    pub cubic: bool,
}

impl WorldOptions {
    /// Nodes of these names, linked to one another.
    pub fn nodes(names: &[&str]) -> Self {
        Self {
            id: None,
            nodes: names.iter().map(|&name| name.to_owned()).collect(),
            cubic: false,
        }
    }
}

/// A cluster of network namespaces. Removed when dropped, unless kept.
#[derive(Debug)]
pub struct World {
    id: String,
    directory: PathBuf,
    nodes: Vec<Node>,
    manifests: Manifests,
    cubic: bool,
    keep: bool,
}

/// A node: a namespace that routes, where its agent runs.
#[derive(Debug)]
pub struct Node {
    /// As in `spec.nodeName`.
    pub name: String,
    /// Its address.
    pub ip4: Ipv4Addr,
    /// Its address.
    pub ip6: Ipv6Addr,
    /// Where programs of the host run.
    pub host: Place,
    /// The cgroup that holds all of the node.
    pub cgroup: PathBuf,
    pub(crate) index: u16,
    pub(crate) pods: AtomicU32,
}

impl World {
    /// Builds the nodes and the links between them.
    pub fn create(options: &WorldOptions) -> Result<Self> {
        let id = options.id.clone().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            format!("{}-{number}", std::process::id())
        });
        system::remove_world(&id)?;
        let directory = system::directory_of(&id);
        fs::create_dir_all(directory.join("logs"))?;
        // Servers such as PostgreSQL change their user and still have to reach their data.
        fs::set_permissions(
            &directory,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let manifests = Manifests::create(directory.join("manifests"))?;
        let mut world = Self {
            id,
            directory,
            nodes: Vec::new(),
            manifests,
            cubic: options.cubic,
            keep: false,
        };
        world.mount_bpffs()?;
        for (index, name) in (1..).zip(&options.nodes) {
            let node = world.create_node(index, name)?;
            world.nodes.push(node);
        }
        world.link_nodes()?;
        Ok(world)
    }

    /// Its identifier.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its own directory; removed with the world.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The manifests that agents and the authority read.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// The bpffs of this world.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of that name.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.unwrap_or_else(|| panic!("the world has no node {name}"))
    }

    /// Makes a pod and, unless the spec says otherwise, writes its manifest.
    pub fn pod(&self, spec: &PodSpec) -> Result<Pod> {
        let pod = Pod::create(self, spec)?;
        if self.cubic {
            pin_cubic(&pod.place)?;
        }
        Ok(pod)
    }

    /// The device on `node` that leads to the node `peer`.
    pub fn link(&self, node: &str, peer: &str) -> (&Node, String) {
        (self.node(node), link_name(self.node(peer)))
    }

    /// The node that a device of another one leads to.
    pub(crate) fn peer_behind(&self, device: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| link_name(node) == device)
    }

    /// Leaves everything in place when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    fn mount_bpffs(&self) -> Result<()> {
        let path = self.bpffs();
        fs::create_dir_all(&path)?;
        let arguments = ["-t", "bpf", "bpf"].map(std::ffi::OsStr::new);
        system::tool("mount", &[&arguments[..], &[path.as_os_str()]].concat()).map(drop)
    }

    fn create_node(&self, index: u16, name: &str) -> Result<Node> {
        let cgroup = system::cgroup_of(&self.id)?.join(name);
        let host = Place {
            netns: system::netns_name(&self.id, name),
            cgroup: cgroup.join("host"),
            logs: self.directory.join("logs"),
        };
        fs::create_dir_all(&host.cgroup)
            .with_context(|| format!("cannot make {}", host.cgroup.display()))?;
        let node = Node {
            name: name.to_owned(),
            ip4: Ipv4Addr::new(172, 20, 0, index.to_be_bytes()[1]),
            ip6: Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, index),
            host,
            cgroup,
            index,
            pods: AtomicU32::new(0),
        };
        create_netns(&node.host)?;
        system::ip_batch(
            &node.host.netns,
            &[
                format!("address add {}/32 dev lo", node.ip4),
                format!("address add {}/128 dev lo nodad", node.ip6),
            ],
        )?;
        self.manifests.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name},
            "status": {"addresses": [
                {"type": "InternalIP", "address": node.ip4.to_string()},
                {"type": "InternalIP", "address": node.ip6.to_string()},
            ]},
        }))?;
        Ok(node)
    }

    /// One link for each two nodes, numbered.
    fn link_nodes(&self) -> Result<()> {
        let mut number = 0;
        for (at, left) in self.nodes.iter().enumerate() {
            for right in &self.nodes[at + 1..] {
                number += 1;
                link(left, right, number)?;
            }
        }
        for node in self.nodes.iter().filter(|_| self.cubic) {
            pin_cubic(&node.host)?;
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !self.keep {
            // A leftover is swept by the next run; a panic here would hide the first one.
            drop(system::remove_world(&self.id));
        }
    }
}

impl Node {
    pub(crate) fn pod_ip4(&self, number: u32) -> Ipv4Addr {
        let [_, _, _, last] = number.to_be_bytes();
        Ipv4Addr::new(10, 244, self.index.to_be_bytes()[1], last)
    }

    pub(crate) fn pod_ip6(&self, number: u32) -> Ipv6Addr {
        let [_, _, high, low] = number.to_be_bytes();
        let last = u16::from_be_bytes([high, low]);
        Ipv6Addr::new(0xfd00, 0x244, self.index, 0, 0, 0, 0, last)
    }
}

/// Makes a namespace with loopback up, routing on and no waiting for duplicate addresses.
pub(crate) fn create_netns(place: &Place) -> Result<()> {
    const SETTINGS: &str = "
        echo 1 > /proc/sys/net/ipv4/ip_forward
        echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
        echo 0 > /proc/sys/net/ipv6/conf/default/accept_ra
        echo 0 > /proc/sys/net/ipv4/ping_group_range 2>/dev/null
        ip link set lo up";
    drop(system::tool("ip", &["netns", "add", &place.netns])?);
    let net = format!("--net={}", place.netns().display());
    drop(system::tool(
        "nsenter",
        &[&net, "--", "sh", "-ec", SETTINGS],
    )?);
    Ok(())
}

/// Sets the congestion control of every route of a namespace, also the local ones.
fn pin_cubic(place: &Place) -> Result<()> {
    for table in ["main", "local"] {
        for family in ["-4", "-6"] {
            let routes = system::tool(
                "ip",
                &["-n", &place.netns, family, "route", "show", "table", table],
            )?;
            let lines: Vec<String> = routes
                .lines()
                .filter(|line| !line.starts_with("broadcast") && !line.starts_with("multicast"))
                .filter(|line| !line.starts_with("anycast") && !line.starts_with("fe80"))
                .map(|line| {
                    // What `ip` shows of a route but does not take; a link's state is late.
                    let line = line.replace(" pref medium", "").replace(" linkdown", "");
                    format!("route replace table {table} {line} congctl cubic")
                })
                .collect();
            system::ip_batch(&place.netns, &lines)?;
        }
    }
    Ok(())
}

fn link_name(peer: &Node) -> String {
    format!("link{}", peer.index)
}

fn link(left: &Node, right: &Node, number: u16) -> Result<()> {
    let (to_right, to_left) = (link_name(right), link_name(left));
    system::ip_batch(
        &left.host.netns,
        &[format!(
            "link add {to_right} type veth peer name {to_left} netns {}",
            right.host.netns
        )],
    )?;
    link_end(left, right, number, 1)?;
    link_end(right, left, number, 2)
}

fn link_end(node: &Node, peer: &Node, number: u16, side: u16) -> Result<()> {
    let device = link_name(peer);
    let other = 3 - side;
    system::ip_batch(
        &node.host.netns,
        &[
            format!("address add 172.18.{number}.{side}/30 dev {device}"),
            format!("address add fd00:18:{number}::{side}/64 dev {device} nodad"),
            format!("link set {device} up"),
            format!(
                "route add 10.244.{}.0/24 via 172.18.{number}.{other}",
                peer.index
            ),
            format!(
                "route add fd00:244:{}::/64 via fd00:18:{number}::{other}",
                peer.index
            ),
            format!(
                "route add {}/32 via 172.18.{number}.{other} src {}",
                peer.ip4, node.ip4
            ),
            format!(
                "route add {}/128 via fd00:18:{number}::{other} src {}",
                peer.ip6, node.ip6
            ),
        ],
    )
}
