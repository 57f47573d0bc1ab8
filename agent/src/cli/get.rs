//! `fairlead get`

use std::io::Write;

use clap::Args;
use jiff::Timestamp;

use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer};
use super::status::{certificates, table};
use super::table::Cell;
use super::{AgentAddress, Outcome, get_routing};
use crate::admin::{CertificateRow, Kind, Object, PolicyRow, ServiceRow, WorkloadRow};

const HELP: &str = "\
Examples:
  fairlead get workloads               every pod that the agent knows, and who is meshed
  fairlead get services -n shop        services and the pods that serve them
  fairlead get endpoints -n shop       who serves, with health, load, latency and ejections
  fairlead get endpoints -A            the same as each node sees it that sends requests there
  fairlead get routes                  rules of routes, with what they match and where they lead
  fairlead get traffic-policies        what holds for the traffic to Services
  fairlead get policies -o yaml        policies as the agent understood them
  fairlead get certificates            certificates of this node and when they end
  fairlead get certificates -A         those of all nodes of the cluster";

/// List objects as the agent sees them
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// What to list.
    kind: Kind,
    /// Only of this namespace.
    #[arg(short, long, env = "FAIRLEAD_NAMESPACE")]
    namespace: Option<String>,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let namespace = self.namespace.unwrap_or_default();
        if self.nodes.all_nodes {
            let what = (self.kind, namespace.as_str());
            return self.nodes.get(what, self.format.output, &mut printer).await;
        }
        let mut client = self.agent.connect().await?;
        let objects = client.get(self.kind, &namespace).await?;
        match self.format.output {
            Format::Table => print(self.kind, &objects, Timestamp::now(), &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &objects)?,
        }
        printer.flush()?;
        Ok(Outcome::Done)
    }
}

/// The objects as a table.
pub(super) fn print<W: Write>(
    kind: Kind,
    objects: &[Object],
    now: Timestamp,
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    if objects.is_empty() {
        return Ok(printer.painted(Paint::Dim, &format!("no {kind}"))?);
    }
    let headers = match kind {
        Kind::Workloads => vec![
            "POD", "WORKLOAD", "NODE", "IPS", "READY", "MESHED", "IDENTITY",
        ],
        Kind::Services => vec!["SERVICE", "IPS", "PORT", "ENDPOINTS"],
        Kind::Endpoints => get_routing::ENDPOINTS.to_vec(),
        Kind::Routes => get_routing::ROUTES.to_vec(),
        Kind::TrafficPolicies => get_routing::TRAFFIC_POLICIES.to_vec(),
        Kind::Policies => vec!["KIND", "POLICY", "APPLIES TO", "ACTION", "INVALID"],
        Kind::Certificates => {
            let rows: Vec<CertificateRow> = objects.iter().filter_map(certificate).collect();
            return table(printer, &certificates(&rows, now), "");
        }
    };
    let rows = objects.iter().flat_map(|object| match object {
        Object::Workload(row) => vec![workload(row)],
        Object::Service(row) => service(row),
        Object::Endpoint(row) => vec![get_routing::endpoint(row)],
        Object::Route(row) => get_routing::route(row),
        Object::Policy(row) => vec![policy(row)],
        Object::TrafficPolicy(row) => vec![get_routing::traffic_policy(row)],
        Object::Certificate(_) => Vec::new(),
    });
    table(printer, &(headers, rows.collect()), "")
}

fn certificate(object: &Object) -> Option<CertificateRow> {
    match object {
        Object::Certificate(row) => Some(row.clone()),
        Object::Workload(_)
        | Object::Service(_)
        | Object::Endpoint(_)
        | Object::Route(_)
        | Object::Policy(_)
        | Object::TrafficPolicy(_) => None,
    }
}

fn workload(row: &WorkloadRow) -> Vec<Cell> {
    let yes = |value| {
        if value {
            Cell::painted(Paint::Good, "yes")
        } else {
            Cell::painted(Paint::Warn, "no")
        }
    };
    vec![
        format!("{}/{}", row.namespace, row.pod).into(),
        row.workload.as_str().into(),
        row.node.as_deref().unwrap_or("-").into(),
        joined(&row.ips),
        yes(row.ready),
        yes(row.meshed),
        row.identity.as_str().into(),
    ]
}

fn service(row: &ServiceRow) -> Vec<Vec<Cell>> {
    let ips = if row.cluster_ips.is_empty() {
        Cell::painted(Paint::Dim, "headless")
    } else {
        joined(&row.cluster_ips)
    };
    let line = |port: &crate::admin::ServicePortRow| {
        let endpoint = |it: &crate::admin::ServiceEndpoint| {
            let who = it.pod.clone().unwrap_or_else(|| it.ip.to_string());
            let unready = if it.ready { "" } else { " (not ready)" };
            format!("{who}:{}{unready}", it.port)
        };
        let mut endpoints: Vec<String> = port.endpoints.iter().map(endpoint).collect();
        // A pod has an endpoint for each of its addresses.
        endpoints.sort();
        endpoints.dedup();
        let endpoints = if endpoints.is_empty() {
            Cell::painted(Paint::Warn, "none")
        } else {
            endpoints.join(", ").into()
        };
        vec![
            format!("{}/{}", row.namespace, row.name).into(),
            ips.clone(),
            port.port.to_string().into(),
            endpoints,
        ]
    };
    row.ports.iter().map(line).collect()
}

fn policy(row: &PolicyRow) -> Vec<Cell> {
    let invalid = match &row.invalid {
        Some(text) => Cell::painted(Paint::Bad, text),
        None => Cell::from("-"),
    };
    vec![
        row.policy.as_str().into(),
        format!("{}/{}", row.namespace, row.name).into(),
        row.applies_to.as_str().into(),
        row.action.as_str().into(),
        invalid,
    ]
}

fn joined<T: ToString>(items: &[T]) -> Cell {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(",").into()
}
