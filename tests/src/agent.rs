//! Running Fairlead itself: agents, the certificate authority, the command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::place::Place;
use crate::pod::Pod;
use crate::process::{self, Output, Process};
use crate::wait;
use crate::world::{Node, World};

/// How long an agent may take until it answers.
const START: Duration = Duration::from_mins(1);
/// How long a command of the command line may take.
const COMMAND: Duration = Duration::from_mins(1);
/// Where an authority listens.
const AUTHORITY_PORT: u16 = 15012;

/// The program `fairlead`: `$FAIRLEAD_BIN`, else the release or debug build beside
/// the running program.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("FAIRLEAD_BIN") {
        let path = PathBuf::from(path);
        if path.exists() {
            return Ok(path);
        }
        bail!(
            "FAIRLEAD_BIN names {}, which does not exist",
            path.display()
        );
    }
    let program = std::env::current_exe()?;
    let target = program
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .context("this program is not in a target directory")?;
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("fairlead"))
        .find(|path| path.exists())
        .context("not built: cargo xtask build")
}

/// How agents get certificates and what else they are told.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Arguments that name the CA. Empty: each agent of the world signs with one
    /// root in the world's directory.
    pub ca: Vec<String>,
    /// More arguments.
    pub arguments: Vec<String>,
    /// A command that starts the agent, such as `prlimit --nofile=256`.
    pub wrapper: Vec<String>,
    /// Another program than [`binary`].
    pub program: Option<PathBuf>,
}

/// An agent that runs on a node. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    /// The agent's process.
    pub process: Process,
    /// The command line for this agent.
    pub cli: Cli,
    /// Where it serves metrics and health, in its node's namespace.
    pub metrics: String,
    place: Place,
}

impl Agent {
    /// Starts an agent and waits until it answers.
    pub fn start(world: &World, node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::spawn(world, node, options)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts an agent and does not wait.
    pub fn spawn(world: &World, node: &Node, options: &AgentOptions) -> Result<Self> {
        let place = Place {
            cgroup: node.cgroup.join("agent"),
            ..node.host.clone()
        };
        fs::create_dir_all(&place.cgroup)?;
        let run_dir = world.directory().join("run").join(&node.name);
        fs::create_dir_all(&run_dir)?;
        let program = options.program.clone().map_or_else(binary, Ok)?;
        let metrics = "127.0.0.1:15020".to_owned();
        let mut command = match options.wrapper.split_first() {
            Some((wrapper, arguments)) => {
                let mut command = place.command(wrapper);
                let _: &mut Command = command.args(arguments).arg(&program);
                command
            }
            None => place.command(&program),
        };
        let mut defaults = kernel_arguments(world, node);
        let others = [
            "--source",
            &source(world),
            "--run-dir",
            &run_dir.display().to_string(),
            "--metrics-addr",
            &metrics,
            "--log-format",
            "text",
        ];
        defaults.extend(others.map(str::to_owned));
        let _: &mut Command = command
            .arg("agent")
            .args(without(&defaults, &options.arguments))
            .args(ca_arguments(world, options))
            .args(&options.arguments);
        Ok(Self {
            process: place.start("agent", &mut command)?,
            cli: Cli { program, run_dir },
            metrics,
            place,
        })
    }

    /// Waits until the agent answers the command line.
    pub fn wait_ready(&mut self) -> Result<()> {
        let answer = wait::until_ok("the agent's first answer", START, || {
            if let Some(status) = self.process.ended()? {
                return Ok(Err(anyhow::anyhow!("the agent ended early: {status}")));
            }
            let output = self.cli.run(&["status", "-o", "json"])?;
            // 1 says that there are problems to see, and so that the agent answers.
            if matches!(output.code(), 0 | 1) {
                return Ok(Ok(()));
            }
            bail!("{}{}", output.stdout, output.stderr)
        });
        answer
            .and_then(|inner| inner)
            .with_context(|| format!("its log:\n{}", self.process.output()))
    }

    /// Waits until the agent carries the traffic of these pods.
    pub fn wait_enrolled(&self, pods: &[&Pod]) -> Result<()> {
        wait::until_ok("enrolment", START, || {
            let status = self.status()?;
            let rows = status["pods"].as_array().cloned().unwrap_or_default();
            for pod in pods {
                let is = |row: &&Value| {
                    row["namespace"] == pod.namespace.as_str() && row["name"] == pod.name.as_str()
                };
                let state = rows
                    .iter()
                    .find(is)
                    .map_or(&Value::Null, |row| &row["state"]);
                if state != "enrolled" {
                    bail!("{} is {state}; {}", pod.full_name(), status["problems"]);
                }
            }
            Ok(())
        })
        .with_context(|| format!("its log:\n{}", self.process.output()))
    }

    /// Waits until nothing is missing, such as a certificate.
    pub fn wait_serving(&self) -> Result<()> {
        wait::until_ok("readiness", START, || {
            let status = self.status()?;
            let missing = &status["not_ready"];
            let none = missing.as_array().is_some_and(Vec::is_empty);
            anyhow::ensure!(none, "{missing}");
            Ok(())
        })
        .with_context(|| format!("its log:\n{}", self.process.output()))
    }

    /// What `fairlead status` says.
    pub fn status(&self) -> Result<Value> {
        let mut values = self.cli.json(&["status"])?;
        values.pop().context("status printed nothing")
    }

    /// The body of a page that it serves, such as `/metrics`.
    pub fn page(&self, path: &str) -> Result<String> {
        let url = format!("http://{}{path}", self.metrics);
        Ok(self.place.run(&["curl", "-sSf", &url])?.ok()?.stdout)
    }
}

/// Runs `fairlead cleanup` for a node whose agent has ended.
pub fn cleanup(world: &World, node: &Node) -> Result<Output> {
    cleanup_with(world, node, &[])
}

/// The same with more arguments.
pub fn cleanup_with(world: &World, node: &Node, arguments: &[&str]) -> Result<Output> {
    let mut command = node.host.command(binary()?);
    process::run(
        command
            .args(["cleanup", "--node", &node.name, "--bpffs"])
            .arg(world.bpffs())
            .args(arguments),
        COMMAND,
    )
}

/// The command line, pointed at one agent.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    run_dir: PathBuf,
}

impl Cli {
    /// The whole command as a person would type it.
    pub fn line(&self, arguments: &str) -> String {
        format!(
            "{} {arguments} --run-dir {}",
            self.program.display(),
            self.run_dir.display()
        )
    }

    /// Runs a command.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        process::without_own_variables(&mut command);
        process::run(
            command.args(arguments).arg("--run-dir").arg(&self.run_dir),
            COMMAND,
        )
    }

    /// Runs a command with `-o json` and reads what it prints: one value, or one a line.
    pub fn json(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.run(&[arguments, &["-o", "json"]].concat())?;
        if !matches!(output.code(), 0 | 1) {
            drop(output.ok()?);
            return Ok(Vec::new());
        }
        let values = serde_json::Deserializer::from_str(&output.stdout).into_iter();
        values
            .collect::<Result<_, _>>()
            .with_context(|| format!("fairlead {arguments:?} printed:\n{}", output.stdout))
    }
}

/// A certificate authority that runs on a node. Killed when dropped.
#[derive(Debug)]
pub struct Authority {
    /// Its process.
    pub process: Process,
    /// What agents name with `--ca`.
    pub url: String,
    /// Key and certificates.
    pub root: PathBuf,
    tokens: PathBuf,
}

impl Authority {
    /// Starts `fairlead ca` on a node, with a token for each node of the world, and
    /// waits until it listens.
    pub fn start(world: &World, node: &Node) -> Result<Self> {
        let root = world.directory().join("ca");
        let tokens = world.directory().join("tokens");
        fs::create_dir_all(&tokens)?;
        for node in world.nodes() {
            let token = format!("token-of-{}-{}", node.name, world.id());
            fs::write(tokens.join(&node.name), token)?;
        }
        let place = Place {
            cgroup: node.cgroup.join("ca"),
            ..node.host.clone()
        };
        fs::create_dir_all(&place.cgroup)?;
        let listen = format!("{}:{AUTHORITY_PORT}", node.ip4);
        let mut command = place.command(binary()?);
        let _: &mut Command = command
            .args(["ca", "--source", &source(world)])
            .args(["--root", &format!("dir:{}", root.display())])
            .args(["--listen", &listen])
            .arg("--node-tokens")
            .arg(&tokens);
        let mut process = place.start("ca", &mut command)?;
        wait::until("the CA's listener", START, || {
            match (place.listening(), process.ended()) {
                (Ok(ports), _) if ports.contains(&AUTHORITY_PORT) => Some(Ok(())),
                (_, Ok(Some(status))) => Some(Err(anyhow::anyhow!("it ended early: {status}"))),
                _ => None,
            }
        })
        .and_then(|inner| inner)
        .with_context(|| format!("fairlead ca: {}", process.output()))?;
        Ok(Self {
            process,
            url: format!("https://{listen}"),
            root,
            tokens,
        })
    }

    /// What the agent of a node is told.
    pub fn options_for(&self, node: &Node) -> AgentOptions {
        let file = |path: &Path| path.display().to_string();
        let arguments = [
            "--ca",
            &self.url,
            "--ca-token-file",
            &file(&self.tokens.join(&node.name)),
            "--ca-root",
            &file(&self.root.join("root-cert.pem")),
        ];
        AgentOptions {
            ca: arguments.map(str::to_owned).to_vec(),
            ..AgentOptions::default()
        }
    }
}

fn kernel_arguments(world: &World, node: &Node) -> Vec<String> {
    let arguments = [
        "--node",
        &node.name,
        "--cgroup",
        &node.cgroup.display().to_string(),
        "--bpffs",
        &world.bpffs().display().to_string(),
    ];
    arguments.map(str::to_owned).to_vec()
}

/// Flags with their values, but for those that `other` gives too.
fn without(flags: &[String], other: &[String]) -> Vec<String> {
    let kept = flags
        .chunks_exact(2)
        .filter(|pair| !other.contains(&pair[0]));
    kept.flatten().cloned().collect()
}

fn source(world: &World) -> String {
    format!("dir:{}", world.manifests().directory().display())
}

fn ca_arguments(world: &World, options: &AgentOptions) -> Vec<String> {
    if options.ca.is_empty() {
        let root = world.directory().join("ca");
        return vec!["--ca".to_owned(), format!("dir:{}", root.display())];
    }
    options.ca.clone()
}
