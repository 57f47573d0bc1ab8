//! `fairlead tap`

use std::io::Write;

use clap::Args;
use jiff::tz::TimeZone;

use super::filters::FilterFlags;
use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer, bytes, harmless, span};
use super::{AgentAddress, Outcome, shown};
use crate::admin::TapLine;
use crate::flow::{RecordKind, TapEvent, TapHeader, TapLoss, TapWish};

const HELP: &str = "\
Examples:
  fairlead tap -n shop                          requests of a namespace, as they end
  fairlead tap --headers --path /cart -l 1      one request to /cart, with its headers
  fairlead tap --status 5xx,429 --headers       those that fail or are refused
  fairlead tap --method POST --min-latency 1s   slow writes
  fairlead tap --begin --path /chat             long streams, when they begin and when they end
  fairlead tap --sample 100 -o json             one in a hundred, one object a line
  fairlead tap -A --service shop/web            on all nodes of the cluster

A request is shown when its answer has ended; with --begin also when it begins, without what
only its end tells (begun in JSON). Nothing is noted while nobody taps, and a tap never slows a
request: what is more than --rate, or than this side reads, is left out and counted. Values of
headers that may be secret are shown as ***: authorization, cookie, set-cookie, x-api-key,
whatever has token, secret, session or the like in its name, and queries; --redact names more,
and so does --tap-redact of the agent. Bodies are never shown.";

/// Watch live requests, with their headers if asked
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// Show the headers of requests and answers.
    #[arg(short = 'H', long, env = "FAIRLEAD_HEADERS")]
    headers: bool,
    /// Show requests also when they begin: streams that go on for long are seen at once. Not
    /// where the filter asks for what only their end tells, such as --status.
    #[arg(long, env = "FAIRLEAD_BEGIN", conflicts_with = "sample")]
    begin: bool,
    #[command(flatten)]
    filter: FilterFlags,
    /// Only one of so many of those that match.
    #[arg(
        long,
        env = "FAIRLEAD_SAMPLE",
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N"
    )]
    sample: u32,
    /// Not more than so many in a second, of each node.
    #[arg(
        long,
        env = "FAIRLEAD_RATE",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..),
        value_name = "N"
    )]
    rate: u32,
    /// End after so many.
    #[arg(short = 'l', long, env = "FAIRLEAD_LIMIT", value_name = "N")]
    limit: Option<u64>,
    /// Also hide the values of these headers; several with commas.
    #[arg(
        long,
        env = "FAIRLEAD_REDACT",
        value_delimiter = ',',
        value_name = "HEADER"
    )]
    redact: Vec<String>,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

impl Command {
    pub(super) async fn run<W: Write>(self, printer: Printer<W>) -> anyhow::Result<Outcome> {
        let mut view = View::new(printer, self.format.output, TimeZone::system(), self.limit);
        if self.nodes.all_nodes {
            return self.nodes.tap(&self.wish(), view).await;
        }
        let mut client = self.agent.connect().await?;
        let mut lines = client.tap(&self.wish()).await?;
        while !view.has_enough()
            && let Some(line) = lines.next().await?
        {
            view.add(&line)?;
        }
        Ok(Outcome::Done)
    }

    fn wish(&self) -> TapWish {
        let mut filter = self.filter.filter();
        filter.kind = Some(RecordKind::Request);
        TapWish {
            filter,
            headers: self.headers,
            begin: self.begin,
            sample: self.sample,
            rate: self.rate,
            redact: self.redact.iter().map(|it| it.to_lowercase()).collect(),
        }
    }
}

/// Prints requests as they come.
#[derive(Debug)]
pub(super) struct View<W> {
    printer: Printer<W>,
    format: Format,
    zone: TimeZone,
    left: Option<u64>,
}

impl<W: Write> View<W> {
    pub(super) fn new(
        printer: Printer<W>,
        format: Format,
        zone: TimeZone,
        limit: Option<u64>,
    ) -> Self {
        Self {
            printer,
            format,
            zone,
            left: limit,
        }
    }

    /// As many were shown as were asked for.
    pub(super) fn has_enough(&self) -> bool {
        self.left == Some(0)
    }

    pub(super) fn add(&mut self, line: &TapLine) -> anyhow::Result<()> {
        match line {
            TapLine::Request(event, json) => {
                if !event.begun {
                    self.left = self.left.map(|left| left.saturating_sub(1));
                }
                match self.format {
                    Format::Table => self.request(event)?,
                    Format::Json => self.printer.line(json)?,
                    Format::Yaml => {
                        self.printer.line("---")?;
                        self.printer.value(Format::Yaml, event)?;
                    }
                }
            }
            TapLine::Lost(lost) => self.lost(*lost)?,
        }
        Ok(self.printer.flush()?)
    }

    fn request(&mut self, event: &TapEvent) -> anyhow::Result<()> {
        let flow = &event.flow;
        let Some(http) = &flow.http else {
            return Ok(());
        };
        let styles = self.printer.styles;
        let time = flow.time.to_zoned(self.zone.clone());
        let time = time.strftime("%H:%M:%S%.3f").to_string();
        let query = event.query.as_ref().map(|it| format!("?{it}"));
        let asked = format!("{}{}", shown::request(http), query.unwrap_or_default());
        if event.begun {
            let line = format!(
                "{}  {} -> {}  {}  begins",
                styles.paint(Paint::Dim, &time),
                harmless(&shown::source(&flow.source)),
                harmless(&shown::destination(&flow.destination)),
                styles.paint(Paint::Strong, &harmless(&asked)),
            );
            self.printer.line(&line)?;
            return self.headers('>', &event.request_headers);
        }
        let line = format!(
            "{}  {} -> {}  {}  {}  {}",
            styles.paint(Paint::Dim, &time),
            harmless(&shown::source(&flow.source)),
            harmless(&shown::destination(&flow.destination)),
            styles.paint(Paint::Strong, &harmless(&asked)),
            shown::status(http).show(styles),
            span(flow.duration_ms),
        );
        self.printer.line(&line)?;
        let mut facts = format!(
            "{} {} {}, {} up, {} down, {}",
            flow.direction.as_str(),
            flow.protocol.as_str(),
            flow.tls.as_str(),
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
            shown::reason(flow),
        );
        if let Some(upstream) = http.upstream {
            facts = format!("{facts}, served by {upstream}");
        }
        self.printer
            .painted(Paint::Dim, &format!("    {}", harmless(&facts)))?;
        self.headers('>', &event.request_headers)?;
        self.headers('<', &event.response_headers)
    }

    fn headers(&mut self, sign: char, headers: &[TapHeader]) -> anyhow::Result<()> {
        for header in headers {
            let text = format!("    {sign} {}: {}", header.name, header.value);
            self.printer.line(&harmless(&text))?;
        }
        Ok(())
    }

    fn lost(&mut self, lost: TapLoss) -> anyhow::Result<()> {
        let (slow, over) = (lost.slow_reader, lost.over_rate);
        match self.format {
            Format::Table => {
                let text = format!(
                    "{} more matched and are not shown: {over} over the rate, {slow} because this \
                     side read too slowly; narrow the filter, or give --sample or --rate",
                    slow + over
                );
                self.printer.painted(Paint::Warn, &text)?;
            }
            Format::Json => {
                let text = format!("{{\"lost\":{{\"slow_reader\":{slow},\"over_rate\":{over}}}}}");
                self.printer.line(&text)?;
            }
            Format::Yaml => {
                let text = format!("---\nlost:\n  slow_reader: {slow}\n  over_rate: {over}");
                self.printer.line(&text)?;
            }
        }
        Ok(())
    }

    /// What it wrote to.
    #[cfg(test)]
    pub(super) fn into_printer(self) -> Printer<W> {
        self.printer
    }
}
