//! Who has a connection to the metrics address, so that nobody takes all of them.
//!
//! Every pod can dial it, and kubelet ends an agent whose probes are not answered.

use std::net::{IpAddr, SocketAddr};

use tokio::task::AbortHandle;

/// So many of one address.
const PER_SOURCE: usize = 8;
/// So many of all addresses that are not the machine's own.
const OF_OTHERS: usize = 64;
/// So many of the machine's own: kubelet's, where it probes an agent, and of what runs in
/// the node's network.
const OF_ITSELF: usize = 32;

/// Who made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The machine itself, dialling one of its addresses.
    Itself,
    /// Another address.
    Other(IpAddr),
}

impl Source {
    /// Of a connection between two addresses. Nobody else can have the address that he
    /// dials: packets that pretend it do not come back to him.
    pub(super) fn of(peer: SocketAddr, local: SocketAddr) -> Self {
        let (peer, local) = (peer.ip().to_canonical(), local.ip().to_canonical());
        if peer == local {
            Self::Itself
        } else {
            Self::Other(peer)
        }
    }
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Seats {
    /// The oldest first.
    taken: Vec<(Source, AbortHandle)>,
}

impl Seats {
    /// Whether there is room for one more. Where all are taken, the one that has most loses
    /// its oldest connection: who comes for the first time is always heard, and so is a probe
    /// among many connections of the machine itself, since it takes but a moment.
    pub(super) fn make_room(&mut self, source: Source) -> bool {
        self.taken.retain(|(_, task)| !task.is_finished());
        let own = self.count(source);
        let itself = self.count(Source::Itself);
        let full = match source {
            Source::Itself => own >= OF_ITSELF,
            Source::Other(_) if own >= PER_SOURCE => return false,
            Source::Other(_) => self.taken.len() - itself >= OF_OTHERS,
        };
        if full {
            self.unseat(source == Source::Itself);
        }
        true
    }

    /// Another connection is open, and carried by that task.
    pub(super) fn take(&mut self, source: Source, task: AbortHandle) {
        self.taken.push((source, task));
    }

    fn unseat(&mut self, itself: bool) {
        let among = self.taken.iter().enumerate();
        let among = among.filter(|(_, (source, _))| (*source == Source::Itself) == itself);
        // Of those with equally many the last is the maximum; the oldest is to go.
        let greediest = among
            .rev()
            .max_by_key(|(_, (source, _))| self.count(*source));
        if let Some((at, _)) = greediest {
            let (_, task) = self.taken.remove(at);
            task.abort();
        }
    }

    fn count(&self, source: Source) -> usize {
        self.taken.iter().filter(|(it, _)| *it == source).count()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn other(number: u8) -> Source {
        Source::Other(IpAddr::from([10, 0, 0, number]))
    }

    /// Connections that never end.
    #[derive(Default)]
    struct Room(Seats);

    impl Room {
        fn dial(&mut self, source: Source) -> bool {
            let admitted = self.0.make_room(source);
            if admitted {
                let task = tokio::spawn(pending::<()>()).abort_handle();
                self.0.take(source, task);
            }
            admitted
        }

        fn flood(&mut self, source: Source) -> usize {
            (0..100).filter(|_| self.dial(source)).count()
        }
    }

    #[test]
    fn only_who_dials_his_own_address_is_the_machine_itself() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let local = address("[::ffff:192.0.2.1]:15020");
        assert_eq!(Source::of(address("192.0.2.1:4000"), local), Source::Itself);
        let pod = Source::of(address("[::ffff:10.0.0.7]:4000"), local);
        assert_eq!(pod, other(7));
    }

    #[tokio::test]
    async fn one_address_has_a_share() {
        let mut room = Room::default();
        assert_eq!(room.flood(other(1)), PER_SOURCE);
        assert!(room.dial(other(2)));
    }

    #[tokio::test]
    async fn the_machine_itself_is_heard_whatever_it_holds() {
        let mut room = Room::default();
        let _admitted = room.flood(other(1));
        assert_eq!(room.flood(Source::Itself), 100);
        assert_eq!(room.0.count(Source::Itself), OF_ITSELF);
        assert_eq!(room.0.count(other(1)), PER_SOURCE);
    }

    #[tokio::test]
    async fn many_addresses_keep_nobody_out() {
        let mut room = Room::default();
        for number in 1..=20 {
            let _admitted = room.flood(other(number));
        }
        assert!(room.0.taken.len() <= OF_OTHERS);
        assert!(room.dial(Source::Itself));
        assert!(room.dial(other(99)));
        // One that has few is not the one that pays for the next.
        assert!(room.dial(other(98)));
        assert_eq!(room.0.count(other(99)), 1);
        assert_eq!(room.0.count(Source::Itself), 1);
    }

    #[tokio::test]
    async fn what_has_ended_gives_its_place_back() {
        let mut room = Room::default();
        let _admitted = room.flood(other(1));
        let (_, task) = &room.0.taken[0];
        task.abort();
        tokio::task::yield_now().await;
        assert!(room.dial(other(1)));
        assert!(!room.dial(other(1)));
    }
}
