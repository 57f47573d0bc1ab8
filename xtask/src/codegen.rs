//! Rust from protobuf definitions, without protoc.
//!
//! In: `agent/proto/*.proto`. Out: committed files next to the module that uses
//! them, so that a build needs no generator.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Each definition and the directory of what is generated from it.
const TABLE: &[(&str, &str)] = &[
    ("istio_ca.proto", "agent/src/identity/generated"),
    ("admin.proto", "agent/src/admin/generated"),
];

/// Generates every file of the table. With `check` nothing is written, and files
/// that differ from what would be generated are an error.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = workspace_root()?;
    let protos = root.join("agent/proto");
    let mut stale = Vec::new();
    for (proto, output) in TABLE {
        if !protos.join(proto).exists() {
            continue;
        }
        for (path, text) in generate(&protos, proto, &root.join(output))? {
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
    }
    if !stale.is_empty() {
        bail!(
            "generated files are out of date, run `cargo xtask codegen`: {}",
            stale.join(", ")
        );
    }
    Ok(())
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

fn workspace_root() -> anyhow::Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = own.parent().context("xtask is inside the workspace")?;
    Ok(root.to_path_buf())
}
