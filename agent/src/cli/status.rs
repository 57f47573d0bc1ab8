//! `fairlead status`

use std::io::Write;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer, harmless, span};
use super::table::{Cell, Table};
use super::{AgentAddress, Outcome};
use crate::admin::{
    CertificateRow, ClientError, KernelStatus, PodState, PodStatus, Severity, Status,
};

const HELP: &str = "\
Examples:
  fairlead status
  fairlead status --wait 30s     as soon as the agent is ready; for scripts
  fairlead status -A             a line for each node of the cluster

Ends with 1 where the agent is not ready or something does not work.

BYPASSING are connections from before a pod was meshed; they go on as they were. Restart
the application, or label the pod `fairlead.dev/close-existing: \"true\"`.";

/// Show how the agent is: pods, certificates, the kernel side, and what is wrong
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Wait so long for the agent to run and to be ready.
    #[arg(long, env = "FAIRLEAD_WAIT", value_parser = humantime::parse_duration, value_name = "TIME")]
    wait: Option<Duration>,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

/// Between two looks of `--wait`.
const LOOK: Duration = Duration::from_millis(100);

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        if self.nodes.all_nodes {
            return self.nodes.status(self.format.output, &mut printer).await;
        }
        let deadline = tokio::time::Instant::now() + self.wait.unwrap_or_default();
        let status = loop {
            let status = self.ask().await;
            let ready = matches!(&status, Ok(status) if status.not_ready.is_empty());
            if ready || tokio::time::Instant::now() >= deadline {
                break status?;
            }
            tokio::time::sleep(LOOK).await;
        };
        match self.format.output {
            Format::Table => print(&status, &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &status)?,
        }
        printer.flush()?;
        let errors = status
            .problems
            .iter()
            .any(|it| it.severity == Severity::Error);
        let sound = status.not_ready.is_empty() && !errors;
        Ok(if sound {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }

    async fn ask(&self) -> Result<Status, ClientError> {
        self.agent.connect().await?.status().await
    }
}

/// The status as a page of text.
pub(super) fn print<W: Write>(status: &Status, printer: &mut Printer<W>) -> anyhow::Result<()> {
    head(status, printer)?;
    pods(status, printer)?;
    section(
        printer,
        "Certificates",
        &certificates(&status.certificates, status.now),
    )?;
    if status.problems.is_empty() {
        printer.line("")?;
        printer.painted(Paint::Good, "No problems.")?;
        return Ok(());
    }
    let rows = status.problems.iter().map(|problem| {
        let severity = match problem.severity {
            Severity::Error => Cell::painted(Paint::Bad, "error"),
            Severity::Warning => Cell::painted(Paint::Warn, "warning"),
        };
        vec![
            severity,
            problem.subject.as_str().into(),
            problem.message.as_str().into(),
        ]
    });
    section(
        printer,
        "Problems",
        &(vec!["SEVERITY", "WHERE", "WHAT"], rows.collect()),
    )
}

fn head<W: Write>(status: &Status, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let styles = printer.styles;
    let source = &status.source;
    let health = match (&source.error, source.healthy, source.synced) {
        (Some(error), _, _) => styles.paint(Paint::Bad, &harmless(error)),
        (None, true, true) => styles.paint(Paint::Good, "healthy"),
        (None, _, false) => styles.paint(Paint::Warn, "not read yet"),
        (None, false, true) => styles.paint(Paint::Bad, "cannot be read"),
    };
    let ready = if status.not_ready.is_empty() {
        styles.paint(Paint::Good, "ready")
    } else {
        styles.paint(Paint::Bad, "not ready")
    };
    let lines = [
        (
            "Node",
            format!(
                "{} ({ready}), up {}, fairlead {}, trust domain {}",
                status.node,
                between(status.started, status.now),
                status.version,
                status.trust_domain
            ),
        ),
        (
            "Source",
            format!(
                "{} ({health}), revision {}: {}, {}, {}",
                source.name,
                source.revision,
                counted(source.pods, "pod", "pods"),
                counted(source.services, "service", "services"),
                counted(source.policies, "policy", "policies")
            ),
        ),
        ("Kernel", kernel(&status.kernel, printer)),
        (
            "Flows",
            format!(
                "{} open, {} lost",
                counted(status.flows.open, "connection", "connections"),
                counted(status.flows.dropped, "record", "records")
            ),
        ),
    ];
    for (name, text) in lines {
        let name = styles.paint(Paint::Strong, &format!("{name:8}"));
        printer.line(&format!("{name}{text}"))?;
    }
    for reason in &status.not_ready {
        let text = format!("        not ready: {}", harmless(reason));
        printer.painted(Paint::Bad, &text)?;
    }
    Ok(())
}

fn kernel<W: Write>(kernel: &KernelStatus, printer: &Printer<W>) -> String {
    let missing: Vec<&str> = kernel
        .features
        .iter()
        .filter(|feature| !feature.available)
        .map(|feature| feature.name.as_str())
        .collect();
    let features = if missing.is_empty() {
        printer.styles.paint(Paint::Good, "all features there")
    } else {
        let text = format!("missing: {}", missing.join(", "));
        printer.styles.paint(Paint::Bad, &text)
    };
    let counters = kernel.counters.iter().filter(|(_, value)| **value > 0);
    let mut text = format!("{} ({features})", kernel.release);
    for (name, value) in counters {
        text = format!("{text}, {name} {value}");
    }
    if kernel.events_dropped > 0 {
        text = format!("{text}, {} events lost", kernel.events_dropped);
    }
    text
}

fn pods<W: Write>(status: &Status, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let row = |pod: &PodStatus| {
        let state = match pod.state {
            PodState::Enrolled => Cell::painted(Paint::Good, "enrolled"),
            PodState::Pending => Cell::painted(Paint::Warn, "pending"),
            PodState::Failed => Cell::painted(Paint::Bad, "failed"),
            PodState::Leaving => Cell::painted(Paint::Dim, "leaving"),
        };
        let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
        let bypassing = match pod.bypassing.len() {
            0 => Cell::from("0"),
            count => Cell::painted(Paint::Warn, &count.to_string()),
        };
        vec![
            format!("{}/{}", pod.namespace, pod.name).into(),
            state,
            between(pod.since, status.now).into(),
            ips.join(",").into(),
            pod.open_connections.to_string().into(),
            bypassing,
            pod.error.as_deref().unwrap_or(&pod.identity).into(),
        ]
    };
    let headers = vec![
        "POD",
        "STATE",
        "SINCE",
        "IPS",
        "OPEN",
        "BYPASSING",
        "IDENTITY",
    ];
    let rows: Vec<_> = status.pods.iter().map(row).collect();
    if rows.is_empty() {
        printer.line("")?;
        let text =
            "No pod of this node is to be meshed: label a namespace `fairlead.dev/mesh: enabled`.";
        printer.painted(Paint::Warn, text)?;
        return Ok(());
    }
    section(printer, "Pods", &(headers, rows))?;
    for pod in &status.pods {
        for connection in &pod.bypassing {
            let text = format!("  {}/{} bypasses: {connection}", pod.namespace, pod.name);
            printer.painted(Paint::Warn, &harmless(&text))?;
        }
        if pod.refused_connections > 0 {
            let refused = counted(pod.refused_connections, "connection", "connections");
            let pod = format!("{}/{}", pod.namespace, pod.name);
            let text = format!("  {pod} had too many open: {refused} refused");
            printer.painted(Paint::Warn, &harmless(&text))?;
        }
    }
    Ok(())
}

/// Column names and rows.
type Rows = (Vec<&'static str>, Vec<Vec<Cell>>);

/// The certificates and how long they last.
pub(super) fn certificates(all: &[CertificateRow], now: Timestamp) -> Rows {
    let row = |it: &CertificateRow| {
        let paint = match it.state.as_str() {
            "valid" => Paint::Good,
            "stale" | "fetching" => Paint::Warn,
            _ => Paint::Bad,
        };
        let expires = match it.not_after {
            Some(end) if end > now => format!("in {}", between(now, end)),
            Some(end) => format!("{} ago", between(end, now)),
            None => "-".to_owned(),
        };
        vec![
            it.identity.as_str().into(),
            Cell::painted(paint, &it.state),
            expires.into(),
            it.serial.as_deref().unwrap_or("-").into(),
            it.error
                .as_deref()
                .or(it.issuer.as_deref())
                .unwrap_or("-")
                .into(),
        ]
    };
    let headers = vec!["IDENTITY", "STATE", "EXPIRES", "SERIAL", "ISSUER"];
    (headers, all.iter().map(row).collect())
}

/// A titled table; nothing where it has no rows.
fn section<W: Write>(printer: &mut Printer<W>, title: &str, rows: &Rows) -> anyhow::Result<()> {
    if rows.1.is_empty() {
        return Ok(());
    }
    printer.line("")?;
    printer.painted(Paint::Strong, title)?;
    table(printer, rows, "  ")
}

/// The table's lines, indented.
pub(super) fn table<W: Write>(
    printer: &mut Printer<W>,
    (headers, rows): &Rows,
    indent: &str,
) -> anyhow::Result<()> {
    let mut table = Table::new(headers);
    for row in rows {
        table.push(row.clone());
    }
    let header = table.header(printer.styles);
    printer.line(&format!("{indent}{header}"))?;
    for line in table.take_rows(printer.styles) {
        printer.line(&format!("{indent}{line}"))?;
    }
    Ok(())
}

fn counted(count: impl TryInto<u64>, one: &str, many: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

pub(super) fn between(from: Timestamp, to: Timestamp) -> String {
    let milliseconds = to.duration_since(from).as_millis();
    span(u64::try_from(milliseconds).unwrap_or(0))
}
