//! The profile MESH-GRPC: calls of grpcio.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_tests::until_ok;

use super::extended::route_of;
use super::manifests::{are_there, read};
use super::stage::{MESH, SCRIPT, Stage, all};
use crate::mesh::run_python;

/// The suite's service.
const ECHO: &str = "gateway_api_conformance.echo_basic.grpcecho.GrpcEcho";

/// Who answered how many calls, or how they ended.
type Answers = BTreeMap<String, u32>;

pub(super) fn calls() -> Result<()> {
    let stage = Stage::up()?;
    let call =
        |service: &str, method: &str, headers: &[&str]| ask(&stage, (service, method), 1, headers);
    let expect = |call: &dyn Fn() -> Result<Answers>, expected: &str| {
        until_ok(expected, Duration::from_secs(30), || {
            let answers = call()?;
            ensure!(
                answers.contains_key(expected),
                "{answers:?} instead of {expected}"
            );
            Ok(())
        })
    };
    let exact = format!(
        "  - matches: [{{method: {{service: {ECHO}, method: Echo}}}}]
    backendRefs: [{{name: echo-v1, port: 7070}}]
  - matches: [{{method: {{service: {ECHO}, method: EchoTwo}}}}]
    backendRefs: [{{name: echo-v2, port: 7070}}]
  - matches: [{{headers: [{{name: version, value: two}}]}}]
    backendRefs: [{{name: echo-v2, port: 7070}}]
  - matches: [{{method: {{service: nowhere}}}}]
    backendRefs: [{{name: nonexistent, port: 7070}}]"
    );
    let manifests = stage.world.manifests();
    manifests.write("grpc.yaml", &route_of("GRPCRoute", MESH, "echo", &exact))?;
    let matched = all([
        expect(&|| call(ECHO, "Echo", &[]), "echo-v1"),
        expect(&|| call(ECHO, "EchoTwo", &[]), "echo-v2"),
        expect(&|| call(ECHO, "EchoThree", &[]), "UNIMPLEMENTED"),
        expect(&|| call(ECHO, "EchoThree", &["version=two"]), "echo-v2"),
        expect(&|| call("nowhere", "Echo", &[]), "UNAVAILABLE"),
    ]);
    manifests.remove("grpc.yaml")?;
    all([matched, weights(&stage)])
}

/// The suite's manifest where it is there, else one like it.
fn weights(stage: &Stage) -> Result<()> {
    let own = || {
        let rules = "  - backendRefs:
    - {name: echo-v1, port: 7070, weight: 70}
    - {name: echo-v2, port: 7070, weight: 30}
    - {name: echo-v3, port: 7070, weight: 0}";
        route_of("GRPCRoute", MESH, "echo", rules)
    };
    let manifest = if are_there() {
        read("grpcroute-weight.yaml")?
    } else {
        own()
    };
    stage.world.manifests().write("grpc.yaml", &manifest)?;
    until_ok(
        "7 of 10 calls to the first",
        Duration::from_secs(20),
        || {
            let answers = ask(stage, (ECHO, "Echo"), 300, &[])?;
            let of = |name: &str| answers.get(name).copied().unwrap_or_default();
            let (first, second) = (of("echo-v1"), of("echo-v2"));
            ensure!(first + second == 300, "{answers:?}");
            ensure!((180..=240).contains(&first), "{answers:?}");
            Ok(())
        },
    )
}

fn ask(
    stage: &Stage,
    (service, method): (&str, &str),
    count: u32,
    headers: &[&str],
) -> Result<Answers> {
    let (address, count) = (stage.address("echo")?.to_string(), count.to_string());
    let mut arguments = vec!["call", &address, "7070", service, method, &count];
    arguments.extend(headers);
    let output = run_python(stage.client(false), SCRIPT, &arguments)?;
    serde_json::from_str(output.stdout.trim()).with_context(|| output.stdout.clone())
}
