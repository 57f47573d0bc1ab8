//! The CNI plugin's side of the agent: its socket, its place on the node, and what it goes
//! by while the agent is away.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::tasks::Tasks;
use crate::cluster::{Health, Source};
use crate::cni::{self, Call, Decision, Decisions, Installer, Server};
use crate::model::NodeName;
use crate::policy::Table;
use crate::redirect::Tenure;
use crate::state::Snapshot;

/// The decisions are written no more often than this.
const SETTLE: Duration = Duration::from_secs(1);
/// How soon they are written again where the disk would not have it.
const RETRY: Duration = Duration::from_secs(5);

/// Before the first attempt to install it.
const NOT_YET: &str = "it is being installed";

/// What the rest needs of it.
#[derive(Debug)]
pub(super) struct Plugin {
    /// For whoever enrols pods.
    pub(super) desk: Desk,
    pub(super) trouble: Trouble,
}

/// What the plugin asks, and what is known for the answers beside the tables.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) calls: mpsc::Receiver<Call>,
    /// The latest, whether it is on disk or not.
    pub(super) decisions: watch::Receiver<Arc<Decisions>>,
    /// How the source of the tables is.
    pub(super) health: watch::Receiver<Health>,
}

/// What is wrong with the plugin.
#[derive(Debug)]
pub(super) struct Trouble {
    /// Why it is not in place, if it should be and is not.
    pub(super) plugin: watch::Receiver<Option<String>>,
    /// Why what it goes by while the agent is away is not up to date.
    pub(super) decisions: watch::Receiver<Option<String>>,
}

impl Trouble {
    /// Why pods may start without the agent's knowledge although the plugin was asked for.
    pub(super) fn absent(&self) -> Option<String> {
        let plugin = self.plugin.borrow();
        let why = plugin.as_ref();
        why.map(|why| format!("the CNI plugin is not in place: {why}"))
    }

    /// All of it, in sentences.
    pub(super) fn all(&self) -> Vec<String> {
        let both = [&self.plugin, &self.decisions].into_iter();
        both.filter_map(|it| it.borrow().clone()).collect()
    }
}

/// Opens the socket and, where the node's directories were given, installs the plugin.
pub(super) fn start(
    tasks: &mut Tasks,
    installer: &Installer,
    node: &NodeName,
    (tables, source, tenure): (&watch::Receiver<Arc<Table>>, &Source, &Tenure),
) -> anyhow::Result<Plugin> {
    let (server, calls) = Server::bind(&installer.run_dir)?;
    let tenure = tenure.clone();
    tasks.keep("cni", server.run(move || !tenure.is_over()));
    let (keeper, decisions) = Keeper::new(installer.decisions());
    let desk = Desk {
        calls,
        decisions: keeper.latest.subscribe(),
        health: source.health.clone(),
    };
    tasks.start("cni decisions", keeper.run(tables.clone(), node.clone()));
    let wanted = installer.bin_dir.is_some() || installer.conf_dir.is_some();
    let (told, plugin) = watch::channel(wanted.then(|| NOT_YET.to_owned()));
    if wanted {
        let program = Path::new("/proc/self/exe");
        let installer = installer.clone();
        tasks.keep("cni plugin", cni::keep_installed(installer, program, told));
    }
    let trouble = Trouble { plugin, decisions };
    Ok(Plugin { desk, trouble })
}

/// Keeps the file up to date.
#[derive(Debug)]
struct Keeper {
    path: PathBuf,
    /// What is on disk.
    written: Decisions,
    /// What is to be.
    latest: watch::Sender<Arc<Decisions>>,
    trouble: watch::Sender<Option<String>>,
}

impl Keeper {
    fn new(path: PathBuf) -> (Self, watch::Receiver<Option<String>>) {
        let written = Decisions::read(&path);
        let (trouble, told) = watch::channel(None);
        let keeper = Self {
            latest: watch::Sender::new(Arc::new(written.clone())),
            written,
            path,
            trouble,
        };
        (keeper, told)
    }

    /// Ends with the tables.
    async fn run(
        mut self,
        mut tables: watch::Receiver<Arc<Table>>,
        node: NodeName,
    ) -> anyhow::Result<()> {
        let mut seen: Option<Snapshot> = None;
        loop {
            let snapshot = tables.borrow_and_update().snapshot().clone();
            let same = seen.as_ref().is_some_and(|seen| {
                let (before, now) = (seen.pods_of_node(&node), snapshot.pods_of_node(&node));
                std::ptr::eq(before, now) && seen.namespaces.ptr_eq(&snapshot.namespaces)
            });
            if snapshot.revision > 0 && !same {
                let latest = decisions(&snapshot, &node, &self.latest.borrow());
                let _old = self.latest.send_replace(Arc::new(latest));
                seen = Some(snapshot);
            }
            if tokio::task::block_in_place(|| self.write()) {
                if tables.changed().await.is_err() {
                    return Ok(());
                }
                tokio::time::sleep(SETTLE).await;
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Writes the latest, if it is not on disk. Returns whether it is then.
    fn write(&mut self) -> bool {
        let latest = Arc::clone(&self.latest.borrow());
        if *latest == self.written {
            return true;
        }
        let trouble = match latest.write(&self.path) {
            Ok(()) => {
                self.written.clone_from(&latest);
                None
            }
            Err(error) => Some(format!("cannot write {}: {error}", self.path.display())),
        };
        let done = trouble.is_none();
        let _differs = self.trouble.send_if_modified(|before| {
            let differs = *before != trouble;
            if differs && let Some(error) = &trouble {
                tracing::warn!(error, "the CNI plugin goes by old decisions");
            }
            *before = trouble;
            differs
        });
        done
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
    // What pods say of themselves does not speak for others: a UID is the API server's word,
    // the hash of a static pod is an annotation.
    let mut said: BTreeMap<String, bool> = BTreeMap::new();
    for pod in pods {
        if let Some(uid) = pod.static_uid.as_deref().filter(|uid| !uid.is_empty()) {
            *said.entry(uid.to_owned()).or_default() |= snapshot.wants(pod);
        }
    }
    let own = pods.iter().filter(|pod| !pod.uid.is_empty());
    said.extend(own.map(|pod| (pod.uid.to_string(), snapshot.wants(pod))));
    Decisions {
        namespaces: namespaces
            .map(|name| (name.to_string(), decide(name)))
            .collect(),
        pods: said,
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

    #[test]
    fn a_static_pods_hash_speaks_for_no_other_pod() {
        let says = |text, uid, hash: &str| Pod {
            static_uid: Some(hash.into()),
            ..here(text, uid)
        };
        let mut world = World::new([
            namespace("shop", "enabled"),
            namespace("guest", ""),
            Object::Pod(here("shop/m", "1")),
            Object::Pod(says("guest/a", "2", "1")),
            Object::Pod(says("guest/z", "3", "1")),
            Object::Pod(says("guest/b", "4", "hash")),
            Object::Pod(says("shop/b", "5", "hash")),
            Object::Pod(says("guest/c", "6", "hash")),
        ]);
        let node = NodeName("n".into());
        let said = decisions(&world.now(), &node, &Decisions::default()).pods;
        assert!(said["1"], "its own UID counts");
        assert!(said["hash"], "one of several asks for it");
        assert!(!said["2"] && said["5"]);
    }

    #[test]
    fn a_plugin_that_is_not_in_place_is_told_apart_from_old_decisions() {
        let (plugin, decisions) = (watch::channel(None), watch::channel(None));
        let trouble = Trouble {
            plugin: plugin.1,
            decisions: decisions.1,
        };
        assert_eq!((trouble.absent(), trouble.all()), (None, vec![]));
        let _was = decisions.0.send_replace(Some("disk".to_owned()));
        assert_eq!((trouble.absent(), trouble.all().len()), (None, 1));
        let _was = plugin.0.send_replace(Some("no list".to_owned()));
        let absent = trouble.absent().unwrap_or_default();
        assert!(absent.ends_with("not in place: no list"), "{absent}");
        assert_eq!(trouble.all().len(), 2);
    }

    #[test]
    fn what_can_not_be_written_is_a_problem_until_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let in_the_way = directory.path().join("fairlead.d");
        std::fs::write(&in_the_way, "").unwrap();
        let path = in_the_way.join("decisions.json");
        let (mut keeper, trouble) = Keeper::new(path.clone());
        assert!(keeper.write(), "nothing is to be written");
        let latest = Arc::new(Decisions {
            pods: [("1".to_owned(), true)].into(),
            ..Decisions::default()
        });
        let _old = keeper.latest.send_replace(Arc::clone(&latest));
        assert!(!keeper.write());
        let told = trouble.borrow().clone().unwrap_or_default();
        assert!(told.contains("decisions.json"), "{told}");
        std::fs::remove_file(&in_the_way).unwrap();
        assert!(keeper.write());
        assert_eq!(*trouble.borrow(), None);
        assert_eq!(Decisions::read(&path), *latest);
    }
}
