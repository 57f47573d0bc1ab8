//! `cargo xtask test`: tests of every crate, then of the whole on this kernel.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{build, kubernetes, setup, ui, vm, workspace};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which tests.
    #[arg(long, value_enum, default_value_t = Tier::All)]
    tier: Tier,
    /// Run the tests of the whole under this series of Debian's kernels, such as 6.1, in QEMU. The crates' own
    /// tests, which no kernel changes, are left out.
    #[arg(long, value_name = "SERIES")]
    kernel: Option<vm::Series>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Where tests can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tier {
    /// Anywhere, without a network: the crates' own tests and what needs no agent.
    Pure,
    /// As root: namespaces, cgroup2, eBPF, real clients and servers.
    Node,
    /// As root: the same with a real Kubernetes API server, which is built first.
    Cluster,
    /// All of them.
    All,
}

impl Tier {
    /// What the names of its tests begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Pure => "pure::",
            Self::Node => "node::",
            Self::Cluster => "cluster::",
            Self::All => "",
        }
    }
}

/// The tiers whose tests the integration binary has.
const TIERS: [Tier; 3] = [Tier::Pure, Tier::Node, Tier::Cluster];

/// How long the tests may take under an emulated processor.
const VM_LIMIT: Duration = Duration::from_mins(40);

/// How many times longer the tests' own time limits are there.
const VM_PATIENCE: &str = "8";

/// Tests that are left out there unless the filter names them in full: they put load on the proxy or
/// test its protocol, which no kernel changes, and take an emulated processor many minutes. `curl_and_nginx` stays, and the redirection's own
/// test of many connections.
const NOT_IN_VM: [&str; 12] = [
    "applications::a_gibibyte_each_way_is_intact",
    "applications::grpc",
    "applications::no_connection_is_crossed",
    "applications::postgresql",
    "applications::redis",
    "applications::ten_thousand_short_connections",
    "applications::websocket",
    "browser::loads_a_page_and_talks_websocket",
    "calls::end_as_the_policy_says",
    "calls::of_every_kind_over_a_route_with_weights",
    "envoy::envoy_answers_a_meshed_pod",
    "envoy::envoy_dials_a_meshed_pod",
];

/// Variables that tests under another kernel see too.
const PASSED_ON: [&str; 4] = ["CI", "FAIRLEAD_CI", "RUST_BACKTRACE", "RUST_LOG"];

/// What one run of tests came to.
#[derive(Clone, Debug, Default)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Names and reasons of what failed or was skipped.
    notes: Vec<String>,
}

/// The task.
pub(crate) fn run(options: &Options) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    if options.tier != Tier::Pure && root {
        setup::for_running()?;
    } else {
        setup::for_building()?;
    }
    build::run()?;
    if let Some(series) = &options.kernel {
        return summarise(&[whole_under(series, options)?]);
    }
    let mut environment = environment().to_vec();
    if root && matches!(options.tier, Tier::Cluster | Tier::All) {
        environment.push((kubernetes::VARIABLE, kubernetes::obtain()?));
    }
    let mut suites = Vec::new();
    if matches!(options.tier, Tier::Pure | Tier::All) {
        let mut command = workspace::cargo();
        command.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--no-fail-fast",
            "--",
        ]);
        command.args(&options.filter);
        suites.push(suite("crates", &mut command)?);
    }
    suites.push(suite(
        "the whole",
        integration()
            .envs(environment)
            .arg("--")
            .args(selection(options)),
    )?);
    summarise(&suites)
}

/// `cargo test` of the integration binary, without the binary's own arguments.
fn integration() -> Command {
    let mut command = workspace::cargo();
    command.args(["test", "--package", "fairlead-tests", "--test", "fairlead"]);
    command
}

/// What the integration binary has to know.
fn environment() -> [(&'static str, PathBuf); 3] {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::iter::once(workspace::tools());
    let path = std::env::join_paths(tools.chain(std::env::split_paths(&path)));
    [
        ("PATH", path.unwrap_or_default().into()),
        ("FAIRLEAD_BIN", workspace::agent()),
        ("FAIRLEAD_PYTHON", workspace::python_packages()),
    ]
}

/// The arguments of the integration binary. Its filter is one substring, so that a
/// tier and a name can't both be given to it; the other tiers are skipped away instead.
fn selection(options: &Options) -> Vec<&str> {
    let Some(filter) = options.filter.as_deref() else {
        let prefix = options.tier.prefix();
        return if prefix.is_empty() {
            Vec::new()
        } else {
            vec![prefix]
        };
    };
    let mut arguments = vec![filter];
    for tier in TIERS {
        if options.tier != Tier::All && options.tier != tier {
            arguments.extend(["--skip", tier.prefix()]);
        }
    }
    arguments
}

/// Runs one `cargo test`, showing its output as it comes.
fn suite(name: &'static str, command: &mut Command) -> Result<(&'static str, Tally, Duration)> {
    ui::line(format_args!(
        "\n{}",
        ui::bold(format_args!("Tests: {name}"))
    ));
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for text in BufReader::new(output).lines() {
            tally.show(&text?);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not build, or died before it could count.
        tally.failed += 1;
        tally.notes.push(format!("failed: {name}: {status}"));
    }
    Ok((name, tally, start.elapsed()))
}

/// Builds the integration binary and runs it under another kernel.
fn whole_under(series: &vm::Series, options: &Options) -> Result<(&'static str, Tally, Duration)> {
    let binary = build_integration()?;
    let mut command = vec![binary.into_os_string()];
    command.extend(selection(options).into_iter().map(OsString::from));
    let left_out = NOT_IN_VM
        .iter()
        .filter(|test| options.filter.as_deref() != Some(**test));
    for test in left_out.clone() {
        command.extend(["--skip".into(), test.into()]);
    }
    // A control plane on an emulated processor says nothing of the kernel.
    command.extend(["--skip".into(), Tier::Cluster.prefix().into()]);
    let mut environment: Vec<_> = environment()
        .map(|(name, path)| (OsString::from(name), path.into_os_string()))
        .into();
    environment.push(("FAIRLEAD_PATIENCE".into(), VM_PATIENCE.into()));
    for name in PASSED_ON {
        environment.extend(std::env::var_os(name).map(|value| (name.into(), value)));
    }
    let job = vm::Job {
        command,
        environment,
        directory: workspace::root().join("tests"),
        timeout: VM_LIMIT,
    };
    let start = Instant::now();
    let mut tally = Tally::default();
    for test in left_out {
        let note = format!("not run on an emulated processor: {test}");
        tally.notes.push(note);
    }
    let code = vm::run(series, &job, &mut |text| tally.show(text))?;
    if code != 0 && tally.failed == 0 {
        tally.failed += 1;
        tally.notes.push(format!("failed: exit code {code}"));
    }
    Ok(("the whole, in QEMU", tally, start.elapsed()))
}

/// The path of the integration binary, which cargo alone knows.
fn build_integration() -> Result<PathBuf> {
    let output = integration()
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message["target"]["name"] == "fairlead" && message["target"]["kind"][0] == "test"
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo names no integration binary")
}

/// Headings of binaries that have no tests.
fn boring(text: &str) -> bool {
    text.is_empty()
        || text == "running 0 tests"
        || text.starts_with("test result: ok. 0 passed; 0 failed; 0 ignored")
}

impl Tally {
    /// Counts a line and prints it.
    fn show(&mut self, text: &str) {
        self.read(text);
        if !boring(text) {
            ui::line(text);
        }
    }

    fn read(&mut self, text: &str) {
        if let Some(result) = text.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.skipped += count(result, "ignored");
        } else if let Some(test) = text.strip_prefix("test ") {
            if test.trim_end().ends_with("... FAILED") {
                self.notes.push(format!("failed: {}", name_of(test)));
            } else if test.contains("... ignored") {
                self.notes.push(name_of(test));
            }
        }
    }
}

fn name_of(test: &str) -> String {
    test.split(" ... ").next().unwrap_or(test).trim().to_owned()
}

/// The number before a word, as in `3 passed; 1 failed`.
fn count(result: &str, word: &str) -> usize {
    let mut words = result
        .split([' ', ';', '.'])
        .filter(|word| !word.is_empty());
    let mut previous = "";
    words
        .find_map(|next| {
            let number = (next == word).then(|| previous.parse().ok());
            previous = next;
            number
        })
        .flatten()
        .unwrap_or(0)
}

fn summarise(suites: &[(&'static str, Tally, Duration)]) -> Result<()> {
    ui::line("");
    for (name, tally, elapsed) in suites {
        let mark = if tally.failed == 0 {
            ui::green("✓")
        } else {
            ui::red("✗")
        };
        ui::line(format_args!(
            "{mark} {name}: {} passed, {} failed, {} skipped {}",
            tally.passed,
            tally.failed,
            tally.skipped,
            ui::dim(format_args!("({})", ui::seconds(*elapsed)))
        ));
        for note in &tally.notes {
            ui::line(format_args!("    {note}"));
        }
    }
    let sum = |part: fn(&Tally) -> usize| suites.iter().map(|(_, t, _)| part(t)).sum::<usize>();
    let (passed, failed) = (sum(|t| t.passed), sum(|t| t.failed));
    let skipped = sum(|t| t.skipped);
    ui::line(format_args!(
        "{passed} passed, {failed} failed, {skipped} skipped"
    ));
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Options, Tally, Tier, selection};

    #[track_caller]
    fn selects(tier: Tier, filter: Option<&str>, expected: &[&str]) {
        let options = Options {
            tier,
            kernel: None,
            filter: filter.map(str::to_owned),
        };
        assert_eq!(selection(&options), expected);
    }

    #[test]
    fn a_filter_leaves_the_tier() {
        selects(Tier::All, None, &[]);
        selects(Tier::All, Some("mesh"), &["mesh"]);
        selects(Tier::Cluster, None, &["cluster::"]);
        let others = ["mesh", "--skip", "pure::", "--skip", "node::"];
        selects(Tier::Cluster, Some("mesh"), &others);
    }

    #[test]
    fn adds_up_what_the_runners_print() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 12 passed; 1 failed; 3 ignored; 0 measured; 5 filtered out");
        tally.read("test a::b ... FAILED");
        tally.read("test [skipped: needs root] node::x ... ignored");
        assert_eq!((tally.passed, tally.failed, tally.skipped), (12, 1, 3));
        assert_eq!(
            tally.notes,
            ["failed: a::b", "[skipped: needs root] node::x"]
        );
    }
}
