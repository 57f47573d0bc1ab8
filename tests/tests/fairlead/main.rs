//! Fairlead on a real kernel, with real clients and servers.
//!
//! Three tiers: `pure` needs nothing; `node` needs root, network namespaces, cgroup2
//! and eBPF; `cluster` needs a Kubernetes API server besides. A test that cannot run here is skipped and says what it needs; with
//! `FAIRLEAD_CI` or `CI` set it fails instead. The names that `--tier` of
//! `cargo xtask test` filters by begin with the tier.

mod all_nodes;
mod applications;
mod browser;
mod ca;
mod calls;
mod cluster;
mod command_line;
mod conformance;
mod connections;
mod deploy;
mod enrol;
mod envoy;
mod faults;
mod harness;
mod hbone;
mod install;
mod issuers;
mod kube;
mod mesh;
mod peer;
mod policies;
mod probes;
mod recipes;
mod redirect;
mod requests;
mod seen;
mod services;
mod upgrade;

use std::io::Write;
use std::process::ExitCode;

use fairlead_tests::{
    missing_for_cluster_tier, missing_for_node_tier, missing_programs, skips_are_failures,
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Where a test can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    /// Anywhere.
    Pure,
    /// On a machine that may be given namespaces and eBPF programs.
    Node,
    /// On such a machine with the programs of Kubernetes.
    Cluster,
}

/// What the tiers lack here.
#[derive(Debug)]
struct Missing {
    node: Vec<String>,
    cluster: Vec<String>,
}

/// What a test needs that no machine has by itself, and whether it is there.
type Given = (&'static str, fn() -> bool);

/// A test and what it needs.
#[derive(Clone, Copy, Debug)]
struct Test {
    name: &'static str,
    tier: Tier,
    programs: &'static [&'static str],
    /// Without it the test is skipped whatever the environment says.
    given: Option<Given>,
    run: fn() -> anyhow::Result<()>,
}

impl Test {
    const fn pure(name: &'static str, run: fn() -> anyhow::Result<()>) -> Self {
        Self {
            name,
            tier: Tier::Pure,
            programs: &[],
            given: None,
            run,
        }
    }

    const fn node(name: &'static str, run: fn() -> anyhow::Result<()>) -> Self {
        Self {
            name,
            tier: Tier::Node,
            programs: &[],
            given: None,
            run,
        }
    }

    const fn cluster(name: &'static str, run: fn() -> anyhow::Result<()>) -> Self {
        Self {
            name,
            tier: Tier::Cluster,
            programs: &[],
            given: None,
            run,
        }
    }

    const fn with(mut self, programs: &'static [&'static str]) -> Self {
        self.programs = programs;
        self
    }

    const fn given(mut self, what: &'static str, is_there: fn() -> bool) -> Self {
        self.given = Some((what, is_there));
        self
    }

    /// The test as the runner takes it; skipped or failing where something is missing.
    fn trial(self, missing: &Missing) -> Trial {
        let (prefix, mut missing) = match self.tier {
            Tier::Pure => ("pure", Vec::new()),
            Tier::Node => ("node", missing.node.clone()),
            Tier::Cluster => ("cluster", missing.cluster.clone()),
        };
        missing.extend(missing_programs(self.programs));
        let name = format!("{prefix}::{}", self.name);
        let not_given = self.given.filter(|(_, is_there)| !is_there());
        if missing.is_empty() && not_given.is_none() {
            return Trial::test(name, move || {
                (self.run)().map_err(|error| Failed::from(format!("{error:#}")))
            });
        }
        missing.extend(not_given.map(|(what, _)| what.to_owned()));
        let reason = format!("needs {}", missing.join(", "));
        if skips_are_failures() && not_given.is_none() {
            return Trial::test(name, move || Err(Failed::from(reason)));
        }
        let kind = format!("skipped: {reason}");
        Trial::test(name, || Ok(()))
            .with_kind(kind)
            .with_ignored_flag(true)
    }
}

fn main() -> ExitCode {
    let started: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("redirect-agent", rest)) = started.split_first().map(|(a, b)| (a.as_str(), b)) {
        return match redirect::agent::main(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                drop(writeln!(std::io::stderr(), "{error:#}"));
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // Each test is a world of processes of its own: more at once only makes them slow.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let missing = Missing {
        node: missing_for_node_tier(),
        cluster: missing_for_cluster_tier(),
    };
    let mut tests = vec![
        all_nodes::TESTS,
        applications::TESTS,
        browser::TESTS,
        ca::TESTS,
        calls::TESTS,
        command_line::TESTS,
        conformance::TESTS,
        connections::TESTS,
        deploy::TESTS,
        enrol::TESTS,
        envoy::TESTS,
        faults::TESTS,
        harness::TESTS,
        hbone::TESTS,
        install::TESTS,
        issuers::TESTS,
        kube::TESTS,
        policies::TESTS,
        probes::TESTS,
        recipes::TESTS,
        seen::TESTS,
        requests::TESTS,
        services::TESTS,
        upgrade::TESTS,
    ];
    tests.extend(redirect::TESTS);
    tests.extend(cluster::TESTS);
    let trials = tests
        .concat()
        .into_iter()
        .map(|test| test.trial(&missing))
        .collect();
    if missing.node.is_empty()
        && let Err(error) = fairlead_tests::sweep()
    {
        let failed = Trial::test("sweep", move || Err(Failed::from(format!("{error:#}"))));
        return libtest_mimic::run(&arguments, vec![failed]).exit_code();
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    fairlead_tests::cluster::end();
    conclusion.exit_code()
}
