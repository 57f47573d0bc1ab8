//! How many connections each pod has open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::metrics::OpenLabels;
use crate::model::NamespacedName;

/// Counts open connections by the pods at their ends. A clone is the same count.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenByPod(Arc<Mutex<HashMap<NamespacedName, u64>>>);

/// The pods at the ends of one connection.
pub(super) type Ends = [Option<NamespacedName>; 2];

impl OpenByPod {
    fn counts(&self) -> MutexGuard<'_, HashMap<NamespacedName, u64>> {
        // The map is valid after each of its statements, so a poisoned one is too.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more for each end.
    pub(super) fn add(&self, labels: &OpenLabels<'_>) -> Ends {
        let (from, to) = (labels.source, labels.destination);
        let ends = [
            name(from.namespace.as_ref(), from.pod.as_ref()),
            name(to.namespace.as_ref(), to.pod.as_ref()),
        ];
        let mut counts = self.counts();
        for end in ends.iter().flatten() {
            *counts.entry(end.clone()).or_default() += 1;
        }
        drop(counts);
        ends
    }

    /// Takes back what [`OpenByPod::add`] counted.
    pub(super) fn remove(&self, ends: &mut Ends) {
        let mut counts = self.counts();
        for end in ends.iter_mut().filter_map(Option::take) {
            if let Entry::Occupied(mut count) = counts.entry(end) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    drop(count.remove_entry());
                }
            }
        }
    }

    /// The count of one pod.
    pub(super) fn of(&self, pod: &NamespacedName) -> u64 {
        self.counts().get(pod).copied().unwrap_or(0)
    }
}

fn name(namespace: Option<&Arc<str>>, pod: Option<&Arc<str>>) -> Option<NamespacedName> {
    Some(NamespacedName::new(
        Arc::clone(namespace?),
        Arc::clone(pod?),
    ))
}
