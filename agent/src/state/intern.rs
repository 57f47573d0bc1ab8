//! One allocation for each text and each set of labels, however many objects have it.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::dict::Dict;
use super::objects::{EndpointSlice, Pod, Service};
use crate::model::{NamespacedName, NodeName, TrustDomain};

/// What the objects of a writer share.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Pool<Arc<str>>,
    labels: Pool<Dict<Arc<str>>>,
    ports: Pool<Dict<u16>>,
}

impl Interner {
    /// The pod with everything shared that other pods may have too, and no spare room.
    pub(super) fn pod(&mut self, pod: &mut Pod) {
        self.namespace(&mut pod.name);
        self.text(&mut pod.workload);
        self.text(&mut pod.identity.namespace);
        self.text(&mut pod.identity.service_account);
        let TrustDomain(trust_domain) = &mut pod.identity.trust_domain;
        self.text(trust_domain);
        if let Some(NodeName(node)) = &mut pod.node {
            self.text(node);
        }
        self.labels(&mut pod.labels);
        self.ports(&mut pod.container_ports);
        pod.ips.shrink_to_fit();
    }

    /// Likewise a Service.
    pub(super) fn service(&mut self, service: &mut Service) {
        self.namespace(&mut service.name);
        self.labels(&mut service.selector);
        for port in &mut service.ports {
            self.text(&mut port.name);
        }
        service.ports.shrink_to_fit();
        service.cluster_ips.shrink_to_fit();
        service.external_ips.shrink_to_fit();
        service.balancer_ips.shrink_to_fit();
    }

    /// Likewise an EndpointSlice.
    pub(super) fn slice(&mut self, slice: &mut EndpointSlice) {
        self.namespace(&mut slice.name);
        self.text(&mut slice.service);
        for (name, _) in &mut slice.ports {
            self.text(name);
        }
        for address in &mut slice.addresses {
            if let Some(zone) = &mut address.zone {
                self.text(zone);
            }
            if let Some(node) = &mut address.node {
                self.text(&mut node.0);
            }
        }
        slice.ports.shrink_to_fit();
        slice.addresses.shrink_to_fit();
    }

    fn namespace(&mut self, name: &mut NamespacedName) {
        self.text(&mut name.namespace);
    }

    fn text(&mut self, text: &mut Arc<str>) {
        self.texts.share(text, |text| Arc::strong_count(text) == 1);
    }

    fn labels(&mut self, labels: &mut Dict<Arc<str>>) {
        if self.labels.reuse(labels) {
            return;
        }
        *labels = labels
            .iter()
            .map(|(key, value)| {
                let (mut key, mut value) = (Arc::clone(key), Arc::clone(value));
                self.text(&mut key);
                self.text(&mut value);
                (key, value)
            })
            .collect();
        self.labels.share(labels, Dict::is_unshared);
    }

    fn ports(&mut self, ports: &mut Dict<u16>) {
        self.ports.share(ports, Dict::is_unshared);
    }
}

/// Values of which one copy each is handed out.
#[derive(Debug)]
struct Pool<T> {
    known: HashSet<T>,
    /// At this size those that nobody has any more are thrown away.
    full: usize,
}

/// Fewer are not worth the look.
const SMALL: usize = 1024;

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            full: SMALL,
        }
    }
}

impl<T: Clone + Eq + Hash> Pool<T> {
    /// Puts the known copy in place of the value, if there is one.
    fn reuse(&mut self, value: &mut T) -> bool {
        let known = self.known.get(value);
        if let Some(known) = known {
            *value = known.clone();
        }
        known.is_some()
    }

    /// Puts the known copy in place of the value, which becomes it if there is none.
    fn share(&mut self, value: &mut T, unused: fn(&T) -> bool) {
        if self.reuse(value) {
            return;
        }
        if self.known.len() >= self.full {
            self.known.retain(|known| !unused(known));
            self.full = SMALL.max(2 * self.known.len());
        }
        self.known.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::{Arc, Dict, Interner, Pool, SMALL};

    #[test]
    fn equal_sets_of_labels_become_one() {
        let mut interner = Interner::default();
        let labels = || -> Dict<Arc<str>> { [("app", "web")].into_iter().collect() };
        let (mut one, mut other) = (labels(), labels());
        interner.labels(&mut one);
        interner.labels(&mut other);
        assert_eq!(one, labels());
        assert!(Arc::ptr_eq(&one["app"], &other["app"]));
        assert!(!one.is_unshared());
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let mut pool = Pool::default();
        let unused = |text: &Arc<str>| Arc::strong_count(text) == 1;
        let mut kept: Arc<str> = "kept".into();
        pool.share(&mut kept, unused);
        for number in 0..10 * SMALL {
            pool.share(&mut number.to_string().into(), unused);
        }
        assert!(pool.known.len() <= SMALL);
        let mut again: Arc<str> = "kept".into();
        pool.share(&mut again, unused);
        assert!(Arc::ptr_eq(&kept, &again));
    }
}
