//! Routes, endpoints and `TrafficPolicies`, as `fairlead get` lists them.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::objects::Object;
use super::view::View;
use crate::policy::balance::{EndpointFigures, Health};
use crate::policy::{describe_match, describe_traffic};
use crate::state::traffic::{TargetedPort, TrafficPolicy, TrafficTarget};
use crate::state::{BackendRef, Endpoint, ParentRef, Route, RouteFilter, RouteRule, Snapshot};

/// An endpoint of a port of a Service. What this node's pods have not sent requests to has
/// no health, load and latency here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service.
    pub service: String,
    /// The port that clients dial.
    pub port: u16,
    /// The endpoint.
    pub address: SocketAddr,
    /// Its pod, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Where that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Kubernetes says that it can be sent requests.
    pub ready: bool,
    /// What its balancer says of it, on one node.
    #[serde(flatten)]
    pub load: Option<EndpointLoad>,
}

/// How an endpoint is, as a node sees it that sends it requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointLoad {
    /// Who says so.
    pub seen_by: String,
    /// `healthy`, `slow_start` or `ejected`.
    pub health: String,
    /// Until it is back, where it is ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected_for_ms: Option<u64>,
    /// How often in a row it was ejected.
    pub ejections: u32,
    /// Requests in flight.
    pub in_flight: u32,
    /// Recent latency, of which peaks count for longer.
    pub latency_us: u64,
    /// Requests since it is known.
    pub requests: u64,
    /// Those of them that failed.
    pub failures: u64,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// `HTTPRoute`, `GRPCRoute`, `TLSRoute` or `TCPRoute`.
    pub route: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Services that it is of, `namespace/name:port`.
    pub parents: Vec<String>,
    /// The names that clients of a `TLSRoute` ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// Its rules.
    pub rules: Vec<RouteRuleRow>,
    /// Parents that it is not of, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A rule of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRuleRow {
    /// Its name, or its number.
    pub rule: String,
    /// What it matches, in words; any of these.
    pub matches: Vec<String>,
    /// The kinds of its filters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<String>,
    /// Where its requests go.
    pub backends: Vec<BackendRow>,
    /// What of it was not understood; it answers 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
}

/// A back end of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRow {
    /// `namespace/name:port`.
    pub backend: String,
    /// Its weight.
    pub weight: u32,
    /// Why its share of the requests gets 500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
}

/// A `TrafficPolicy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficPolicyRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Services that it is for, with their port where it is for one alone.
    pub targets: Vec<String>,
    /// What it says, in sentences.
    pub settings: Vec<String>,
    /// What of it was not understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
}

/// The endpoints of Services of a namespace, or of all.
pub(super) fn endpoints(namespace: &str, snapshot: &Snapshot, view: &dyn View) -> Vec<Object> {
    let node = view.status().node;
    let loads = view.loads();
    let known: HashMap<_, &EndpointFigures> = loads
        .iter()
        .flat_map(|load| {
            let of = move |it: &EndpointFigures| (load.service.clone(), load.port, it.address);
            load.endpoints.iter().map(move |it| (of(it), it))
        })
        .collect();
    let all = snapshot.endpoints.iter();
    let all = all.filter(|((service, _), _)| is_of(namespace, &service.namespace));
    let rows = all.flat_map(|((service, port), endpoints)| {
        let known = &known;
        let node = &node;
        endpoints.iter().map(move |endpoint: &Endpoint| {
            let address = SocketAddr::new(endpoint.ip, endpoint.port);
            let pod = snapshot.pods_by_ip.get(&endpoint.ip);
            let figures = known.get(&(service.clone(), *port, address));
            Object::Endpoint(EndpointRow {
                namespace: service.namespace.to_string(),
                service: service.name.to_string(),
                port: *port,
                address,
                pod: pod.map(|pod| pod.name.to_string()),
                node: pod.and_then(|pod| pod.node.as_ref().map(ToString::to_string)),
                ready: endpoint.ready,
                load: figures.map(|it| load(node, it)),
            })
        })
    });
    rows.collect()
}

fn load(node: &str, of: &EndpointFigures) -> EndpointLoad {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    EndpointLoad {
        seen_by: node.to_owned(),
        health: match of.health {
            Health::Healthy => "healthy",
            Health::SlowStart => "slow_start",
            Health::Ejected => "ejected",
        }
        .to_owned(),
        ejected_for_ms: of.ejected_for.map(millis),
        ejections: of.ejections,
        in_flight: of.in_flight,
        latency_us: u64::try_from(of.latency.as_micros()).unwrap_or(u64::MAX),
        requests: of.requests,
        failures: of.failures,
    }
}

/// The routes of a namespace, or all.
pub(super) fn routes(namespace: &str, snapshot: &Snapshot) -> Vec<Object> {
    let all = snapshot.routes.values();
    let all = all.filter(|route| is_of(namespace, &route.name.namespace));
    all.map(|route| Object::Route(route_row(route, snapshot)))
        .collect()
}

fn route_row(route: &Route, snapshot: &Snapshot) -> RouteRow {
    let rules = route.rules.iter().enumerate();
    let problem = |parent: &ParentRef| {
        let why = snapshot.ports_of_parent(parent).err()?;
        Some(format!("{}: {why}", parent_name(parent)))
    };
    RouteRow {
        route: route.kind.object().as_str().to_owned(),
        namespace: route.name.namespace.to_string(),
        name: route.name.name.to_string(),
        parents: route.parents.iter().map(parent_name).collect(),
        hostnames: route.hostnames.iter().map(ToString::to_string).collect(),
        rules: rules
            .map(|(index, rule)| rule_row(route, (index, rule), snapshot))
            .collect(),
        problems: route.parents.iter().filter_map(problem).collect(),
    }
}

fn parent_name(parent: &ParentRef) -> String {
    let service = &parent.service;
    match (&parent.section, parent.port) {
        (Some(section), _) => format!("{service}:{section}"),
        (None, Some(port)) => format!("{service}:{port}"),
        (None, None) => service.to_string(),
    }
}

fn rule_row(
    route: &Route,
    (index, rule): (usize, &RouteRule),
    snapshot: &Snapshot,
) -> RouteRuleRow {
    let backend = |of: &BackendRef| {
        let reference = &of.reference;
        let invalid = of.invalid.as_ref().map(|it| it.message.to_string());
        let invalid = invalid.or_else(|| {
            let resolved = snapshot.resolve(route, reference);
            resolved.err().map(|why| why.to_string())
        });
        BackendRow {
            backend: match reference.port {
                Some(port) => format!("{}:{port}", reference.name),
                None => reference.name.to_string(),
            },
            weight: of.weight,
            invalid,
        }
    };
    let invalid = [&rule.invalid, &rule.left_out].into_iter().flatten();
    let invalid: Vec<&str> = invalid.map(|it| &*it.message).collect();
    RouteRuleRow {
        rule: match &rule.name {
            Some(name) => name.to_string(),
            None => index.to_string(),
        },
        matches: rule.matches.iter().map(describe_match).collect(),
        filters: rule.filters.iter().map(filter_kind).collect(),
        backends: rule.backends.iter().map(backend).collect(),
        invalid: (!invalid.is_empty()).then(|| invalid.join("; ")),
    }
}

fn filter_kind(filter: &RouteFilter) -> String {
    match filter {
        RouteFilter::RequestHeaders(_) => "RequestHeaderModifier",
        RouteFilter::ResponseHeaders(_) => "ResponseHeaderModifier",
        RouteFilter::Redirect(_) => "RequestRedirect",
        RouteFilter::Rewrite(_) => "URLRewrite",
        RouteFilter::Cors(_) => "CORS",
        RouteFilter::Mirror(_) => "RequestMirror",
    }
    .to_owned()
}

/// The `TrafficPolicies` of a namespace, or all.
pub(super) fn traffic_policies(namespace: &str, snapshot: &Snapshot) -> Vec<Object> {
    let all = snapshot.traffic_policies.values();
    let all = all.filter(|policy| is_of(namespace, &policy.name.namespace));
    all.map(|policy| Object::TrafficPolicy(traffic_policy_row(policy)))
        .collect()
}

fn traffic_policy_row(policy: &TrafficPolicy) -> TrafficPolicyRow {
    let target = |of: &TrafficTarget| match &of.port {
        Some(TargetedPort::Number(port)) => format!("{}:{port}", of.service),
        Some(TargetedPort::Name(name)) => format!("{}:{name}", of.service),
        None => of.service.to_string(),
    };
    TrafficPolicyRow {
        namespace: policy.name.namespace.to_string(),
        name: policy.name.name.to_string(),
        targets: policy.targets.iter().map(target).collect(),
        settings: describe_traffic(policy),
        invalid: policy.invalid.clone(),
    }
}

fn is_of(wanted: &str, namespace: &str) -> bool {
    wanted.is_empty() || wanted == namespace
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use serde::Deserialize as _;
    use serde_json::{Value, json};

    use super::super::objects::{Kind, list};
    use super::super::view::ServiceLoad;
    use super::*;
    use crate::admin::Status;
    use crate::cluster::convert::{Converter, NetnsFrom};
    use crate::model::TrustDomain;
    use crate::policy::Table;
    use crate::state::fixtures::{World, name};

    const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.5]}, {addresses: [10.1.0.6], conditions: {ready: false}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs:
  - {name: web, group: '', kind: Service, port: 80}
  - {name: none, group: '', kind: Service}
  rules:
  - matches: [{path: {value: /api}, method: GET}, {headers: [{name: x-beta, value: 'yes'}]}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}]
    backendRefs: [{name: web, port: 80, weight: 9}, {name: gone, port: 80, weight: 1}]
";

    #[derive(Debug)]
    struct Node(Arc<Table>);

    impl View for Node {
        fn status(&self) -> Status {
            crate::admin::tests::status()
        }

        fn usage(&self) -> crate::admin::Usage {
            crate::admin::Usage::default()
        }

        fn table(&self) -> Arc<Table> {
            Arc::clone(&self.0)
        }

        fn loads(&self) -> Vec<ServiceLoad> {
            vec![ServiceLoad {
                service: name("shop/web"),
                port: 80,
                endpoints: vec![EndpointFigures {
                    address: ([10, 1, 0, 5], 8080).into(),
                    health: Health::Ejected,
                    ejected_for: Some(Duration::from_secs(12)),
                    ejections: 2,
                    in_flight: 3,
                    latency: Duration::from_micros(1500),
                    requests: 100,
                    failures: 7,
                }],
            }]
        }
    }

    fn listed(kind: Kind) -> Value {
        let trust_domain = TrustDomain("cluster.local".into());
        let mut converter = Converter::new(trust_domain, NetnsFrom::Annotation);
        let mut world = World::new([]);
        for document in serde_yaml_ng::Deserializer::from_str(MANIFESTS) {
            let value = Value::deserialize(document).unwrap();
            if let Some(object) = converter.value(&value).object {
                world.put(object);
            }
        }
        let view = Node(Arc::new(Table::compile(None, world.now())));
        let objects = list(kind, "shop", &view);
        assert!(list(kind, "bank", &view).is_empty());
        let json = serde_json::to_string(&objects).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Object>>(&json).unwrap(), objects);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn endpoints_have_health_and_load_where_they_are_known() {
        let expected = json!([
            {
                "kind": "Endpoint", "namespace": "shop", "service": "web", "port": 80,
                "address": "10.1.0.5:8080", "ready": true, "seen_by": "node-a",
                "health": "ejected", "ejected_for_ms": 12000, "ejections": 2, "in_flight": 3,
                "latency_us": 1500, "requests": 100, "failures": 7,
            },
            {
                "kind": "Endpoint", "namespace": "shop", "service": "web", "port": 80,
                "address": "10.1.0.6:8080", "ready": false,
            },
        ]);
        assert_eq!(listed(Kind::Endpoints), expected);
    }

    #[test]
    fn routes_say_what_is_wrong_with_them() {
        let expected = json!([{
            "kind": "Route", "route": "HTTPRoute", "namespace": "shop", "name": "web",
            "parents": ["shop/web:80", "shop/none"],
            "rules": [{
                "rule": "0",
                "matches": ["path /api and below, method GET", "any path, header x-beta: yes"],
                "filters": ["RequestHeaderModifier"],
                "backends": [
                    {"backend": "shop/web:80", "weight": 9},
                    {
                        "backend": "shop/gone:80", "weight": 1,
                        "invalid": "there is no Service shop/gone",
                    },
                ],
            }],
            "problems": ["shop/none: there is no such Service"],
        }]);
        assert_eq!(listed(Kind::Routes), expected);
    }
}
