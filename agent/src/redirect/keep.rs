//! Pods that an earlier instance guards and this one has not found, or that have no process
//! at the moment: they stay refused.
//!
//! Their namespaces are known by the cookies in the names of the pins, and by no descriptor,
//! so that one that nothing needs any more ends. Outbound they are blocked in this instance's
//! maps; inbound the hook stays, which has no listeners any more. Both go when the pod is
//! found, or is not to be meshed any more.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::kernel::in_map;
use super::pins::{self, escape};
use super::sys::Abi;
use super::{RedirectError, Redirector, plan};
use crate::model::NamespacedName;
use crate::state::Pod;

/// Ends the names of pins that were another instance's.
const KEPT: &str = "-kept";

/// A namespace that is guarded for a pod that has not been found.
#[derive(Debug)]
pub(super) struct Kept {
    pod: NamespacedName,
    uid: Arc<str>,
    pin: PathBuf,
}

impl Redirector {
    /// The pod is enrolled or blocked.
    pub fn is_guarded(&self, name: &NamespacedName) -> bool {
        self.entries.contains_key(name)
    }

    /// Some namespace is guarded for a pod that has not been found.
    pub fn keeps_any(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Lets go what is kept for any other pod than these.
    pub fn keep_only(&mut self, lost: &[Arc<Pod>]) -> Result<(), RedirectError> {
        let over = self.kept.iter().filter(|(_, kept)| {
            let same = |pod: &&Arc<Pod>| pod.name == kept.pod && pod.uid == kept.uid;
            !lost.iter().any(|pod| same(&pod))
        });
        let over: Vec<u64> = over.map(|(&cookie, _)| cookie).collect();
        for cookie in over {
            if self.entries.values().all(|it| it.netns.cookie() != cookie) {
                drop(self.kernel.pods.remove(&cookie));
            }
            self.release(cookie)?;
        }
        Ok(())
    }

    /// The namespace has an entry of its own now.
    pub(super) fn release(&mut self, cookie: u64) -> Result<(), RedirectError> {
        if let Some(kept) = self.kept.get(&cookie) {
            pins::remove(&kept.pin)?;
            drop(self.kept.remove(&cookie));
        }
        Ok(())
    }

    /// Lets the namespace of a pod end, but guards it for as long as it does not: a runtime
    /// may keep it and start the pod's processes in it again.
    pub fn let_end(&mut self, name: &NamespacedName) -> Result<(), RedirectError> {
        let Some(mut entry) = self.entries.remove(name) else {
            return Ok(());
        };
        let cookie = entry.netns.cookie();
        // Its pin holds it.
        drop(entry.link.take());
        let pin = self.pins.path(&lookup_pin(&entry.pod.uid, cookie));
        if let Err(error) = self.keep_one(cookie, &entry.pod, pin) {
            drop(self.entries.insert(name.clone(), entry));
            return Err(error);
        }
        self.forget(&entry, cookie);
        self.names.remove(cookie);
        Ok(())
    }

    /// Keeps of the earlier instances what guards one of these pods.
    pub(super) fn keep(&mut self, lost: &[Arc<Pod>]) -> Result<(), RedirectError> {
        if lost.is_empty() {
            return Ok(());
        }
        let by_uid: BTreeMap<String, &Arc<Pod>> =
            lost.iter().map(|pod| (escape(&pod.uid), pod)).collect();
        for directory in self.pins.previous().to_vec() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let found =
                    namespace_of(&name).and_then(|(cookie, uid)| Some((cookie, *by_uid.get(uid)?)));
                if let Some((cookie, pod)) = found {
                    self.keep_one(cookie, pod, entry.path())?;
                }
            }
        }
        Ok(())
    }

    fn keep_one(&mut self, cookie: u64, pod: &Pod, from: PathBuf) -> Result<(), RedirectError> {
        let known = self.entries.values().any(|it| it.netns.cookie() == cookie);
        if known || self.kept.contains_key(&cookie) {
            return Ok(());
        }
        let blocked = plan::blocked(pod, cookie).value;
        self.kernel
            .pods
            .insert(cookie, Abi(blocked), 0)
            .map_err(in_map("PODS"))?;
        let name = format!("{}{KEPT}", lookup_pin(&pod.uid, cookie));
        let pin = self.pins.path(&name);
        fs::rename(&from, &pin).map_err(|source| RedirectError::File {
            step: "keep",
            path: from,
            source,
        })?;
        let kept = Kept {
            pod: pod.name.clone(),
            uid: Arc::clone(&pod.uid),
            pin,
        };
        tracing::warn!(pod = %pod.name, "the pod has not been found; it stays refused until it is");
        drop(self.kept.insert(cookie, kept));
        Ok(())
    }
}

/// The name of the pin of a namespace's hook.
pub(super) fn lookup_pin(uid: &str, cookie: u64) -> String {
    format!("lookup-{cookie}-{}", escape(uid))
}

/// The namespace and the pod in the name of such a pin.
fn namespace_of(pin: &str) -> Option<(u64, &str)> {
    let (cookie, uid) = pin.strip_prefix("lookup-")?.split_once('-')?;
    let uid = uid.strip_suffix(KEPT).unwrap_or(uid);
    (!uid.is_empty()).then_some((cookie.parse().ok()?, uid))
}

#[cfg(test)]
mod tests {
    use super::{KEPT, lookup_pin, namespace_of};

    #[test]
    fn pins_name_the_namespace_and_the_pod() {
        let name = lookup_pin("0b8b-d41c.x", 42);
        assert!(!name.contains('.'), "{name}");
        assert_eq!(namespace_of(&name), Some((42, "0b8b-d41c_x")));
        let kept = format!("{name}{KEPT}");
        assert_eq!(namespace_of(&kept), Some((42, "0b8b-d41c_x")));
    }

    #[test]
    fn other_pins_name_none() {
        for name in [
            "connect4",
            "lookup-42",
            "lookup-42-",
            "lookup-x-1",
            "sockops",
        ] {
            assert_eq!(namespace_of(name), None, "{name}");
        }
    }
}
