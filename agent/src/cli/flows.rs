//! `fairlead flows`

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;

use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer, bytes, span};
use super::table::{Cell, Table};
use super::{AgentAddress, Outcome};
use crate::admin::FlowLine;
use crate::flow::{
    Destination, Direction, Filter, FlowEvent, FlowProtocol, PodFilter, Source, TlsState, Verdict,
};

const HELP: &str = "\
Examples:
  fairlead flows --last 20                      the newest 20
  fairlead flows -f --verdict denied            what is refused, as it happens, and by which rule
  fairlead flows --pod shop/web-1 --since 5m    all of one pod in the last five minutes
  fairlead flows -f -o json | jq .reason        one object a line
  fairlead flows -A -f -n shop                  of all nodes of the cluster

SENT is what the client sent, RECEIVED what it got back. A connection is shown when it
has ended; one between two pods of this node is shown once, as outbound.";

/// Show connections: who talked to whom, whether it was permitted, and by which rule
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Go on with new ones as they end.
    #[arg(short, long, env = "FAIRLEAD_FOLLOW")]
    follow: bool,
    /// Only with the client or the server in this namespace.
    #[arg(short, long, env = "FAIRLEAD_NAMESPACE")]
    namespace: Option<String>,
    /// Only with this pod at either end.
    #[arg(short, long, env = "FAIRLEAD_POD", value_name = "[NAMESPACE/]NAME")]
    pod: Option<PodFilter>,
    /// Only to this Service.
    #[arg(short, long, env = "FAIRLEAD_SERVICE", value_name = "[NAMESPACE/]NAME")]
    service: Option<PodFilter>,
    /// Only to this port, as the client dialled it.
    #[arg(long, env = "FAIRLEAD_PORT")]
    port: Option<u16>,
    /// Only those that ended so.
    #[arg(long, env = "FAIRLEAD_VERDICT")]
    verdict: Option<Verdict>,
    /// Only those that were reported from this side.
    #[arg(long, env = "FAIRLEAD_DIRECTION")]
    direction: Option<Direction>,
    /// Only those that carried this.
    #[arg(long, env = "FAIRLEAD_PROTOCOL")]
    protocol: Option<FlowProtocol>,
    /// Only those that ended within this time, such as 30s, 5m or 2h.
    #[arg(long, env = "FAIRLEAD_SINCE", value_parser = humantime::parse_duration, value_name = "TIME")]
    since: Option<Duration>,
    /// At most so many of those that have ended, the newest.
    #[arg(short = 'l', long, env = "FAIRLEAD_LAST", value_name = "N")]
    last: Option<usize>,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

impl Command {
    pub(super) async fn run<W: Write>(self, printer: Printer<W>) -> anyhow::Result<Outcome> {
        let mut view = View::new(printer, self.format.output, TimeZone::system());
        if self.nodes.all_nodes {
            return self.nodes.flows(&self.filter(), self.follow, view).await;
        }
        let mut client = self.agent.connect().await?;
        let mut lines = client.flows(&self.filter(), self.follow).await?;
        while let Some(line) = lines.next().await? {
            view.add(&line)?;
            if self.follow {
                view.flush()?;
            }
        }
        view.finish()?;
        Ok(Outcome::Done)
    }

    fn filter(&self) -> Filter {
        Filter {
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            service: self.service.clone(),
            port: self.port,
            verdict: self.verdict,
            direction: self.direction,
            protocol: self.protocol,
            since: self.since,
            last: self.last,
        }
    }
}

/// Prints records as they come.
#[derive(Debug)]
pub(super) struct View<W> {
    printer: Printer<W>,
    format: Format,
    zone: TimeZone,
    table: Table,
    headed: bool,
}

impl<W: Write> View<W> {
    pub(super) fn new(printer: Printer<W>, format: Format, zone: TimeZone) -> Self {
        let table = Table::new(&[
            "TIME",
            "DIRECTION",
            "SOURCE",
            "",
            "DESTINATION",
            "TLS",
            "VERDICT",
            "SENT",
            "RECEIVED",
            "DURATION",
            "REASON",
        ]);
        Self {
            printer,
            format,
            zone,
            table,
            headed: false,
        }
    }

    /// Takes one; the table shows it at the next [`View::flush`].
    pub(super) fn add(&mut self, line: &FlowLine) -> anyhow::Result<()> {
        match (line, self.format) {
            (FlowLine::Flow(event, _), Format::Table) => {
                self.table.push(row(event, &self.zone));
            }
            (FlowLine::Flow(_, json), Format::Json) => self.printer.line(json)?,
            (FlowLine::Flow(event, _), Format::Yaml) => {
                self.printer.line("---")?;
                self.printer.value(Format::Yaml, event)?;
            }
            (FlowLine::Missed(count), Format::Table) => {
                self.flush()?;
                let text = format!("{count} records went by unseen: this side read too slowly");
                self.printer.painted(Paint::Warn, &text)?;
            }
            (FlowLine::Missed(count), Format::Json) => {
                self.printer.line(&format!("{{\"missed\":{count}}}"))?;
            }
            (FlowLine::Missed(count), Format::Yaml) => {
                self.printer.line(&format!("---\nmissed: {count}"))?;
            }
        }
        Ok(())
    }

    /// Shows what was added.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        if !self.table.is_empty() && !self.headed {
            self.headed = true;
            let header = self.table.header(self.printer.styles);
            self.printer.line(&header)?;
        }
        for line in self.table.take_rows(self.printer.styles) {
            self.printer.line(&line)?;
        }
        Ok(self.printer.flush()?)
    }

    pub(super) fn finish(mut self) -> anyhow::Result<Printer<W>> {
        self.flush()?;
        if self.format == Format::Table && !self.headed {
            self.printer.painted(Paint::Dim, "no connection matches")?;
        }
        Ok(self.printer)
    }
}

fn row(event: &FlowEvent, zone: &TimeZone) -> Vec<Cell> {
    let time = event.time.to_zoned(zone.clone());
    let tls = match (event.tls, event.verdict) {
        (TlsState::Mtls, _) => Cell::painted(Paint::Good, "mtls"),
        (TlsState::None, Verdict::Forwarded) => Cell::painted(Paint::Warn, "none"),
        (TlsState::None, Verdict::Denied | Verdict::Failed) => Cell::painted(Paint::Dim, "none"),
        (TlsState::Passthrough, _) => Cell::from("passthrough"),
    };
    let verdict = match event.verdict {
        Verdict::Forwarded => Paint::Good,
        Verdict::Denied => Paint::Bad,
        Verdict::Failed => Paint::Warn,
    };
    vec![
        Cell::painted(Paint::Dim, &time.strftime("%H:%M:%S%.3f").to_string()),
        event.direction.as_str().into(),
        source(&event.source).into(),
        "->".into(),
        destination(&event.destination).into(),
        tls,
        Cell::painted(verdict, event.verdict.as_str()),
        bytes(event.bytes_sent).into(),
        bytes(event.bytes_received).into(),
        span(event.duration_ms).into(),
        reason(event).into(),
    ]
}

fn source(source: &Source) -> String {
    match (&source.namespace, &source.pod, source.ip) {
        (Some(namespace), Some(pod), _) => format!("{namespace}/{pod}"),
        (_, _, Some(ip)) => ip.to_string(),
        (_, _, None) => "unknown".to_owned(),
    }
}

fn destination(to: &Destination) -> String {
    let port = to.port;
    let pod = match (&to.namespace, &to.pod) {
        (Some(namespace), Some(pod)) => Some(format!("{namespace}/{pod}")),
        _ => None,
    };
    let address = to
        .ip
        .map(|ip: IpAddr| SocketAddr::new(ip, port).to_string());
    match (pod, &to.service, address) {
        (Some(pod), Some(service), _) => format!("{pod}:{port} ({service})"),
        (Some(pod), None, _) => format!("{pod}:{port}"),
        (None, Some(service), Some(address)) => format!("{address} ({service})"),
        (None, None, Some(address)) => address,
        (None, Some(service), None) => format!("{service}:{port}"),
        (None, None, None) => format!("unknown:{port}"),
    }
}

fn reason(event: &FlowEvent) -> String {
    let mut reason = event.reason.clone();
    if let Some(policy) = &event.policy {
        reason = format!("{reason} by {policy}");
    }
    if !event.audit.is_empty() {
        reason = format!("{reason} (audit: {})", event.audit.join(", "));
    }
    reason
}

macro_rules! value_enum {
    ($type:ty) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                Some(self.as_str().into())
            }
        }
    };
}

value_enum!(Verdict);
value_enum!(Direction);
value_enum!(FlowProtocol);
value_enum!(crate::admin::Kind);
