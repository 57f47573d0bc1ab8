//! `fairlead explain`

use std::io::Write;

use clap::Args;

use super::output::{Format, FormatFlag, Paint, Printer, harmless};
use super::{AgentAddress, Outcome};
use crate::admin::{ExplainedServer, ExplainedVerdict, Explanation, MtlsMode, PolicyStep};

const HELP: &str = "\
Examples:
  fairlead explain shop/web-1 bank/ledger:80
  fairlead explain 10.1.0.5 ledger.bank.svc.cluster.local:80
  fairlead explain shop/web-1 10.96.0.7:80 -o json

Nothing is sent: the agent decides as it would for a real connection. Ends with 0 where
the connection is permitted, with 1 where it is not or has nowhere to go.";

/// Show whether a pod may talk to a destination, and every step of the decision
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// The client: NAMESPACE/POD, or a pod's address.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The server: NAMESPACE/SERVICE, NAMESPACE/POD, SERVICE.NAMESPACE or an address, with its port.
    #[arg(value_name = "DESTINATION:PORT")]
    destination: String,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    agent: AgentAddress,
}

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let mut client = self.agent.connect().await?;
        let explanation = client.explain(&self.source, &self.destination).await?;
        match self.format.output {
            Format::Table => print(&explanation, &mut printer)?,
            format @ (Format::Json | Format::Yaml) => printer.value(format, &explanation)?,
        }
        printer.flush()?;
        Ok(match explanation.outcome.verdict {
            ExplainedVerdict::Permitted | ExplainedVerdict::Passthrough => Outcome::Done,
            ExplainedVerdict::Denied
            | ExplainedVerdict::Depends
            | ExplainedVerdict::Unavailable => Outcome::Problem,
        })
    }
}

/// The explanation, step by step, and the verdict last.
pub(super) fn print<W: Write>(of: &Explanation, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let source = &of.source;
    let node = source.node.as_deref().unwrap_or("no node");
    let mut step = Steps { printer, number: 0 };
    let who = match &source.identity {
        Some(identity) if source.enrolled => format!("It is meshed on {node}, as {identity}."),
        _ => format!("It is on {node} and not meshed, so it has no identity."),
    };
    step.head(&format!("Client {}", source.name))?;
    step.say(Paint::Plain, &who)?;
    step.head(&format!("Destination {}", of.destination))?;
    for sentence in &of.resolution {
        step.say(Paint::Plain, sentence)?;
    }
    for candidate in &of.candidates {
        let pod = candidate
            .pod
            .as_ref()
            .map_or_else(|| "no pod of the mesh".to_owned(), ToString::to_string);
        let text = format!("{} ({pod})", candidate.address);
        if candidate.skipped.is_empty() {
            step.say(Paint::Plain, &text)?;
        } else {
            step.say(
                Paint::Dim,
                &format!("{text}, skipped: {}", candidate.skipped),
            )?;
        }
    }
    for server in &of.servers {
        explain_server(server, &mut step)?;
    }
    verdict(of, step.printer)
}

/// Numbered headings with lines below.
struct Steps<'a, W> {
    printer: &'a mut Printer<W>,
    number: usize,
}

impl<W: Write> Steps<'_, W> {
    fn head(&mut self, text: &str) -> anyhow::Result<()> {
        self.number += 1;
        let text = format!("{}. {}", self.number, harmless(text));
        Ok(self.printer.painted(Paint::Strong, &text)?)
    }

    fn say(&mut self, paint: Paint, text: &str) -> anyhow::Result<()> {
        let text = format!("     {}", harmless(text));
        Ok(self.printer.painted(paint, &text)?)
    }
}

fn explain_server<W: Write>(
    server: &ExplainedServer,
    step: &mut Steps<'_, W>,
) -> anyhow::Result<()> {
    step.head(&format!("Server {}, port {}", server.pod.name, server.port))?;
    let transport = match (&*server.transport, server.plaintext_because.as_deref()) {
        ("mtls", _) => "The connection crosses the network with mTLS.".to_owned(),
        ("same node", _) => {
            "Both pods are on one node: nothing crosses the network, and who the client is \
             is known from its network namespace."
                .to_owned()
        }
        (other, Some(why)) => format!("The connection is {other}: {why}."),
        (other, None) => format!("The connection is {other}."),
    };
    step.say(Paint::Plain, &transport)?;
    let mode = if server.mtls.mode == MtlsMode::Strict {
        "STRICT: only mTLS is taken"
    } else {
        "PERMISSIVE: plaintext is taken too"
    };
    let by = match &server.mtls.policy {
        Some(policy) => format!("as {policy} says"),
        None => "which is the default".to_owned(),
    };
    step.say(Paint::Plain, &format!("mTLS is {mode}, {by}."))?;
    let selecting: Vec<&PolicyStep> = server.policies.iter().filter(|it| it.selects).collect();
    let others = server.policies.len() - selecting.len();
    if selecting.is_empty() {
        let text = "No authorization policy selects it, so whoever reaches it is permitted.";
        step.say(Paint::Plain, text)?;
    }
    for policy in selecting {
        explain_policy(policy, step)?;
    }
    if others > 0 {
        step.say(
            Paint::Dim,
            &format!("{others} more in reach do not select it."),
        )?;
    }
    if !server.unenforced.is_empty() {
        step.say(
            Paint::Warn,
            &format!("Not enforced: {}.", server.unenforced),
        )?;
    }
    Ok(())
}

fn explain_policy<W: Write>(policy: &PolicyStep, step: &mut Steps<'_, W>) -> anyhow::Result<()> {
    let action = policy.action;
    let dry_run = if policy.dry_run { ", dry run" } else { "" };
    let text = format!(
        "{} ({action}{dry_run}) is for {}",
        policy.policy, policy.scope
    );
    step.say(Paint::Plain, &text)?;
    if let Some(invalid) = &policy.invalid {
        let text = format!("  it was not understood, so it denies: {invalid}");
        step.say(Paint::Bad, &text)?;
    }
    for rule in &policy.rules {
        let (word, paint) = if rule.matches {
            ("matches", Paint::Plain)
        } else {
            ("does not match", Paint::Dim)
        };
        let text = format!("  rule {} {word}: {}", rule.index, rule.why);
        step.say(paint, &text)?;
    }
    Ok(())
}

fn verdict<W: Write>(of: &Explanation, printer: &mut Printer<W>) -> anyhow::Result<()> {
    let (word, paint) = match of.outcome.verdict {
        ExplainedVerdict::Permitted => ("PERMITTED", Paint::Good),
        ExplainedVerdict::Denied => ("DENIED", Paint::Bad),
        ExplainedVerdict::Depends => ("IT DEPENDS on the back end", Paint::Warn),
        ExplainedVerdict::Unavailable => ("UNAVAILABLE", Paint::Bad),
        ExplainedVerdict::Passthrough => ("PASSED ON as it is, outside the mesh", Paint::Warn),
    };
    let mut line = printer.styles.paint(paint, word);
    if let Some(reason) = &of.outcome.reason {
        line = format!("{line}: {}", harmless(reason));
    }
    if let Some(policy) = &of.outcome.policy {
        line = format!("{line}, decided by {}", harmless(policy));
    }
    Ok(printer.line(&format!("=> {line}"))?)
}
