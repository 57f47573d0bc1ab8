//! Raw frames against the HTTP/2 server of an agent: the cases of h2spec that are about a
//! server's side, and floods.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stage::Stage;
use crate::mesh::run_python;

const SCRIPT: &str = include_str!("../../../scripts/h2_frames.py");

/// What the echo server of gRPC answers.
const PATH: &str = "/gateway_api_conformance.echo_basic.grpcecho.GrpcEcho/Echo";

pub(super) fn frames() -> Result<()> {
    let stage = Stage::up()?;
    let address = stage.address("echo")?.to_string();
    let output = run_python(stage.client(false), SCRIPT, &[&address, "7070", PATH])?;
    let result: Value =
        serde_json::from_str(output.stdout.trim()).with_context(|| output.stdout.clone())?;
    let cases = result["cases"].as_u64().unwrap_or_default();
    ensure!(cases > 60, "only {cases} cases");
    let failed = result["failed"].as_object().context("no result")?;
    ensure!(failed.is_empty(), "of {cases} cases: {failed:#?}");
    Ok(())
}
