//! `fairlead top`

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::nodes::{AllNodes, complete, silent};
use super::output::{Format, FormatFlag, Paint, Printer, bytes};
use super::status::table;
use super::table::Cell;
use super::{AgentAddress, Outcome};
use crate::admin::{PodUsage, Usage};

const HELP: &str = "\
Examples:
  fairlead top                          the busiest pods, every two seconds, until Ctrl-C
  fairlead top --sort bytes -n shop     those of one namespace, by what they move
  fairlead top --once -o json           one look, for scripts
  fairlead top -A                       one look at all nodes of the cluster

CPU is the time that a thread of the proxy worked for the pod, of one processor. WAITS
counts how often in a second its work waited although it could have gone on, because its
turn was over and other pods may have wanted theirs: many of them say that the pod wants
more of a thread than there is. IN FLIGHT are requests that are not answered yet; MEMORY
is that of the pod's tasks and of what is kept for it. REFUSED counts connections and
requests that were one too many, since the pod is served.

What is between two pods of a node is the client's; between nodes each pays for its end.";

/// Between two looks the screen is emptied, and the cursor put into its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Show what each pod takes of the proxy: requests, bytes, processor time, memory
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// What the first pod of the list has most of.
    #[arg(long, env = "FAIRLEAD_SORT", default_value = "cpu", value_name = "KEY")]
    sort: Sort,
    /// Only pods of this namespace.
    #[arg(short, long, env = "FAIRLEAD_NAMESPACE")]
    namespace: Option<String>,
    /// Between two looks.
    #[arg(
        long,
        env = "FAIRLEAD_EVERY",
        default_value = "2s",
        value_parser = every,
        value_name = "TIME"
    )]
    every: Duration,
    /// Only one look; so it is also where the answer is no table, or goes to no terminal.
    #[arg(long, env = "FAIRLEAD_ONCE")]
    once: bool,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

/// By what pods are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Processor time.
    Cpu,
    /// Requests a second.
    Requests,
    /// Bytes a second, both ways.
    Bytes,
    /// Memory.
    Memory,
    /// Open connections.
    Connections,
    /// Their names.
    Name,
}

/// What the pods of a node took between two looks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Rates {
    pods: Vec<Rate>,
}

/// What one pod took.
#[derive(Clone, Debug, Serialize)]
struct Rate {
    node: String,
    namespace: String,
    pod: String,
    /// Of one processor.
    cpu_percent: f64,
    waits_per_second: f64,
    requests_per_second: f64,
    sent_bytes_per_second: f64,
    received_bytes_per_second: f64,
    connections: usize,
    requests_in_flight: usize,
    memory_bytes: usize,
    connections_refused: u64,
    requests_refused: u64,
}

fn every(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time >= Duration::from_millis(100) => Ok(time),
        Ok(_) => Err("at least 100ms".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let format = self.format.output;
        if self.nodes.all_nodes {
            let answers = self.nodes.rates(self.every).await?;
            let all = answers.iter().filter_map(|it| it.said.as_ref());
            let all = all.flat_map(|rates| rates.pods.iter().cloned());
            self.show(all.collect(), true, &mut printer)?;
            if format == Format::Table {
                silent(&answers, &mut printer)?;
            }
            printer.flush()?;
            return Ok(complete(&answers));
        }
        let mut client = self.agent.connect().await?;
        let live = !self.once && format == Format::Table && io::stdout().is_terminal();
        let mut before = client.usage().await?;
        loop {
            tokio::time::sleep(self.every).await;
            let after = client.usage().await?;
            let rates = Rates::between(&before, &after);
            if live {
                printer.raw(CLEAR)?;
            }
            self.show(rates.pods, false, &mut printer)?;
            printer.flush()?;
            if !live {
                return Ok(Outcome::Done);
            }
            before = after;
        }
    }

    fn show<W: Write>(
        &self,
        mut pods: Vec<Rate>,
        nodes: bool,
        printer: &mut Printer<W>,
    ) -> anyhow::Result<()> {
        if let Some(namespace) = &self.namespace {
            pods.retain(|pod| pod.namespace == *namespace);
        }
        pods.sort_by(|left, right| self.sort.compare(left, right));
        match self.format.output {
            Format::Table => print(&pods, nodes, printer),
            format @ (Format::Json | Format::Yaml) => printer.value(format, &pods),
        }
    }
}

impl Sort {
    /// The one with more comes first; of equals by name.
    fn compare(self, left: &Rate, right: &Rate) -> Ordering {
        let name = |rate: &Rate| (rate.namespace.clone(), rate.pod.clone(), rate.node.clone());
        let more = |what: fn(&Rate) -> f64| what(right).total_cmp(&what(left));
        match self {
            Self::Cpu => more(|rate| rate.cpu_percent),
            Self::Requests => more(|rate| rate.requests_per_second),
            Self::Bytes => more(Rate::bytes_per_second),
            Self::Memory => right.memory_bytes.cmp(&left.memory_bytes),
            Self::Connections => right.connections.cmp(&left.connections),
            Self::Name => Ordering::Equal,
        }
        .then_with(|| name(left).cmp(&name(right)))
    }
}

impl Rates {
    /// What was taken between two looks; of a pod that is new, since it is served.
    pub(super) fn between(before: &Usage, after: &Usage) -> Self {
        let seconds = Duration::from_micros(after.at_us.saturating_sub(before.at_us)).as_secs_f64();
        let before: HashMap<_, _> = before.pods.iter().map(|it| (key(it), it)).collect();
        let none = PodUsage::default();
        let rate = |pod: &PodUsage| {
            let known = before.get(&key(pod)).copied();
            // A pod that was replaced by one of its name begins anew.
            let old =
                known.filter(|old| old.busy_us <= pod.busy_us && old.sent_bytes <= pod.sent_bytes);
            rate(&after.node, (old.unwrap_or(&none), pod), seconds)
        };
        Self {
            pods: after.pods.iter().map(rate).collect(),
        }
    }
}

fn key(pod: &PodUsage) -> (&str, &str) {
    (&pod.namespace, &pod.name)
}

fn rate(node: &str, (old, new): (&PodUsage, &PodUsage), seconds: f64) -> Rate {
    #[expect(
        clippy::cast_precision_loss,
        reason = "within one look all are far less than 2^52"
    )]
    let each_second = |what: fn(&PodUsage) -> u64| {
        let grown = what(new).saturating_sub(what(old)) as f64;
        if seconds > 0.0 { grown / seconds } else { 0.0 }
    };
    Rate {
        node: node.to_owned(),
        namespace: new.namespace.clone(),
        pod: new.name.clone(),
        cpu_percent: each_second(|it| it.busy_us) / 1e4,
        waits_per_second: each_second(|it| it.turns_over),
        requests_per_second: each_second(|it| it.requests),
        sent_bytes_per_second: each_second(|it| it.sent_bytes),
        received_bytes_per_second: each_second(|it| it.received_bytes),
        connections: new.connections,
        requests_in_flight: new.requests_in_flight,
        memory_bytes: new.memory_bytes,
        connections_refused: new.connections_refused,
        requests_refused: new.requests_refused,
    }
}

impl Rate {
    fn bytes_per_second(&self) -> f64 {
        self.sent_bytes_per_second + self.received_bytes_per_second
    }

    fn cells(&self, node: bool) -> Vec<Cell> {
        let refused = self.connections_refused + self.requests_refused;
        let mut cells: Vec<Cell> = if node {
            vec![self.node.as_str().into()]
        } else {
            Vec::new()
        };
        cells.extend([
            format!("{}/{}", self.namespace, self.pod).into(),
            format!("{:.1}%", self.cpu_percent).into(),
            format!("{:.0}", self.waits_per_second).into(),
            format!("{:.0}", self.requests_per_second).into(),
            self.requests_in_flight.to_string().into(),
            per_second(self.sent_bytes_per_second),
            per_second(self.received_bytes_per_second),
            self.connections.to_string().into(),
            bytes(self.memory_bytes as u64).into(),
            match refused {
                0 => "0".into(),
                count => Cell::painted(Paint::Warn, &count.to_string()),
            },
        ]);
        cells
    }
}

fn per_second(rate: f64) -> Cell {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is a quotient of unsigned numbers; a fraction of a byte is none"
    )]
    let rate = rate as u64;
    format!("{}/s", bytes(rate)).into()
}

fn print<W: Write>(pods: &[Rate], nodes: bool, printer: &mut Printer<W>) -> anyhow::Result<()> {
    if pods.is_empty() {
        printer.painted(Paint::Dim, "no pod is served")?;
        return Ok(());
    }
    let mut headers = vec![
        "POD",
        "CPU",
        "WAITS/S",
        "REQ/S",
        "IN FLIGHT",
        "SENT",
        "RECEIVED",
        "OPEN",
        "MEMORY",
        "REFUSED",
    ];
    if nodes {
        headers.insert(0, "NODE");
    }
    let rows = pods.iter().map(|pod| pod.cells(nodes)).collect();
    table(printer, &(headers, rows), "")
}

#[cfg(test)]
mod tests {
    use super::super::output::Styles;
    use super::*;

    fn pod(name: &str, busy_us: u64, sent_bytes: u64) -> PodUsage {
        PodUsage {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            busy_us,
            sent_bytes,
            ..PodUsage::default()
        }
    }

    fn usage(at_us: u64, pods: Vec<PodUsage>) -> Usage {
        let node = "a".to_owned();
        Usage { node, at_us, pods }
    }

    #[test]
    fn rates_are_what_was_taken_between_two_looks() {
        let before = usage(1_000_000, vec![pod("web", 500_000, 1000)]);
        let after = usage(
            3_000_000,
            vec![pod("new", 0, 10), pod("web", 1_500_000, 5096)],
        );
        let rates = Rates::between(&before, &after).pods;
        let of = |index: usize| (rates[index].cpu_percent, rates[index].sent_bytes_per_second);
        assert_eq!((of(0), of(1)), ((0.0, 5.0), (50.0, 2048.0)));
    }

    #[test]
    fn a_pod_that_was_replaced_begins_anew() {
        let before = usage(0, vec![pod("web", 900, 1000)]);
        let after = usage(1_000_000, vec![pod("web", 100, 20)]);
        let rates = Rates::between(&before, &after).pods;
        assert!((rates[0].sent_bytes_per_second - 20.0).abs() < f64::EPSILON);
    }

    #[test]
    fn no_time_is_no_division() {
        let look = usage(5, vec![pod("web", 1, 1)]);
        let percent = Rates::between(&look, &look).pods[0].cpu_percent;
        assert!(percent.abs() < f64::EPSILON);
    }

    #[test]
    fn the_busiest_comes_first_and_equals_by_name() {
        let names = |sort: Sort| {
            let pods = vec![pod("b", 10, 0), pod("c", 10, 7), pod("a", 9, 0)];
            let mut pods = Rates::between(&usage(0, vec![]), &usage(1_000_000, pods)).pods;
            pods.sort_by(|left, right| sort.compare(left, right));
            pods.iter().map(|pod| pod.pod.clone()).collect::<String>()
        };
        assert_eq!(names(Sort::Cpu), "bca");
        assert_eq!(names(Sort::Bytes), "cab");
        assert_eq!(names(Sort::Name), "abc");
    }

    #[test]
    fn a_line_for_each_pod() {
        let pods = vec![pod("web", 123_456, 4096 * 1024)];
        let rates = Rates::between(&usage(0, vec![]), &usage(1_000_000, pods));
        let mut printer = Printer::new(Vec::new(), Styles::PLAIN);
        print(&rates.pods, true, &mut printer).unwrap();
        let text = String::from_utf8(printer.into_inner()).unwrap();
        let line = text.lines().nth(1).unwrap();
        let fields: Vec<_> = line
            .split("  ")
            .map(str::trim)
            .filter(|it| !it.is_empty())
            .collect();
        assert_eq!(
            fields,
            [
                "a",
                "shop/web",
                "12.3%",
                "0",
                "0",
                "0",
                "4.0 MiB/s",
                "0 B/s",
                "0",
                "0 B",
                "0"
            ]
        );
    }
}
