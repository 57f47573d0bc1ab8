//! Questions about requests to the agents of all nodes.

use std::io::Write;

use futures_util::stream::{SelectAll, Stream, StreamExt as _, unfold};
use serde::Serialize;

use super::explain::{self, ended};
use super::nodes::{AllNodes, Answer, ask, broken, complete, silent};
use super::output::{Format, Paint, Printer, harmless};
use super::{Outcome, tap};
use crate::admin::{Client, ClientError, Explanation, RequestQuestion, TapLine, TapLines};
use crate::flow::TapWish;

impl AllNodes {
    /// `fairlead tap -A`
    pub(super) async fn tap<W: Write>(
        &self,
        wish: &TapWish,
        mut view: tap::View<W>,
    ) -> anyhow::Result<Outcome> {
        let mut streams = SelectAll::new();
        let mut outcome = Outcome::Done;
        for agent in self.agents().await? {
            let node = agent.node;
            let lines = match agent.client {
                Ok(mut client) => client.tap(wish).await,
                Err(error) => Err(ClientError::Gone(error)),
            };
            match lines {
                Ok(lines) => streams.push(Box::pin(tapped_on(node, lines))),
                Err(error) => outcome = broken(&node, &error),
            }
        }
        while !view.has_enough()
            && let Some((node, line)) = streams.next().await
        {
            match line {
                Ok(line) => view.add(&line)?,
                Err(error) => outcome = broken(&node, &error),
            }
        }
        Ok(outcome)
    }
}

/// An explanation under its name.
#[derive(Debug, Serialize)]
struct ExplanationOf {
    explanation: Explanation,
}

impl AllNodes {
    /// `fairlead explain -A`: source and destination, and the request where there is one.
    pub(super) async fn explain<W: Write>(
        &self,
        ((source, destination), question): ((&str, &str), Option<&RequestQuestion>),
        format: Format,
        printer: &mut Printer<W>,
    ) -> anyhow::Result<Outcome> {
        let answers = ask(self.agents().await?, async |mut client: Client| {
            let explanation = client.explain(source, destination, question).await?;
            Ok(ExplanationOf { explanation })
        })
        .await;
        if format == Format::Table {
            print_explanations(&answers, printer)?;
        } else {
            printer.value(format, &answers)?;
        }
        printer.flush()?;
        let said = answers.iter().filter_map(|it| it.said.as_ref());
        let mut outcomes = said.map(|it| ended(&it.explanation));
        Ok(match outcomes.find(|it| *it == Outcome::Problem) {
            Some(problem) => problem,
            None => complete(&answers),
        })
    }
}

/// What the client's own node says, and who says otherwise.
fn print_explanations<W: Write>(
    answers: &[Answer<ExplanationOf>],
    printer: &mut Printer<W>,
) -> anyhow::Result<()> {
    let said = answers.iter();
    let said: Vec<_> = said
        .filter_map(|it| Some((it.node.as_str(), &it.said.as_ref()?.explanation)))
        .collect();
    let own = said
        .iter()
        .find(|(node, it)| it.source.node.as_deref() == Some(*node));
    if let Some((node, own)) = own.or(said.first()) {
        explain::print(own, printer)?;
        let others: Vec<_> = said.iter().filter(|(_, it)| it != own).collect();
        let agreed = said.len() - others.len();
        let text = format!("said by {node}, and by {agreed} of {} nodes", answers.len());
        printer.painted(Paint::Dim, &harmless(&text))?;
        for (node, it) in others {
            let reason = it.outcome.reason.as_deref().unwrap_or("for other reasons");
            let verdict = it.outcome.verdict;
            let text = format!("{node} sees it otherwise: {verdict:?}, {reason}");
            printer.painted(Paint::Warn, &harmless(&text))?;
        }
    }
    silent(answers, printer)
}

/// The requests of one node; an error is the last item.
fn tapped_on(
    node: String,
    lines: TapLines,
) -> impl Stream<Item = (String, Result<TapLine, ClientError>)> {
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
