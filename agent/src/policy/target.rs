//! What people mean by the ends of a connection that they ask about.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::table::Table;
use crate::model::{NamespacedName, canonical};
use crate::state::{Pod, Service};

/// Why a question can't be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The source is no pod of the state.
    #[error(
        "no pod \"{0}\": give namespace/pod or a pod's address; `fairlead get workloads` lists them"
    )]
    UnknownSource(String),
    /// The destination has no port, or one that is no number from 1 to 65535.
    #[error("\"{0}\" has no port: give namespace/name:port, name.namespace:port or address:port")]
    NoPort(String),
    /// The request is none.
    #[error("{0}")]
    BadRequest(String),
    /// The destination is neither an address nor a Service or pod of the state.
    #[error("no Service, pod or address \"{0}\"; `fairlead get services` lists them")]
    UnknownDestination(String),
}

/// The destination of a question.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// By the Service's name.
    Service(Arc<Service>, u16),
    /// By the pod's name.
    Pod(Arc<Pod>, u16),
    /// By address.
    Address(SocketAddr),
}

impl Target {
    /// The port that is dialled.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Service(_, port) | Self::Pod(_, port) => *port,
            Self::Address(address) => address.port(),
        }
    }

    /// The host that a client of it names, if it says nothing else.
    pub(super) fn host(&self) -> String {
        match self {
            Self::Service(service, port) => {
                let NamespacedName { namespace, name } = &service.name;
                format!("{name}.{namespace}.svc.cluster.local:{port}")
            }
            Self::Pod(pod, port) => match pod.ips.first() {
                Some(ip) => SocketAddr::new(*ip, *port).to_string(),
                None => format!("{}:{port}", pod.name.name),
            },
            Self::Address(address) => address.to_string(),
        }
    }
}

/// `namespace/pod`, or a pod's address.
pub(super) fn source<'a>(table: &'a Table, text: &str) -> Result<&'a Arc<Pod>, ExplainError> {
    let pod = match text.parse::<IpAddr>() {
        Ok(ip) => table.pod_by_ip(ip),
        Err(_) => text.split_once('/').and_then(|(namespace, name)| {
            let name = NamespacedName::new(namespace, name);
            table.snapshot().pods.get(&name)
        }),
    };
    pod.ok_or_else(|| ExplainError::UnknownSource(text.to_owned()))
}

/// `address:port`, `namespace/name:port`, `name.namespace[.svc...]:port`, or
/// `name:port` in the source's namespace. A Service goes before a pod of its name.
pub(super) fn destination(
    table: &Table,
    namespace: &str,
    text: &str,
) -> Result<Target, ExplainError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Target::Address(canonical(address)));
    }
    let no_port = || ExplainError::NoPort(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(no_port)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(no_port)?;
    let name = host_name(host, namespace);
    let snapshot = table.snapshot();
    if let Some(service) = snapshot.services.get(&name) {
        return Ok(Target::Service(Arc::clone(service), port));
    }
    match snapshot.pods.get(&name) {
        Some(pod) => Ok(Target::Pod(Arc::clone(pod), port)),
        None => Err(ExplainError::UnknownDestination(host.to_owned())),
    }
}

fn host_name(host: &str, namespace: &str) -> NamespacedName {
    if let Some((namespace, name)) = host.split_once('/') {
        return NamespacedName::new(namespace, name);
    }
    let mut labels = host.split('.');
    let name = labels.next().unwrap_or(host);
    NamespacedName::new(labels.next().unwrap_or(namespace), name)
}
