//! The command line: one command per file.
//!
//! In: arguments, and the answers of the agent's socket ([`crate::admin::Client`]).
//! Out: tables for people, JSON and YAML for scripts, and an exit code: 0 done,
//! 1 found a problem, 2 wrong usage, 3 the agent can't be reached.

mod agent;
mod bridge;
mod ca;
mod check;
mod cleanup;
mod cni;
mod completions;
mod environment;
mod explain;
mod explain_request;
mod filters;
mod flows;
mod get;
mod get_routing;
mod install;
mod lint;
mod nodes;
mod nodes_requests;
mod output;
mod shown;
mod status;
mod table;
mod tap;
#[cfg(test)]
mod tests;
mod top;
mod uninstall;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::admin::{Client, ClientError};
pub use cni::run_plugin;
use output::{Colour, Printer, Styles};

const HELP: &str = "\
Start here:
  fairlead check                                   is this machine able to run the mesh?
  fairlead agent --node N1 --source dir:mesh --ca dir:ca    mesh the pods of node N1
  fairlead status                                  what is meshed, and what is wrong
  fairlead flows -f                                every connection and request as it ends
  fairlead tap --headers --path /cart              live requests, with their headers
  fairlead top                                     what each pod takes of the proxy, live
  fairlead explain shop/web-1 bank/ledger:80       may this pod talk to that service, and why?
  fairlead explain shop/web-1 shop/cart:80 --path /items    where does this request go, and why?

Exit codes: 0 done, 1 found a problem, 2 wrong usage, 3 the agent can't be reached.
Every flag can also be given as FAIRLEAD_<FLAG> in the environment.";

/// A service mesh without sidecars: eBPF redirection and one shared proxy per node.
#[derive(Debug, Parser)]
#[command(name = "fairlead", version, after_help = HELP, max_term_width = 100)]
pub struct Cli {
    /// When to use colours.
    #[arg(
        long,
        global = true,
        env = "FAIRLEAD_COLOR",
        default_value = "auto",
        value_name = "WHEN"
    )]
    color: Colour,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agent(Box<agent::Command>),
    Ca(ca::Command),
    Status(status::Command),
    Flows(flows::Command),
    Tap(tap::Command),
    Top(top::Command),
    Explain(explain::Command),
    Get(get::Command),
    Check(check::Command),
    Cleanup(cleanup::Command),
    Install(install::Install),
    Upgrade(install::Upgrade),
    Uninstall(uninstall::Command),
    Lint(lint::Command),
    Cni(cni::Command),
    Completions(completions::Command),
    #[command(hide = true)]
    Bridge(bridge::Command),
}

/// Which agent to ask.
#[derive(Debug, Args)]
struct AgentAddress {
    /// The run directory of the agent to ask.
    #[arg(
        long,
        env = "FAIRLEAD_RUN_DIR",
        default_value = "/run/fairlead",
        value_name = "PATH"
    )]
    run_dir: PathBuf,
}

impl AgentAddress {
    async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.run_dir).await
    }
}

/// How a command ended that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// It found a problem, or the answer is no.
    Problem,
}

/// Runs the command that the arguments name.
pub fn run(cli: Cli) -> ExitCode {
    if let Command::Cni(_) = cli.command {
        return run_plugin();
    }
    let printer = Printer::new(io::stdout().lock(), Styles::of_stdout(cli.color));
    exit_code(dispatch(cli.command, printer), cli.color)
}

fn dispatch(command: Command, printer: Printer<io::StdoutLock<'_>>) -> anyhow::Result<Outcome> {
    match command {
        Command::Agent(command) => {
            environment::reject_unknown(&Cli::command(), environment::names())?;
            command.run()
        }
        Command::Ca(command) => {
            environment::reject_unknown(&Cli::command(), environment::names())?;
            command.run()
        }
        Command::Status(command) => wait(command.run(printer)),
        Command::Flows(command) => wait(command.run(printer)),
        Command::Tap(command) => wait(command.run(printer)),
        Command::Top(command) => wait(command.run(printer)),
        Command::Explain(command) => wait(command.run(printer)),
        Command::Get(command) => wait(command.run(printer)),
        Command::Check(command) => command.run(printer),
        Command::Cleanup(command) => command.run(printer),
        Command::Install(command) => wait(command.run(printer)),
        Command::Upgrade(command) => wait(command.run(printer)),
        Command::Uninstall(command) => wait(command.run(printer)),
        Command::Bridge(command) => {
            // It holds the lock of standard output, which the bridge writes to.
            drop(printer);
            command.run()
        }
        Command::Lint(command) => command.run(printer),
        Command::Completions(command) => command.run(printer),
        // It is no command for people, and has its answer and exit code from elsewhere.
        Command::Cni(_) => Ok(Outcome::Done),
    }
}

/// Tells how far something is, beside what is printed in the end.
#[expect(
    clippy::print_stderr,
    reason = "standard output has the answer alone, for scripts"
)]
fn say(text: &str) {
    eprintln!("{}", output::harmless(text));
}

/// Runs a client on a runtime of its own.
fn wait(command: impl Future<Output = anyhow::Result<Outcome>>) -> anyhow::Result<Outcome> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

#[expect(
    clippy::print_stderr,
    reason = "the one place where a command's error is said"
)]
fn exit_code(result: anyhow::Result<Outcome>, colour: Colour) -> ExitCode {
    let error = match result {
        Ok(Outcome::Done) => return ExitCode::SUCCESS,
        Ok(Outcome::Problem) => return ExitCode::from(1),
        Err(error) => error,
    };
    let broken_pipe = |it: &io::Error| it.kind() == io::ErrorKind::BrokenPipe;
    if error.downcast_ref::<io::Error>().is_some_and(broken_pipe) {
        // The reader has seen enough, as with `| head`.
        return ExitCode::SUCCESS;
    }
    let styles = Styles::of_stderr(colour);
    eprintln!("{} {error:#}", styles.paint(output::Paint::Bad, "error:"));
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { source, .. }) => {
            eprintln!(
                "{} {}",
                styles.paint(output::Paint::Dim, "hint:"),
                hint(source)
            );
            ExitCode::from(3)
        }
        Some(ClientError::Gone(_)) => ExitCode::from(3),
        Some(ClientError::Refused(_) | ClientError::Answer(_)) | None => ExitCode::from(1),
    }
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "the agent's socket is for root only: try with sudo",
        _ => {
            "is the agent running? start it with `fairlead agent --node NAME --source dir:PATH \
             --ca dir:PATH`, or pass --run-dir of the one that runs"
        }
    }
}
