//! Kubernetes' objects with the fields that the mesh reads. All others are passed over
//! without being kept; text is borrowed from what it was read from.

use std::borrow::{Borrow, Cow};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, Visitor};

/// Text, borrowed where it has no escapes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Text<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Labels or a selector.
pub(super) type Labels<'a> = BTreeMap<Text<'a>, Text<'a>>;

/// The value of a label.
pub(super) fn label<'l>(labels: &'l Labels<'_>, key: &str) -> Option<&'l str> {
    labels.get(key).map(|value| &**value)
}

/// `metadata`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    pub(super) namespace: Option<Text<'a>>,
    pub(super) uid: Option<Text<'a>>,
    pub(super) resource_version: Option<Text<'a>>,
    pub(super) labels: Option<Labels<'a>>,
    pub(super) annotations: Option<Annotations<'a>>,
    pub(super) owner_references: Option<Vec<Owner<'a>>>,
    pub(super) deletion_timestamp: Option<IgnoredAny>,
}

/// The annotations that mean something.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Annotations<'a> {
    #[serde(borrow, rename = "fairlead.dev/netns")]
    pub(super) netns: Option<Text<'a>>,
    #[serde(rename = "fairlead.dev/exclude-outbound-ports")]
    pub(super) exclude_outbound_ports: Option<Text<'a>>,
    #[serde(rename = "fairlead.dev/exclude-outbound-cidrs")]
    pub(super) exclude_outbound_cidrs: Option<Text<'a>>,
    #[serde(rename = "fairlead.dev/exclude-inbound-ports")]
    pub(super) exclude_inbound_ports: Option<Text<'a>>,
    #[serde(rename = "fairlead.dev/opaque-ports")]
    pub(super) opaque_ports: Option<Text<'a>>,
    #[serde(rename = "fairlead.dev/close-existing")]
    pub(super) close_existing: Option<Text<'a>>,
    #[serde(rename = "kubernetes.io/config.hash")]
    pub(super) config_hash: Option<Text<'a>>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) config_mirror: Option<IgnoredAny>,
}

impl Annotations<'_> {
    /// The kubelet names a static pod by a hash of its configuration, and says so on the
    /// object that mirrors it.
    pub(super) fn static_uid(&self) -> Option<&str> {
        let hash = self.config_hash.as_deref();
        hash.filter(|_| self.config_mirror.is_some())
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Owner<'a> {
    #[serde(borrow)]
    pub(super) kind: Option<Text<'a>>,
    pub(super) name: Option<Text<'a>>,
    pub(super) controller: Option<bool>,
}

/// An object of any kind, as far as they are all alike.
#[derive(Debug, Deserialize)]
pub(super) struct AnyObject<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<Metadata<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Namespace<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<Metadata<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pod<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<Metadata<'a>>,
    pub(super) spec: Option<PodSpec<'a>>,
    pub(super) status: Option<PodStatus<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec<'a> {
    #[serde(borrow)]
    pub(super) node_name: Option<Text<'a>>,
    pub(super) service_account_name: Option<Text<'a>>,
    pub(super) host_network: Option<bool>,
    pub(super) runtime_class_name: Option<Text<'a>>,
    pub(super) containers: Option<Vec<Container<'a>>>,
    pub(super) init_containers: Option<Vec<Container<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container<'a> {
    #[serde(borrow)]
    pub(super) restart_policy: Option<Text<'a>>,
    pub(super) ports: Option<Vec<ContainerPort<'a>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ContainerPort<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    pub(super) protocol: Option<Text<'a>>,
    #[serde(rename = "containerPort")]
    pub(super) number: Option<i32>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PodStatus<'a> {
    #[serde(borrow)]
    pub(super) phase: Option<Text<'a>>,
    #[serde(rename = "podIP")]
    pub(super) ip: Option<Text<'a>>,
    #[serde(rename = "podIPs")]
    pub(super) ips: Option<Vec<PodIp<'a>>>,
    pub(super) conditions: Option<Vec<Condition<'a>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PodIp<'a> {
    #[serde(borrow)]
    pub(super) ip: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Condition<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Option<Text<'a>>,
    pub(super) status: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Service<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<Metadata<'a>>,
    pub(super) spec: Option<ServiceSpec<'a>>,
    pub(super) status: Option<ServiceStatus<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSpec<'a> {
    #[serde(borrow, rename = "type")]
    pub(super) kind: Option<Text<'a>>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<Text<'a>>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Option<Vec<Text<'a>>>,
    #[serde(rename = "externalIPs")]
    pub(super) external_ips: Option<Vec<Text<'a>>>,
    pub(super) ports: Option<Vec<ServicePort<'a>>>,
    pub(super) selector: Option<Labels<'a>>,
    pub(super) publish_not_ready_addresses: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus<'a> {
    #[serde(borrow)]
    pub(super) load_balancer: Option<LoadBalancer<'a>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LoadBalancer<'a> {
    #[serde(borrow)]
    pub(super) ingress: Option<Vec<Ingress<'a>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ingress<'a> {
    #[serde(borrow)]
    pub(super) ip: Option<Text<'a>>,
    pub(super) ip_mode: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    pub(super) protocol: Option<Text<'a>>,
    pub(super) port: Option<i32>,
    pub(super) target_port: Option<NumberOrName<'a>>,
    pub(super) node_port: Option<i32>,
    pub(super) app_protocol: Option<Text<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice<'a> {
    #[serde(borrow)]
    pub(super) metadata: Option<Metadata<'a>>,
    pub(super) address_type: Option<Text<'a>>,
    pub(super) ports: Option<Vec<EndpointPort<'a>>>,
    pub(super) endpoints: Option<Vec<Endpoint<'a>>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointPort<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    pub(super) protocol: Option<Text<'a>>,
    pub(super) port: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint<'a> {
    #[serde(borrow)]
    pub(super) addresses: Option<Vec<Text<'a>>>,
    pub(super) zone: Option<Text<'a>>,
    pub(super) node_name: Option<Text<'a>>,
    pub(super) conditions: Option<EndpointConditions>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointConditions {
    pub(super) ready: Option<bool>,
}

/// A `targetPort`.
#[derive(Debug)]
pub(super) enum NumberOrName<'a> {
    Number(i32),
    Name(Cow<'a, str>),
}

impl<'de: 'a, 'a> Deserialize<'de> for NumberOrName<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ReadNumberOrName)
    }
}

struct ReadNumberOrName;

impl<'de> Visitor<'de> for ReadNumberOrName {
    type Value = NumberOrName<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the number or the name of a port")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        // What is too large for a port is reported as a port that makes no sense.
        Ok(NumberOrName::Number(i32::try_from(number).unwrap_or(-1)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(NumberOrName::Number(i32::try_from(number).unwrap_or(-1)))
    }

    fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(NumberOrName::Name(Cow::Borrowed(name)))
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(NumberOrName::Name(Cow::Owned(name.to_owned())))
    }
}
