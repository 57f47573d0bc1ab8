//! Which addresses serve a port of a Service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::objects::{
    Endpoint, EndpointSlice, Pod, PodPhase, Service, ServicePort, SliceAddress, TargetPort,
};

/// The Service's selector chooses the pod.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    !service.selector.is_empty()
        && service.name.namespace == pod.name.namespace
        && pod.labels.contains(&service.selector)
}

/// The pod's endpoint at one of its addresses; `None` where it doesn't serve the port.
pub(super) fn of_pod(
    service: &Service,
    port: &ServicePort,
    pod: &Pod,
    ip: IpAddr,
) -> Option<Endpoint> {
    if pod.phase == PodPhase::Finished {
        return None;
    }
    let number = match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => *pod.container_ports.get(name)?,
    };
    Some(Endpoint {
        ip,
        port: number,
        ready: pod.ready || service.publish_not_ready,
        zone: None,
    })
}

/// The endpoints of one port from the Service's own slices.
pub(super) fn of_slices(port: &ServicePort, slices: &[EndpointSlice]) -> Arc<[Endpoint]> {
    let endpoints = slices.iter().flat_map(|slice| {
        let named = slice.ports.iter().filter(|(name, _)| *name == port.name);
        named.flat_map(|&(_, number)| {
            let endpoint = move |it: &SliceAddress| Endpoint {
                ip: it.ip,
                port: number,
                ready: it.ready,
                zone: it.zone.clone(),
            };
            slice.addresses.iter().map(endpoint)
        })
    });
    sorted(endpoints.collect())
}

/// `old` without what it has at `ips`, and with `added`. One pass: `old` is in order.
pub(super) fn replaced(
    old: &[Endpoint],
    ips: &BTreeSet<IpAddr>,
    added: Vec<Endpoint>,
) -> Arc<[Endpoint]> {
    let kept = old.iter().filter(|endpoint| !ips.contains(&endpoint.ip));
    let mut endpoints: Vec<Endpoint> = kept.cloned().collect();
    for endpoint in sorted(added).iter() {
        let at = endpoints.partition_point(|other| order(other) < order(endpoint));
        endpoints.insert(at, endpoint.clone());
    }
    endpoints.into()
}

/// Ready ones first, then by address; each address and port once.
pub(super) fn sorted(mut endpoints: Vec<Endpoint>) -> Arc<[Endpoint]> {
    endpoints.sort_unstable_by_key(|endpoint| (endpoint.ip, endpoint.port, !endpoint.ready));
    endpoints.dedup_by_key(|endpoint| (endpoint.ip, endpoint.port));
    endpoints.sort_unstable_by_key(order);
    endpoints.into()
}

fn order(endpoint: &Endpoint) -> (bool, IpAddr, u16) {
    (!endpoint.ready, endpoint.ip, endpoint.port)
}
