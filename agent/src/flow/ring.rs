//! The last records, by their order, with a bound for each pod of this node.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::event::{Destination, Direction, FlowEvent, Source};
use crate::model::NamespacedName;

/// With a full ring, one pod's records take at most this part of it from the others'.
const SHARE: usize = 4;

/// Keeps up to `capacity` records.
#[derive(Debug)]
pub(super) struct Ring {
    capacity: usize,
    next: u64,
    events: BTreeMap<u64, Arc<FlowEvent>>,
    /// The numbers of each pod's records, oldest first.
    by_pod: HashMap<Option<NamespacedName>, VecDeque<u64>>,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            next: 0,
            events: BTreeMap::new(),
            by_pod: HashMap::new(),
        }
    }

    /// Adds a record. Where there is no room, the oldest of all goes, or that of the same
    /// pod where it has its share: so that a pod which is refused a thousand times a
    /// second does not push out what happened to the others.
    pub(super) fn push(&mut self, event: Arc<FlowEvent>) {
        let pod = pod_of_event(&event);
        if self.events.len() >= self.capacity {
            let share = (self.capacity / SHARE).max(1);
            let own = self.by_pod.get(&pod).filter(|own| own.len() >= share);
            match own.and_then(|own| own.front().copied()) {
                Some(oldest) => self.remove(oldest),
                None => {
                    if let Some((&oldest, _)) = self.events.first_key_value() {
                        self.remove(oldest);
                    }
                }
            }
        }
        let number = self.next;
        self.next += 1;
        drop(self.events.insert(number, event));
        self.by_pod.entry(pod).or_default().push_back(number);
    }

    /// All records, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = &Arc<FlowEvent>> {
        self.events.values().rev()
    }

    /// Removes a record that is the oldest of its pod.
    fn remove(&mut self, number: u64) {
        let Some(event) = self.events.remove(&number) else {
            return;
        };
        let pod = pod_of_event(&event);
        if let Some(numbers) = self.by_pod.get_mut(&pod) {
            let _oldest = numbers.pop_front();
            if numbers.is_empty() {
                drop(self.by_pod.remove(&pod));
            }
        }
    }
}

/// The pod of this node that a record is of.
pub(super) fn pod_of(
    direction: Direction,
    source: &Source,
    destination: &Destination,
) -> Option<NamespacedName> {
    let (namespace, pod) = match direction {
        Direction::Outbound => (&source.namespace, &source.pod),
        Direction::Inbound => (&destination.namespace, &destination.pod),
    };
    let (namespace, pod) = (namespace.as_ref()?, pod.as_ref()?);
    Some(NamespacedName::new(Arc::clone(namespace), Arc::clone(pod)))
}

fn pod_of_event(event: &FlowEvent) -> Option<NamespacedName> {
    pod_of(event.direction, &event.source, &event.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::event;

    /// A record of one pod, with a number for a port.
    fn of(pod: &str, port: u16) -> Arc<FlowEvent> {
        let mut event = event();
        event.source.pod = Some(pod.into());
        event.source.port = port;
        Arc::new(event)
    }

    fn kept(ring: &Ring, pod: &str) -> Vec<u16> {
        let of_pod = |event: &&Arc<FlowEvent>| event.source.pod.as_deref() == Some(pod);
        let mut ports: Vec<u16> = ring
            .newest_first()
            .filter(of_pod)
            .map(|event| event.source.port)
            .collect();
        ports.reverse();
        ports
    }

    #[test]
    fn a_lone_pod_has_it_all() {
        let mut ring = Ring::new(8);
        for port in 0..20 {
            ring.push(of("a", port));
        }
        assert_eq!(kept(&ring, "a"), (12..20).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_of_one_pod_takes_no_more_than_its_share() {
        let mut ring = Ring::new(8);
        for port in 0..8 {
            ring.push(of("quiet", port));
        }
        for port in 0..1000 {
            ring.push(of("loud", port));
        }
        assert_eq!(kept(&ring, "loud"), [998, 999]);
        assert_eq!(kept(&ring, "quiet"), (2..8).collect::<Vec<_>>());
        assert_eq!(ring.events.len(), 8);
    }

    #[test]
    fn what_a_flood_left_makes_room_for_the_others() {
        let mut ring = Ring::new(8);
        for port in 0..100 {
            ring.push(of("loud", port));
        }
        for port in 0..6 {
            ring.push(of(&format!("pod-{port}"), port));
        }
        assert_eq!(kept(&ring, "loud"), [98, 99]);
        // Of pods that are gone nothing stays behind.
        for port in 0..1000 {
            ring.push(of(&format!("other-{port}"), port));
        }
        assert_eq!((ring.events.len(), ring.by_pod.len()), (8, 8));
    }
}
