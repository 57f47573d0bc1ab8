//! `fairlead explain`

use std::io::Write;

use clap::Args;

use super::explain_request::{explain_request, sentence};
use super::nodes::AllNodes;
use super::output::{Format, FormatFlag, Paint, Printer, harmless};
use super::{AgentAddress, Outcome};
use crate::admin::{
    AccessLogStep, Candidate, ExplainedServer, ExplainedVerdict, Explanation, MtlsMode, PolicyStep,
    RequestQuestion,
};

const HELP: &str = "\
Examples:
  fairlead explain shop/web-1 bank/ledger:80
  fairlead explain 10.1.0.5 ledger.bank.svc.cluster.local:80
  fairlead explain shop/web-1 10.96.0.7:80 -o json
  fairlead explain shop/web-1 shop/cart:80 --method POST --path /items -H 'x-beta: yes'
  fairlead explain shop/web-1 shop/cart:80 --path /items -A     do all nodes agree?

With --method, --path, --header or --host it is about an HTTP request: which rule of which
route it is for and why not the others, what the rule does to it, where it may go with which
weights, which TrafficPolicies hold there, and what the policies of the servers say. Nothing
is sent: the agent decides as it would for a real connection or request. Ends with 0 where it
is permitted, with 1 where it is not or has nowhere to go.";

/// Show whether a pod may talk to a destination or make a request, and every step of the decision
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Command {
    /// The client: NAMESPACE/POD, or a pod's address.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The server: NAMESPACE/SERVICE, NAMESPACE/POD, SERVICE.NAMESPACE or an address, with its port.
    #[arg(value_name = "DESTINATION:PORT")]
    destination: String,
    /// The method of the request to ask about; GET where only others of its parts are given.
    #[arg(long, env = "FAIRLEAD_METHOD")]
    method: Option<String>,
    /// Its path, with a query where it has one.
    #[arg(long, env = "FAIRLEAD_PATH")]
    path: Option<String>,
    /// The host that it names; that of the destination if not given.
    #[arg(long, env = "FAIRLEAD_HOST")]
    host: Option<String>,
    /// One of its headers; may be given several times.
    #[arg(
        short = 'H',
        long = "header",
        env = "FAIRLEAD_HEADER",
        value_parser = header,
        value_name = "NAME: VALUE"
    )]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    nodes: AllNodes,
    #[command(flatten)]
    agent: AgentAddress,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| format!("\"{text}\" is not NAME: VALUE"))?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl Command {
    pub(super) async fn run<W: Write>(self, mut printer: Printer<W>) -> anyhow::Result<Outcome> {
        let question = self.question();
        let ends = (self.source.as_str(), self.destination.as_str());
        let format = self.format.output;
        if self.nodes.all_nodes {
            let asked = (ends, question.as_ref());
            return self.nodes.explain(asked, format, &mut printer).await;
        }
        let mut client = self.agent.connect().await?;
        let explanation = client.explain(ends.0, ends.1, question.as_ref()).await?;
        match format {
            Format::Table => print(&explanation, &mut printer)?,
            Format::Json | Format::Yaml => printer.value(format, &explanation)?,
        }
        printer.flush()?;
        Ok(ended(&explanation))
    }

    /// The request that is asked about, if one is.
    fn question(&self) -> Option<RequestQuestion> {
        let question = RequestQuestion {
            method: self.method.as_ref().map(|it| it.to_uppercase()),
            path: self.path.clone(),
            host: self.host.clone(),
            headers: self.headers.clone(),
        };
        (question != RequestQuestion::default()).then_some(question)
    }
}

/// Whether the answer is yes.
pub(super) fn ended(of: &Explanation) -> Outcome {
    match (of.outcome.verdict, of.outcome.status) {
        (ExplainedVerdict::Permitted | ExplainedVerdict::Passthrough, _)
        | (ExplainedVerdict::Answered, Some(..400)) => Outcome::Done,
        (
            ExplainedVerdict::Denied
            | ExplainedVerdict::Depends
            | ExplainedVerdict::Answered
            | ExplainedVerdict::Unavailable,
            _,
        ) => Outcome::Problem,
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
    access_log(&of.access_log, source.enrolled, &mut step)?;
    step.head(&format!("Destination {}", of.destination))?;
    for sentence in &of.resolution {
        step.say(Paint::Plain, sentence)?;
    }
    match &of.request {
        Some(request) => explain_request(request, &mut step)?,
        None => candidates(&of.candidates, &mut step)?,
    }
    for server in &of.servers {
        explain_server(server, &mut step)?;
    }
    verdict(of, step.printer)
}

/// What a meshed pod's node writes of it.
fn access_log<W: Write>(
    log: &[AccessLogStep],
    enrolled: bool,
    step: &mut Steps<'_, W>,
) -> anyhow::Result<()> {
    if log.is_empty() && enrolled {
        let text = "Its access log has nothing of it: no MeshPolicy says so.";
        step.say(Paint::Dim, text)?;
    }
    for AccessLogStep { policy, writes } in log {
        let text = format!("Its access log has {writes}, as {policy} says.");
        step.say(Paint::Plain, &text)?;
    }
    Ok(())
}

/// The endpoints, each on a line.
pub(super) fn candidates<W: Write>(
    candidates: &[Candidate],
    step: &mut Steps<'_, W>,
) -> anyhow::Result<()> {
    for candidate in candidates {
        let pod = candidate
            .pod
            .as_ref()
            .map_or_else(|| "no pod of the mesh".to_owned(), ToString::to_string);
        let text = format!("{} ({pod})", candidate.address);
        if candidate.skipped.is_empty() {
            step.say(Paint::Plain, &text)?;
        } else {
            let text = format!("{text}, skipped: {}", candidate.skipped);
            step.say(Paint::Dim, &text)?;
        }
    }
    Ok(())
}

/// Numbered headings with lines below.
pub(super) struct Steps<'a, W> {
    printer: &'a mut Printer<W>,
    number: usize,
}

impl<W: Write> Steps<'_, W> {
    pub(super) fn head(&mut self, text: &str) -> anyhow::Result<()> {
        self.number += 1;
        let text = format!("{}. {}", self.number, harmless(text));
        Ok(self.printer.painted(Paint::Strong, &text)?)
    }

    pub(super) fn say(&mut self, paint: Paint, text: &str) -> anyhow::Result<()> {
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
    access_log(&server.access_log, server.pod.enrolled, step)?;
    let selecting: Vec<&PolicyStep> = server.policies.iter().filter(|it| it.selects).collect();
    let others = server.policies.len() - selecting.len();
    if selecting.is_empty() {
        let text = "No authorization policy selects it, so whoever reaches it is permitted.";
        step.say(Paint::Plain, text)?;
    }
    for policy in selecting {
        explain_policy(policy, step)?;
    }
    for asked in &server.asks {
        step.say(Paint::Plain, &sentence(asked))?;
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
        ExplainedVerdict::Answered => ("ANSWERED by the mesh", Paint::Warn),
        ExplainedVerdict::Passthrough => ("PASSED ON as it is, outside the mesh", Paint::Warn),
    };
    let mut line = printer.styles.paint(paint, word);
    if let Some(status) = of.outcome.status {
        line = format!("{line} with {status}");
    }
    if let Some(reason) = &of.outcome.reason {
        line = format!("{line}: {}", harmless(reason));
    }
    if let Some(policy) = &of.outcome.policy {
        line = format!("{line}, decided by {}", harmless(policy));
    }
    Ok(printer.line(&format!("=> {line}"))?)
}
