//! `fairlead flows`

use std::io::Write;
use std::time::Duration;

use clap::Args;
use jiff::tz::TimeZone;

use super::filters::FilterFlags;
use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer, bytes, span};
use super::shown;
use super::table::{Cell, Table};
use super::{AgentAddress, Outcome};
use crate::admin::FlowLine;
use crate::flow::{Filter, FlowEvent, RecordKind};

const HELP: &str = "\
Examples:
  fairlead flows --last 20                      the newest 20
  fairlead flows -f --verdict denied            what is refused, as it happens, and by which rule
  fairlead flows --pod shop/web-1 --since 5m    all of one pod in the last five minutes
  fairlead flows -f --status 5xx                requests that fail, as they end
  fairlead flows --path /cart --min-latency 1s  slow requests to /cart and below
  fairlead flows --path '/v1/*/items' --method GET,HEAD
  fairlead flows -f -o json | jq .reason        one object a line
  fairlead flows -A -f -n shop                  of all nodes of the cluster

A connection is shown when it has ended, and each HTTP request that it carried when that has;
one between two pods of this node is shown once, as outbound. SENT is what the client sent,
RECEIVED what it got back: of requests the bodies. Paths are shown without their queries;
`fairlead tap --headers` shows more of live requests.";

/// Show connections and requests: who asked whom, whether it was permitted, and by which rule
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Go on with new ones as they end.
    #[arg(short, long, env = "FAIRLEAD_FOLLOW")]
    follow: bool,
    /// Only records of connections, or only those of requests.
    #[arg(long, env = "FAIRLEAD_KIND")]
    kind: Option<RecordKind>,
    #[command(flatten)]
    filter: FilterFlags,
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
            kind: self.kind,
            since: self.since,
            last: self.last,
            ..self.filter.filter()
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
            "PROTOCOL",
            "TLS",
            "VERDICT",
            "STATUS",
            "REQUEST",
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
            self.printer
                .painted(Paint::Dim, "no connection or request matches")?;
        }
        Ok(self.printer)
    }
}

fn row(event: &FlowEvent, zone: &TimeZone) -> Vec<Cell> {
    let time = event.time.to_zoned(zone.clone());
    let none = || Cell::painted(Paint::Dim, "-");
    let http = event.http.as_ref();
    vec![
        Cell::painted(Paint::Dim, &time.strftime("%H:%M:%S%.3f").to_string()),
        event.direction.as_str().into(),
        shown::source(&event.source).into(),
        "->".into(),
        shown::destination(&event.destination).into(),
        event.protocol.as_str().into(),
        shown::tls(event),
        shown::verdict(event.verdict),
        http.map_or_else(none, shown::status),
        http.map_or_else(none, |http| shown::request(http).into()),
        bytes(event.bytes_sent).into(),
        bytes(event.bytes_received).into(),
        span(event.duration_ms).into(),
        shown::reason(event).into(),
    ]
}
