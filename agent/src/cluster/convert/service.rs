//! Services and EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use super::lean::{self, NumberOrName, ServiceSpec, ServiceStatus, label};
use super::pod::{address, distinct, opaque_ports};
use super::{FieldPath, FieldProblem, Outcome, problem};
use crate::model::{NamespacedName, NodeName};
use crate::state::{EndpointSlice, Service, ServicePort, SliceAddress, TargetPort};

/// Label of an EndpointSlice: the Service that it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn convert(
    object: lean::Service<'_>,
    name: NamespacedName,
) -> (Service, Vec<FieldProblem>) {
    let spec = object.spec.unwrap_or_default();
    let mut problems = Vec::new();
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let ports = ports
        .filter(|(_, port)| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|(index, port)| {
            let field = |key: &str| FieldPath::of(&["spec", "ports"]).index(index).key(key);
            service_port(port, field)
                .map_err(|problem| problems.push(problem))
                .ok()
        })
        .collect();
    let (cluster_ips, external_ips, balancer_ips) = match spec.kind.as_deref() {
        Some("ExternalName") => (Vec::new(), Vec::new(), Vec::new()),
        _ => (
            cluster_ips(&spec, &mut problems),
            external_ips(&spec, &mut problems),
            balancer_ips(object.status.as_ref(), &mut problems),
        ),
    };
    let selector = spec.selector.iter().flatten();
    let opaque_ports = opaque_ports(object.metadata.as_ref(), &mut problems);
    let service = Service {
        name,
        cluster_ips,
        external_ips,
        balancer_ips,
        ports,
        selector: selector.map(|(key, value)| (&**key, &**value)).collect(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        opaque_ports,
    };
    (service, problems)
}

fn cluster_ips(spec: &ServiceSpec<'_>, problems: &mut Vec<FieldProblem>) -> Vec<IpAddr> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let given = |text: &&str| *text != "None";
    if list.is_empty() {
        let field = || FieldPath::of(&["spec", "clusterIP"]);
        let single = spec.cluster_ip.as_deref().filter(given);
        return distinct(single.map(|ip| (field, ip)), problems);
    }
    let listed = list.iter().map(|ip| &**ip).enumerate();
    let listed = listed.filter(|(_, ip)| given(ip)).map(|(index, ip)| {
        let field = move || FieldPath::of(&["spec", "clusterIPs"]).index(index);
        (field, ip)
    });
    distinct(listed, problems)
}

/// What its author gave it, who may write any address there.
fn external_ips(spec: &ServiceSpec<'_>, problems: &mut Vec<FieldProblem>) -> Vec<IpAddr> {
    let given = spec.external_ips.iter().flatten().enumerate();
    let given = given.map(|(index, ip)| {
        let field = move || FieldPath::of(&["spec", "externalIPs"]).index(index);
        (field, &**ip)
    });
    distinct(given, problems)
}

/// What a load balancer gave it, but for one that wants to see the connections itself.
fn balancer_ips(
    status: Option<&ServiceStatus<'_>>,
    problems: &mut Vec<FieldProblem>,
) -> Vec<IpAddr> {
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref());
    let ingress = ingress.unwrap_or_default().iter().enumerate();
    let ingress = ingress
        .filter(|(_, it)| it.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|(index, it)| {
            let field = move || {
                let ingress = FieldPath::of(&["status", "loadBalancer", "ingress"]);
                ingress.index(index).key("ip")
            };
            Some((field, it.ip.as_deref()?))
        });
    distinct(ingress, problems)
}

fn service_port(
    port: &lean::ServicePort<'_>,
    field: impl Fn(&str) -> FieldPath,
) -> Result<ServicePort, FieldProblem> {
    let number = number(port.port.unwrap_or(0), || field("port"))?;
    let target = match &port.target_port {
        None | Some(NumberOrName::Number(0)) => TargetPort::Number(number),
        Some(NumberOrName::Number(target)) => {
            TargetPort::Number(self::number(*target, || field("targetPort"))?)
        }
        Some(NumberOrName::Name(name)) => TargetPort::Name((**name).into()),
    };
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(given) => Some(self::number(given, || field("nodePort"))?),
    };
    Ok(ServicePort {
        node_port,
        name: port.name.as_deref().unwrap_or_default().into(),
        port: number,
        target,
        app_protocol: port.app_protocol.as_deref().map(Arc::from),
    })
}

fn number(port: i32, field: impl FnOnce() -> FieldPath) -> Result<u16, FieldProblem> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| FieldProblem {
        field: field(),
        message: format!("{port} is not a port: 1 to 65535"),
    })
}

pub(super) fn convert_slice(
    object: lean::EndpointSlice<'_>,
    name: NamespacedName,
) -> Outcome<EndpointSlice> {
    let labels = object.metadata.unwrap_or_default().labels;
    let labels = labels.unwrap_or_default();
    let service = label(&labels, SERVICE_NAME).filter(|service| !service.is_empty());
    let service = service.ok_or_else(|| {
        let message = "is missing: it says which Service the slice belongs to";
        problem(&["metadata", "labels", SERVICE_NAME], message)
    })?;
    if object.address_type.as_deref() == Some("FQDN") {
        let message = "names are not resolved: give addresses, of type IPv4 or IPv6";
        return Err(problem(&["addressType"], message));
    }
    let mut problems = Vec::new();
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let field = || FieldPath::of(&["ports"]).index(index).key("port");
        match number(port.port.unwrap_or(0), field) {
            Ok(number) => ports.push((port.name.as_deref().unwrap_or_default().into(), number)),
            Err(problem) => problems.push(problem),
        }
    }
    let mut addresses = Vec::new();
    for (index, endpoint) in object.endpoints.iter().flatten().enumerate() {
        let conditions = endpoint.conditions.as_ref();
        // By the API's definition one that says nothing is ready.
        let ready = conditions.and_then(|it| it.ready).unwrap_or(true);
        // More than one address of an endpoint mean the same, so the first does.
        let first = endpoint.addresses.as_deref().unwrap_or_default().first();
        match first.map_or(Err("is missing".to_owned()), |ip| address(ip)) {
            Ok(ip) => addresses.push(SliceAddress {
                ip,
                ready,
                zone: endpoint.zone.as_deref().map(Arc::from),
                node: endpoint.node_name.as_deref().map(|it| NodeName(it.into())),
            }),
            Err(message) => {
                let endpoint = FieldPath::of(&["endpoints"]).index(index);
                let field = endpoint.key("addresses").index(0);
                problems.push(FieldProblem { field, message });
            }
        }
    }
    let slice = EndpointSlice {
        service: service.into(),
        name,
        ports,
        addresses,
    };
    Ok((slice, problems))
}
