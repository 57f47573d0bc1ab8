//! The last requests, with the same room for each pod of this node.

use std::collections::{HashMap, VecDeque};

use super::request::RequestRecord;
use super::ring::pod_of;
use crate::model::NamespacedName;

/// Keeps up to `capacity` requests. A lone pod may have all of them; of several each has
/// an equal part, so that one that is asked often does not push out what happened to the
/// others.
#[derive(Debug)]
pub(super) struct RequestRing {
    capacity: usize,
    kept: usize,
    by_pod: HashMap<Option<NamespacedName>, VecDeque<RequestRecord>>,
}

impl RequestRing {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            kept: 0,
            by_pod: HashMap::new(),
        }
    }

    pub(super) fn push(&mut self, request: RequestRecord) {
        let ends = &request.ends;
        let pod = pod_of(ends.direction, &ends.source, &ends.destination);
        let others = self.by_pod.len();
        let own = self.by_pod.entry(pod).or_default();
        let pods = others + usize::from(own.is_empty());
        own.push_back(request);
        self.kept += 1;
        if self.kept <= self.capacity {
            return;
        }
        self.kept -= 1;
        if own.len() > (self.capacity / pods).max(1) {
            drop(own.pop_front());
        } else {
            self.shorten_longest();
        }
    }

    /// Looks at every pod: only until each has its part.
    fn shorten_longest(&mut self) {
        let longest = self.by_pod.iter_mut().max_by_key(|(_, own)| {
            let oldest = own.front().map(|it| it.time);
            (own.len(), std::cmp::Reverse(oldest))
        });
        let Some((pod, own)) = longest else { return };
        drop(own.pop_front());
        if own.is_empty() {
            let pod = pod.clone();
            drop(self.by_pod.remove(&pod));
        }
    }

    /// The requests of each pod, the newest first.
    pub(super) fn newest_first(
        &self,
    ) -> impl Iterator<Item = impl Iterator<Item = &RequestRecord>> {
        self.by_pod.values().map(|own| own.iter().rev())
    }
}

#[cfg(test)]
mod tests {
    use super::RequestRing;
    use crate::flow::request::tests::record;

    /// How many requests are kept of each pod.
    fn kept(ring: &RequestRing, pods: &[&str]) -> Vec<usize> {
        let of = |pod: &str| {
            let own = ring.newest_first().map(|own| {
                own.filter(|it| it.ends.source.pod.as_deref() == Some(pod))
                    .count()
            });
            own.sum()
        };
        pods.iter().map(|pod| of(pod)).collect()
    }

    #[test]
    fn a_lone_pod_has_it_all_and_the_newest() {
        let mut ring = RequestRing::new(8);
        for number in 0..20 {
            ring.push(record("a", number));
        }
        let sent: Vec<u64> = ring
            .newest_first()
            .flatten()
            .map(|it| it.event().bytes_sent)
            .collect();
        assert_eq!(sent, (12..20).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_of_one_pod_leaves_the_others_their_part() {
        let mut ring = RequestRing::new(9);
        for number in 0..100 {
            ring.push(record("loud", number));
        }
        for number in 0..5 {
            ring.push(record("quiet", number));
        }
        for number in 0..100 {
            ring.push(record("loud", number));
        }
        assert_eq!(kept(&ring, &["loud", "quiet"]), [5, 4]);
        for number in 0..2 {
            ring.push(record("new", number));
        }
        for number in 0..100 {
            ring.push(record("loud", number));
        }
        assert_eq!(kept(&ring, &["loud", "quiet", "new"]), [4, 3, 2]);
    }

    #[test]
    fn of_pods_that_are_gone_nothing_stays() {
        let mut ring = RequestRing::new(8);
        for number in 0..1000 {
            ring.push(record(&format!("pod-{number}"), number));
        }
        assert_eq!((ring.kept, ring.by_pod.len()), (8, 8));
    }
}
