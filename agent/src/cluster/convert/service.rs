//! Services and EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::address;
use super::{FieldPath, FieldProblem, Outcome, problem};
use crate::model::NamespacedName;
use crate::state::{EndpointSlice, Service, ServicePort, TargetPort};

/// Label of an EndpointSlice: the Service that it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub(super) fn convert(object: core::Service, name: NamespacedName) -> (Service, Vec<FieldProblem>) {
    let spec = object.spec.unwrap_or_default();
    let mut problems = Vec::new();
    let ports = spec.ports.as_deref().unwrap_or_default().iter().enumerate();
    let ports = ports
        .filter(|(_, port)| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
        .filter_map(|(index, port)| {
            let path = FieldPath::of(&["spec", "ports"]).index(index);
            service_port(port, &path)
                .map_err(|problem| problems.push(problem))
                .ok()
        })
        .collect();
    let cluster_ips = match spec.type_.as_deref() {
        Some("ExternalName") => Vec::new(),
        _ => cluster_ips(&spec, &mut problems),
    };
    let service = Service {
        name,
        cluster_ips,
        ports,
        selector: spec.selector.unwrap_or_default().into(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    };
    (service, problems)
}

fn cluster_ips(spec: &core::ServiceSpec, problems: &mut Vec<FieldProblem>) -> Vec<IpAddr> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let listed = list.iter().enumerate().map(|(index, ip)| {
        let path = FieldPath::of(&["spec", "clusterIPs"]).index(index);
        (path, ip.as_str())
    });
    let single = spec.cluster_ip.as_deref().filter(|_| list.is_empty());
    let single = single.map(|ip| (FieldPath::of(&["spec", "clusterIP"]), ip));
    let given = listed.chain(single);
    let mut ips = Vec::new();
    for (field, text) in given.filter(|(_, text)| !matches!(*text, "" | "None")) {
        match address(text) {
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(message) => problems.push(FieldProblem { field, message }),
        }
    }
    ips
}

fn service_port(port: &core::ServicePort, path: &FieldPath) -> Result<ServicePort, FieldProblem> {
    let number = number(port.port, &path.key("port"))?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(self::number(*target, &path.key("targetPort"))?)
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
    };
    Ok(ServicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        port: number,
        target,
        app_protocol: port.app_protocol.as_deref().map(Arc::from),
    })
}

fn number(port: i32, field: &FieldPath) -> Result<u16, FieldProblem> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| FieldProblem {
        field: field.clone(),
        message: format!("{port} is not a port: 1 to 65535"),
    })
}

pub(super) fn convert_slice(
    object: discovery::EndpointSlice,
    name: NamespacedName,
) -> Outcome<EndpointSlice> {
    let labels = object.metadata.labels.unwrap_or_default();
    let service = labels
        .get(SERVICE_NAME)
        .filter(|service| !service.is_empty());
    let service = service.ok_or_else(|| {
        let message = "is missing: it says which Service the slice belongs to";
        problem(&["metadata", "labels", SERVICE_NAME], message)
    })?;
    if object.address_type == "FQDN" {
        let message = "names are not resolved: give addresses, of type IPv4 or IPv6";
        return Err(problem(&["addressType"], message));
    }
    let mut problems = Vec::new();
    let mut ports = Vec::new();
    for (index, port) in object.ports.iter().flatten().enumerate() {
        let field = FieldPath::of(&["ports"]).index(index).key("port");
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        match number(port.port.unwrap_or(0), &field) {
            Ok(number) => ports.push((port.name.as_deref().unwrap_or_default().into(), number)),
            Err(problem) => problems.push(problem),
        }
    }
    let mut addresses = Vec::new();
    for (index, endpoint) in object.endpoints.iter().enumerate() {
        let field = FieldPath::of(&["endpoints"])
            .index(index)
            .key("addresses")
            .index(0);
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // By the API's definition one that says nothing is ready.
        let ready = conditions.ready.unwrap_or(true);
        // More than one address of an endpoint mean the same, so the first does.
        match endpoint
            .addresses
            .first()
            .map_or(Err("is missing".to_owned()), |ip| address(ip))
        {
            Ok(ip) => addresses.push((ip, ready)),
            Err(message) => problems.push(FieldProblem { field, message }),
        }
    }
    let slice = EndpointSlice {
        service: service.as_str().into(),
        name,
        ports,
        addresses,
    };
    Ok((slice, problems))
}
