//! Answers of the agents of all nodes, side by side.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use futures_util::stream::{SelectAll, Stream, StreamExt as _, unfold};
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;

use super::flows::View;
use super::output::{Format, Paint, Printer, harmless};
use super::status::{between, table};
use super::table::Cell;
use super::top::Rates;
use super::{Outcome, say};
use crate::admin::{
    Client, ClientError, FlowLine, FlowLines, Kind, Object, PodState, Severity, Status,
};
use crate::app::KubeArgs;
use crate::app::kubernetes::{self, NodeAgent};
use crate::flow::Filter;

/// How long an agent may take to answer: one that is stuck must not hide the others.
const ANSWER: Duration = Duration::from_secs(30);

/// Ask one agent or all.
#[derive(Debug, Args)]
pub(super) struct AllNodes {
    /// Ask the agents of all nodes of the cluster, through its API server.
    #[arg(short = 'A', long, env = "FAIRLEAD_ALL_NODES")]
    pub(super) all_nodes: bool,
    #[command(flatten)]
    kube: KubeArgs,
}

/// What one of them said.
#[derive(Debug, Serialize)]
pub(super) struct Answer<T> {
    /// Its node.
    pub(super) node: String,
    /// Its pod.
    pub(super) pod: String,
    /// What it said.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<T>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// A status under its name.
#[derive(Debug, Serialize)]
pub(super) struct StatusOf {
    pub(super) status: Status,
}

/// Objects under their name.
#[derive(Debug, Serialize)]
pub(super) struct ObjectsOf {
    objects: Vec<Object>,
}

impl AllNodes {
    pub(super) async fn agents(&self) -> anyhow::Result<Vec<NodeAgent>> {
        kubernetes::agents(&self.kube.access()).await
    }

    /// `fairlead status -A`
    pub(super) async fn status<W: Write>(
        &self,
        format: Format,
        printer: &mut Printer<W>,
    ) -> anyhow::Result<Outcome> {
        let answers = ask(self.agents().await?, async |mut client: Client| {
            let status = client.status().await?;
            Ok(StatusOf { status })
        })
        .await;
        match format {
            Format::Table => print_status(&answers, printer)?,
            Format::Json | Format::Yaml => printer.value(format, &answers)?,
        }
        printer.flush()?;
        let sound = answers.iter().all(|it| {
            let status = it.said.as_ref().map(|it| &it.status);
            status.is_some_and(|it| {
                let errors = it.problems.iter();
                let mut errors = errors.filter(|it| it.severity == Severity::Error);
                it.not_ready.is_empty() && errors.next().is_none()
            })
        });
        Ok(if sound {
            Outcome::Done
        } else {
            Outcome::Problem
        })
    }

    /// `fairlead get KIND -A`
    pub(super) async fn get<W: Write>(
        &self,
        (kind, namespace): (Kind, &str),
        format: Format,
        printer: &mut Printer<W>,
    ) -> anyhow::Result<Outcome> {
        let answers = ask(self.agents().await?, async |mut client: Client| {
            let objects = client.get(kind, namespace).await?;
            Ok(ObjectsOf { objects })
        })
        .await;
        if format == Format::Table {
            let objects = union(&answers)?;
            super::get::print(kind, &objects, Timestamp::now(), printer)?;
            silent(&answers, printer)?;
        } else {
            printer.value(format, &answers)?;
        }
        printer.flush()?;
        Ok(complete(&answers))
    }

    /// `fairlead top -A`: what each pod took of its node's proxy within some time.
    pub(super) async fn rates(&self, every: Duration) -> anyhow::Result<Vec<Answer<Rates>>> {
        let answers = ask(self.agents().await?, async |mut client: Client| {
            let before = client.usage().await?;
            tokio::time::sleep(every).await;
            let after = client.usage().await?;
            Ok(Rates::between(&before, &after))
        });
        Ok(answers.await)
    }

    /// `fairlead flows -A`
    pub(super) async fn flows<W: Write>(
        &self,
        filter: &Filter,
        follow: bool,
        mut view: View<W>,
    ) -> anyhow::Result<Outcome> {
        let mut streams = SelectAll::new();
        let mut outcome = Outcome::Done;
        for agent in self.agents().await? {
            let node = agent.node;
            let lines = match agent.client {
                Ok(mut client) => client.flows(filter, follow).await,
                Err(error) => Err(ClientError::Gone(error)),
            };
            match lines {
                Ok(lines) => streams.push(Box::pin(of_node(node, lines))),
                Err(error) => outcome = broken(&node, &error),
            }
        }
        if follow {
            while let Some((node, line)) = streams.next().await {
                match line {
                    Ok(line) => view.add(&line)?,
                    Err(error) => outcome = broken(&node, &error),
                }
                view.flush()?;
            }
        } else {
            let mut lines = Vec::new();
            while let Some((node, line)) = streams.next().await {
                match line {
                    Ok(line) => lines.push(line),
                    Err(error) => outcome = broken(&node, &error),
                }
            }
            for line in in_order(lines, filter.last) {
                view.add(&line)?;
            }
        }
        let _printer = view.finish()?;
        Ok(outcome)
    }
}

/// The records of one node; an error is the last item.
fn of_node(
    node: String,
    lines: FlowLines,
) -> impl Stream<Item = (String, Result<FlowLine, ClientError>)> {
    unfold(Some(lines), move |lines| {
        let node = node.clone();
        async move {
            let mut lines = lines?;
            match lines.next().await {
                Ok(line) => Some(((node, Ok(line?)), Some(lines))),
                Err(error) => Some(((node, Err(error)), None)),
            }
        }
    })
}

/// One node less; the others go on.
pub(super) fn broken(node: &str, error: &ClientError) -> Outcome {
    say(&format!("{node}: {error}"));
    Outcome::Problem
}

/// Asks all at once; in the order of their nodes.
pub(super) async fn ask<T>(
    agents: Vec<NodeAgent>,
    question: impl AsyncFn(Client) -> Result<T, ClientError>,
) -> Vec<Answer<T>> {
    let question = &question;
    join_all(agents.into_iter().map(|agent| async move {
        let answer = match agent.client {
            Ok(client) => match timeout(ANSWER, question(client)).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_elapsed) => Err(format!("no answer within {ANSWER:?}")),
            },
            Err(error) => Err(error),
        };
        let (answer, error) = match answer {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(error)),
        };
        Answer {
            node: agent.node,
            pod: agent.pod,
            said: answer,
            error,
        }
    }))
    .await
}

pub(super) fn complete<T>(answers: &[Answer<T>]) -> Outcome {
    if answers.iter().all(|it| it.error.is_none()) {
        Outcome::Done
    } else {
        Outcome::Problem
    }
}

pub(super) fn silent<T, W: Write>(
    answers: &[Answer<T>],
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    for answer in answers {
        if let Some(error) = &answer.error {
            let text = format!("{}: no answer: {error}", answer.node);
            printer.painted(Paint::Bad, &harmless(&text))?;
        }
    }
    Ok(())
}

/// A line for each node, and what is wrong below.
pub(super) fn print_status<W: Write>(
    answers: &[Answer<StatusOf>],
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    let headers = vec![
        "NODE",
        "READY",
        "VERSION",
        "UP",
        "PODS",
        "OPEN",
        "CERTIFICATES",
        "PROBLEMS",
    ];
    let rows = answers.iter().map(|answer| match &answer.said {
        Some(answer) => line(&answer.status),
        None => vec![
            answer.node.as_str().into(),
            Cell::painted(Paint::Bad, "no answer"),
        ],
    });
    table(printer, &(headers, rows.collect()), "")?;
    silent(answers, printer)?;
    for (message, nodes) in problems(answers) {
        let where_to = match nodes.as_slice() {
            [one] => (*one).to_owned(),
            all if all.len() == answers.len() => "all nodes".to_owned(),
            [first, ..] => format!("{first} and {} more nodes", nodes.len() - 1),
            [] => String::new(),
        };
        let text = format!("{where_to}: {message}");
        printer.painted(Paint::Bad, &harmless(&text))?;
    }
    Ok(())
}

fn line(status: &Status) -> Vec<Cell> {
    let enrolled = status.pods.iter();
    let enrolled = enrolled
        .filter(|pod| pod.state == PodState::Enrolled)
        .count();
    let valid = status.certificates.iter();
    let valid = valid.filter(|it| it.state == "valid").count();
    let of = |good: usize, all: usize| {
        let paint = if good == all { Paint::Good } else { Paint::Bad };
        Cell::painted(paint, &format!("{good}/{all}"))
    };
    let ready = if status.not_ready.is_empty() {
        Cell::painted(Paint::Good, "yes")
    } else {
        Cell::painted(Paint::Bad, "no")
    };
    let errors = status.problems.iter();
    let errors = errors.filter(|it| it.severity == Severity::Error).count();
    vec![
        status.node.as_str().into(),
        ready,
        status.version.as_str().into(),
        between(status.started, status.now).into(),
        of(enrolled, status.pods.len()),
        status.flows.open.to_string().into(),
        of(valid, status.certificates.len()),
        match errors {
            0 => Cell::from("0"),
            count => Cell::painted(Paint::Bad, &count.to_string()),
        },
    ]
}

/// What is wrong, and on which nodes: a bad object is a problem of each agent.
fn problems(answers: &[Answer<StatusOf>]) -> BTreeMap<String, Vec<&str>> {
    let mut found: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for answer in answers {
        let Some(StatusOf { status }) = &answer.said else {
            continue;
        };
        let errors = status.problems.iter();
        let errors = errors
            .filter(|it| it.severity == Severity::Error)
            .map(|it| format!("{}: {}", it.subject, it.message));
        let not_ready = status.not_ready.iter().map(|it| format!("not ready: {it}"));
        for message in errors.chain(not_ready) {
            found.entry(message).or_default().push(&answer.node);
        }
    }
    found
}

/// Each object once; agents see the same cluster.
fn union(answers: &[Answer<ObjectsOf>]) -> anyhow::Result<Vec<Object>> {
    let mut all = BTreeMap::new();
    for object in answers.iter().filter_map(|it| it.said.as_ref()) {
        for object in &object.objects {
            let text = serde_json::to_string(object)?;
            let _same = all.insert(text, object.clone());
        }
    }
    Ok(all.into_values().collect())
}

/// By their time, and of those so many of the newest as were asked for.
fn in_order(mut lines: Vec<FlowLine>, last: Option<usize>) -> Vec<FlowLine> {
    lines.sort_by_key(|line| match line {
        FlowLine::Flow(event, _) => Some(event.time),
        FlowLine::Missed(_) => None,
    });
    let surplus = last.map_or(0, |last| lines.len().saturating_sub(last));
    lines.split_off(surplus)
}

#[cfg(test)]
mod tests {
    use super::super::output::{Printer, Styles};
    use super::{Answer, StatusOf, in_order, print_status, problems};
    use crate::admin::FlowLine;
    use crate::admin::tests::status;
    use crate::flow::tests::event;

    fn answer(node: &str) -> Answer<StatusOf> {
        let mut status = status();
        status.node = node.to_owned();
        Answer {
            node: node.to_owned(),
            pod: format!("fairlead-agent-{node}"),
            said: Some(StatusOf { status }),
            error: None,
        }
    }

    #[test]
    fn each_node_has_a_line_and_each_problem_one() {
        let silent = Answer {
            node: "c".to_owned(),
            pod: "p".to_owned(),
            said: None,
            error: Some("the API server hung up".to_owned()),
        };
        let answers = [answer("a"), answer("b"), silent];
        let mut printer = Printer::new(Vec::new(), Styles::PLAIN);
        print_status(&answers, &mut printer).unwrap();
        let text = String::from_utf8(printer.into_inner()).unwrap();
        let lines = |with: &str| text.lines().filter(|line| line.starts_with(with)).count();
        assert_eq!(
            (lines("NODE"), lines("a  "), lines("b  ")),
            (1, 1, 1),
            "{text}"
        );
        assert!(
            text.contains("c: no answer: the API server hung up"),
            "{text}"
        );
        assert!(text.contains("a and 1 more nodes: "), "{text}");
        for nodes in problems(&answers).into_values() {
            assert_eq!(nodes, ["a", "b"]);
        }
    }

    #[test]
    fn the_answer_names_its_node_in_json() {
        let json = serde_json::to_value(answer("a")).unwrap();
        assert_eq!(
            (&json["node"], &json["status"]["node"]),
            (&"a".into(), &"a".into())
        );
    }

    #[test]
    fn flows_of_many_nodes_come_in_the_order_of_time() {
        let at = |second: i64| {
            let mut event = event();
            event.time = jiff::Timestamp::from_second(second).unwrap();
            FlowLine::Flow(Box::new(event), second.to_string())
        };
        let lines = in_order(vec![at(3), at(1), at(2)], Some(2));
        let texts: Vec<_> = lines
            .iter()
            .map(|line| match line {
                FlowLine::Flow(_, text) => text.as_str(),
                FlowLine::Missed(_) => "",
            })
            .collect();
        assert_eq!(texts, ["2", "3"]);
    }
}
