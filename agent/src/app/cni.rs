//! The CNI plugin's side of the agent: its socket, its place on the node, and what it goes
//! by while the agent is away.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};

use super::tasks::Tasks;
use crate::cni::{self, Call, Decision, Decisions, Installer, Server};
use crate::model::NodeName;
use crate::policy::Table;
use crate::state::Snapshot;

/// The decisions are written no more often than this.
const SETTLE: Duration = Duration::from_secs(1);

/// What the rest needs of it.
#[derive(Debug)]
pub(super) struct Plugin {
    /// For whoever enrols pods.
    pub(super) calls: mpsc::Receiver<Call>,
    /// Why the plugin is not in place, if it should be and is not.
    pub(super) trouble: watch::Receiver<Option<String>>,
}

/// Opens the socket and, where the node's directories were given, installs the plugin.
pub(super) fn start(
    tasks: &mut Tasks,
    installer: &Installer,
    node: NodeName,
    tables: watch::Receiver<Arc<Table>>,
) -> anyhow::Result<Plugin> {
    let (server, calls) = Server::bind(&installer.run_dir)?;
    tasks.keep("cni", server.run());
    let decisions = installer.decisions();
    tasks.start("cni decisions", keep_decisions(tables, node, decisions));
    let (told, trouble) = watch::channel(None);
    if installer.bin_dir.is_some() || installer.conf_dir.is_some() {
        let program = Path::new("/proc/self/exe");
        let installer = installer.clone();
        tasks.keep("cni plugin", cni::keep_installed(installer, program, told));
    }
    Ok(Plugin { calls, trouble })
}

/// Keeps the file up to date; ends with the tables.
async fn keep_decisions(
    mut tables: watch::Receiver<Arc<Table>>,
    node: NodeName,
    path: PathBuf,
) -> anyhow::Result<()> {
    let mut written = Decisions::read(&path);
    let mut seen: Option<Snapshot> = None;
    loop {
        let snapshot = tables.borrow_and_update().snapshot().clone();
        let same = seen.as_ref().is_some_and(|seen| {
            let (before, now) = (seen.pods_of_node(&node), snapshot.pods_of_node(&node));
            std::ptr::eq(before, now) && seen.namespaces.ptr_eq(&snapshot.namespaces)
        });
        if snapshot.revision > 0 && !same {
            let now = decisions(&snapshot, &node, &written);
            if now != written {
                tokio::task::block_in_place(|| now.write(&path))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                written = now;
            }
            seen = Some(snapshot);
        }
        if tables.changed().await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// What is known now. That pods of a namespace have asked for the mesh is not forgotten.
fn decisions(snapshot: &Snapshot, node: &NodeName, before: &Decisions) -> Decisions {
    let pods = snapshot.pods_of_node(node);
    let asking = pods.iter().filter(|pod| snapshot.wants(pod));
    let asking: BTreeSet<&str> = asking.map(|pod| &*pod.name.namespace).collect();
    let decide = |name: &str| {
        if snapshot.is_meshed(name) {
            Decision::Meshed
        } else if asking.contains(name) || before.namespaces.get(name) == Some(&Decision::Mixed) {
            Decision::Mixed
        } else {
            Decision::Free
        }
    };
    let namespaces = snapshot.namespaces.keys();
    let named = pods.iter().flat_map(|pod| {
        let uids = [Some(&pod.uid), pod.static_uid.as_ref()].into_iter();
        uids.flatten().map(move |uid| (uid, pod))
    });
    Decisions {
        namespaces: namespaces
            .map(|name| (name.to_string(), decide(name)))
            .collect(),
        pods: named
            .filter(|(uid, _)| !uid.is_empty())
            .map(|(uid, pod)| (uid.to_string(), snapshot.wants(pod)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::fixtures::{World, labels, namespace, pod};
    use crate::state::{MESH_LABEL, Object, ObjectKind, Pod};

    fn here(text: &str, uid: &str) -> Pod {
        Pod {
            uid: uid.into(),
            node: Some(NodeName("n".into())),
            ..pod(text, &[])
        }
    }

    #[test]
    fn decisions_say_who_waits() {
        let node = NodeName("n".into());
        let asking = Pod {
            labels: labels(&[(MESH_LABEL, "enabled")]),
            ..here("guest/b", "2")
        };
        let elsewhere = Pod {
            node: None,
            ..here("shop/c", "3")
        };
        let mut world = World::new([
            namespace("shop", "enabled"),
            namespace("guest", ""),
            namespace("quiet", "disabled"),
            Object::Pod(here("shop/a", "1")),
            Object::Pod(asking),
            Object::Pod(elsewhere),
            Object::Pod(here("quiet/d", "4")),
        ]);
        let first = decisions(&world.now(), &node, &Decisions::default());
        let of = |it: &Decisions, name: &str| it.namespaces.get(name).copied();
        assert_eq!(of(&first, "shop"), Some(Decision::Meshed));
        assert_eq!(of(&first, "guest"), Some(Decision::Mixed));
        assert_eq!(of(&first, "quiet"), Some(Decision::Free));
        let pods = [("1", true), ("2", true), ("4", false)].map(|(uid, it)| (uid.to_owned(), it));
        assert_eq!(first.pods, pods.into());
        // The next pod like it comes while the agent is away.
        world.remove(ObjectKind::Pod, "guest/b");
        let second = decisions(&world.now(), &node, &first);
        assert_eq!(of(&second, "guest"), Some(Decision::Mixed));
        assert!(!second.pods.contains_key("2"));
    }
}
