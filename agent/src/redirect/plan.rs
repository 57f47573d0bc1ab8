//! What the maps say of a pod: pure.

use std::net::IpAddr;

use fairlead_common::abi::{self, CidrKey, Direction, Ip, PortKey, Ports};
use ipnet::IpNet;

use crate::state::Pod;

/// The entries of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Keys of `ADDRESSES`.
    pub(super) addresses: Vec<Ip>,
    /// Keys of `EXCLUDE_PORTS`.
    pub(super) excluded_ports: Vec<PortKey>,
    /// Keys of `EXCLUDE_CIDRS`, each with its length in bits.
    pub(super) excluded_cidrs: Vec<(u32, CidrKey)>,
    /// The value in `PODS`.
    pub(super) value: abi::Pod,
}

/// The entries of a pod that listens on these ports.
pub(super) fn meshed(pod: &Pod, cookie: u64, ports: Ports) -> Plan {
    let outbound = pod
        .exclude_outbound_ports
        .iter()
        .map(|&port| PortKey::excluded(cookie, port, Direction::Outbound));
    let inbound = pod
        .exclude_inbound_ports
        .iter()
        .map(|&port| PortKey::excluded(cookie, port, Direction::Inbound));
    let excluded_cidrs: Vec<_> = pod
        .exclude_outbound_cidrs
        .iter()
        .map(|block| cidr(cookie, block))
        .collect();
    let mut flags = 0;
    if !pod.exclude_outbound_ports.is_empty() {
        flags |= abi::Pod::EXCLUDES_PORTS;
    }
    if !excluded_cidrs.is_empty() {
        flags |= abi::Pod::EXCLUDES_CIDRS;
    }
    Plan {
        addresses: pod.ips.iter().map(|&ip| ip.into()).collect(),
        excluded_ports: outbound.chain(inbound).collect(),
        excluded_cidrs,
        value: abi::Pod {
            ip4: first(pod, IpAddr::is_ipv4),
            ip6: first(pod, IpAddr::is_ipv6),
            ports,
            flags,
        },
    }
}

/// The entries of a pod that can't be meshed: nothing goes in or out.
pub(super) fn blocked(pod: &Pod, cookie: u64) -> Plan {
    let mut plan = meshed(pod, cookie, NO_PORTS);
    plan.excluded_ports.clear();
    plan.excluded_cidrs.clear();
    plan.value.flags = abi::Pod::BLOCKED;
    plan
}

const NO_PORTS: Ports = Ports {
    outbound4: 0,
    outbound6: 0,
    inbound4: 0,
    inbound6: 0,
    tunnel4: 0,
    tunnel6: 0,
};

fn first(pod: &Pod, family: impl Fn(&IpAddr) -> bool) -> Ip {
    let found = pod.ips.iter().copied().find(|ip| family(ip));
    found.map_or(Ip::NONE, Into::into)
}

/// An IPv4 block is a block of mapped addresses, 96 bits further on.
fn cidr(cookie: u64, block: &IpNet) -> (u32, CidrKey) {
    let before = match block {
        IpNet::V4(_) => 96,
        IpNet::V6(_) => 0,
    };
    let bits = CidrKey::COOKIE_BITS + before + u32::from(block.prefix_len());
    (bits, CidrKey::new(cookie, block.network().into()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{NamespacedName, SpiffeId, TrustDomain};
    use crate::state::{Dict, PodPhase};

    fn pod() -> Pod {
        Pod {
            name: NamespacedName::new("shop", "web"),
            uid: "".into(),
            node: None,
            ips: vec!["fd00::1".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            identity: SpiffeId::new(TrustDomain("t".into()), "shop", "web"),
            labels: Dict::default(),
            workload: Arc::from("web"),
            phase: PodPhase::Running,
            ready: true,
            terminating: false,
            host_network: false,
            enrolled: true,
            container_ports: Dict::default(),
            netns: None,
            runtime_class: None,
            static_uid: None,
            exclude_outbound_ports: Box::default(),
            exclude_outbound_cidrs: Box::default(),
            exclude_inbound_ports: Box::default(),
            opaque_ports: Box::default(),
            close_existing: false,
        }
    }

    #[test]
    fn each_family_has_its_first_address() {
        let plan = meshed(&pod(), 7, NO_PORTS);
        assert_eq!(IpAddr::from(plan.value.ip4).to_string(), "10.0.0.1");
        assert_eq!(IpAddr::from(plan.value.ip6).to_string(), "fd00::1");
        assert_eq!(plan.addresses.len(), 2);
        assert_eq!(plan.value.flags, 0);
    }

    #[test]
    fn exclusions_become_keys_and_flags() {
        let mut pod = pod();
        pod.exclude_outbound_ports = Box::new([5432]);
        pod.exclude_inbound_ports = Box::new([9090]);
        pod.exclude_outbound_cidrs = Box::new(["10.9.0.0/16".parse().unwrap()]);
        let plan = meshed(&pod, 7, NO_PORTS);
        assert_eq!(
            plan.excluded_ports,
            [
                PortKey::excluded(7, 5432, Direction::Outbound),
                PortKey::excluded(7, 9090, Direction::Inbound),
            ]
        );
        let (bits, key) = plan.excluded_cidrs[0];
        assert_eq!(bits, 64 + 96 + 16);
        assert_eq!(IpAddr::from(key.ip).to_string(), "10.9.0.0");
        assert_eq!(
            plan.value.flags,
            abi::Pod::EXCLUDES_PORTS | abi::Pod::EXCLUDES_CIDRS
        );
    }

    #[test]
    fn inbound_exclusions_cost_outbound_connects_nothing() {
        let mut pod = pod();
        pod.exclude_inbound_ports = Box::new([9090]);
        assert_eq!(meshed(&pod, 7, NO_PORTS).value.flags, 0);
    }

    #[test]
    fn blocked_pods_have_no_way_around() {
        let mut pod = pod();
        pod.exclude_outbound_ports = Box::new([5432]);
        let plan = blocked(&pod, 7);
        assert!(plan.excluded_ports.is_empty());
        assert_eq!(plan.value.flags, abi::Pod::BLOCKED);
        assert_eq!(plan.value.ports, NO_PORTS);
    }
}
