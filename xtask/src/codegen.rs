//! Rust from protobuf definitions, without protoc; and the definitions of our kinds for
//! Kubernetes from their Rust types.
//!
//! In: `agent/proto/*.proto` and `agent/src/cluster/api`. Out: committed files, the Rust
//! next to the module that uses it, the definitions in `deploy/crds/`, so that neither a
//! build nor an installation needs a generator.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use crate::workspace;

/// Each definition and the directory of what is generated from it.
const TABLE: &[(&str, &str)] = &[
    ("istio_ca.proto", "agent/src/identity/generated"),
    ("admin.proto", "agent/src/admin/generated"),
    (
        "envoy_auth.proto",
        "agent/src/proxy/http/external/generated",
    ),
    (
        "envoy_ratelimit.proto",
        "agent/src/proxy/http/external/generated",
    ),
];

/// Where the definitions of our kinds are.
const DEFINITIONS: &str = "deploy/crds";

/// Generates every file. With `check` nothing is written, and files that differ from what
/// would be generated are an error.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = workspace::root();
    let protos = root.join("agent/proto");
    let mut files = Vec::new();
    for (proto, output) in TABLE {
        if protos.join(proto).exists() {
            files.extend(generate(&protos, proto, &root.join(output))?);
        }
    }
    files.extend(definitions(&root.join(DEFINITIONS))?);
    let mut stale = Vec::new();
    for (path, text) in files {
        if fs::read_to_string(&path).is_ok_and(|current| current == text) {
            continue;
        }
        if check {
            stale.push(path.display().to_string());
            continue;
        }
        let directory = path.parent().context("a generated file has a directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    if !stale.is_empty() {
        bail!(
            "generated files are out of date, run `cargo xtask codegen`: {}",
            stale.join(", ")
        );
    }
    Ok(())
}

/// The definitions of our kinds, as the library has them.
fn definitions(output: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut command = workspace::cargo();
    let command = command.args([
        "run",
        "--quiet",
        "--package",
        "fairlead",
        "--example",
        "crds",
    ]);
    let answer = command.output().context("running the example crds")?;
    let errors = String::from_utf8_lossy(&answer.stderr);
    ensure!(answer.status.success(), "the example crds failed: {errors}");
    let files: BTreeMap<String, String> = serde_json::from_slice(&answer.stdout)?;
    let files = files.into_iter();
    Ok(files
        .map(|(name, text)| (output.join(name), text))
        .collect())
}

/// The files generated from one definition: where they belong, and their text.
fn generate(protos: &Path, proto: &str, output: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let descriptors = protox::compile([protos.join(proto)], [protos])
        .with_context(|| format!("compiling {proto}"))?;
    let scratch = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(scratch.path())
        .compile_fds(descriptors)
        .with_context(|| format!("generating from {proto}"))?;
    let mut files = Vec::new();
    for entry in fs::read_dir(scratch.path())? {
        let entry = entry?;
        let text = fs::read_to_string(entry.path())?;
        files.push((output.join(entry.file_name()), text));
    }
    files.sort();
    Ok(files)
}
