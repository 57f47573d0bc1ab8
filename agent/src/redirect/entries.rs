//! Writing the entries of one pod into the maps, and removing them.

use std::os::fd::AsRawFd;

use fairlead_common::abi::{Ip, ListenerKey, ListenerKind};

use super::RedirectError;
use super::kernel::{Kernel, in_map};
use super::listeners::Listeners;
use super::plan::Plan;
use super::sys::Abi;

impl Kernel {
    /// Bypass lists.
    pub(super) fn write_exclusions(&mut self, plan: &Plan) -> Result<(), RedirectError> {
        for &key in &plan.excluded_ports {
            self.exclude_ports
                .insert(Abi(key), 1, 0)
                .map_err(in_map("EXCLUDE_PORTS"))?;
        }
        for &(bits, key) in &plan.excluded_cidrs {
            self.exclude_cidrs
                .insert(&Kernel::cidr_key(bits, key), 1, 0)
                .map_err(in_map("EXCLUDE_CIDRS"))?;
        }
        Ok(())
    }

    /// Removes what `plan` has and `keep` has not. What is gone is as good.
    pub(super) fn remove_exclusions(&mut self, plan: &Plan, keep: Option<&Plan>) {
        for key in &plan.excluded_ports {
            if keep.is_none_or(|keep| !keep.excluded_ports.contains(key)) {
                drop(self.exclude_ports.remove(&Abi(*key)));
            }
        }
        for &(bits, key) in &plan.excluded_cidrs {
            if keep.is_none_or(|keep| !keep.excluded_cidrs.contains(&(bits, key))) {
                drop(self.exclude_cidrs.remove(&Kernel::cidr_key(bits, key)));
            }
        }
    }

    /// Where connections to the addresses are steered.
    pub(super) fn write_listeners(
        &mut self,
        addresses: &[Ip],
        from: &Listeners,
    ) -> Result<(), RedirectError> {
        for &ip in addresses {
            // The second of each is for IPv6.
            let at = usize::from(ip.v4().is_none());
            let inbound = from.inbound.get(at);
            let tunnel = from.tunnel.get(at);
            for (kind, listener) in [
                (ListenerKind::Inbound, inbound),
                (ListenerKind::Tunnel, tunnel),
            ] {
                let Some(listener) = listener else { continue };
                self.listeners
                    .insert(Abi(ListenerKey::new(ip, kind)), listener.as_raw_fd(), 0)
                    .map_err(in_map("LISTENERS"))?;
            }
        }
        Ok(())
    }

    /// The namespace and its addresses.
    pub(super) fn write_pod(&mut self, plan: &Plan, cookie: u64) -> Result<(), RedirectError> {
        for &ip in &plan.addresses {
            self.addresses
                .insert(Abi(ip), cookie, 0)
                .map_err(in_map("ADDRESSES"))?;
        }
        self.pods
            .insert(cookie, Abi(plan.value), 0)
            .map_err(in_map("PODS"))
    }

    /// Nothing to this address is steered any more.
    pub(super) fn remove_listeners(&mut self, ip: Ip) {
        for kind in [ListenerKind::Inbound, ListenerKind::Tunnel] {
            drop(self.listeners.remove(&Abi(ListenerKey::new(ip, kind))));
        }
    }
}
