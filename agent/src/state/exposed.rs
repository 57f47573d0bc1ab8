//! Where Services are reached beside their cluster addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::change::{ObjectKey, ObjectKind};
use super::objects::{Problem, Service, ServicePort};
use super::problems::Owner;
use super::{Snapshot, Writer};
use crate::model::NamespacedName;

/// An address of a Service that is not its alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Exposed {
    /// A port of a load balancer's address.
    Balancer(SocketAddr),
    /// A port of an external address.
    External(SocketAddr),
    /// A port of every node.
    NodePort(u16),
}

impl Exposed {
    /// All of a Service, whose external addresses must be in one of the blocks `allowed`.
    fn of(service: &Service, allowed: &[IpNet]) -> Vec<Self> {
        let at = |ip: IpAddr| {
            let ports = service.ports.iter();
            ports.map(move |port| SocketAddr::new(ip, port.port))
        };
        let is_allowed =
            |ip: &IpAddr| !is_local(*ip) && allowed.iter().any(|block| block.contains(ip));
        let balancer = service.balancer_ips.iter().copied();
        let balancer = balancer.flat_map(at).map(Self::Balancer);
        let external = service.external_ips.iter().copied().filter(is_allowed);
        let external = external.flat_map(at).map(Self::External);
        let ports = service.ports.iter().filter_map(|port| port.node_port);
        let all = balancer.chain(external);
        all.chain(ports.map(Self::NodePort)).collect()
    }

    /// The port of the Service that it leads to.
    pub fn port(self, service: &Service) -> Option<&ServicePort> {
        service.ports.iter().find(|port| match self {
            Self::Balancer(address) | Self::External(address) => port.port == address.port(),
            Self::NodePort(number) => port.node_port == Some(number),
        })
    }
}

impl Snapshot {
    /// Where an address leads that is neither a pod's nor a Service's own, and the Services
    /// that claim it: none, one, or several, and then it is nobody's. What a load balancer
    /// gave comes before what authors of Services wrote, who can't take a node's address.
    pub fn exposed_at(&self, address: SocketAddr) -> Option<(Exposed, &[NamespacedName])> {
        let balancer = Exposed::Balancer(address);
        let external = Exposed::External(address);
        let node_port = Exposed::NodePort(address.port());
        let is_node = || self.node_addresses.contains(&address.ip());
        let at = |exposed| Some((exposed, &**self.exposed.get(&exposed)?));
        at(balancer).or_else(|| at(if is_node() { node_port } else { external }))
    }
}

/// Where clouds tell a machine about itself, and give it its credentials, beside addresses of
/// the link: Alibaba's, Azure's, Oracle's (two), Google's and Scaleway's.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// Never anybody's but the machine's, the link's or the cloud's own, however it is written.
pub fn is_local(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let of_family = match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || is_of_amazon(ip)
        }
    };
    of_family || METADATA.contains(&ip) || embedded(ip).is_some_and(is_local)
}

/// Of the block with Amazon's services of a machine: metadata, credentials of pods, names.
fn is_of_amazon(ip: Ipv6Addr) -> bool {
    ip.segments()[..2] == [0xfd00, 0xec2]
}

/// The address that a network may make of this one on the way: NAT64 (RFC 6052), 6to4
/// (RFC 3056), and compatible ones (RFC 4291), which nobody uses any more.
pub fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = ip else {
        return None;
    };
    let ([0x64, 0xff9b, 0, 0, 0, 0, high, low]
    | [0x2002, high, low, ..]
    | [0, 0, 0, 0, 0, 0, high, low]) = ip.segments()
    else {
        return None;
    };
    let v4 = Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    Some(v4.into())
}

impl Writer {
    /// Adds or takes back where a Service is reached.
    pub(super) fn expose(&mut self, service: &Service, add: bool) {
        for exposed in Exposed::of(service, &self.external_ips) {
            let known = self.snapshot.exposed.get(&exposed);
            let mut names: Vec<_> = known
                .iter()
                .flat_map(|names| names.iter())
                .cloned()
                .collect();
            match (names.binary_search(&service.name), add) {
                (Err(at), true) => names.insert(at, service.name.clone()),
                (Ok(at), false) => drop(names.remove(at)),
                (Ok(_), true) | (Err(_), false) => {}
            }
            self.report_exposed(exposed, &names);
            if names.is_empty() {
                self.snapshot.exposed.remove(&exposed);
            } else {
                self.snapshot.exposed.insert(exposed, Arc::from(names));
            }
        }
    }

    /// Whether pods of the node's own network, and nobody else, are at the address.
    pub(super) fn note_node_address(&mut self, ip: IpAddr, is_node: bool) {
        if is_node {
            self.snapshot.node_addresses.insert(ip);
        } else {
            self.snapshot.node_addresses.remove(&ip);
        }
    }

    fn report_exposed(&mut self, exposed: Exposed, names: &[NamespacedName]) {
        let key = |name: &NamespacedName| ObjectKey {
            kind: ObjectKind::Service,
            name: name.clone(),
        };
        let (field, what) = match exposed {
            Exposed::Balancer(address) => ("status.loadBalancer", address.to_string()),
            Exposed::External(address) => ("spec.externalIPs", address.to_string()),
            Exposed::NodePort(port) => ("spec.ports", format!("node port {port}")),
        };
        let problem = |name: &NamespacedName| -> Problem {
            let others: Vec<String> = names
                .iter()
                .filter(|other| *other != name)
                .map(|other| key(other).to_string())
                .collect();
            let message = format!(
                "{what} is claimed by {} too: nothing is sent there until one of them lets go",
                others.join(", ")
            );
            self.problem(&key(name), field, message)
        };
        let problems = if names.len() > 1 {
            names.iter().map(problem).collect()
        } else {
            Vec::new()
        };
        self.report(Owner::Exposed(exposed), problems);
    }
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn what_is_of_the_machine_is_known_in_any_spelling() {
        for (ip, expected) in [
            ("127.0.0.1", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("224.0.0.1", true),
            ("100.100.100.200", true),
            ("168.63.129.16", true),
            ("::1", true),
            ("::", true),
            ("fe80::1", true),
            ("fd00:ec2::254", true),
            ("fd00:ec2::23", true),
            ("fd20:ce::254", true),
            ("::ffff:169.254.169.254", true),
            ("::169.254.169.254", true),
            ("64:ff9b::a9fe:a9fe", true),
            ("64:ff9b::a83f:8110", true),
            ("2002:7f00:1::", true),
            ("64:ff9b::c000:201", false),
            ("192.0.2.1", false),
            ("10.0.0.1", false),
            ("fd00::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_local(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
