//! Which ports pods listen on: what the hooks count, and what listened before they
//! looked.

use std::collections::BTreeSet;
use std::io;

use fairlead_common::abi::PortKey;

use super::enrol::{Entry, network_error};
use super::network::{is_reachable, listeners};
use super::sys::{self, Abi};
use super::{RedirectError, Redirector, sock_diag};
use crate::model::NamespacedName;

impl Redirector {
    /// Removes ports that nobody listens on any more from the programs' list, where
    /// there are many of them: pods that open ports of ever other numbers would
    /// fill it. Call it now and then.
    /// Returns how many were removed.
    pub fn tidy(&mut self) -> Result<usize, RedirectError> {
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
            return Ok(0);
        }
        for key in &idle {
            self.remove_idle(key)
                .map_err(|source| RedirectError::File {
                    step: "tidy the map",
                    path: "LISTENING".into(),
                    source,
                })?;
        }
        Ok(idle.len())
    }

    /// Removes a count of zero. A listener that opened since the look is put back.
    fn remove_idle(&self, key: &PortKey) -> io::Result<()> {
        let map = self.kernel.shared.listening();
        let Some(opened) = sys::map_take::<_, u64>(map, key)?.filter(|count| *count > 0) else {
            return Ok(());
        };
        let again = sys::map_get::<_, u64>(map, key)?.unwrap_or(0);
        sys::map_set(map, key, opened + again)
    }

    /// Ports that were listened on before the enrolment and still count.
    pub(super) fn seeded<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = u16> + 'a {
        let cookie = entry.netns.cookie();
        entry.seeded.iter().copied().filter(move |&port| {
            let key = PortKey::listening(cookie, port);
            matches!(
                sys::map_get::<_, u64>(self.kernel.shared.seeded(), &key),
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
        let reachable = listening.iter().filter(|entry| is_reachable(entry));
        let ports: BTreeSet<u16> = reachable.map(|entry| entry.local.port()).collect();
        for &port in &ports {
            let key = PortKey::listening(cookie, port);
            sys::map_set(
                self.kernel.shared.seeded(),
                &key,
                listeners(listening, port),
            )
            .map_err(network_error(name, "record a listening port"))?;
        }
        Ok(ports.into_iter().collect())
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
