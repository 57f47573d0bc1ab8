//! Which ports pods listen on: what the hooks count, and what listened before they
//! looked.

use fairlead_common::abi::PortKey;

use super::enrol::{Entry, network_error};
use super::network::is_reachable;
use super::sys::{self, Abi};
use super::{RedirectError, Redirector, sock_diag};
use crate::model::NamespacedName;

impl Redirector {
    /// Removes ports that nobody listens on any more from the programs' list, where
    /// there are many of them: pods that open ports of ever other numbers would
    /// fill it. Call it now and then.
    pub fn tidy(&mut self) -> Result<(), RedirectError> {
        const MANY: usize = 8192;
        let idle: Vec<PortKey> = self
            .kernel
            .listening
            .iter()
            .flatten()
            .filter(|(_, count)| *count == 0)
            .map(|(Abi(key), _)| key)
            .collect();
        if idle.len() < MANY {
            return Ok(());
        }
        for key in &idle {
            drop(self.kernel.listening.remove(&Abi(*key)));
        }
        // A listener that opened between the look and the removal is no longer
        // counted: what listens now is seeded again.
        let names: Vec<_> = self.entries.keys().cloned().collect();
        for name in names {
            self.seed_again(&name)?;
        }
        Ok(())
    }

    fn seed_again(&mut self, name: &NamespacedName) -> Result<(), RedirectError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(());
        };
        let cookie = entry.netns.cookie();
        let listening = entry
            .netns
            .run(sock_diag::listening)
            .map_err(network_error(name, "list the sockets"))?;
        let ports = self.seed(name, cookie, &listening)?;
        if let Some(entry) = self.entries.get_mut(name) {
            entry.seeded.extend(ports);
            entry.seeded.sort_unstable();
            entry.seeded.dedup();
        }
        Ok(())
    }

    /// Ports that were listened on before the enrolment and still count.
    pub(super) fn seeded<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = u16> + 'a {
        let cookie = entry.netns.cookie();
        entry.seeded.iter().copied().filter(move |&port| {
            let key = PortKey::listening(cookie, port);
            matches!(
                sys::map_get::<_, u32>(self.kernel.shared.seeded(), &key),
                Ok(Some(_))
            )
        })
    }

    /// Tells the programs what listened before they looked.
    pub(super) fn seed(
        &self,
        name: &NamespacedName,
        cookie: u64,
        listening: &[sock_diag::SocketEntry],
    ) -> Result<Vec<u16>, RedirectError> {
        let mut ports: Vec<u16> = listening
            .iter()
            .filter(|entry| is_reachable(entry))
            .map(|entry| entry.local.port())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        for &port in &ports {
            let key = PortKey::listening(cookie, port);
            sys::map_set(self.kernel.shared.seeded(), &key, 1_u32)
                .map_err(network_error(name, "record a listening port"))?;
        }
        Ok(ports)
    }

    /// Removes all that is known of a namespace's ports.
    pub(super) fn forget_ports(&mut self, entry: &Entry, cookie: u64) {
        for &port in &entry.seeded {
            let key = PortKey::listening(cookie, port);
            drop(sys::map_remove(self.kernel.shared.seeded(), &key));
        }
        let counted: Vec<PortKey> = self
            .kernel
            .listening
            .keys()
            .flatten()
            .map(|Abi(key)| key)
            .filter(|key| key.cookie == cookie)
            .collect();
        for key in counted {
            drop(self.kernel.listening.remove(&Abi(key)));
        }
    }
}
